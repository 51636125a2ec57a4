"""The gate: two names for one implementation are no difference; 3 % more time is one.

Both questions go through the whole way of a point: an attention built and loaded as any
implementation is, sampled in interleaved rounds, made a record, and compared. Both are put
with the same threshold, half of the injected 3 %: it is as far from "nothing" as from what
is to be found, so that neither answer is for free. (At the usual threshold of 3 % a twin
that is 3 % slower lies on the threshold itself, and finding it would be a toss of a coin;
at 1.5 % equal twins have to be twice as equal as in a usual comparison.)

On a CPU both are put on one thread. A call of several ends when the last of them does, so
that one other process on the machine disturbs every call; and it is the gate that is
tested here, not OpenMP.

One row asks for no false verdict at all in 20 comparisons, the other for 19 of 20 to be
found. Rows this short show a gate that is broken; its rate of errors takes hundreds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from attnbench.attention import Attention
from attnbench.compare import Compared
from attnbench.execution import Execution
from attnbench.inputs import make_inputs
from attnbench.measure.clock import Call
from attnbench.measure.figures import headline
from attnbench.measure.sampling import Budget, Taken
from attnbench.measure.selftest_check import Check, Instrument, Wait, judged
from attnbench.problem import Problem
from attnbench.record import Implementation, Record, TensorAccuracy
from attnbench.runs import Run
from attnbench.selftest import Row

TRIALS = 20
INJECTED = 0.03
THRESHOLD = INJECTED / 2
_MOST_MISSED = 1
_FEWEST = 5  # trials, however slow the machine is
_MOST_S = 20.0  # for the trials of one question
_BUDGET = Budget(
    precision=0.002, min_rounds=12, samples=8, warmup_s=0.02, warmup_cap_s=0.1, max_s=0.45
)
_HERE: Mapping[str, Mapping[str, Any]] = {"here": {"identity": {}, "context": {}}}

Subject = Callable[[torch.device, int], Call]
"""Builds the call of an implementation for a device and a seed."""


class _Sdpa(Attention):
    """torch's own attention, in the form of a plugin."""

    name = "sdpa"

    def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
        return F.scaled_dot_product_attention


def attention(device: torch.device, seed: int) -> Call:
    """The timed call of an attention of about a millisecond, on tensors of its own."""
    size = (
        {"seqlen": 8192, "heads": 16, "dtype": "float16"}
        if device.type == "cuda"
        else {"seqlen": 256, "heads": 4, "dtype": "float32"}
    )
    problem = Problem.of(head_dim=64, **size)
    execution = Execution(_Sdpa(), problem, device, seed)
    execution.load(make_inputs(problem, seed, device))
    return execution.step


def checks(waiting: Wait, subject: Subject = attention) -> Sequence[Check]:
    """Both questions to the gate.

    Args:
        waiting: keeps the device busy; slows the twin.
        subject: what is compared with itself.
    """
    return [
        Check("A/A", lambda i: equal_twins(i, subject), attempts=2),
        Check(f"+{INJECTED:.0%} found", lambda i: slow_twin(i, subject, waiting), attempts=2),
    ]


def equal_twins(instrument: Instrument, subject: Subject) -> Row:
    """The same implementation under two names: how many verdicts say that they differ."""
    calls = _Twins(subject(instrument.device, 0), subject(instrument.device, 1))
    points = _compare(instrument, calls)
    wrong = sum(p.verdict in ("SLOWER", "FASTER") for p in points)
    return judged("A/A", 0, wrong, 0, "verdicts", _told(points))


def slow_twin(instrument: Instrument, subject: Subject, waiting: Wait) -> Row:
    """The same implementation, and the same with 3 % of its time added: how many are found."""
    call = subject(instrument.device, 0)
    calls = _Twins(call, call, waiting)
    points = _compare(instrument, calls)
    found = sum(p.verdict == "SLOWER" for p in points)
    name = f"+{INJECTED:.0%} found"
    return judged(name, len(points), found, _MOST_MISSED, "verdicts", _told(points))


@dataclass
class _Twins:
    """One implementation twice; the second waits a little longer, if it is to be slower."""

    one: Call
    other: Call
    waiting: Wait | None = None
    extra_ns: int = 0

    def slower(self) -> None:
        """The second, and then the wait."""
        self.other()
        if self.waiting is not None:
            self.waiting(self.extra_ns)

    def calibrate(self, median_s: float) -> None:
        """Make the wait 3 % of what the first took in the last trial."""
        self.extra_ns = round(INJECTED * median_s * 1e9)


def _compare(instrument: Instrument, twins: _Twins) -> Sequence[Compared]:
    base: list[Record] = []
    new: list[Record] = []
    with _one_thread():
        for trial, (one, other) in enumerate(_trials(instrument, twins)):
            base.append(_record(trial, one, instrument))
            new.append(_record(trial, other, instrument))
    sides = (Run(tuple(side), _HERE, ()) for side in (base, new))
    return instrument.compare(*sides, threshold=THRESHOLD).points


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's own work on a CPU by the calling thread alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _trials(instrument: Instrument, twins: _Twins) -> Iterator[tuple[Taken, Taken]]:
    """Both calls in interleaved rounds, again and again, until there are enough trials."""
    clock, start = instrument.clock, time.monotonic()
    twins.calibrate(instrument.take(twins.one, max_s=0.2).interval.median)
    other = twins.slower if twins.waiting is not None else twins.other
    for trial in range(TRIALS):
        if trial >= _FEWEST and time.monotonic() - start > _MOST_S:
            return
        taken = instrument.sample({"one": twins.one, "other": other}, clock, _BUDGET, trial)
        yield taken["one"], taken["other"]
        twins.calibrate(taken["one"].interval.median)


def _record(trial: int, taken: Taken, instrument: Instrument) -> Record:
    """What a run would keep of it. Nobody verified the output: it is torch's own."""
    return Record(
        id=f"trial-{trial}",
        suite="selftest",
        time="",
        attnbench="",
        implementation=Implementation(name="sdpa"),
        problem={},
        problem_id=f"trial-{trial}",
        device=str(instrument.device),
        status="ok",
        samples=headline(taken, instrument.clock, _BUDGET),
        accuracy={"out": TensorAccuracy(ok=True, max_abs=0.0)},
        environment="here",
        pair=f"trial-{trial}",
    )


def _told(points: Sequence[Compared]) -> str:
    """``20 pairs, ratio 0.998 to 1.003, threshold 1.5%``."""
    ratios = sorted(p.ratio.ratio for p in points if p.ratio is not None)
    seen = f"ratio {ratios[0]:.3f} to {ratios[-1]:.3f}" if ratios else "no ratio"
    return f"{len(points)} pairs, {seen}, threshold {THRESHOLD:.1%}"
