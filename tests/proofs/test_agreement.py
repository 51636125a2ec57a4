"""The comparison of clocks, with clocks that are foretold; slow: the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from agreement import Agreement, as_proof, compare_clocks, prove_cpu, prove_cuda

from attnbench.stats import Interval


def nothing() -> None:
    """What is timed, by clocks that do not look."""


def agreement(ratio: float, ours_s: float = 1e-3) -> Agreement:
    return Agreement("kernel", ours_s, Interval(ratio, ratio * 0.99, ratio * 1.01))


@pytest.mark.parametrize(
    ("ratio", "is_kept"), [(1.0, True), (1.019, True), (0.981, True), (1.03, False), (0.97, False)]
)
def test_clocks_agree_within_two_per_cent(ratio: float, is_kept: bool) -> None:
    assert agreement(ratio).is_kept is is_kept
    assert as_proof("cpu", "Timer", [agreement(1.0), agreement(ratio)], 10).is_kept is is_kept


def test_nothing_is_asked_of_a_kernel_below_200_us() -> None:
    assert agreement(1.5, ours_s=199e-6).is_kept is None


def test_the_figure_is_the_median_of_the_rounds_ratios() -> None:
    ours, theirs = iter([2.0, 4.0, 9.0]), iter([1.0, 2.0, 3.0])
    (found,) = compare_clocks(
        {"it": nothing}, lambda call: next(ours), lambda call: next(theirs), rounds=3
    )
    assert found.ours_s == 4.0
    assert found.ratio.median == 2.0
    assert (found.ratio.low, found.ratio.high) == (2.0, 3.0)


def test_a_machine_that_slows_down_favours_nobody() -> None:
    """A fixed order would let the drift look like a disagreement."""
    moment = 0

    def drifting(call: object) -> float:
        nonlocal moment
        moment += 1
        return 1.1**moment

    (found,) = compare_clocks({"it": nothing}, drifting, drifting, rounds=10)
    assert found.ratio.median == pytest.approx(1.0, abs=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_do_bench_is_skipped_with_the_reason(tmp_path: Path) -> None:
    proof = prove_cuda(tmp_path)
    assert "no GPU" in proof.skipped
    assert proof.is_kept


@pytest.mark.slow
def test_the_host_clock_agrees_with_torchs_timer() -> None:
    """On a quiet machine: see docs/instrument.md."""
    proof = prove_cpu()
    assert proof.is_kept, proof.rows


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch can use no GPU here")
def test_the_device_clock_agrees_with_do_bench(tmp_path: Path) -> None:
    proof = prove_cuda(tmp_path)
    assert proof.is_kept, proof.rows
