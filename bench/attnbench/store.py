"""Append-only files of records: one JSON line a point, on disk before the next begins.

Reading never fails on a damaged file: an unterminated last line (the writer was killed),
lines that are not records, records of a newer schema and points that appear twice are
left out and told about, with file and line number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from attnbench.errors import UserError
from attnbench.record import SCHEMA, Record, schema_major


@dataclass
class Loaded:
    """Records in file order, and a line of text for everything that was left out."""

    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Store:
    """Appends records to one file, each fsynced. Use as a context manager.

    A torn last line left by a killed writer is cut off first (and reported), so that the
    next record starts on a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        self.mended = _cut_torn_tail(path)
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the store
        if is_new:
            _fsync_folder(path.parent)

    def append(self, record: Record) -> None:
        """Write one record; when this returns it is on disk."""
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


def load(paths: Iterable[Path]) -> Loaded:
    """Read records from files and folders (all ``*.jsonl`` below them).

    A point that appears twice counts once, the later line winning: files are read in
    the order given, folders in the order of their names.

    Raises:
        UserError: a path does not exist.
    """
    loaded = Loaded()
    by_id: dict[str, Record] = {}
    for path in _files(paths):
        for record in _read(path, loaded.problems):
            if record.id in by_id:
                loaded.problems.append(
                    f"{path}: point {record.id} appears again; the later record counts"
                )
                del by_id[record.id]
            by_id[record.id] = record
    loaded.records = list(by_id.values())
    return loaded


def _files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(path.rglob("*.jsonl"))
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder of results")
    return files


def _read(path: Path, problems: list[str]) -> list[Record]:
    records = []
    data = path.read_bytes()
    *lines, tail = data.split(b"\n")
    if tail:
        problems.append(
            f"{path}:{len(lines) + 1}: unterminated last line left out "
            f"({len(tail)} bytes; its writer was interrupted)"
        )
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_parse(line))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}; line left out")
    return records


def _parse(line: bytes) -> Record:
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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


def _cut_torn_tail(path: Path) -> str | None:
    """Cut an unterminated last line off; say so, or None where there was none."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    with open(path, "rb+") as file:
        data = file.read()
        if data.endswith(b"\n"):
            return None
        keep = data.rfind(b"\n") + 1
        file.truncate(keep)
        os.fsync(file.fileno())
    return f"{path}: an unterminated last line ({len(data) - keep} bytes) was cut off"


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
