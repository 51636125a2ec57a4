"""``attnbench merge``: the shards of one suite in one file, with their environments."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from attnbench import store
from attnbench.errors import UserError
from attnbench.record import Record
from attnbench.runs import sidecars


def main(arguments: argparse.Namespace) -> int:
    """Join the records; 0 when done."""
    console = Console()
    out: Path = arguments.out
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: the merged file must end in .jsonl, or nothing will find it")
    if out.exists():
        raise UserError(f"{out}: exists; merge never overwrites, choose another name")
    loaded = store.load(arguments.results, None)
    if not loaded.records:
        raise UserError(f"no record in {', '.join(map(str, arguments.results))}")
    _write(out, loaded.records)
    missing = _copy_environments(out.parent, loaded.records, arguments.results)
    for problem in [*loaded.problems, *missing]:
        console.print(escape(problem), soft_wrap=True)
    told = f"{len(loaded.records)} record{'' if len(loaded.records) == 1 else 's'}"
    console.print(f"{told}: {escape(str(out))}", soft_wrap=True)
    return 0


def _write(out: Path, records: Sequence[Record]) -> None:
    """All records or none: the name appears when everything is on disk."""
    partial = out.with_suffix(".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(record.to_line() for record in records)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error


def _copy_environments(
    folder: Path, records: Sequence[Record], results: Sequence[Path]
) -> list[str]:
    """Put the environments beside the records; a line for each that is missing.

    Their names are addresses of their contents: one that is there already is the same.
    """
    files = sidecars(results)
    missing = []
    for address in sorted({record.environment for record in records}):
        target = folder / f"environment-{address}.json"
        if target.exists():
            continue
        if address in files:
            shutil.copyfile(files[address], target)
        else:
            missing.append(f"{target.name}: missing; its machine cannot be told")
    return missing
