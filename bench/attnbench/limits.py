"""The ceilings of a run's device: kept beside the records, and what they say of a time.

They are measured in a worker in which no plugin was at work, before the first point, and
kept in the environment's file, outside its identity: they do not make another machine.
Runs of the next seven days on the same machine take them from there.

A time that beats them is no record but an error. As they are a measurement too, they are
measured once more before anybody is accused, and the better figure of the two counts.
Ceilings that were measured while others used the machine may be far too low: they accuse
nobody, and the next run measures them again.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench import conditions
from attnbench import environment as environments
from attnbench.pool import WorkerPool
from attnbench.problem import Problem
from attnbench.process import WorkerDied
from attnbench.record import Record, Samples
from attnbench.roofline import SLACK_UNKNOWN_CLOCK, Ceilings, Place, best_of, place
from attnbench.train.figures import Training

KEEP_DAYS = 7
_TIMEOUT_S = 120.0
_ABOUT = ("measured", "telemetry")  # what the environment says of its ceilings besides


@dataclass
class Limits:
    """The ceilings of a session's device.

    Attributes:
        pool: whose workers measure them, and by whose sampler they are watched.
        environment: of the session; its section ``ceilings`` is written here.
        folder: of the records, and of earlier environments; None keeps nothing.
        budget_s: seconds for measuring; 0 takes what there is and measures nothing.
    """

    pool: WorkerPool
    environment: dict[str, Any]
    folder: Path | None
    budget_s: float
    is_sure: bool = False  # measured a second time already

    def settle(self) -> str:
        """Find or measure the ceilings; say which, in a line. ``""`` where none are wanted."""
        if not self.budget_s:
            return ""
        if "ceilings" not in self.environment:
            self._find_earlier()
        if "ceilings" in self.environment:
            return f"Ceilings of {self._told['measured'][:16]}: {self._summary()}"
        self._measure()
        return f"Ceilings measured: {self._summary()}"

    def save(self) -> str:
        """Keep the environment beside the records; return its address."""
        if self.folder is None:
            return environments.address(self.environment)
        return environments.save(self.environment, self.folder)

    def fault(
        self,
        problem: Problem,
        samples: Samples,
        *,
        is_exact: bool,
        flops: int | None = None,
        ideal_bytes: int | None = None,
        clock_mhz: float | None,
    ) -> str | None:
        """What is wrong with a time, if it beats the ceilings by more than their error.

        ``flops`` and ``ideal_bytes`` are the method's own, where it is no exact one.
        """
        ceilings = ceilings_of(self.environment)
        if ceilings is None or _is_disturbed(self._told):
            return None
        own = flops, ideal_bytes
        fault = _place(problem, samples, ceilings, is_exact, own, clock_mhz).implausible
        return f"implausibly fast: {fault}" if fault else None

    def training_fault(self, training: Training, samples: Samples) -> str | None:
        """What is wrong with a step that beats every product that was measured here."""
        least = training.flops.dense + training.flops.attention_least
        devices = training.ranks.processes if training.ranks else 1
        return self.model_fault(least // devices, samples)

    def model_fault(self, least_flops: int, samples: Samples) -> str | None:
        """What is wrong with a time in which no product measured here does what a model needs."""
        ceilings = ceilings_of(self.environment)
        if ceilings is None or not ceilings.matmul or _is_disturbed(self._told):
            return None
        best = max(rate.best for rate in ceilings.matmul.values())
        rate = least_flops / samples.median_s
        if rate <= best * (1 + SLACK_UNKNOWN_CLOCK):
            return None
        return (
            f"implausibly fast: {rate / 1e12:.4g} TFLOPS of the model; the fastest product "
            f"measured on this device reached {best / 1e12:.4g}"
        )

    def measure_again(self) -> None:
        """Measure once more, once a run; each ceiling is the better of the two from then on."""
        if self.is_sure or not self.budget_s:
            return
        self.is_sure = True
        before = self._told
        self.pool.drop()  # what was suspected was at work in that worker
        self._measure()
        one, other = _ceilings(before), ceilings_of(self.environment)
        if other is None:
            self.environment["ceilings"] = before
        elif one is not None:
            self._told.update(best_of(one, other).to_json())

    @property
    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = self.environment["ceilings"]
        return told

    def _find_earlier(self) -> None:
        """The newest of this machine, if it is not too old."""
        if self.folder is None:
            return
        found = [
            data["ceilings"]
            for _, data in environments.of_machine(self.environment, self.folder)
            if _has_ceilings(data)
            and _age_days(data["ceilings"]) < KEEP_DAYS
            and not _is_disturbed(data["ceilings"])
        ]
        if found:
            self.environment["ceilings"] = max(found, key=lambda told: str(told["measured"]))

    def _measure(self) -> None:
        if not self.pool.is_fresh:
            self.pool.drop()
        gpu = environments.gpu_uuid(self.environment)
        task = {"do": "ceilings", "device": self.pool.device, "budget_s": self.budget_s}
        told: dict[str, Any] = {"bandwidth": {}, "matmul": {}}
        try:
            for event in self.pool.ask({**task, "gpu_uuid": gpu}, _TIMEOUT_S + self.budget_s):
                if event["event"] == "ceilings":
                    told = {**event["ceilings"], **self._telemetry(event["begin"], event["end"])}
        except WorkerDied as death:
            told["absent"] = {"ceilings": death.reason}
        self.environment["ceilings"] = {"measured": _now().isoformat(timespec="seconds"), **told}

    def _telemetry(self, begin: float, end: float) -> dict[str, Any]:
        sampler = self.pool.sampler
        if sampler is None:
            return {}
        seen = sampler.window(begin, end)
        return {"telemetry": {"verdict": seen["verdict"], "notes": seen["notes"]}}

    def _summary(self) -> str:
        ceilings = ceilings_of(self.environment)
        if ceilings is None:
            return f"none ({', '.join(self._told.get('absent', {}).values())})"
        rates = {name: _in_words(rate.median, "B/s") for name, rate in ceilings.bandwidth.items()}
        rates |= {name: _in_words(rate.median, "FLOPS") for name, rate in ceilings.matmul.items()}
        notes = "; ".join(notes_of(self._told))
        return ", ".join(f"{k} {v}" for k, v in rates.items()) + (f" ({notes})" if notes else "")


def ceilings_of(environment: Mapping[str, Any]) -> Ceilings | None:
    """The ceilings that an environment holds; None if none were measured there."""
    return _ceilings(environment.get("ceilings"))


def notes_of(ceilings: Mapping[str, Any]) -> list[str]:
    """What disturbed the measurement of an environment's ``ceilings``, in words."""
    seen = ceilings.get("telemetry")
    notes = seen.get("notes") if isinstance(seen, Mapping) else None
    return [str(note) for note in notes] if isinstance(notes, list) else []


def place_record(record: Record, environment: Mapping[str, Any]) -> Place | None:
    """Where a record's median lies under the roofline of the environment it was measured on.

    Returns:
        None for a record without timings, or an environment without ceilings. A place without
        a share, but with its reason, where the ceilings cannot be trusted.

    Raises:
        UserError: this attnbench cannot read the record's problem.
    """
    ceilings = ceilings_of(environment)
    if ceilings is None or record.samples is None or record.implementation.simulated:
        return None
    problem = Problem.from_json(record.problem)
    is_exact = record.implementation.kind == "exact"
    clock_mhz = highest_clock(record.telemetry)
    own = record.flops, record.ideal_bytes
    found = _place(problem, record.samples, ceilings, is_exact, own, clock_mhz)
    if _is_disturbed(environment["ceilings"]):
        why = "the ceilings were measured while the machine was disturbed"
        return Place(found.flops_per_s, found.bytes_per_s, found.intensity, absent=why)
    return found


def highest_clock(telemetry: Mapping[str, Any]) -> float | None:
    """The GPU's highest clock while a point was sampled, in MHz."""
    return conditions.figure(telemetry, "sm_clock_mhz", "max")


def _ceilings(told: Mapping[str, Any] | None) -> Ceilings | None:
    if not told or not (told["bandwidth"] or told["matmul"]):
        return None
    return Ceilings.from_json({k: v for k, v in told.items() if k not in _ABOUT})


def _place(
    problem: Problem,
    samples: Samples,
    ceilings: Ceilings,
    is_exact: bool,
    own: tuple[int | None, int | None],  # FLOPs and bytes of an approximate method
    clock_mhz: float | None,
) -> Place:
    return place(
        problem,
        samples.median_s,
        ceilings,
        flops=own[0],
        ideal_bytes=own[1],
        is_exact=is_exact,
        is_cold=samples.cache == "cold",
        clock_mhz=clock_mhz,
    )


def _has_ceilings(environment: Mapping[str, Any]) -> bool:
    """Whether it holds ceilings that can be read."""
    try:
        return ceilings_of(environment) is not None
    except (ValueError, TypeError, KeyError):
        return False


def _in_words(rate: float, unit: str) -> str:
    return f"{rate / 1e12:.3g} T{unit}" if rate >= 1e12 else f"{rate / 1e9:.3g} G{unit}"


def _is_disturbed(told: Mapping[str, Any]) -> bool:
    seen = told.get("telemetry")
    return isinstance(seen, Mapping) and seen.get("verdict") in ("disturbed", "throttled")


def _age_days(told: Mapping[str, Any]) -> float:
    try:
        age = _now() - datetime.datetime.fromisoformat(str(told["measured"]))
    except (KeyError, ValueError, TypeError):
        return float("inf")
    return age.total_seconds() / 86400


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
