"""Append-only files of records: one JSON line a point, on disk before the next begins.

Reading never fails on a damaged file: a torn last line (the writer was killed), lines
that are not records, records of a newer schema and points that appear twice are left out
and told about, with file and line number.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pydantic import ValidationError

from attnbench.errors import UserError
from attnbench.record import SCHEMA, PointKind, Record, schema_major

AGAINST = ".against-"
CONFIRM = ".confirm"
"""In the names of files beside a run's: earlier versions that it was measured against, and
suspects measured again. They are read where they are named, not with their folder: they are
no runs of their own, and hold other figures for the same points."""


@dataclass
class Loaded:
    """Records in file order, and a line of text for everything that was left out."""

    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Store:
    """Appends records to one file, each fsynced. Use as a context manager.

    A torn last line left by a killed writer is cut off first (``mended`` tells), so that the
    next record starts on a line of its own. A whole record that only lacks its newline is
    kept. Several stores (the GPUs of one machine) may append to one file at once.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the store
            with _locked(self._file):
                self.mended = _mend_tail(path)
        except OSError as error:
            raise UserError(f"{path}: results cannot be written here: {error.strerror}") from error
        if is_new:
            _fsync_folder(path.parent)

    def append(self, record: Record) -> None:
        """Write one record; when this returns it is on disk."""
        with _locked(self._file):
            self._file.write(record.to_line().encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(paths: Iterable[Path], kind: PointKind | None = "attention") -> Loaded:
    """Read records from files and folders (see :func:`files_in`).

    A second of one kind of record means something else than of another: who does not ask for
    all kinds (None) gets those of one, and a line about the others.

    A point that was measured again (``--fresh``) counts once: the record with the later
    time, or the later line where the times are equal.

    Raises:
        UserError: a path does not exist, or cannot be read.
    """
    loaded = Loaded()
    latest: dict[tuple[str, str], Record] = {}
    again: Counter[Path] = Counter()
    for path in _files(paths):
        for record in _read(path, loaded.problems):
            key = (record.suite, record.id)  # two suites may share a point
            if key in latest:
                again[path] += 1
                if _when(record) < _when(latest[key]):
                    continue
                del latest[key]
            latest[key] = record
    loaded.problems += [
        f"{path}: points measured more than once: {count}; the latest record counts"
        for path, count in again.items()
    ]
    loaded.records = [r for r in latest.values() if kind is None or r.kind == kind]
    others = Counter(r.kind for r in latest.values() if kind is not None and r.kind != kind)
    loaded.problems += [
        f"{count} {other} record{'' if count == 1 else 's'}: left out here, where {kind} is shown"
        for other, count in others.items()
    ]
    return loaded


def files_in(folder: Path) -> list[Path]:
    """The record files in and below a folder, but for those that accompany another one."""
    aside = (AGAINST, f"{CONFIRM}.")
    return [f for f in sorted(folder.rglob("*.jsonl")) if not any(a in f.name for a in aside)]


def _when(record: Record) -> datetime.datetime:
    """When the record was written; in the far past if its time cannot be read."""
    try:
        when = datetime.datetime.fromisoformat(record.time)
    except ValueError:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)
    return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)


def _files(paths: Iterable[Path]) -> list[Path]:
    files: dict[Path, Path] = {}  # by its real path, so that none is read twice
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder of results")
        found = files_in(path) if path.is_dir() else [path]
        for file in found:
            if file.is_file():
                files.setdefault(file.resolve(), file)
    return list(files.values())


def _read(path: Path, problems: list[str]) -> list[Record]:
    records = []
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    *lines, tail = data.split(b"\n")
    if _is_torn(tail):
        problems.append(
            f"{path}:{len(lines) + 1}: torn last line left out "
            f"({len(tail)} bytes; its writer was interrupted)"
        )
    elif tail:
        lines.append(tail)
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_parse(line))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}; line left out")
    return records


def _parse(line: bytes) -> Record:
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(data, dict) or schema_major(data) is None:
        raise ValueError("not an attnbench record")
    if schema_major(data) != schema_major({"schema_version": SCHEMA}):
        raise ValueError(
            f"schema {data['schema_version']} cannot be read by this attnbench ({SCHEMA})"
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        raise ValueError(f"not a valid record: {where}: {first['msg']}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"not strict JSON: {name}")


def _is_torn(tail: bytes) -> bool:
    """True for the beginning of a record: what a killed writer leaves is never whole JSON."""
    try:
        return bool(tail) and not isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return True


@contextlib.contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """Hold the file alone, so that nobody takes a line in the writing for a torn one."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _mend_tail(path: Path) -> str | None:
    """End an unterminated last line, or cut it off if it is torn; say so, or None."""
    with open(path, "rb+") as file:
        data = file.read()
        keep = data.rfind(b"\n") + 1
        tail = data[keep:]
        if not tail:
            return None
        if _is_torn(tail):
            file.truncate(keep)
            said = f"{path}: a torn last line ({len(tail)} bytes) was cut off"
        else:
            file.write(b"\n")
            said = f"{path}: the last line had no newline; it was kept"
        file.flush()
        os.fsync(file.fileno())
    return said


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
