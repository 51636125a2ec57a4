"""Records in the formats of other tools, one module a format.

A tool that only knows times is given the points that have one; JUnit and the tables are
given all. No format is ever given a NaN: what was not measured is left out.

This module is imported by the command line for the names alone; it imports nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import unknown

FORMATS = {
    "pytest-benchmark": "pytest_benchmark_json",
    "bencher": "bencher",
    "github-action-benchmark": "github_action",
    "junit": "junit",
    "csv": "csv_table",
    "parquet": "parquet",
}
"""Names of formats and the modules that write them."""


@dataclass(frozen=True)
class Exported:
    """A document, and a line for everything that is not in it."""

    data: bytes
    problems: tuple[str, ...] = ()


def export(name: str, results: Sequence[Path]) -> Exported:
    """Write records in a format.

    Args:
        name: one of :data:`FORMATS`.
        results: record files and folders.

    Raises:
        UserError: no such format; a path does not exist; no record; a library is missing.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    write: Callable[[Sequence[Path]], Exported]
    write = importlib.import_module(f"attnbench.export.{FORMATS[name]}").write
    return write(results)
