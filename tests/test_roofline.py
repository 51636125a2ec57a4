"""Shares of ceilings that are known, and times that no device could have taken."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.problem import Problem
from attnbench.roofline import Ceilings, Rate, best_of, least_flops, place

GIB = 2**30
LARGE = Problem.of(batch=4, heads=16, seqlen=4096, head_dim=128, dtype="bfloat16")
DECODE = Problem.of(
    batch=64, heads=32, seqlen_q=1, seqlen_k=8192, head_dim=128, dtype="bfloat16", decode=True
)


def rate(value: float, clock_mhz: float | None = None) -> Rate:
    return Rate(value, value * 0.99, value * 1.01, value * 1.01, "a test", clock_mhz)


def gpu(**changes: Any) -> Ceilings:
    """Roughly an H200."""
    told: dict[str, Any] = {
        "bandwidth": {"copy": rate(4.0e12), "read": rate(4.2e12)},
        "matmul": {
            "float32": rate(50e12), "tf32": rate(400e12), "bfloat16": rate(750e12),
            "float16": rate(760e12),
        },
        "cache_bytes": 100 << 20,
        **changes,
    }  # fmt: skip
    return Ceilings(**told)


def test_a_large_product_is_set_against_its_dtypes_matmul_rate() -> None:
    seconds = LARGE.flops() / 375e12
    found = place(LARGE, seconds, gpu())
    assert (found.bound, found.roof) == ("compute", "bfloat16")
    assert found.share == pytest.approx(0.5)
    assert found.flops_per_s == pytest.approx(375e12)
    assert found.implausible is None


def test_decoding_is_set_against_the_bandwidth() -> None:
    seconds = DECODE.ideal_bytes() / 3.15e12
    found = place(DECODE, seconds, gpu())
    assert (found.bound, found.roof) == ("memory", "read")
    assert found.share == pytest.approx(0.75)


def test_what_fits_in_the_cache_is_not_bound_by_memory_unless_it_starts_cold() -> None:
    small = DECODE.replace(batch=1, seqlen_k=4096)
    seconds = small.ideal_bytes() / 8e12  # twice the memory's rate, from the cache
    assert place(small, seconds, gpu()).bound == "compute"
    assert place(small, seconds, gpu()).implausible is None
    assert place(small, seconds, gpu(), is_cold=True).bound == "memory"


def test_faster_than_any_unit_is_implausible_and_says_by_how_much() -> None:
    found = place(LARGE, LARGE.flops() / 2000e12, gpu())
    assert found.implausible is not None
    assert "2000 TFLOPS" in found.implausible
    assert "fastest float16 product" in found.implausible
    assert found.share == pytest.approx(2000 / 760)


def test_more_bytes_than_the_memory_moves_are_implausible() -> None:
    found = place(DECODE, DECODE.ideal_bytes() / 20e12, gpu())
    assert found.implausible is not None
    assert "GB/s beyond what the caches hold" in found.implausible


def test_a_little_above_a_ceiling_is_within_its_error() -> None:
    assert place(LARGE, LARGE.flops() / (760e12 * 1.1), gpu()).implausible is None
    at_clock = gpu(matmul={"bfloat16": rate(750e12, 1500.0)})
    assert place(LARGE, LARGE.flops() / (750e12 * 1.1), at_clock, clock_mhz=1500).implausible
    faster_clock = place(LARGE, LARGE.flops() / (750e12 * 1.1), at_clock, clock_mhz=1980)
    assert faster_clock.implausible is None


def test_a_kernel_may_keep_the_logits_for_its_backward() -> None:
    both = LARGE.replace(direction="backward")
    assert least_flops(both) == pytest.approx(0.8 * both.flops())
    assert place(both, least_flops(both) / 750e12, gpu()).implausible is None
    assert least_flops(LARGE) == LARGE.flops()


def test_float32_may_be_pieced_together_from_shorter_products() -> None:
    exact = LARGE.replace(dtype="float32")
    pieced = place(exact, exact.flops() / 200e12, gpu())  # 4 × its own unit
    assert pieced.roof == "3×float16"
    assert pieced.implausible is None
    assert place(exact, exact.flops() / 400e12, gpu()).implausible


def test_half_precision_on_a_cpu_may_be_computed_in_float32() -> None:
    cpu = gpu(matmul={"float32": rate(200e9), "float16": rate(2e9)})
    found = place(LARGE.replace(dtype="float16"), LARGE.flops() / 150e9, cpu)
    assert found.roof == "float32"
    assert found.implausible is None


def test_an_approximate_method_is_only_held_to_its_own_count() -> None:
    found = place(LARGE, LARGE.flops() / 5000e12, gpu(), is_exact=False)
    assert found.share is None
    assert found.implausible is None
    assert "approximate" in (found.absent or "")
    fast = place(LARGE, 1e-6, gpu(), flops=10**10, is_exact=False)
    assert fast.implausible


def test_without_a_ceiling_there_is_no_share_but_its_reason() -> None:
    bare = Ceilings({}, {}, absent={"bfloat16": "RuntimeError: not here"})
    found = place(LARGE, 0.1, bare)
    assert (found.share, found.bound, found.implausible) == (None, None, None)
    assert found.absent == "RuntimeError: not here"


def test_no_time_is_no_place() -> None:
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            place(LARGE, seconds, gpu())


def test_ceilings_survive_json() -> None:
    known = gpu(absent={"tf32": "no"}, seconds=3.5)
    assert Ceilings.from_json(known.to_json()) == known
    unknown = gpu(cache_bytes=None)
    assert "cache_bytes" not in unknown.to_json()
    assert Ceilings.from_json(unknown.to_json()) == unknown


def test_of_two_measurements_the_better_figure_counts() -> None:
    one = gpu(bandwidth={"copy": rate(2e12)}, matmul={"float32": rate(60e12)}, cache_bytes=GIB)
    best = best_of(one, gpu())
    assert best.bandwidth["copy"].median == 4e12
    assert best.matmul["float32"].median == 60e12
    assert best.matmul["tf32"].median == 400e12
    assert best.cache_bytes == GIB
    assert best_of(one, gpu(cache_bytes=None)).cache_bytes is None
