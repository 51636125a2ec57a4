"""A run: records with the environments they were measured in, from files and folders.

What comparing, merging and exporting start from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnbench import store
from attnbench.errors import UserError
from attnbench.record import PointKind, Record
from attnbench.subject import subject_of


@dataclass(frozen=True)
class Run:
    """Records in file order, their environments by address, and what was left out."""

    records: tuple[Record, ...]
    environments: Mapping[str, Mapping[str, Any]]
    problems: tuple[str, ...]

    def identity(self, record: Record) -> dict[str, str] | None:
        """What makes a record's figures comparable, as ``software.torch``-like keys.

        None where the environment's file is missing.
        """
        environment = self.environments.get(record.environment)
        return None if environment is None else dict(flatten(environment.get("identity", {})))

    def timings(self) -> Run:
        """Without the records whose implementation ran in a simulator; a line says so."""
        real = tuple(r for r in self.records if r.implementation.simulated is None)
        left = len(self.records) - len(real)
        told = [f"{left} records of a simulator, whose times are no timings: left out"]
        return replace(self, records=real, problems=(*self.problems, *(told if left else ())))

    def context(self, record: Record) -> dict[str, str]:
        """What is worth knowing about the environment but is not its identity."""
        environment = self.environments.get(record.environment, {})
        return dict(flatten(environment.get("context", {})))


def load_run(paths: Sequence[Path], kind: PointKind | None = "attention") -> Run:
    """Read records and the environments beside them; see :func:`attnbench.store.load`.

    Raises:
        UserError: a path does not exist, or cannot be read.
    """
    loaded = store.load(paths, kind)
    environments = {}
    problems = list(loaded.problems)
    files = sidecars(paths)
    for address in sorted({record.environment for record in loaded.records}):
        name = f"environment-{address}.json"
        if address not in files:
            problems.append(f"{name}: missing; its machine cannot be told")
            continue
        try:
            environments[address] = _read(files[address])
        except ValueError as error:
            problems.append(f"{files[address]}: cannot be read: {error}")
    return Run(tuple(loaded.records), environments, tuple(problems))


def load_history(paths: Sequence[Path]) -> Run:
    """Every record of every file, in order of time: a point has one for each of its runs.

    A file holds one run: inside it, as everywhere, the last record of a point counts. The
    same record in two files (a merged copy) counts once.

    Raises:
        UserError: a path does not exist, or cannot be read.
    """
    runs = [load_run([file], None) for file in _record_files(paths)]
    records = {(r.id, r.time): r for run in runs for r in run.records}
    return Run(
        tuple(sorted(records.values(), key=lambda r: r.time)),
        {address: known for run in runs for address, known in run.environments.items()},
        tuple(dict.fromkeys(problem for run in runs for problem in run.problems)),
    )


def sidecars(paths: Iterable[Path]) -> dict[str, Path]:
    """Files of environments beside the given record files and in the given folders."""
    found: dict[str, Path] = {}
    for path in paths:
        pattern = "environment-*.json"
        files = path.rglob(pattern) if path.is_dir() else path.parent.glob(pattern)
        for file in sorted(files):
            found.setdefault(file.stem.removeprefix("environment-"), file)
    return found


def problem_label(record: Record) -> str:
    """The problem in a line; its id where this attnbench cannot read it."""
    try:
        return subject_of(record).label
    except UserError:
        return record.problem_id


def _record_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        files += store.files_in(path) if path.is_dir() else [path]
    return list(dict.fromkeys(file.resolve() for file in files))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror) from error
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """``("software.torch", "2.13.0")`` and so on, for every value that is there."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
