"""Which record of one run answers to which of another, and whether they may be compared."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnbench.errors import unknown
from attnbench.record import Record, Samples
from attnbench.runs import Run

_MOST_FIELDS = 3  # named in one line
_HOW = ("clock", "cache")  # fields of the samples that say how the time was taken

_Point = tuple[str, str]  # problem and implementation
_Variant = tuple[str, int]  # machine and seed


@dataclass(frozen=True)
class Pair:
    """The two records of a point; ``obstacle`` says why they may not be compared, if so."""

    base: Record | None
    new: Record | None
    obstacle: str = ""


def match(base: Run, new: Run, across: Sequence[str] = ()) -> tuple[list[Pair], list[str]]:
    """Pair the records of two runs, and say in lines of text what was passed over.

    A point is a problem and an implementation with its options. Where a run has several
    records of it, those of the same machine and seed meet; of several sources of one
    implementation the one measured last counts.

    Args:
        base, new: the runs.
        across: globs of identity fields that may differ.

    Raises:
        UserError: one of ``across`` names no field of the environments.
    """
    _check_fields(across, [base, new])
    left, passed_left = _by_point(base, across)
    right, passed_right = _by_point(new, across)
    pairs = [
        pair
        for point in dict.fromkeys([*left, *right])
        for pair in _pairs(left.get(point, {}), right.get(point, {}), base, new, across)
    ]
    passed = [
        f"{side}: {count} earlier records of points that were measured again are passed over"
        for side, count in (("BASE", passed_left), ("NEW", passed_right))
        if count
    ]
    return pairs, passed


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """``software.torch 2.12.0 → 2.13.0`` for every field that is not the same."""
    return [
        f"{field} {before.get(field, '–')} → {after.get(field, '–')}"
        for field in dict.fromkeys([*before, *after])
        if before.get(field) != after.get(field)
    ]


def how(samples: Samples) -> dict[str, str]:
    """How a time was taken, as far as is told: times taken in two ways are two figures."""
    told = {name: getattr(samples, name, None) for name in _HOW}
    return {name: str(value) for name, value in told.items() if value is not None}


def in_short(texts: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(texts) - _MOST_FIELDS
    return ", ".join(texts[:_MOST_FIELDS]) + (f" and {more} more" if more > 0 else "")


def _pairs(
    left: Mapping[_Variant, Record],
    right: Mapping[_Variant, Record],
    base: Run,
    new: Run,
    across: Sequence[str],
) -> Iterator[Pair]:
    """Equal variants meet; where there are none, the last of both, to say what differs."""
    yield from (Pair(left[v], right[v], _same(left[v], right[v])) for v in left if v in right)
    before = [record for variant, record in left.items() if variant not in right]
    after = [record for variant, record in right.items() if variant not in left]
    if len(before) == len(left) and before and after:
        one, other = before.pop(), after.pop()
        yield Pair(one, other, _obstacle(one, other, base, new, across))
    yield from (Pair(record, None, "not in NEW") for record in before)
    yield from (Pair(None, record, "not in BASE") for record in after)


def _same(one: Record, other: Record) -> str:
    """A gate that compares a measurement with itself would always pass."""
    return "the same measurement on both sides" if one == other else ""


def _obstacle(one: Record, other: Record, base: Run, new: Run, across: Sequence[str]) -> str:
    for record, run in ((one, base), (other, new)):
        if run.identity(record) is None:
            return f"environment-{record.environment}.json is missing"
    found = differences(_identity(base, one, across), _identity(new, other, across))
    if one.seed != other.seed:
        found.append(f"seed {one.seed} → {other.seed}")
    return in_short(found)


def _by_point(run: Run, across: Sequence[str]) -> tuple[dict[_Point, dict[_Variant, Record]], int]:
    """Records by point and variant, each the last measured, and how many were passed over."""
    found: dict[_Point, dict[_Variant, Record]] = {}
    passed = 0
    # What git brought out counts only where there is nothing else: it is an earlier version.
    for record in sorted(run.records, key=lambda r: (not r.implementation.revision, r.time)):
        point = found.setdefault(record.point, {})
        variant = (str(sorted(_identity(run, record, across).items())), record.seed)
        passed += variant in point
        point.pop(variant, None)  # so that the last measured is last
        point[variant] = record
    return found, passed


def _identity(run: Run, record: Record, across: Sequence[str]) -> dict[str, str]:
    """The fields that must be equal; the address of an environment whose file is missing."""
    identity = run.identity(record)
    if identity is None:
        return {"environment": record.environment}
    return {field: value for field, value in identity.items() if not _may_differ(field, across)}


def _may_differ(field: str, across: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(field, glob) for glob in across)


def _check_fields(across: Sequence[str], runs: Sequence[Run]) -> None:
    identities = [run.identity(record) or {} for run in runs for record in run.records]
    fields = sorted({field for identity in identities for field in identity})
    for glob in across:
        if not any(_may_differ(field, [glob]) for field in fields):
            raise unknown("environment field", glob, fields, "--across")
