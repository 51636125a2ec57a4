"""Several processes learn what one learns; whoever is broken, or breaks, is found and named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sharing import learn_shared
from tiny import run_group, workload

from attnbench.attention import Unsupported
from attnbench.train.figures import Training
from attnbench.train.ranks import blame
from attnbench.train.ranks.blame import Seen
from attnbench.train.ranks.group import check_parallel, devices_of
from attnbench.train.ranks.trainer import Share, whole_of
from attnbench.train.truth import Truth
from attnbench.train.workload import Workload

CPU = torch.device("cpu")
TEXT = {"model": "t5-tiny", "task": "translation", "seqlen": 64, "steps": 4}  # of unequal lengths


def shared(parallel: str, **fields: Any) -> Workload:
    return workload(parallel=parallel, processes=2, **fields)


def parity(of: Workload, losses: list[float]) -> Any:
    """Of a shared curve with that of a single process, by the bound of ``bound``."""
    truth = Truth(whole_of(of), CPU, 0, lambda: None)
    truth.find()
    return truth.parity(losses, "exact")


# ---- the same curve ------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_learn_as_one_does(parallel: str) -> None:
    of = shared(parallel, clip=0.05)  # so small that every step is clipped
    one, other = learn_shared(of)
    found = parity(of, one["losses"])
    assert found.ok, found
    assert one["sums"] == other["sums"], "both end with the same parameters"
    assert one["evaluations"] == other["evaluations"]
    whole = sum(p.numel() for p in whole_model(of).parameters()) * 4
    share = (one["held"] + other["held"]) / whole
    assert share == 2 if parallel == "ddp" else 1 <= share < 1.1  # small ones are padded


def whole_model(of: Workload) -> torch.nn.Module:
    from attnbench.train.attentions import reference
    from attnbench.train.setup import make_trainer

    return make_trainer(whole_of(of), reference(), CPU, 0).model


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    "fields",
    [
        TEXT,
        {**TEXT, "accumulation": 2},
        {"model": "bert-tiny", "task": "text", "objective": "masked-lm", "seqlen": 64},
        {"model": "gpt2-tiny", "precision": "bf16"},
        {"precision": "fp16"},
        {"checkpointing": True},
        {"finetune": "lora"},
        {"finetune": "frozen"},
        {"optimizer": "sgd", "beta2": 0.95, "lr": 0.1},
        {"task": "listops", "seqlen": 32},
    ],
    ids=str,
)
def test_two_processes_learn_as_one_does_in_every_way(
    parallel: str, fields: dict[str, Any]
) -> None:
    of = shared(parallel, **fields)
    one, other = learn_shared(of)
    found = parity(of, one["losses"])
    assert found.ok, found
    assert one["sums"] == other["sums"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_compile_where_they_are_told_to(parallel: str) -> None:
    """Around the model, whatever is around that: the losses alone do not tell."""
    of = shared(parallel, accumulation=2, steps=3)
    plain, _ = learn_shared(of)
    one, other = learn_shared(of.replace(compile=True))
    assert plain["graphs"] == 0
    assert one["graphs"] >= 1
    assert one["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert one["sums"] == other["sums"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_what_a_method_learns_is_shared_too(parallel: str) -> None:
    from tiny import attention

    from attnbench.train.data import make_task
    from attnbench.train.learning import learn
    from attnbench.train.setup import make_trainer

    fields = {"model": "bert-tiny", "task": "text", "objective": "masked-lm", "seqlen": 64}
    of = shared(parallel, **fields)
    whole = whole_of(of)
    alone = learn(make_trainer(whole, attention("linformer"), CPU, 0), make_task(whole, 0), 0)
    one, _ = learn_shared(of, "linformer")
    assert one["losses"] == pytest.approx(alone.losses, abs=1e-5)


BROKEN: dict[str, dict[str, Any]] = {
    "no averaging": {},
    "same rows": {},
    "summed": {},
    "own mean": TEXT,
}


@pytest.mark.parametrize("how", ["no averaging", pytest.param("same rows", marks=pytest.mark.slow),
                                 pytest.param("summed", marks=pytest.mark.slow),
                                 pytest.param("own mean", marks=pytest.mark.slow)])  # fmt: skip
def test_wrong_sharing_is_caught_by_the_curve(how: str) -> None:
    of = shared("ddp", **BROKEN[how])
    one, _ = learn_shared(of, broken=how)
    found = parity(of, one["losses"])
    assert not found.ok
    assert found.ratio > 10


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(parallel: str) -> None:
    of = shared(parallel, precision="fp16", steps=3, warmup=0)
    one, other = learn_shared(of, broken="overflow")
    assert one["sums"] == other["sums"]
    assert one["skipped"] == other["skipped"] == 3


def test_ranks_share_the_rows_that_one_process_has() -> None:
    of = shared("ddp")
    whole = Truth(whole_of(of), CPU, 0, lambda: None).task.batch(3)
    shares = [Share(of, 0, rank, None).batch(3) for rank in range(2)]
    for name, tensor in whole.inputs.items():
        assert torch.equal(torch.cat([s.inputs[name] for s in shares]), tensor)
    assert sum(share.tokens for share in shares) == whole.tokens == 2 * 4 * 16


# ---- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"parallel": "context"}, "attention across ranks is an implementation by itself, 'ring'"),
        ({"batch": 0}, "batch 0: the largest that fits is looked for in one process"),
        ({"distillation": 0.5}, "a teacher learns in one process"),
        (
            {"loss": "contrastive", "objective": "matching", "model": "pair-tiny"},
            "a contrastive loss over ranks is not that of the whole batch",
        ),
    ],
)
def test_what_ranks_cannot_do_is_unsupported_with_its_reason(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        check_parallel(Workload.of(**{"parallel": "ddp", "processes": 2, **fields}))


def test_more_ranks_than_gpus_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of(torch.device("cuda:0"), 2) == ["cuda:0", "cuda:1"]
    with pytest.raises(Unsupported, match="2 ranks need a GPU each from cuda:1 on; torch sees 2"):
        devices_of(torch.device("cuda:1"), 2)
    assert devices_of(CPU, 3) == ["cpu"] * 3


# ---- who is to blame -----------------------------------------------------------------------


def failed(at: float, reason: str, *, is_lost: bool) -> dict[str, Any]:
    return {"at": at, "status": "error", "reason": reason, "log": "…", "is_lost": is_lost}


LOST = failed(1.0, "RuntimeError: Connection closed by peer", is_lost=True)


@pytest.mark.parametrize(
    ("failures", "exits", "status", "reason"),
    [
        ({0: LOST}, {0: 1, 1: -signal.SIGKILL}, "crash",
         "rank 1 of 2 was killed by SIGKILL (kill -9 from outside); its last line: oh no"),
        ({0: LOST, 1: failed(2.0, "ValueError: no", is_lost=False)}, {0: 1, 1: 1}, "error",
         "rank 1 of 2: ValueError: no"),
        ({1: failed(2.0, "ValueError: no", is_lost=False)}, {0: -signal.SIGABRT, 1: 1}, "error",
         "rank 1 of 2: ValueError: no"),
        ({0: LOST}, {0: -signal.SIGTERM, 1: 3}, "crash",
         "rank 1 of 2 exited with code 3; its last line: oh no"),
        ({}, {0: -signal.SIGTERM, 1: -signal.SIGSEGV}, "crash",
         "rank 1 of 2 was killed by SIGSEGV; its last line: oh no"),
        ({0: LOST}, {}, "error", "rank 0 of 2: RuntimeError: Connection closed by peer"),
        ({}, {}, "error", "torchrun ended without its ranks; its last line: no port"),
    ],
)  # fmt: skip
def test_the_first_cause_is_blamed_and_not_who_it_took_along(
    tmp_path: Path, failures: Any, exits: Any, status: str, reason: str
) -> None:
    log = tmp_path / "logs" / "run" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("first\noh no\n")
    (tmp_path / "agent.log").write_text("no port\n")
    seen = Seen(2, tmp_path / "logs", tmp_path / "agent.log", failures=failures, exits=exits)
    found = blame.of(seen, is_oom=False)
    assert (found.status, found.reason) == (status, reason)


def test_the_kernels_killing_for_memory_is_told_as_such(tmp_path: Path) -> None:
    seen = Seen(2, tmp_path, tmp_path / "none", exits={1: -signal.SIGKILL})
    found = blame.of(seen, is_oom=True)
    assert found.status == "oom"
    assert found.reason == (
        "rank 1 of 2 was killed by SIGKILL by the kernel: the machine ran out of memory"
    )


# ---- real ranks ----------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ranks of this test keep their files, by which they are told from others'."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_behind(own: Path) -> list[str]:
    """Processes of ranks that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "attnbench.train.ranks" in command and str(own) in command:
            found.append(command)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_group_gives_each_contender_its_own_ranks(parallel: str, own: Path) -> None:
    told = run_group(shared(parallel), "fair", "learned", "leaks", "window", "raises", "tires")
    assert {who: t["status"] for who, t in told.items()} == {
        "fair": "ok", "learned": "ok", "leaks": "incorrect", "window": "ok", "raises": "error",
        "tires": "incorrect",
    }  # fmt: skip
    training = Training.model_validate(told["fair"]["training"])
    assert (training.batch, training.tokens) == (8, 128), "of both ranks"
    assert training.parity.ok
    assert training.ranks is not None
    assert training.ranks.processes == len(training.ranks.peak_bytes) == 2
    assert training.ranks.backend == "gloo"
    assert max(training.ranks.peak_bytes) == training.memory.peak_bytes
    assert told["fair"]["samples"]["method"].endswith("to the end of the slowest rank")
    assert not left_behind(own)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_rank_that_fails_is_named_and_the_others_go_on(parallel: str, own: Path) -> None:
    told = run_group(
        shared(parallel), "killed-on-one", "hangs-on-one", "raises-on-one", "leaves-on-one",
        "fair", timeout_s=25.0,
    )  # fmt: skip
    found = {who: (t["status"], (t.get("reason") or "").split(";")[0]) for who, t in told.items()}
    hung = found.pop("hangs-on-one")
    assert found == {
        "killed-on-one": ("crash", "rank 1 of 2 was killed by SIGKILL (kill -9 from outside)"),
        "raises-on-one": ("error", "rank 1 of 2: ArithmeticError: cannot go on"),
        "leaves-on-one": ("crash", "rank 1 of 2 exited with code 3"),
        "fair": ("ok", ""),
    }
    assert hung[0] == "timeout"
    assert "no sign of life for 20 s: rank 1 of 2 is in wait_for_nothing" in hung[1]
    assert "the others wait for it" in told["hangs-on-one"]["reason"]
    assert not left_behind(own)


@pytest.mark.slow
def test_ranks_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "from tiny import run_group, workload\n"
        "of = workload(parallel='ddp', processes=2)\n"
        "run_group(of, 'hangs-on-one', timeout_s=300.0)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    worker = subprocess.Popen(
        [sys.executable, str(script)],
        env={**environment, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
    )
    try:
        wait_until(lambda: len(left_behind(tmp_path)) == 3)
    finally:
        worker.kill()
        worker.wait()
    wait_until(lambda: not left_behind(tmp_path))


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("never")
