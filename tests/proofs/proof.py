"""What a proof of the instrument hands back, how it is printed, and where it is kept."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnbench.errors import UserError

_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Row:
    """One figure, with the bound that it has to keep, if there is one."""

    what: str
    figure: str
    bound: str = ""
    is_kept: bool | None = None  # None: nothing is asked of it


@dataclass(frozen=True)
class Proof:
    """A claim about the instrument, and the figures that show it."""

    name: str
    title: str
    rows: Sequence[Row]
    skipped: str = ""  # why it could not be shown here
    load: tuple[float, float] = (0.0, 0.0)  # the machine's load when it began and ended
    seconds: float = 0.0
    part: str = ""  # the program of the book that it is of

    @property
    def is_kept(self) -> bool:
        """Whether every bound was kept."""
        return all(row.is_kept is not False for row in self.rows)


@dataclass(frozen=True)
class Machine:
    """Where and when the proofs were run."""

    hardware: str
    threads: int
    attnbench: str
    torch: str
    python: str
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    @classmethod
    def of(cls, environment: Mapping[str, Any]) -> Machine:
        """From :func:`attnbench.environment.describe`."""
        hardware, software = (environment["identity"][part] for part in ("hardware", "software"))
        return cls(
            hardware=hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores",
            threads=hardware["threads"],
            attnbench=software["attnbench"],
            torch=software["torch"],
            python=software["python"],
        )

    @property
    def line(self) -> str:
        """All of it in one line."""
        return (
            f"{self.date}, {self.hardware}, {self.threads} threads; attnbench {self.attnbench}, "
            f"torch {self.torch}, Python {self.python}"
        )


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, JASA 22:209), which holds for 0 hits too."""
    if trials < 1:
        raise ValueError("a share of no trials")
    share, square = hits / trials, _Z**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / trials + square / trials / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(share: float) -> str:
    """``12.3 %``."""
    return f"{100 * share:.1f} %"


def share_of(hits: int, trials: int) -> str:
    """``2 of 200, 1.0 % (0.3 – 3.6 %)``: count, share and interval."""
    low, high = wilson(hits, trials)
    return f"{hits} of {trials}, {percent(hits / trials)} ({100 * low:.1f} – {100 * high:.1f} %)"


def load_now() -> float:
    """The machine's load over the last minute."""
    return os.getloadavg()[0]


def markdown(machine: Machine, proofs: Sequence[Proof]) -> str:
    """The results of a program as its page in docs/ shows them."""
    lines = [f"*{machine.line}.*", ""]
    for proof in proofs:
        lines += [f"### {proof.title}", ""]
        if proof.skipped:
            lines += [f"Not shown here: {proof.skipped}.", ""]
            continue
        lines += ["| | measured | asked | |", "|---|---|---|---|"]
        lines += [f"| {r.what} | {r.figure} | {r.bound} | {_mark(r)} |" for r in proof.rows]
        before, after = proof.load
        took = f"Took {proof.seconds:.0f} s; load {before:.1f} before, {after:.1f} after."
        lines += ["", took, ""]
    return "\n".join(lines)


def to_json(machine: Machine, proofs: Sequence[Proof]) -> str:
    """The same for programs."""
    data = {"machine": asdict(machine), "proofs": [asdict(proof) for proof in proofs]}
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def marks(part: str) -> tuple[str, str]:
    """Where in a page the result of one program stands."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def write_between_marks(page: Path, part: str, text: str) -> None:
    """Replace what stands between the two marks of a program.

    Raises:
        UserError: the page has no such marks, in that order.
    """
    first, last = marks(part)
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"{page}: there is no place for results, from {first} to {last}")
    page.write_text(f"{before}{first}\n{text.strip()}\n{last}{after}", encoding="utf-8")


def _mark(row: Row) -> str:
    return "" if row.is_kept is None else "kept" if row.is_kept else "**not kept**"
