"""Environment sidecars: what the records were measured on, and where environments differ.

A report only shows what a sidecar says: its keys are not known here, except those that
name the machine. A sidecar that is missing or damaged is told, and is not fatal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.limits import ceilings_of, notes_of
from attnbench.record import Record
from attnbench.report import units
from attnbench.stats import Interval

_NAMES = ("gpu", "cpu")  # keys of identity.hardware that name the machine, best first


@dataclass(frozen=True)
class Environment:
    """One sidecar, flattened to ``software.torch``-like keys."""

    address: str
    identity: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, str] = field(default_factory=dict)
    ceilings: Mapping[str, Any] | None = None  # as the sidecar has them

    @property
    def limits(self) -> Mapping[str, str]:
        """The ceilings as text, with the shape or size that reached them."""
        known = ceilings_of({"ceilings": self.ceilings})
        if self.ceilings is None or known is None:
            return {}
        when = str(self.ceilings.get("measured", ""))
        told = {"measured": "; ".join([when, *notes_of(self.ceilings)])}
        for kind, rates, unit in (
            ("bandwidth", known.bandwidth, units.BYTES_A_SECOND),
            ("matmul", known.matmul, units.FLOPS),
        ):
            for name, rate in rates.items():
                interval = units.interval(Interval(rate.median, rate.low, rate.high), unit)
                told[f"{name} {kind}"] = f"{interval}, {rate.what}"
        return told | {name: f"none: {why}" for name, why in known.absent.items()}

    @property
    def found(self) -> bool:
        """Whether there was a readable sidecar."""
        return bool(self.identity or self.context)

    @property
    def machine(self) -> str:
        """Equal for environments whose figures may be compared; unique where unknown."""
        if not self.identity:
            return self.address
        text = json.dumps(dict(self.identity), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What to call the machine: its GPU, else its CPU, else its environment's address."""
        for key in _NAMES:
            for path, value in self.identity.items():
                if path.rpartition(".")[2] == key:
                    return value
        return f"environment {self.address}"


@dataclass(frozen=True)
class Difference:
    """A key on which environments differ, with the value of each in their order."""

    key: str
    values: tuple[str, ...]


def load_environments(
    results: Sequence[Path], records: Iterable[Record]
) -> tuple[dict[str, Environment], list[str]]:
    """Sidecars of the records, by address, and a line for each that cannot be read."""
    folders = sorted({folder for path in results for folder in _folders(path)})
    environments: dict[str, Environment] = {}
    problems: list[str] = []
    for address in sorted({record.environment for record in records}):
        found = [f for f in folders if (f / f"environment-{address}.json").is_file()]
        environments[address] = Environment(address)
        if not found:
            problems.append(f"environment-{address}.json: missing; its machine cannot be described")
            continue
        try:
            environments[address] = _read(found[0] / f"environment-{address}.json", address)
        except ValueError as error:
            problems.append(f"environment-{address}.json: cannot be read ({error})")
    return environments, problems


def differences(environments: Sequence[Environment], part: str) -> list[Difference]:
    """Keys of a part (``identity``, ``context``, ``limits``) with different values."""
    return [d for d in _table(environments, part) if len(set(d.values)) > 1]


def in_common(environments: Sequence[Environment], part: str) -> dict[str, str]:
    """Keys of a part whose value is the same in every environment."""
    return {d.key: d.values[0] for d in _table(environments, part) if len(set(d.values)) == 1}


def has_ceilings(environments: Sequence[Environment]) -> bool:
    """Whether any of them holds ceilings."""
    return any(environment.limits for environment in environments)


def _table(environments: Sequence[Environment], part: str) -> list[Difference]:
    parts: list[Mapping[str, str]] = [getattr(e, part) for e in environments]
    keys = list(dict.fromkeys(key for values in parts for key in values))
    return [Difference(key, tuple(values.get(key, "–") for values in parts)) for key in keys]


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path.parent]
    return [path, *(p for p in path.rglob("*") if p.is_dir())]


def _read(path: Path, address: str) -> Environment:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return Environment(
        address,
        identity=dict(_flatten(data.get("identity", {}))),
        context=dict(_flatten(data.get("context", {}))),
        ceilings=_ceilings(data),
    )


def _ceilings(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section, if ceilings can be read from it."""
    if "ceilings" not in data:
        return None
    try:
        return data["ceilings"] if ceilings_of(data) is not None else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"ceilings: {type(error).__name__}: {error}") from error


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, ", ".join(str(v) for v in value)
    elif isinstance(value, bool):
        yield prefix, "yes" if value else "no"
    elif value is not None:
        yield prefix, str(value)
