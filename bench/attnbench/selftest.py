"""What the self-test of the instrument found: asked for, kept in the environment, found again.

The tests themselves run in a worker (:mod:`attnbench.measure.selftest`), where points are
measured too. Their result is part of the environment's *context*: it says how far the
figures of this machine can be trusted, but a machine is the same before and after.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from attnbench import __version__
from attnbench import environment as environments
from attnbench.pool import WorkerPool
from attnbench.process import WorkerDied

Status = Literal["passed", "failed", "not here", "shown"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "not here", "shown")
Unit = Literal["s", "bytes", "J", "calls", "verdicts"]

KEY = "selftest"  # in the context of an environment
_SILENCE_S = 180.0  # longest time between two rows


class Row(BaseModel):
    """One thing that the instrument was asked and whose answer is known.

    Attributes:
        check: what was asked; one name for one question.
        status: ``passed``, ``failed``, ``not here`` (this machine cannot tell; ``reason``
            says why) or ``shown`` (worth knowing, and not judged).
        unit: of the figures.
        expected: the known answer.
        measured: the instrument's, with ``low`` and ``high``, its own 95 % interval, where
            it gives one.
        allowed: the largest error (measured − expected) with which the row passes.
        reason: why it failed, could not be asked, or had to be asked again.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    check: str
    status: Status
    unit: Unit = "s"
    expected: float | None = None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    allowed: float | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _fits(self) -> Row:
        if self.status in ("passed", "shown") and None in (self.expected, self.measured):
            raise ValueError(f"{self.check}: {self.status} without an answer")
        if self.status in ("failed", "not here") and self.measured is None and not self.reason:
            raise ValueError(f"{self.check}: {self.status} without a reason")
        return self

    @property
    def error(self) -> float | None:
        """measured − expected, in the unit of the row."""
        if self.measured is None or self.expected is None:
            return None
        return self.measured - self.expected


class Result(BaseModel):
    """All rows of one self-test.

    Attributes:
        time: when it ended, ISO 8601, UTC.
        attnbench: version of the instrument.
        device: that was measured.
    """

    model_config = ConfigDict(frozen=True)

    time: str
    attnbench: str
    device: str
    rows: tuple[Row, ...]

    @property
    def failed(self) -> list[Row]:
        """Rows in which the instrument was wrong."""
        return [row for row in self.rows if row.status == "failed"]

    @property
    def is_passed(self) -> bool:
        """Whether something was proved and nothing failed."""
        return not self.failed and any(row.status == "passed" for row in self.rows)

    @property
    def summary(self) -> str:
        """``14 passed, 3 not here, 5 shown``."""
        counts = {s: sum(row.status == s for row in self.rows) for s in STATUSES}
        return ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "nothing asked"


@dataclass(frozen=True)
class Kept:
    """A result that an environment file holds, and the address of that file."""

    result: Result
    address: str


def prove(pool: WorkerPool, tell: Callable[[str], None] = lambda check: None) -> Result:
    """Run the self-test in a fresh worker, in which no plugin was ever at work.

    Args:
        pool: of the device that is to be tested.
        tell: told the name of each check as it begins.
    """
    pool.drop()
    rows: list[Row] = []
    at_work = "start"
    try:
        for event in pool.ask({"do": "selftest", "device": pool.device}, _SILENCE_S):
            if event["event"] == "step":
                at_work = event["who"]
                tell(at_work)
            elif event["event"] == "row":
                rows.append(Row.model_validate(event["row"]))
    except WorkerDied as death:
        rows.append(Row(check=at_work, status="failed", reason=death.reason))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Result(time=now, attnbench=__version__, device=pool.device, rows=tuple(rows))


def keep(environment: Mapping[str, Any], result: Result, folder: Path) -> Path:
    """Write the environment with the result in its context; return the file.

    The identity is untouched: what was measured before is comparable with what comes after.
    """
    context = {**environment["context"], KEY: result.model_dump(mode="json")}
    address = environments.save({**environment, "context": context}, folder)
    return folder / f"environment-{address}.json"


def latest(environment: Mapping[str, Any], folder: Path) -> Kept | None:
    """The last result that is kept for this machine in a folder, or None if there is none."""
    found = [
        Kept(result, address)
        for address, data in environments.of_machine(dict(environment), folder)
        if (result := _result_of(data)) is not None
    ]
    return max(found, key=lambda kept: kept.result.time, default=None)


def noted(environment: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The environment, with a note of the machine's last self-test where there is one.

    What a run keeps: whether the instrument was proved, and in which file that is told.
    """
    if (kept := latest(environment, folder)) is None:
        return dict(environment)
    note = {
        "verdict": "passed" if kept.result.is_passed else "failed",
        "time": kept.result.time,
        "summary": kept.result.summary,
        "environment": kept.address,
    }
    return {**environment, "context": {**environment["context"], KEY: note}}


def failures(rows: Sequence[Row]) -> str:
    """Which rows failed, in a line."""
    return "; ".join(f"{row.check}{f' ({row.reason})' if row.reason else ''}" for row in rows)


def _result_of(environment: Mapping[str, Any]) -> Result | None:
    """The result that an environment holds; None if it has none, or only a note (`noted`)."""
    try:
        return Result.model_validate(environment["context"][KEY])
    except (KeyError, TypeError, ValidationError):
        return None
