"""Every row of "cheats and accidents" in docs/cheats.md: caught, in words that name it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import BROKEN, measure, write_suite

from attnbench.record import Record
from attnbench.session import Session, open_session

Records = dict[str, Record]
Told = tuple[str, str]  # status, and words of the reason

OLD: Told = ("incorrect", "returned the output of an earlier call")
EARLY: Told = ("incorrect", "returned before its work was done")
BUILT = "built code inside the timed part"
REPLACED = "it replaced code that measures it"
LOW = "lower precision than asked: every element is a"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One session over all broken plugins; its device is not held."""
    project = tmp_path_factory.mktemp("project")
    with open_session(project, "cpu", [BROKEN], lock=False) as opened:
        yield opened


def sweep(session: Session, folder: Path, *impls: str, **suite: object) -> Records:
    """Measure some beside a healthy one, all in one process, as a suite does."""
    file = write_suite(folder, ["healthy*", *impls], seqlen=64, **suite)  # type: ignore[arg-type]
    records = {spec: r for (spec, _), r in measure(session, file, folder).items()}
    assert records["healthy"].status == records["healthy-too"].status == "ok"
    return records


@pytest.fixture(scope="module")
def forward(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Everybody whose trick is in the forward, in one group."""
    impls = ("cheat-*", "trick-*", "wrong-dtype", "meddles-with-the-clock")
    return sweep(session, tmp_path_factory.mktemp("forward"), *impls)


def expect(records: Records, told: dict[str, Told]) -> None:
    for spec, (status, words) in told.items():
        seen = (records[spec].status, records[spec].reason or "")
        assert seen[0] == status, (spec, seen)
        assert words in seen[1], (spec, seen)


def test_an_output_of_an_earlier_call_is_named(forward: Records) -> None:
    expect(forward, {
        "cheat-by-address": OLD, "cheat-by-identity": OLD, "cheat-by-version": OLD,
        "cheat-last-output": OLD, "trick-by-few-elements": OLD, "trick-now-and-then": OLD,
    })  # fmt: skip


@pytest.mark.parametrize("direction", ["both", "backward"])
def test_an_old_graph_is_an_output_of_an_earlier_call(
    session: Session, tmp_path: Path, direction: str
) -> None:
    records = sweep(
        session, tmp_path, "cheat-by-*", "cheat-last-*", "trick-gradients-*", direction=direction
    )
    for spec in ("cheat-by-address", "cheat-by-version", "cheat-last-output"):
        expect(records, {spec: OLD})
    if direction == "backward":  # made by the untimed forward, for another grad_out
        expect(records, {"trick-gradients-beforehand": ("incorrect", "not normal")})


def test_who_remembers_by_all_contents_is_right_but_too_fast_on_what_it_has_seen(
    forward: Records,
) -> None:
    too_fast = ("error", OLD[1] + ": on inputs it has seen it takes")
    expect(forward, {"trick-by-all-contents": too_fast, "trick-by-contents-but-signs": too_fast})


def test_returning_before_the_work_is_done_is_named(session: Session, tmp_path: Path) -> None:
    records = sweep(session, tmp_path, "late-*")
    burner = ("error", "still computing after it returned (thread 'burner')")
    expect(records, {"late-thread": EARLY, "late-raw-thread": EARLY, "late-burner": burner})


def test_memory_that_was_not_written_is_named(forward: Records) -> None:
    expect(forward, {
        "trick-same-buffer": ("incorrect", "left 16 of 1024 elements of out unwritten"),
        "trick-unwritten": ("incorrect", "elements of out unwritten"),
    })  # fmt: skip


def test_overwritten_inputs_are_named(forward: Records) -> None:
    expect(forward, {
        "cheat-overwrites-q": ("incorrect", "it overwrote its input q"),
        "cheat-overwrites-v": ("incorrect", "it overwrote its input v"),
        "trick-spoils-inputs-later": ("incorrect", "it overwrote its input k"),
    })  # fmt: skip


def test_lazy_and_subclassed_tensors_are_named(forward: Records) -> None:
    expect(forward, {
        "trick-subclass": ("incorrect", "out is a Mine, not a torch.Tensor"),
        "trick-parameter": ("incorrect", "out is a Parameter, not a torch.Tensor"),
        "trick-functional": ("incorrect", "out is a lazy tensor (a wrapper of functorch)"),
        "trick-expanded": ("incorrect", "elements share memory"),
        "trick-overlapping": ("incorrect", "elements share memory"),
        "trick-no-memory": ("incorrect", "out has 0 bytes of memory behind it, where 4096"),
        "trick-zero-tensor": ("incorrect", "out is a lazy tensor of zeros"),
        "trick-lazy-copy": ("incorrect", "out is a lazy tensor: a copy that is still to be made"),
        "trick-lazy-sign": ("incorrect", "out is a lazy tensor: its sign"),
        "trick-sparse": ("incorrect", "out has layout torch.sparse_coo"),
    })  # fmt: skip


def test_a_lower_precision_than_asked_is_named(forward: Records) -> None:
    expect(forward, {
        "wrong-dtype": ("incorrect", "out has dtype torch.float64, expected torch.float32"),
        "trick-float16": ("incorrect", f"{LOW} float16 number"),
        "trick-bfloat16": ("incorrect", f"{LOW} bfloat16 number"),
        "trick-bfloat16-later": ("incorrect", f"{LOW} bfloat16 number"),
    })  # fmt: skip


def test_patched_timers_and_patched_judges_are_named(forward: Records) -> None:
    expect(forward, {
        "meddles-with-the-clock": ("error", "it changed time.perf_counter, time.perf_counter_ns"),
        "trick-cuda-event": ("error", "it changed torch.cuda.Event, torch.cuda.synchronize"),
        "trick-event-time": (
            "error", "it changed torch.cuda.Event.elapsed_time, torch.cuda.CUDAGraph.replay"
        ),
        "trick-host-clock": ("error", f"{REPLACED}: HostClock.time"),
        "trick-judge": ("error", f"{REPLACED}: attnbench.workgroup.passed"),
        "trick-equal": ("error", "it changed torch.equal"),
        "trick-clone": ("error", "it changed torch.Tensor.clone"),
        "trick-mode": ("error", "it changed torch's function modes from 0 to 1"),
    })  # fmt: skip


def test_inputs_are_noise_where_zeros_would_be_faster(forward: Records) -> None:
    expect(forward, {
        "trick-uniform-weights": ("incorrect", "out not normal"),
        "trick-short-cut": ("ok", ""),  # it would have raised, had it seen low entropy
    })  # fmt: skip


def test_code_that_is_built_inside_the_timed_part_is_named(forward: Records) -> None:
    expect(forward, {
        "trick-compiles-late": ("error", f"{BUILT} (torch.compile: new graphs:"),
        "trick-loads-late": ("error", f"{BUILT} (shared libraries loaded:"),
        "trick-kernel-late": ("error", f"{BUILT} (triton: new kernels:"),
        "trick-tunes-late": ("error", f"{BUILT} (triton autotune: configurations tried:"),
    })  # fmt: skip
