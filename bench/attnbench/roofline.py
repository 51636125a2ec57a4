"""The roofline: how near a time comes to what the device was measured to do at most.

Williams, Waterman and Patterson 2009 ("Roofline"): work that needs F operations and B
bytes takes at least ``max(F / matmul rate, B / bandwidth)``. Both rates are measured on the
device itself (``measure.ceilings``), none comes from a table.

A time that beats the roofline is no record but an error in the measurement, so the check
must never cry wolf. It counts only work that an exact answer cannot avoid, on the fastest
unit that could have given it:

* operations: the backward's recomputed logits are left out (whoever kept them need not
  compute them again). The rate is that of the fastest unit at least as precise as the
  dtype; float32 may also be pieced together from three products of a shorter type
  (3×TF32, 3×BF16);
* bytes: what caches can have kept from the call before is left out. Data that lie in the
  cache are legitimately faster than memory, by any factor;
* each ceiling is taken at its best sample, at the point's own clock where both clocks are
  known, plus a slack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from attnbench.cost import attended_pairs
from attnbench.problem import Problem

SLACK = 0.05  # a ceiling is a measurement too: the fastest shape may not have been tried
SLACK_UNKNOWN_CLOCK = 0.5  # and then it may have run slower, or shared its core with a neighbour

_AS_PRECISE: Mapping[str, tuple[str, ...]] = {
    "float64": (),
    "float32": ("float64",),
    "bfloat16": ("float16", "tf32", "float32", "float64"),
    "float16": ("tf32", "float32", "float64"),
    "float8_e4m3fn": ("bfloat16", "float16", "tf32", "float32", "float64"),
}
_PIECES: Mapping[str, tuple[str, ...]] = {"float32": ("tf32", "bfloat16", "float16")}
_PRODUCTS_OF_PIECES = 3


@dataclass(frozen=True)
class Rate:
    """A measured ceiling, in operations or bytes a second.

    Attributes:
        median, low, high: over the rounds, with the 95 % interval.
        best: the fastest sample.
        what: the shape or size that gave it.
        clock_mhz: of the device meanwhile; None where it was not told.
    """

    median: float
    low: float
    high: float
    best: float
    what: str
    clock_mhz: float | None = None


@dataclass(frozen=True)
class Ceilings:
    """What one device was measured to do at most.

    Attributes:
        bandwidth: ``copy`` (bytes read and written) and ``read``.
        matmul: by unit: a dtype's name, or ``tf32``.
        cache_bytes: working sets up to this size may be served by caches, as measured.
        absent: why a ceiling is missing, by name.
        seconds: that the measurement took.
    """

    bandwidth: Mapping[str, Rate]
    matmul: Mapping[str, Rate]
    cache_bytes: int | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is not known is left out."""
        data: dict[str, Any] = _without_none(asdict(self))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ceilings:
        """The inverse of :meth:`to_json`."""
        rates = {
            kind: {name: Rate(**rate) for name, rate in data[kind].items()}
            for kind in ("bandwidth", "matmul")
        }
        return cls(**{**data, **rates})


@dataclass(frozen=True)
class Place:
    """Where a time lies under the roofline.

    Attributes:
        flops_per_s: operations a second, by the field's convention (``Problem.flops``).
        bytes_per_s: fewest bytes a second; what really moved is more.
        intensity: operations a byte.
        bound: which roof is lower there; None if neither is known.
        roof: name of the ceiling.
        share: of that roof, 1.0 on it; None if it is not known.
        absent: why there is no share.
        implausible: what is wrong with the time, if it beats the roofline.
    """

    flops_per_s: float
    bytes_per_s: float
    intensity: float
    bound: Literal["compute", "memory"] | None = None
    roof: str | None = None
    share: float | None = None
    absent: str | None = None
    implausible: str | None = None


def place(
    problem: Problem,
    seconds: float,
    ceilings: Ceilings,
    *,
    flops: int | None = None,
    ideal_bytes: int | None = None,
    is_exact: bool = True,
    is_cold: bool = False,
    clock_mhz: float | None = None,
) -> Place:
    """Set a time beside the ceilings of its device.

    Args:
        problem: what was computed.
        seconds: that one call took.
        ceilings: of the device.
        flops, ideal_bytes: the implementation's own counts; None is the problem's.
        is_exact: False for approximate methods: they may read less and use shorter types,
            so that only their own ``flops`` on the fastest unit of all is a limit.
        is_cold: the call began with its inputs out of the caches.
        clock_mhz: highest clock of the device during the measurement, if known.

    Raises:
        ValueError: ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    work = problem.flops() if flops is None else flops
    moved = problem.ideal_bytes() if ideal_bytes is None else ideal_bytes
    bare = Place(work / seconds, moved / seconds, work / moved)
    if not is_exact and flops is None:
        return replace(bare, absent="an approximate method that does not say its FLOPs")
    roofs = _roofs(problem, work / seconds, moved / seconds, ceilings, is_cold)
    if not roofs:
        why = ceilings.absent.get(problem.dtype, "no ceiling was measured for this dtype")
        return replace(bare, absent=why)
    highest = max(roofs, key=lambda roof: roof.share)
    faults = [_too_many_flops(problem, seconds, ceilings, flops, is_exact, clock_mhz)]
    if is_exact:
        faults.append(_too_many_bytes(problem, seconds, ceilings))
    return replace(
        bare,
        bound=highest.bound,
        roof=highest.name,
        share=highest.share,
        implausible="; ".join(fault for fault in faults if fault) or None,
    )


def best_of(one: Ceilings, other: Ceilings) -> Ceilings:
    """Each ceiling from the measurement in which it was higher, and the larger cache."""

    def best(a: Mapping[str, Rate], b: Mapping[str, Rate]) -> dict[str, Rate]:
        both = {**a, **b}
        return {
            name: max((m[name] for m in (a, b) if name in m), key=lambda r: r.best) for name in both
        }

    caches = [c.cache_bytes for c in (one, other)]
    known = [size for size in caches if size is not None]
    return replace(
        other,
        bandwidth=best(one.bandwidth, other.bandwidth),
        matmul=best(one.matmul, other.matmul),
        cache_bytes=max(known) if len(known) == len(caches) else None,
    )


def least_flops(problem: Problem) -> int:
    """Operations that no exact answer can do without.

    ``Problem.flops`` counts the logits again in the backward, as FlashAttention computes
    them; whoever kept them saves 2·pairs·head_dim a head.
    """
    if problem.direction == "forward":
        return problem.flops()
    return problem.flops() - 2 * attended_pairs(problem) * problem.head_dim


@dataclass(frozen=True)
class _Roof:
    bound: Literal["compute", "memory"]
    name: str
    share: float


def _roofs(
    problem: Problem, flops_per_s: float, bytes_per_s: float, ceilings: Ceilings, is_cold: bool
) -> list[_Roof]:
    """The roofs that apply, with the share of each.

    A working set that fits in the cache is limited by memory only where it starts cold.
    """
    roofs = []
    unit = _unit(problem.dtype, flops_per_s, ceilings)
    if unit is not None:
        name, rate = unit
        roofs.append(_Roof("compute", name, flops_per_s / rate))
    is_large = ceilings.cache_bytes is not None and problem.ideal_bytes() > ceilings.cache_bytes
    if ceilings.bandwidth and (is_cold or is_large):
        name, fastest = max(ceilings.bandwidth.items(), key=lambda item: item[1].median)
        roofs.append(_Roof("memory", name, bytes_per_s / fastest.median))
    return roofs


def _unit(dtype: str, flops_per_s: float, ceilings: Ceilings) -> tuple[str, float] | None:
    """The unit that a dtype is set against: its own, or the fastest if its own was beaten.

    (A CPU's float16 product is far slower than float32's, so that a kernel which converts
    beats it; a GPU's float32 kernel may use 3×TF32.)
    """
    own = ceilings.matmul.get(dtype)
    if own is not None and flops_per_s <= own.best * (1 + SLACK):
        return dtype, own.median
    fastest = _fastest(dtype, ceilings)
    if fastest is None:
        return None
    name, rate, products = fastest
    return (name if products == 1 else f"{products}×{name}"), rate.median / products


def _fastest(dtype: str, ceilings: Ceilings) -> tuple[str, Rate, int] | None:
    """The fastest unit that gives exact results of a dtype, and the products that it takes."""
    units = [(name, 1) for name in (dtype, *_AS_PRECISE[dtype])]
    units += [(name, _PRODUCTS_OF_PIECES) for name in _PIECES.get(dtype, ())]
    known = [(name, ceilings.matmul[name], n) for name, n in units if name in ceilings.matmul]
    return max(known, key=lambda unit: unit[1].best / unit[2], default=None)


def _too_many_flops(
    problem: Problem,
    seconds: float,
    ceilings: Ceilings,
    flops: int | None,
    is_exact: bool,
    clock_mhz: float | None,
) -> str | None:
    """What is wrong if no unit of the device could have computed that fast."""
    if is_exact:
        work, fastest = least_flops(problem), _fastest(problem.dtype, ceilings)
    else:
        assert flops is not None
        best = max(ceilings.matmul.items(), key=lambda item: item[1].best, default=None)
        work, fastest = flops, (*best, 1) if best else None
    if fastest is None:
        return None
    name, rate, products = fastest
    limit = rate.best / products * (1 + SLACK_UNKNOWN_CLOCK)
    if clock_mhz and rate.clock_mhz:
        limit = rate.best / products * (1 + SLACK) * max(1.0, clock_mhz / rate.clock_mhz)
    if work / seconds <= limit:
        return None
    return (
        f"{work / seconds / 1e12:.4g} TFLOPS; the fastest {name} product measured on this "
        f"device reached {rate.best / 1e12:.4g}"
    )


def _too_many_bytes(problem: Problem, seconds: float, ceilings: Ceilings) -> str | None:
    """What is wrong if the memory could not have moved that much, caches full of it included."""
    if ceilings.cache_bytes is None or not ceilings.bandwidth:
        return None
    passes = 2 if problem.direction == "both" else 1
    beyond = problem.ideal_bytes() - passes * ceilings.cache_bytes
    best = max(rate.best for rate in ceilings.bandwidth.values())
    if beyond / seconds <= best * (1 + SLACK_UNKNOWN_CLOCK):
        return None
    return (
        f"{beyond / seconds / 1e9:.4g} GB/s beyond what the caches hold; the fastest copy or "
        f"read measured on this device reached {best / 1e9:.4g}"
    )


def _without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return data
