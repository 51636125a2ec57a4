"""Compile checks beside the records of a report: what kernels take on GPUs, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.offline.result import FILE, CompileCheck, Row, read_check
from attnbench.offline.targets import TARGETS
from attnbench.report.profiles import record_folders
from attnbench.report.units import count


@dataclass(frozen=True)
class CheckView:
    """One check as the template needs it."""

    summary: str
    rows: Sequence[tuple[str, ...]]  # cells, as COLUMNS has them
    is_passed: bool
    refusals: Sequence[str]


COLUMNS = ("implementation", "case", "target", "registers", "spills", "shared memory",
           "occupancy", "matrix instructions", "verdict")  # fmt: skip


def find_checks(results: Sequence[Path]) -> list[CheckView]:
    """The checks of the folders that records come from.

    Args:
        results: record files, and folders of them.
    """
    folders = sorted({folder.resolve() for path in results for folder in record_folders(path)})
    found = [read_check(folder / FILE) for folder in folders]
    return [_view(check) for check in found if check is not None]


def _view(check: CompileCheck) -> CheckView:
    faulty = sum(bool(row.faults) for row in check.rows)
    said = f"{count(len(check.rows), 'kernel')} compiled for GPUs that need not be here, with "
    said += f"Triton {check.triton}: {f'{faulty} with faults' if faulty else 'no faults'}"
    if not check.is_complete:
        said += " (one of each kind; attnbench compile-check --all compiles every one)"
    return CheckView(
        said,
        [_cells(row) for row in check.rows],
        check.is_passed,
        [f"{name}: {reason}" for name, reason in check.refusals.items()],
    )


def _cells(row: Row) -> tuple[str, ...]:
    compiled, figures = row.compiled, row.compiled.figures
    verdict = "; ".join(row.faults) or "ok"
    names = (row.implementation, compiled.case, compiled.target)
    if figures is None:
        return (*names, "", "", "", "", "", verdict)
    mma = TARGETS[compiled.target].mma if compiled.target in TARGETS else ()
    return (
        *names,
        str(figures.registers),
        f"{figures.spill_bytes} B" if figures.spill_bytes else "none",
        f"{figures.shared_bytes / 1024:.1f} KiB",
        f"{figures.occupancy:.0%} ({figures.limit})",
        ", ".join(f"{n} {name}" for name, n in figures.instructions.items() if name in mma),
        verdict,
    )
