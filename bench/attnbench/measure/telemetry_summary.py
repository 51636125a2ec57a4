"""What a run of telemetry samples says about a stretch of time: figures and verdict.

Pure functions over :class:`Sample`; who takes the samples is in ``telemetry``. The
verdict of a stretch is the gravest of

    throttled     slowed down for heat, or by a power brake: measure again after cooling
    disturbed     others took processor time or used the GPU: annotate, or measure again
    unknown       the machine does not tell what would be needed to say ``clean``
    power-capped  held down by its power limit: normal for attention on a GPU, annotate
    clean         none of these

A signal that the machine does not tell is absent, with the reason; it is never 0.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["throttled", "disturbed", "unknown", "power-capped", "clean"]
_GRAVEST_FIRST: tuple[Verdict, ...] = ("throttled", "disturbed", "unknown", "power-capped", "clean")

RATES: Mapping[str, str] = {
    "busy_s": "busy_cores",
    "others_s": "others_cores",
    "worker_s": "worker_cores",
    "steal_s": "steal_cores",
    "wait_s": "wait_share",
    "sampler_s": "sampler_cores",
}
"""Counters of seconds, and the name of their rate (seconds a second)."""

THERMAL = frozenset({"thermal", "hw_thermal", "hw_slowdown", "power_brake"})
"""Clock event reasons after which a round is measured again."""

OTHERS_SHARE = 0.05  # of the worker's cores, used by others: more is a disturbance
STEAL_SHARE = 0.01  # of the worker's cores, taken by the hypervisor
WAIT_SHARE = 0.02  # of the time, in which the worker's main thread had no core
_SHORTEST_RATE_S = 0.5  # the kernel counts in ticks of 10 ms: below this a rate is noise
_SPAN_S = 1.0  # rates are given by the second
_NEAR_S = 0.3  # a sample this far outside a short stretch still speaks for it
_OFFENDERS = 5  # kept at most
_WORTH_NAMING = 0.05  # of a core, in a note


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment.

    Attributes:
        t: ``time.monotonic()``, which all processes of a machine share.
        gauges: values of the moment, by signal.
        counters: what only grows, by name (see :data:`RATES`).
        throttle: names of the reasons that held the GPU's clocks down; None if not told.
        busy: processor seconds of other processes since the last look, by name.
        gpu_others: other processes on the GPU, as ``telemetry_gpu`` describes them; None
            if this sample did not look, or could not.
        cores: how many cores the worker may use.
    """

    t: float
    gauges: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    throttle: Sequence[str] | None = None
    busy: Mapping[str, float] = field(default_factory=dict)
    gpu_others: Sequence[Mapping[str, Any]] | None = None
    cores: int | None = None


def summarise(
    samples: Sequence[Sample],
    t0: float,
    t1: float,
    device: str,
    absent: Mapping[str, str],
) -> dict[str, Any]:
    """Figures and verdict of the stretch from ``t0`` to ``t1`` (``time.monotonic``).

    Args:
        samples: in the order taken.
        t0, t1: begin and end, seconds.
        device: ``cpu`` or ``cuda:N``; decides which signals the verdict rests on.
        absent: reasons of the signals that cannot be had.

    Returns:
        Plain JSON: ``verdict``; ``notes``, its grounds in words, the gravest first;
        ``samples``, how many lie inside; ``longest_gap_s`` between them; ``signals``, each with
        min, median, max and mean; ``throttle``, the share of samples in which each reason
        was active; ``others`` and ``gpu_others``, the other processes seen; ``absent``, why
        the rest is missing.
        What could not be seen has no entry but its reason.
    """
    near = [s for s in samples if t0 - _NEAR_S <= s.t <= t1 + _NEAR_S]
    inside = [s for s in near if t0 <= s.t <= t1] or near
    counted = _counted(samples, t0, t1)
    seen = _seen(inside, counted, _looks_at_gpu(samples, t0, t1))
    told = {*seen, *seen["signals"]}
    seen["absent"] = {name: why for name, why in absent.items() if name not in told}
    findings = sorted(
        _findings(seen, inside, counted, device), key=lambda found: _GRAVEST_FIRST.index(found[0])
    )
    gaps = [b.t - a.t for a, b in itertools.pairwise(inside)]
    return {
        "verdict": findings[0][0] if findings else "clean",
        "notes": [note for _, note in findings],
        "samples": len(inside),
        **({"longest_gap_s": round(max(gaps), 3)} if gaps else {}),
        **seen,
    }


def rank(verdict: str | None) -> int:
    """0 for the gravest verdict; what is no verdict comes last."""
    told = [str(v) for v in _GRAVEST_FIRST]
    return told.index(verdict) if verdict in told else len(told)


def is_hot(sample: Sample) -> bool:
    """Whether the GPU was held down for heat, or by a power brake, at that moment."""
    return bool(THERMAL.intersection(sample.throttle or ()))


# ---- figures ---------------------------------------------------------------------------


def _seen(
    inside: Sequence[Sample],
    counted: Sequence[Sample],
    looks: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """What the samples tell, without what they do not."""
    signals = {name: _figures(values) for name, values in _gauges(inside).items()}
    for counter, name in RATES.items():
        rates = _rates(counted, counter)
        if rates:
            signals[name] = _figures(rates, mean=rate_of(counted, counter))
    seen: dict[str, Any] = {"signals": signals}
    if "others_cores" in signals:
        seen["others"] = _offenders(counted)
    told = [s.throttle for s in inside if s.throttle is not None]
    if told:
        active = Counter(reason for reasons in told for reason in reasons)
        seen["throttle"] = {r: round(n / len(told), 3) for r, n in sorted(active.items())}
    if looks:
        seen["gpu_others"] = _gpu_others(looks)
    return seen


def _counted(samples: Sequence[Sample], t0: float, t1: float) -> list[Sample]:
    """Samples that bracket the stretch, widened backwards where it is too short to count in."""
    begin = min(t0, t1 - _SHORTEST_RATE_S)
    first = max((i for i, s in enumerate(samples) if s.t <= begin), default=0)
    return [s for s in samples[first:] if s.t <= t1 + _NEAR_S]


def _gauges(samples: Sequence[Sample]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.gauges.items():
            values.setdefault(name, []).append(value)
    return values


def rate_of(samples: Sequence[Sample], counter: str) -> float | None:
    """Growth a second between the first and the last that count it."""
    told = [s for s in samples if counter in s.counters]
    if len(told) < 2 or told[-1].t <= told[0].t:
        return None
    grown = told[-1].counters[counter] - told[0].counters[counter]
    return max(0.0, grown / (told[-1].t - told[0].t))


def _rates(samples: Sequence[Sample], counter: str) -> list[float]:
    """Growth a second, second by second; a rest shorter than that joins the last."""
    told = [s for s in samples if counter in s.counters]
    if not told:
        return []
    marks = [told[0]]
    for sample in told[1:]:
        if sample.t - marks[-1].t >= _SPAN_S:
            marks.append(sample)
    marks[max(1, len(marks) - 1) :] = [told[-1]]
    rates = (rate_of(pair, counter) for pair in itertools.pairwise(marks))
    return [rate for rate in rates if rate is not None]


def _figures(values: Sequence[float], mean: float | None = None) -> dict[str, float]:
    figures = {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "mean": statistics.fmean(values) if mean is None else mean,
    }
    return {name: rounded(value) for name, value in figures.items()}


def _offenders(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The processes that used most, in cores, roughly: they are looked at once a second."""
    spent: Counter[str] = Counter()
    for sample in samples[1:]:
        spent.update(sample.busy)
    if not spent:
        return []
    duration = samples[-1].t - samples[0].t
    return [
        {"name": name, "cores": rounded(seconds / max(duration, _SPAN_S))}
        for name, seconds in spent.most_common(_OFFENDERS)
    ]


def _looks_at_gpu(
    samples: Sequence[Sample], t0: float, t1: float
) -> list[Sequence[Mapping[str, Any]]]:
    """Who was on the GPU, each time somebody looked, and the last time before that."""
    looks = [(s.t, s.gpu_others) for s in samples if s.gpu_others is not None and s.t <= t1]
    before = [others for t, others in looks if t < t0]
    return before[-1:] + [others for t, others in looks if t >= t0]


def _gpu_others(looks: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Every other process that was on the GPU, as it was when it worked hardest."""
    worst: dict[int, Mapping[str, Any]] = {}
    for others in looks:
        for other in others:
            known = worst.get(other["pid"])
            if known is None or (other.get("sm_percent") or 0) >= (known.get("sm_percent") or 0):
                worst[other["pid"]] = other
    return [dict(other) for other in worst.values()]


# ---- verdict ---------------------------------------------------------------------------


def _findings(
    seen: Mapping[str, Any], inside: Sequence[Sample], counted: Sequence[Sample], device: str
) -> list[tuple[Verdict, str]]:
    """Everything to be said against the stretch, with how grave it is."""
    if not inside:
        return [("unknown", "no telemetry sample lies in this stretch of time")]
    findings = _of_throttling(seen.get("throttle", {}), counted)
    findings += _of_gpu_others(seen.get("gpu_others", []))
    is_gpu = device.startswith("cuda")
    cores = next((s.cores for s in reversed(inside) if s.cores), None)
    findings += _of_cores(seen, cores, is_host=not is_gpu)
    if is_gpu and "throttle" not in seen:
        why = seen["absent"].get("throttle", "no sample tells it")
        findings.append(("unknown", f"whether the GPU was slowed down cannot be seen: {why}"))
    if is_gpu and "gpu_others" not in seen and (why := seen["absent"].get("gpu_others")):
        findings.append(("unknown", f"whether others are on the GPU cannot be seen: {why}"))
    if not is_gpu and "others_cores" not in seen["signals"]:
        why = seen["absent"].get("others_cores", "too few samples")
        findings.append(("unknown", f"what other processes did cannot be seen: {why}"))
    return findings


def _of_throttling(
    throttle: Mapping[str, float], counted: Sequence[Sample]
) -> list[tuple[Verdict, str]]:
    findings: list[tuple[Verdict, str]] = []
    for reason, share in throttle.items():
        if reason in THERMAL:
            findings.append(("throttled", f"GPU slowed down: {reason} in {share:.0%} of samples"))
        elif reason == "power_cap":
            findings.append(
                ("power-capped", f"GPU held down by its power limit in {share:.0%} of samples")
            )
    told = [s.counters["throttle_events"] for s in counted if "throttle_events" in s.counters]
    if told and told[-1] > told[0]:
        times = int(told[-1] - told[0])
        findings.append(("throttled", f"CPU slowed down for heat: {times} throttle events"))
    return findings


def _of_gpu_others(others: Sequence[Mapping[str, Any]]) -> list[tuple[Verdict, str]]:
    """Whoever computes there, or may do so; one that only holds memory disturbs nobody."""
    return [
        ("disturbed", f"another process used the GPU: {other['name']} (pid {other['pid']})")
        for other in others
        if other.get("sm_percent") != 0
    ]


def _of_cores(
    seen: Mapping[str, Any], cores: int | None, is_host: bool
) -> list[tuple[Verdict, str]]:
    """Who took the worker's processor time.

    A GPU's worker needs one core, so that others on the rest of the machine do not matter
    to it; what matters is whether its own thread had to wait.
    """
    findings: list[tuple[Verdict, str]] = []
    mean = {name: figures["mean"] for name, figures in seen["signals"].items()}
    if is_host and cores and mean.get("others_cores", 0) > OTHERS_SHARE * cores:
        names = ", ".join(
            f"{o['name']} {o['cores']:.2g}"
            for o in seen["others"][:3]
            if o["cores"] >= _WORTH_NAMING
        )
        findings.append(
            (
                "disturbed",
                f"others used {mean['others_cores']:.2g} of {cores} cores"
                + (f" ({names})" if names else ""),
            )
        )
    if cores and mean.get("steal_cores", 0) > STEAL_SHARE * cores:
        share = mean["steal_cores"] / cores
        findings.append(("disturbed", f"the hypervisor took {share:.1%} of the cores' time"))
    if mean.get("wait_share", 0) > WAIT_SHARE:
        findings.append(
            ("disturbed", f"the worker waited for a core {mean['wait_share']:.1%} of the time")
        )
    return findings


def rounded(value: float) -> float:
    """Four significant digits: a record is read by people too."""
    return float(f"{value:.4g}")
