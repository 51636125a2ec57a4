"""Does the cost of a method really grow as it claims, on this machine?

Each method, at a fixed setting of its knob, is timed at three lengths, all in the same
interleaved rounds. The slope of log time over log seqlen is 2 for dense attention and 1 for a
method whose work follows the tokens. A sliding window is then held against dense attention
at the longest, and the peak of memory against the pairs that a sparse method keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from proof import Proof, Row
from solving import CPU, rounds_of, solve

from attnbench.measure.memory import measure_memory
from attnbench.measure.sampling import Budget
from attnbench.problem import Problem
from attnbench.stats import Interval, median_interval

SEQLENS = (4096, 8192, 16384)
STEEPEST = 1.2
WINDOW, DENSE, LEAST_GAIN = "window:window=256", "sdpa", 8.0
CLAIMS: Mapping[str, float | None] = {
    WINDOW: STEEPEST,
    "block-sparse:blocks=8": STEEPEST,
    "linformer:rank=128": STEEPEST,
    "linear": STEEPEST,
    "performer:features=256": STEEPEST,
    "nystrom:landmarks=64": STEEPEST,
    "bigbird": None,
    "dilated:window=64,dilation=4": None,
    "rfa:features=256": None,
    "cosformer": None,
    DENSE: None,
}
"""Every method that is timed, and the slope that it may have; None: shown, not asked for."""

_PROBLEM = Problem.of(heads=2, head_dim=64, seqlen=SEQLENS[0], dtype="float32")
_BUDGET = Budget(
    precision=0.02, min_rounds=7, samples=3, warmup_s=0.1, warmup_cap_s=0.5, steady_share=0.05,
    max_s=3.0,
)  # fmt: skip
Rounds = Mapping[tuple[str, int], Sequence[float]]  # by method and seqlen, seconds


def prove(seqlens: Sequence[int] = SEQLENS) -> list[Proof]:
    """Time, forward and backward, and memory."""
    proofs = []
    for direction in ("forward", "backward"):
        problem = _PROBLEM.replace(direction=direction)
        calls = {
            (spec, n): solve(spec, problem.replace(seqlen_q=n, seqlen_k=n)).step
            for spec in CLAIMS
            for n in seqlens
        }
        proofs.append(as_proof(direction, rounds_of(calls, _BUDGET), seqlens))
    return [*proofs, prove_memory(seqlens)]


def as_proof(direction: str, rounds: Rounds, seqlens: Sequence[int]) -> Proof:
    """A row a method, steepest claim first, and one for the window against dense attention."""
    rows = []
    for spec, most in CLAIMS.items():
        slope = slope_of([rounds[spec, n] for n in seqlens], seqlens)
        longest = float(np.median(rounds[spec, seqlens[-1]]))
        rows.append(
            Row(
                f"{spec}, {longest * 1e3:.4g} ms at {seqlens[-1]}",
                _interval(slope),
                f"≤ {most}" if most else "",
                slope.median <= most if most else None,
            )
        )
    gain = ratio_of(rounds[DENSE, seqlens[-1]], rounds[WINDOW, seqlens[-1]])
    what = f"{DENSE} ÷ {WINDOW} at {seqlens[-1]}, time"
    rows.append(Row(what, _interval(gain), f"≥ {LEAST_GAIN:g}", gain.median >= LEAST_GAIN))
    lengths = ", ".join(map(str, seqlens))
    return Proof(
        f"growth_{direction}",
        f"Slope of log time over log seqlen ({lengths}), {direction}; B1 H2 D64 float32, full",
        rows,
    )


def slope_of(rounds: Sequence[Sequence[float]], seqlens: Sequence[int]) -> Interval:
    """Slope of log time over log seqlen: one a round, then their median and interval."""
    logs = np.log(np.array(rounds))  # lengths × rounds
    slopes = np.polyfit(np.log(seqlens), logs, 1)[0]
    return median_interval([[float(s)] for s in slopes])


def ratio_of(one: Sequence[float], other: Sequence[float]) -> Interval:
    """How much longer one takes than the other, round by round."""
    return median_interval([[a / b] for a, b in zip(one, other, strict=True)])


def prove_memory(
    seqlens: Sequence[int], peak_of: Callable[[str, Problem], int] | None = None
) -> Proof:
    """Peak beyond the inputs, of forward with backward: its slope, and the pairs kept.

    One matrix of the kept pairs' logits is allowed, and the output and gradients themselves.
    """
    peak_of = peak_of or _peak
    rows = []
    for spec, most in CLAIMS.items():
        if most is None:
            continue
        problems = [_PROBLEM.replace(seqlen_q=n, seqlen_k=n, direction="both") for n in seqlens]
        peaks = [peak_of(spec, p) for p in problems]
        slope = float(np.polyfit(np.log(seqlens), np.log(peaks), 1)[0])
        rows.append(
            Row(f"{spec}, {_mib(peaks[-1])} at {seqlens[-1]}", f"{slope:.2f}", f"≤ {most}",
                slope <= most)
        )  # fmt: skip
        kept = kept_bytes(spec, problems[-1])
        if kept is not None:
            what = f"{spec} at {seqlens[-1]}, beside {_mib(kept)} of kept pairs and results"
            rows.append(Row(what, _mib(peaks[-1]), f"≤ {_mib(kept)}", peaks[-1] <= kept))
    return Proof(
        "growth_memory", "Slope of log peak memory over log seqlen, forward and backward", rows
    )


def kept_bytes(spec: str, problem: Problem) -> int | None:
    """Bytes of a sparse method's kept logits, of the output and three gradients; None: no mask."""
    own = solve(spec, problem.replace(seqlen_q=64, seqlen_k=64)).implementation.own_mask(problem)
    if own is None:
        return None
    p = problem
    pairs = own.coverage(p.seqlen_q, p.seqlen_k).pairs * p.batch * p.heads_q
    results = 4 * p.batch * p.heads_q * p.seqlen_q * p.head_dim
    return (pairs + results) * p.element_bytes


def _peak(spec: str, problem: Problem) -> int:
    peak = measure_memory(solve(spec, problem), CPU).peak_bytes
    assert peak is not None  # a CPU always tells
    return peak


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _interval(value: Interval) -> str:
    return f"{value.median:.3g} ({value.low:.3g} – {value.high:.3g})"
