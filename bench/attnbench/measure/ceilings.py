"""Ceilings: how fast this device copies, reads and multiplies, measured on itself.

The best of a few sizes and shapes, in short bursts as kernels are timed, in interleaved
rounds, so that a machine that warms up or is disturbed does the same to all. No figure of
a maker enters.

Where memory begins is measured too, for a virtual machine may show a cache of another
size than it has (one that showed 32 MiB kept its speed to 128): the buffers are doubled
until the rate stays the same, and what is smaller than that may be served by caches.

Letters: N = side of a square matrix.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from attnbench.device import synchronize
from attnbench.errors import in_words
from attnbench.measure.telemetry_gpu import GpuProbe
from attnbench.roofline import Ceilings, Rate
from attnbench.stats import median_interval

Call = Callable[[], None]

DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16", "float8_e4m3fn")

_ROUNDS, _FEWEST_ROUNDS = 5, 3  # the fewest where time is up: a crowded machine
_SAMPLES = 3  # a round, fewer of slow calls
_BURST_S = 5e-3  # at least this long is timed at once
_LONGEST_S = 0.2  # expected of one product; a larger one is not tried
_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
_FIRST_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}  # working set of the smallest copy
_LAST_BYTES = 1 << 30  # and of the largest, which costs a second to put in place
_MEMORY_SHARE = 0.25  # of what is free, for the largest copy
_FLAT = 0.1  # rates that differ by less are the same


@dataclass
class _Contest:
    """One ceiling while it is measured: what is called, and how much that does."""

    call: Call
    work: float  # operations or bytes a call
    what: str
    calls: int = 1
    samples: int = 1
    is_tf32: bool = False
    rates: list[list[float]] = field(default_factory=list)
    clocks: list[float] = field(default_factory=list)


def measure_ceilings(
    device: torch.device,
    *,
    dtypes: tuple[str, ...] = DTYPES,
    budget_s: float = 6.0,
    read_clock_mhz: Callable[[], float | None] = lambda: None,
) -> Ceilings:
    """Measure bandwidth and matmul rates; five seconds on two cores, less on a GPU.

    Args:
        device: cpu or cuda:N, with nobody else at work on it.
        dtypes: units to try, of :data:`DTYPES`; what torch cannot do here is absent with
            torch's reason.
        budget_s: when this is spent, fewer shapes are tried and fewer rounds taken.
        read_clock_mhz: the device's clock now (see :func:`sm_clock`).
    """
    start = time.perf_counter()
    absent: dict[str, str] = {}
    copies, cache_bytes = _memory_contests(device, absent, until=start + budget_s / 2)
    products: dict[str, _Contest] = {}
    for name in dtypes:
        try:
            products[name] = _best_product(name, device, until=start + 0.75 * budget_s)
        except Exception as error:  # each dtype fails in its own way
            absent[name] = in_words(error)
    contests = [*copies.values(), *products.values()]
    for taken in range(_ROUNDS):
        if taken >= _FEWEST_ROUNDS and time.perf_counter() - start > budget_s:
            break
        for contest in contests:
            _take_round(contest, device, read_clock_mhz)
    return Ceilings(
        bandwidth={name: _rate(contest) for name, contest in copies.items()},
        matmul={name: _rate(contest) for name, contest in products.items()},
        cache_bytes=cache_bytes,
        absent=absent,
        seconds=round(time.perf_counter() - start, 3),
    )


def sm_clock(gpu_uuid: str | None) -> Callable[[], float | None]:
    """Asks NVML for a GPU's SM clock, in MHz; None where it does not tell."""
    probe = GpuProbe(gpu_uuid)

    def read() -> float | None:
        probe.read()
        return probe.gauges.get("sm_clock_mhz")

    return read


# ---- memory ----------------------------------------------------------------------------


def _memory_contests(
    device: torch.device, absent: dict[str, str], until: float
) -> tuple[dict[str, _Contest], int | None]:
    """Copy and read beyond all caches, and the working set from which on they are flat."""
    size = _FIRST_BYTES[device.type]
    limit = min(_LAST_BYTES, _free_bytes(device) * _MEMORY_SHARE)
    contests = _copy_and_read(size, device)
    rates = _first_rates(contests, device)
    while 2 * size <= limit and time.perf_counter() < until:
        size *= 2
        contests.clear()  # lets go of the smaller buffer first
        contests = _copy_and_read(size, device)
        last, rates = rates, _first_rates(contests, device)
        if all(abs(rates[name] / last[name] - 1) <= _FLAT for name in rates):
            return contests, size // 2
    absent["cache_bytes"] = f"the bandwidth still changed at {size / 2**20:.0f} MiB"
    return contests, None


def _copy_and_read(size: int, device: torch.device) -> dict[str, _Contest]:
    whole = torch.ones(size // 4, dtype=torch.float32, device=device)
    source, target = whole.chunk(2)
    mib = f"{size / 2**20:.0f} MiB"

    def copy() -> None:
        target.copy_(source)

    def read() -> None:
        whole.sum()

    return {
        "copy": _Contest(copy, size, f"{mib} read and written"),
        "read": _Contest(read, size, f"sum of {mib}"),
    }


def _first_rates(contests: Mapping[str, _Contest], device: torch.device) -> dict[str, float]:
    return {name: c.work / _size_burst(c, device) for name, c in contests.items()}


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo") as file:
        kib = next(line.split()[1] for line in file if line.startswith("MemAvailable"))
    return int(kib) * 1024


# ---- products --------------------------------------------------------------------------


def _best_product(name: str, device: torch.device, until: float) -> _Contest:
    """The fastest shape and layout of a square product; larger ones while there is time.

    Raises:
        Exception: whatever torch raises where it cannot do the product.
    """
    if name == "tf32" and not _has_tf32(device):
        raise RuntimeError("this device has no TF32")
    best: tuple[float, _Contest] | None = None
    for layout in ("NT",) if name.startswith("float8") else ("NN", "NT"):
        one_s = 0.0
        for side in _SIDES[device.type]:
            is_late = best is not None and time.perf_counter() > until
            if is_late or 8 * one_s > _LONGEST_S:  # twice the side is eight times the work
                break
            contest = _Contest(
                _product(name, side, layout, device),
                2 * side**3,
                f"{side}×{side}×{side} {layout}",
                is_tf32=name == "tf32",
            )
            with _tf32(contest.is_tf32, device):
                one_s = _size_burst(contest, device)
            if best is None or contest.work / one_s > best[0]:
                best = contest.work / one_s, contest
    assert best is not None
    return best[1]


def _product(name: str, side: int, layout: str, device: torch.device) -> Call:
    """A product of N(0, 1) matrices, as attention sees them; constants would run faster."""
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    generator = torch.Generator(device).manual_seed(0)
    a_NN, b_NN = (
        torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    if layout == "NT":
        b_NN = b_NN.t()
    if name.startswith("float8"):
        one = torch.ones((), device=device)

        def scaled() -> None:
            torch._scaled_mm(a_NN, b_NN, one, one, out_dtype=torch.bfloat16)

        return scaled
    out_NN = torch.empty(side, side, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(a_NN, b_NN, out=out_NN)

    return multiply


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextlib.contextmanager
def _tf32(is_on: bool, device: torch.device) -> Iterator[None]:
    """Multiply float32 in TF32, or certainly not; as it was before afterwards."""
    if device.type != "cuda":
        yield
        return
    place = torch.backends.cuda.matmul
    before = place.fp32_precision
    place.fp32_precision = "tf32" if is_on else "ieee"
    try:
        yield
    finally:
        place.fp32_precision = before


# ---- taking the figures ----------------------------------------------------------------


def _size_burst(contest: _Contest, device: torch.device) -> float:
    """Settle how many calls and samples there are in a round; return seconds of a call."""
    contest.call()  # the first one may compile
    one_s = _seconds(contest.call, 1, device)
    contest.calls = max(1, math.ceil(_BURST_S / one_s))
    contest.samples = max(1, min(_SAMPLES, int(_LONGEST_S / 2 / (one_s * contest.calls))))
    return min(_seconds(contest.call, contest.calls, device) for _ in range(contest.samples))


def _seconds(call: Call, calls: int, device: torch.device) -> float:
    """Seconds a call; a burst is so long that launching and waiting do not show in it."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def _take_round(
    contest: _Contest,
    device: torch.device,
    read_clock_mhz: Callable[[], float | None],
) -> None:
    with _tf32(contest.is_tf32, device):
        seconds = [_seconds(contest.call, contest.calls, device) for _ in range(contest.samples)]
    contest.rates.append([contest.work / s for s in seconds])
    now_mhz = read_clock_mhz()
    if now_mhz is not None:
        contest.clocks.append(now_mhz)


def _rate(contest: _Contest) -> Rate:
    interval = median_interval(contest.rates)
    return Rate(
        median=interval.median,
        low=interval.low,
        high=interval.high,
        best=max(rate for rates in contest.rates for rate in rates),
        what=contest.what,
        clock_mhz=statistics.median(contest.clocks) if contest.clocks else None,
    )
