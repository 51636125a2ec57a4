"""Whatever a plugin does, it gets its own status and its neighbours get their figures."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import BROKEN, command, environment, measure, write_suite

from attnbench.process import Worker
from attnbench.record import Record
from attnbench.runner import Runner
from attnbench.session import Session, open_session
from attnbench.store import load
from attnbench.suite import load_suite

Records = dict[tuple[str, str], Record]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One session over all broken plugins; its device is not held."""
    project = tmp_path_factory.mktemp("project")
    with open_session(project, "cpu", [BROKEN], lock=False) as opened:
        yield opened


def sweep(session: Session, tmp_path: Path, *impls: str, **suite: object) -> Records:
    return measure(session, write_suite(tmp_path, impls, **suite), tmp_path)  # type: ignore[arg-type]


def statuses(records: Records) -> dict[str, str]:
    return {spec: record.status for (spec, _), record in records.items()}


def reasons(records: Records) -> dict[str, str]:
    return {spec: record.reason or "" for (spec, _), record in records.items()}


# ---- what a record holds -----------------------------------------------------------------


def test_a_record_tells_the_parts_of_memory_and_what_ran(session: Session, tmp_path: Path) -> None:
    records = sweep(session, tmp_path, "naive", direction=["forward", "backward", "both"])
    for (_, where), record in records.items():
        memory, names = record.memory, {kernel["name"] for kernel in record.kernels}
        assert memory is not None
        assert memory.note is None
        assert (memory.saved_bytes is None) == ("forward" in where)
        assert (memory.forward_peak_bytes is None) == ("backward" in where)
        assert ("aten::_softmax" in names) == ("backward" not in where)
        assert ("aten::_softmax_backward_data" in names) == ("forward" not in where)


CHOOSING = """
from torch.nn.functional import scaled_dot_product_attention as attend
from attnbench import Attention, register

class Chosen:
    choices = {"forward": "128x64 w8 (tuned)", "split": 4}

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, q, k, v):
        return attend(q, k, v) * self.factor

@register("chooses")
class Chooses(Attention):
    def build(self, problem, device):
        return Chosen(1)

@register("chooses-badly")
class Badly(Attention):
    def build(self, problem, device):
        return Chosen(2)
"""


def test_a_record_tells_what_build_chose_be_it_right_or_wrong(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "choosing.py").write_text(CHOOSING)
    with open_session(tmp_path, "cpu", [tmp_path / "plugins"], lock=False) as opened:
        records = sweep(opened, tmp_path, "chooses", "chooses-badly", "naive")
    assert statuses(records) == {"chooses": "ok", "chooses-badly": "incorrect", "naive": "ok"}
    chosen = {spec: record.implementation.choices for (spec, _), record in records.items()}
    told = {"forward": "128x64 w8 (tuned)", "split": 4}
    assert chosen == {"chooses": told, "chooses-badly": told, "naive": {}}
    specs = [record.implementation.spec for record in records.values()]
    assert sorted(specs) == ["chooses", "chooses-badly", "naive"]  # no part of who it is


def test_malloc_is_fixed_in_a_worker_unless_the_user_has_set_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    with Worker("cpu", tmp_path) as worker:
        assert list(worker.ask({"do": "environment", "device": "cpu"}, 60))  # it has begun
        started = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert b"MALLOC_MMAP_THRESHOLD_=33554432" in started
    assert b"MALLOC_TRIM_THRESHOLD_=4096" in started


# ---- wrong answers -----------------------------------------------------------------------


def test_wrong_answers_are_incorrect_and_the_healthy_beside_them_are_measured(
    session: Session, tmp_path: Path
) -> None:
    records = sweep(
        session, tmp_path, "wrong-*", "healthy*", seqlen=[16, 17], direction=["forward", "both"]
    )
    forward_is_right = {"wrong-dk", "wrong-gradients-given", "wrong-without-graph"}
    for (spec, where), record in records.items():
        is_right = (
            spec.startswith("healthy")
            or (spec in forward_is_right and "forward" in where)
            or (spec == "wrong-at-odd-lengths" and where.startswith("16"))
        )
        assert record.status == ("ok" if is_right else "incorrect"), (spec, where, record.reason)
    assert len(records) == 4 * (13 + 2)


def test_a_wrong_answer_is_told_in_words(session: Session, tmp_path: Path) -> None:
    told = reasons(sweep(session, tmp_path, "wrong-*", direction="both", seqlen=17))
    assert "it is the truth times 1.01" in told["wrong-factor"]
    assert told["wrong-dk"].startswith("dk not normal")
    assert "it is the truth times 1.02" in told["wrong-dk"]
    assert "are not finite, first at [0, 0, 16, 7]: got nan" in told["wrong-nan"]
    assert told["wrong-dtype"] == "out has dtype torch.float64, expected torch.float32"
    assert told["wrong-shape"] == "out has shape (1, 17, 2, 8), expected (1, 2, 17, 8)"
    assert told["wrong-type"] == "out is a list, not a torch.Tensor"
    assert told["wrong-none"] == "out is None"
    assert told["wrong-pair"] == "out is a tuple, not a torch.Tensor"
    assert told["wrong-mean-of-v"] == "dq is None"  # the output does not depend on q
    assert told["wrong-gradients-given"] == "the backward must return (dq, dk, dv)"
    assert "no graph for autograd" in told["wrong-without-graph"]
    assert "leave 'backward' out of the features" in told["wrong-without-graph"]


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_nobody_gets_away_with_an_old_output_or_a_spoilt_input(
    session: Session, tmp_path: Path, direction: str
) -> None:
    records = sweep(session, tmp_path, "cheat-*", "healthy", direction=direction)
    found = statuses(records)
    assert found.pop("healthy") == "ok"
    for spec, status in found.items():
        assert status == "incorrect", (spec, records[spec, f"16 {direction}"].reason)
    assert reasons(records)["cheat-overwrites-q"] == "it overwrote its input q"
    assert reasons(records)["cheat-overwrites-v"] == "it overwrote its input v"


def test_an_old_graph_is_found_out_when_the_backward_is_timed_alone(
    session: Session, tmp_path: Path
) -> None:
    found = statuses(
        sweep(session, tmp_path, "cheat-by-*", "cheat-last-output", "healthy", direction="backward")
    )
    assert found.pop("healthy") == "ok"
    assert set(found.values()) == {"incorrect"}


# ---- exceptions --------------------------------------------------------------------------


def test_whatever_is_raised_is_one_points_own_affair(session: Session, tmp_path: Path) -> None:
    records = sweep(session, tmp_path, "raises-*", "builds-*", "healthy*")
    found, told = statuses(records), reasons(records)
    assert found.pop("healthy") == found.pop("healthy-too") == "ok"
    assert found.pop("raises-unsupported") == "unsupported"
    assert told["raises-unsupported"] == "needs head_dim 128"
    assert found.pop("raises-in-build") == "oom"
    assert set(found.values()) == {"error"}
    assert told["raises-error"] == "RuntimeError: block size 64 does not divide 17"
    assert told["raises-exit"] == "SystemExit: giving up"
    assert told["raises-interrupt"] == "KeyboardInterrupt"
    assert told["raises-base"] == "GeneratorExit"
    assert told["raises-in-supports"] == "ZeroDivisionError: seqlen // 0"
    assert told["raises-while-timed"] == "RuntimeError: tired"
    assert "recursion" in told["raises-recursion"]
    assert "takes 1 positional argument but 3 were given" in told["builds-one-argument"]
    assert told["builds-nothing"] == (
        "TypeError: build() must return a callable or a ForwardBackward, got NoneType"
    )
    assert told["raises-unspeakable"].startswith("Unspeakable: (and its message cannot be read")


def test_a_reason_is_one_printable_line_and_the_log_has_the_traceback(
    session: Session, tmp_path: Path
) -> None:
    records = sweep(session, tmp_path, "raises-*")
    for record in records.values():
        assert record.reason
        assert record.reason.isprintable()
        assert len(record.reason) < 600
    log = records["raises-error", "16 forward"].log_tail
    assert log is not None
    assert "in raises_error" in log
    assert "and a second line" in log


# ---- manners -----------------------------------------------------------------------------


def test_what_all_depend_on_is_put_back_and_who_changed_it_is_told(
    session: Session, tmp_path: Path
) -> None:
    records = sweep(session, tmp_path, "meddles-*", "noisy-closes-*", "noisy-no-*", "healthy*",
                    "noisy-prints", direction="both")  # fmt: skip
    found, told = statuses(records), reasons(records)
    for right in ("healthy", "healthy-too", "noisy-prints"):
        assert found.pop(right) == "ok", told[right]
    assert set(found.values()) == {"error"}
    for spec, words in {
        "meddles-with-the-clock": "time.perf_counter, time.perf_counter_ns",
        "meddles-with-threads": "torch.get_num_threads() from",
        "meddles-with-gradients": "torch.is_grad_enabled() from True to False",
        "meddles-with-dtype": "default dtype from torch.float32 to torch.float64",
        "meddles-with-tf32": "float32 matmul precision",
        "meddles-with-sdpa": "F.scaled_dot_product_attention",
        "meddles-while-timed": "default device from cpu to meta",
        "noisy-closes-stdout": "sys.stdout",
        "noisy-no-stderr": "sys.stderr",
    }.items():
        assert words in told[spec], told[spec]
        assert "put it back" in told[spec]


def test_noise_on_every_channel_disturbs_nobody(session: Session, tmp_path: Path) -> None:
    records = sweep(session, tmp_path, "noisy-prints", "noisy-reads-stdin", "noisy-thread",
                    "noisy-fork", "noisy-child", "healthy")  # fmt: skip
    assert set(statuses(records).values()) == {"ok"}, reasons(records)


# ---- deaths ------------------------------------------------------------------------------


def test_a_death_of_any_kind_costs_only_the_one_who_died(session: Session, tmp_path: Path) -> None:
    records = sweep(session, tmp_path, "dies-*", "healthy*")
    found, told = statuses(records), reasons(records)
    assert found.pop("healthy") == found.pop("healthy-too") == "ok"
    assert set(found.values()) == {"crash"}
    assert told["dies-by-abort"] == "the worker process was killed by SIGABRT"
    assert told["dies-by-segfault"] == "the worker process was killed by SIGSEGV"
    assert told["dies-by-exit"] == "the worker process exited with code 0"
    assert told["dies-by-kill"].startswith("the worker process was killed by SIGKILL")
    assert told["dies-by-odd-signal"].startswith("the worker process was killed by signal ")
    assert "about to abort" in (records["dies-by-abort", "16 forward"].log_tail or "")


def test_a_hang_is_a_timeout_and_a_silent_worker_is_not_waited_for(
    session: Session, tmp_path: Path
) -> None:
    started = time.monotonic()
    records = sweep(session, tmp_path, "hangs-*", "healthy", timeout_s=3)
    assert time.monotonic() - started < 60
    assert statuses(records) == {
        "hangs-asleep": "timeout",
        "hangs-busy": "timeout",
        "hangs-silent": "crash",
        "healthy": "ok",
    }
    assert "no sign of life for 3 s" in reasons(records)["hangs-busy"]
    assert "closed the pipe" in reasons(records)["hangs-silent"]
    assert "good night" in (records["hangs-asleep", "16 forward"].log_tail or "")


def test_an_allocation_that_cannot_be_had_is_out_of_memory(
    session: Session, tmp_path: Path
) -> None:
    records = sweep(session, tmp_path, "greedy-at-once", "greedy-in-python", "healthy")
    assert statuses(records) == {
        "greedy-at-once": "oom",
        "greedy-in-python": "oom",
        "healthy": "ok",
    }
    assert "you tried to allocate 1125899906842624 bytes" in reasons(records)["greedy-at-once"]


def test_memory_that_runs_out_by_and_by_is_out_of_memory_within_the_users_own_limit(
    tmp_path: Path,
) -> None:
    suite = write_suite(tmp_path, ["greedy-in-steps", "healthy*"], timeout_s=60)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))

    ended = subprocess.run(
        command("run", suite, "--impls-dir", BROKEN, "--device", "cpu", "--no-report"),
        cwd=tmp_path, env=environment(), preexec_fn=limit, capture_output=True, timeout=120,
        text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr  # a machine with less memory is nobody's fault
    (file,) = (tmp_path / "results").rglob("*.jsonl")
    records = {r.implementation.name: r for r in load([file]).records}
    assert {n: r.status for n, r in records.items()} == {
        "greedy-in-steps": "oom",
        "healthy": "ok",
        "healthy-too": "ok",
    }


def kill_when(
    session: Session, suite: Path, is_time: Callable[[str | None, str], bool]
) -> dict[str, Record]:
    """Run a suite; kill -9 the worker once, when ``is_time(who, phase)``."""
    records: dict[str, Record] = {}
    left = 1

    class Killer:
        def group_begins(self, group: object) -> None:
            """Nothing."""

        def step(self, who: str | None, phase: str) -> None:
            nonlocal left
            worker = session.pool._worker
            if worker is not None and left and is_time(who, phase):
                left -= 1
                worker._process.send_signal(signal.SIGKILL)

        def point_done(self, record: Record) -> None:
            records[f"{record.implementation.name} {record.problem['seqlen_q']}"] = record

    # Sampled for long enough that the signal comes in time, whoever else is at work.
    long = load_suite(suite, ["measure.max_s=0.5", "measure.precision=1e-6"])
    plan = session.plan(long, suite.with_suffix(".jsonl"))
    Runner(plan, session.pool, "none", lambda record: None, Killer()).run()
    assert left == 0, "the moment never came"
    return records


def test_kill_9_of_the_worker_ends_one_point_and_the_sweep_goes_on(
    session: Session, tmp_path: Path
) -> None:
    # Of quick ones, whose turns change every moment, another could be at work by now.
    suite = write_suite(tmp_path, ["dawdles", "healthy", "naive"], seqlen=[16, 17])
    records = kill_when(session, suite, lambda who, phase: (who, phase) == ("dawdles", "measure"))
    assert len(records) == 6
    assert records.pop("dawdles 16").reason == (
        "the worker process was killed by SIGKILL (kill -9 from outside)"
    )
    assert {r.status for r in records.values()} == {"ok"}


def test_kill_9_over_the_reference_of_a_worker_that_has_worked_costs_nobody_anything(
    session: Session, tmp_path: Path
) -> None:
    # Long enough that the reference is still at work when the worker is killed.
    suite = write_suite(tmp_path, ["healthy*"], seqlen=[1024])
    # The second reference: plugins have run before it, and any of them may be the cause.
    seen = 0

    def second(who: str | None, phase: str) -> bool:
        nonlocal seen
        seen += phase == "reference"
        return seen == 2

    records = kill_when(session, suite, second)
    assert {r.status for r in records.values()} == {"ok"}
    assert len(records) == 2


def test_a_reference_that_fails_in_a_clean_process_is_an_error_for_everybody(
    session: Session, tmp_path: Path
) -> None:
    suite = write_suite(tmp_path, ["healthy*"], seqlen=[16])
    records = kill_when(session, suite, lambda who, phase: phase == "reference")
    assert {r.status for r in records.values()} == {"error"}
    assert all("float64 reference failed" in (r.reason or "") for r in records.values())
