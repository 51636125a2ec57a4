"""A search as a file beside its records: what the page shows, in words and numbers.

The journal has every trial as Optuna knows it; this has what came out of them, so that whoever
reads it needs neither Optuna nor the suite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attnbench.suite import Suite
from attnbench.tune.findings import Findings
from attnbench.tune.journal import Trial
from attnbench.tune.outcome import Outcome
from attnbench.tune.search import Search, refusals
from attnbench.tune.table import Tune
from attnbench.tune.words import (
    bound_in_words,
    came,
    caution,
    counted,
    dimension_in_words,
    gain_in_words,
    goal,
    in_words,
    said,
)

SEARCH_FILE = ".search.json"

Place = Literal["best", "tie", "kept", "out", "none"]
"""Of a trial: the best, a tie with it, within every bound, outside one, without a value."""


class ToldTrial(BaseModel):
    """One setting."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    number: int
    setting: str
    said: str
    place: Place
    is_front: bool = False  # nobody beats it in objective, memory and loss at once
    value: tuple[float, float, float] | None = None  # median, low, high of the objective
    memory: float | None = None  # bytes
    loss: float | None = None  # nats
    record: str = Field("", description="id of the record that it came to")


class Told(BaseModel):
    """One search."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    suite: str
    title: str
    objective: str
    goal: str
    sampler: str
    space: dict[str, str]
    bounds: list[str] = []
    counted: str
    ended: str
    start: str | None = None
    start_record: str = Field("", description="id of its record")
    best: str | None = None
    best_said: str | None = None
    gain: str | None = None
    caution: str | None = None
    ties: list[str] = []
    refusals: dict[str, int] = {}
    importance: dict[str, float] = Field({}, description="shares that sum to 1")
    importance_absent: str | None = None
    paste: str | None = None
    trials: list[ToldTrial] = []


def tell(
    suite: Suite,
    tune: Tune,
    search: Search,
    found: Findings,
    start: Outcome | None,
    paste: str | None,
) -> Told:
    """A search as its file has it.

    Args:
        suite, tune: what was searched.
        search: as it ended.
        found: what it has found.
        start: what the suite's own workload came to.
        paste: the best setting as a suite.
    """
    best = found.best
    return Told(
        suite=suite.name,
        title=suite.title,
        objective=tune.objective,
        goal=goal(tune),
        sampler=tune.sampler,
        space={k: dimension_in_words(v) for k, v in tune.space.to_json().items()},
        bounds=[bound_in_words(bound) for bound in tune.bounds],
        counted=counted(search.trials),
        ended=search.ended,
        start=None if start is None else came(tune, start),
        start_record="" if start is None else start.record,
        best=None if best is None else in_words(best.params),
        best_said=None if best is None else said(tune, best),
        gain=None if found.gain is None else gain_in_words(found.gain),
        caution=caution(suite.measure.processes),
        ties=[f"{in_words(t.params)}: {said(tune, t)}" for t in found.ties],
        refusals=refusals(search.trials),
        importance=dict(found.importance),
        importance_absent=found.importance_absent,
        paste=paste,
        trials=[_trial(tune, found, t) for t in search.trials if t.origin != "journal"],
    )


def write(path: Path, told: Told) -> None:
    """Whole, or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(told.model_dump_json(indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _trial(tune: Tune, found: Findings, trial: Trial) -> ToldTrial:
    outcome = trial.outcome
    value = outcome and outcome.value
    figures = outcome.figures if outcome else {}
    return ToldTrial(
        number=trial.number,
        setting=in_words(trial.params),
        said=said(tune, trial),
        place=_place(found, trial),
        is_front=trial in found.pareto,
        value=None if not value else (value.median, value.low, value.high),
        memory=figures.get("memory"),
        loss=figures.get("loss"),
        record=outcome.record if outcome else "",
    )


def _place(found: Findings, trial: Trial) -> Place:
    if trial == found.best:
        return "best"
    if trial in found.ties:
        return "tie"
    if trial.outcome is None or trial.outcome.value is None:
        return "none"
    return "kept" if trial.outcome.is_feasible else "out"
