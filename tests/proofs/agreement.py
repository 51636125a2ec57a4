"""Does attnbench's clock agree with others that people trust?

The same callables, all above 200 µs, are timed by attnbench's clock and sampling and by
``torch.utils.benchmark.Timer`` (CPU) or ``triton.testing.do_bench`` (CUDA), in one process
with the same threads. Each round visits both in turn, whoever begins alternating; the
figure is the median over rounds of the ratio of the two medians.

do_bench overwrites a buffer to empty the L2 before each call, as attnbench's device clock
does, so that both start cold. ``Timer`` starts warm, as the host clock does.

Letters: B = batch, H = heads, S = seqlen, D = head_dim.
"""

from __future__ import annotations

import ctypes
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from proof import Proof, Row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer

from attnbench.measure.clock import clock_for
from attnbench.measure.high_water import fix_malloc
from attnbench.measure.sampling import Budget, sample
from attnbench.session import open_session
from attnbench.stats import Interval, median_interval

Call = Callable[[], None]
Measure = Callable[[Call], float]

MOST_APART = 0.02
SHORTEST_S = 200e-6
ROUNDS = 30
_VISIT_S = 0.1  # of each of the two, on one kernel in one round
_BUDGET = Budget(
    precision=0.005, min_rounds=5, samples=10, warmup_s=0.02, warmup_cap_s=0.05, max_s=_VISIT_S
)


@dataclass(frozen=True)
class Agreement:
    """One kernel: the time attnbench tells, and its ratio to what the other tells."""

    kernel: str
    ours_s: float
    ratio: Interval  # of the rounds' ours ÷ theirs

    @property
    def is_kept(self) -> bool | None:
        """Whether the two agree; None for a kernel too short to be asked."""
        if self.ours_s < SHORTEST_S:
            return None
        return abs(math.log(self.ratio.median)) <= math.log1p(MOST_APART)


def compare_clocks(
    calls: Mapping[str, Call], ours: Measure, theirs: Measure, rounds: int = ROUNDS
) -> list[Agreement]:
    """Time every call by both, interleaved.

    Args:
        calls: what to time, by name.
        ours, theirs: median seconds of one call.
        rounds: how often each call is visited by both.
    """
    told: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            if number % 2:
                other = theirs(call)
                told[name].append((ours(call), other))
            else:
                told[name].append((ours(call), theirs(call)))
    return [
        Agreement(
            kernel=name,
            ours_s=statistics.median(own for own, _ in pairs),
            ratio=median_interval([[own / other] for own, other in pairs]),
        )
        for name, pairs in told.items()
    ]


def prove_cpu(rounds: int = ROUNDS) -> Proof:
    """Against ``torch.utils.benchmark.Timer.blocked_autorange``, on the CPU."""
    cpu = torch.device("cpu")
    fix_malloc(ctypes.CDLL(None))  # as in a worker: or a call may pay for what the last one freed
    told = compare_clocks(_calls(cpu, torch.float32, 512), _ours(cpu), _timer, rounds)
    return as_proof("agreement_cpu", "torch.utils.benchmark", told, rounds)


def prove_cuda(folder: Path, rounds: int = ROUNDS) -> Proof:
    """Against ``triton.testing.do_bench``, where there is a GPU.

    Raises:
        UserError: another attnbench holds it.
    """
    name, other = "agreement_cuda", "triton.testing.do_bench"
    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} can use no GPU on this machine"
        return Proof(name, _title(other), [], skipped=reason)
    cuda = torch.device("cuda")
    with open_session(folder, "cuda") as session:
        session.pool.drop()  # only the lock is wanted: the GPU is this process's
        calls = _calls(cuda, torch.bfloat16, 4096)
        told = compare_clocks(calls, _ours(cuda), _do_bench, rounds)
    return as_proof(name, other, told, rounds)


def as_proof(name: str, other: str, told: Sequence[Agreement], rounds: int) -> Proof:
    """A row a kernel: the ratio with its interval over the rounds."""
    return Proof(
        name,
        _title(other),
        [
            Row(
                f"{a.kernel}, {a.ours_s * 1e3:.3g} ms",
                f"{a.ratio.median:.4f} ({a.ratio.low:.4f} – {a.ratio.high:.4f}), {rounds} rounds",
                "none: below 200 µs" if a.is_kept is None else f"1 ± {MOST_APART:.0%}",
                a.is_kept,
            )
            for a in told
        ],
    )


def _title(other: str) -> str:
    return f"Agreement with {other}: attnbench ÷ it"


# ---- the clocks ------------------------------------------------------------------------


def _ours(device: torch.device) -> Measure:
    clock = clock_for(device)

    def measure(call: Call) -> float:
        return sample({"it": call}, clock, _BUDGET, seed=0)["it"].interval.median

    return measure


def _timer(call: Call) -> float:
    threads = torch.get_num_threads()  # its own default is one
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return float(timer.blocked_autorange(min_run_time=_VISIT_S).median)


def _do_bench(call: Call) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, rep=int(_VISIT_S * 1e3), return_mode="median")) / 1e3


# ---- what is timed ---------------------------------------------------------------------


def _calls(device: torch.device, dtype: torch.dtype, seqlen: int) -> dict[str, Call]:
    """Attention by two kernels, forward and backward, and a matrix product."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    q_BHSD, k_BHSD, v_BHSD = (draw(1, 8, seqlen, 64) for _ in range(3))
    square = draw(2 * seqlen, 2 * seqlen)
    leaves = [x.clone().requires_grad_() for x in (q_BHSD, k_BHSD, v_BHSD)]
    out_BHSD = scaled_dot_product_attention(*leaves)
    grad_BHSD = draw(*out_BHSD.shape)

    def attend(backend: SDPBackend) -> Call:
        def call() -> None:
            with torch.no_grad(), sdpa_kernel(backend):
                scaled_dot_product_attention(q_BHSD, k_BHSD, v_BHSD)

        return call

    def backward() -> None:
        torch.autograd.grad(out_BHSD, leaves, grad_BHSD, retain_graph=True)

    def matmul() -> None:
        square @ square

    shape = f"B1 H8 S{seqlen} D64 {str(dtype).removeprefix('torch.')}"
    return {
        f"SDPA flash, {shape}": attend(SDPBackend.FLASH_ATTENTION),
        f"SDPA math, {shape}": attend(SDPBackend.MATH),
        f"SDPA backward, {shape}": backward,
        f"matmul {2 * seqlen}³": matmul,
    }
