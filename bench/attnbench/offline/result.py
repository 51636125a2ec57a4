"""What came out of compiling, as it is kept and shown: figures, faults, and who they belong to."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from attnbench import __version__

FILE = "compile-check.json"
"""Its name in the folder of a machine's records."""


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figures(_Plain):
    """Of one compiled kernel.

    Attributes:
        registers: a thread.
        spill_bytes: local memory a thread that is read or written.
        shared_bytes: a block.
        num_warps: a block, with those that warp specialisation adds.
        tensor_memory_columns: a block (sm_100); None where there is no such memory.
        occupancy: share of a multiprocessor's warps that can be resident.
        limit: what keeps it from more.
        instructions: how often those worth telling occur in the machine code.
        atomics_written: atomic operations in Triton's IR as the kernel was written.
        atomics_kept: those of its IR after optimisation.
        atomics: those of its code, on global memory.
        loops_to_specialize: loops for which warp specialisation was asked.
        loops_specialized: those that are specialised in the IR.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    tensor_memory_columns: int | None
    occupancy: float
    limit: str
    instructions: dict[str, int]
    atomics_written: int
    atomics_kept: int
    atomics: int
    loops_to_specialize: int
    loops_specialized: int


class Compiled(_Plain):
    """One case on one target.

    Attributes:
        case, kernel, target: names.
        expects, spill_budget_bytes, num_warps: as the case has them.
        seconds: that compiling and reading took, little if Triton had it in its cache; None
            if the compiler crashed or hung.
        figures: None if it did not compile.
        failure: then, why.
    """

    case: str
    kernel: str
    target: str
    expects: tuple[str, ...]
    spill_budget_bytes: int
    num_warps: int
    seconds: float | None = None
    figures: Figures | None = None
    failure: str | None = None


class Row(_Plain):
    """One case of one implementation on one target, and what is wrong with it."""

    implementation: str
    compiled: Compiled
    faults: tuple[str, ...] = ()


class CompileCheck(_Plain):
    """A check of many cases.

    Attributes:
        time: when it ended, UTC.
        attnbench, triton: versions.
        is_complete: every case, not only the representative ones.
        rows: in the order in which the cases were offered.
        refusals: implementations that could not offer their cases, and why.
    """

    time: str
    attnbench: str
    triton: str
    is_complete: bool
    rows: tuple[Row, ...]
    refusals: dict[str, str] = {}

    @classmethod
    def of(
        cls, rows: Iterable[Row], refusals: dict[str, str], triton: str, is_complete: bool
    ) -> CompileCheck:
        """A check that ended now."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(time=now, attnbench=__version__, triton=triton, is_complete=is_complete,
                   rows=tuple(rows), refusals=refusals)  # fmt: skip

    @property
    def is_passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.refusals and not any(row.faults for row in self.rows)

    def write(self, path: Path) -> None:
        """Keep it.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def read_check(path: Path) -> CompileCheck | None:
    """The check that a file holds, or None if there is none that can be read."""
    try:
        return CompileCheck.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # pydantic's ValidationError is one
        return None
