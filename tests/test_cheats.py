"""Every row of "cheats and accidents" in docs/cheats.md: caught, in words that name it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import BROKEN, measure, write_suite

from attnbench.record import Record
from attnbench.session import Session, open_session


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One session over all broken plugins; its device is not held."""
    project = tmp_path_factory.mktemp("project")
    with open_session(project, "cpu", [BROKEN], lock=False) as opened:
        yield opened


def caught(
    session: Session, tmp_path: Path, told: dict[str, tuple[str, str]], **suite: object
) -> dict[str, Record]:
    """Measure implementations beside a healthy one; each has the status and the words told."""
    suite_file = write_suite(tmp_path, ["healthy", *told], **suite)  # type: ignore[arg-type]
    records = {spec: r for (spec, _), r in measure(session, suite_file, tmp_path).items()}
    assert records.pop("healthy").status == "ok"
    seen = {spec: (r.status, r.reason or "") for spec, r in records.items()}
    for spec, (status, words) in told.items():
        assert seen[spec][0] == status, (spec, seen[spec])
        assert words in seen[spec][1], (spec, seen[spec])
    return records


OLD = ("incorrect", "returned the output of an earlier call")


def test_an_output_of_an_earlier_call_is_named(session: Session, tmp_path: Path) -> None:
    caught(session, tmp_path, {
        "cheat-by-address": OLD, "cheat-by-identity": OLD, "cheat-by-version": OLD,
        "cheat-last-output": OLD, "trick-by-few-elements": OLD, "trick-now-and-then": OLD,
    }, seqlen=64)  # fmt: skip


@pytest.mark.parametrize("direction", ["both", "backward"])
def test_an_old_graph_is_an_output_of_an_earlier_call(
    session: Session, tmp_path: Path, direction: str
) -> None:
    told = {"cheat-by-address": OLD, "cheat-last-output": OLD}
    caught(session, tmp_path, told, direction=direction, seqlen=64)


def test_who_remembers_by_all_contents_is_right_but_too_fast_on_what_it_has_seen(
    session: Session, tmp_path: Path
) -> None:
    too_fast = ("error", "returned the output of an earlier call: on inputs it has seen it takes")
    told = {"trick-by-all-contents": too_fast, "trick-by-contents-but-signs": too_fast}
    caught(session, tmp_path, told, seqlen=64)


def test_gradients_that_the_untimed_forward_made_are_not_those_of_the_backward(
    session: Session, tmp_path: Path
) -> None:
    told = {"trick-gradients-beforehand": ("incorrect", "not normal")}
    caught(session, tmp_path, told, direction="backward", seqlen=64)


def test_returning_before_the_work_is_done_is_named(session: Session, tmp_path: Path) -> None:
    early = ("incorrect", "returned before its work was done")
    burner = ("error", "still computing after it returned (thread 'burner')")
    told = {"trick-thread": early, "trick-raw-thread": early, "trick-keeps-computing": burner}
    caught(session, tmp_path, told, seqlen=64)


def test_memory_that_was_not_written_is_named(session: Session, tmp_path: Path) -> None:
    told = {"trick-same-buffer": ("incorrect", "elements of out unwritten")}
    caught(session, tmp_path, told, seqlen=64)
    records = caught(session, tmp_path, {"trick-unwritten": ("incorrect", "")})
    print(records["trick-unwritten"].reason)


def test_overwritten_inputs_are_named(session: Session, tmp_path: Path) -> None:
    caught(session, tmp_path, {
        "cheat-overwrites-q": ("incorrect", "it overwrote its input q"),
        "cheat-overwrites-v": ("incorrect", "it overwrote its input v"),
        "trick-spoils-inputs-later": ("incorrect", "it overwrote its input k"),
    })  # fmt: skip


def test_lazy_and_subclassed_tensors_are_named(session: Session, tmp_path: Path) -> None:
    caught(session, tmp_path, {
        "trick-subclass": ("incorrect", "out is a Mine, not a torch.Tensor"),
        "trick-parameter": ("incorrect", "out is a Parameter, not a torch.Tensor"),
        "trick-functional": ("incorrect", "out is a lazy tensor (a wrapper of functorch)"),
        "trick-expanded": ("incorrect", "elements share memory"),
        "trick-overlapping": ("incorrect", "elements share memory"),
        "trick-no-memory": ("incorrect", "out has 0 bytes of memory behind it, where 1024"),
        "trick-zero-tensor": ("incorrect", "out is a lazy tensor of zeros"),
        "trick-lazy-copy": ("incorrect", "out is a lazy tensor: a copy that is still to be made"),
        "trick-lazy-sign": ("incorrect", "out is a lazy tensor: its sign"),
        "trick-sparse": ("incorrect", "out has layout torch.sparse_coo"),
    })  # fmt: skip


def test_a_lower_precision_than_asked_is_named(session: Session, tmp_path: Path) -> None:
    told = {
        "wrong-dtype": ("incorrect", "out has dtype torch.float64, expected torch.float32"),
        "trick-float16": ("incorrect", "every element is a float16 number"),
        "trick-bfloat16": ("incorrect", "every element is a bfloat16 number"),
        "trick-bfloat16-later": ("incorrect", "every element is a bfloat16 number"),
    }
    caught(session, tmp_path, told)


def test_patched_timers_and_patched_judges_are_named(session: Session, tmp_path: Path) -> None:
    caught(session, tmp_path, {
        "meddles-with-the-clock": ("error", "it changed time.perf_counter, time.perf_counter_ns"),
        "trick-cuda-event": ("error", "it changed torch.cuda.Event, torch.cuda.synchronize"),
        "trick-host-clock": ("error", "it replaced code that measures it: HostClock.time"),
        "trick-judge": ("error", "it replaced code that measures it: attnbench.workgroup.passed"),
        "trick-equal": ("error", "it changed torch.equal"),
        "trick-clone": ("error", "it changed torch.Tensor.clone"),
        "trick-mode": ("error", "it changed torch's function modes from 0 to 1"),
    })  # fmt: skip


def test_inputs_are_noise_where_zeros_would_be_faster(session: Session, tmp_path: Path) -> None:
    told = {"trick-uniform-weights": ("incorrect", "out not normal"), "trick-short-cut": ("ok", "")}
    for dtype in ("float32", "bfloat16"):
        caught(session, tmp_path, told, dtype=dtype, direction="forward")


def test_code_that_is_built_inside_the_timed_part_is_named(
    session: Session, tmp_path: Path
) -> None:
    built = "built code inside the timed part"
    caught(session, tmp_path, {
        "trick-compiles-late": ("error", f"{built} (torch.compile: new graphs:"),
        "trick-loads-late": ("error", f"{built} (shared libraries loaded:"),
        "trick-kernel-late": ("error", f"{built} (triton: new kernels:"),
        "trick-tunes-late": ("error", f"{built} (triton autotune: configurations tried:"),
    })  # fmt: skip
