"""The ``[tune]`` table of a suite, checked to the last key.

A suite with this table describes one workload, the start, with the implementation that its
``baseline`` names; ``[tune.space]`` says what may be changed about it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from attnbench.errors import UserError, unknown
from attnbench.train.data import reported
from attnbench.train.workload import Workload
from attnbench.tune.space import Space, read_space

if TYPE_CHECKING:
    from attnbench.suite import Suite

Objective = Literal["tokens_per_s", "time_to_loss"]
Sampler = Literal["grid", "random", "tpe", "gp"]
Adapted = Literal["d_ff", "layers"]

METRICS = (
    "cross_entropy", "perplexity", "bits_per_character", "token_accuracy", "accuracy", "f1_macro",
)  # fmt: skip
"""What the tasks report of a model that has learned; see ``train.data.metrics``."""
_CONSTRAINTS = ("memory", "parity", "loss", *METRICS)
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
# What changes the meaning of a training loss: one number cannot be the goal of several.
_OTHER_LOSS = ("task", "objective", "loss", "label_smoothing", "distillation", "token_noise")


@dataclass(frozen=True)
class Bound:
    """What a figure has to keep: ``figure ≤ most`` and ``figure ≥ least``, where given."""

    figure: str
    least: float | None = None
    most: float | None = None

    def gap(self, value: float | None) -> float:
        """How far it is violated, as a share of the bound; 0 or less where it is kept.

        A figure that is not there (a loss that is not finite) violates it by a whole.
        """
        if value is None:
            return 1.0
        gaps = []
        if self.least is not None:
            gaps.append((self.least - value) / (abs(self.least) or 1.0))
        if self.most is not None:
            gaps.append((value - self.most) / (abs(self.most) or 1.0))
        return max(gaps)

    @property
    def label(self) -> str:
        """``token_accuracy ≥ 0.9``."""
        parts = [f"≥ {self.least:g}"] if self.least is not None else []
        parts += [f"≤ {self.most:g}"] if self.most is not None else []
        return f"{self.figure} {' and '.join(parts)}"


@dataclass(frozen=True)
class Tune:
    """A checked table.

    Attributes:
        objective: ``tokens_per_s``, the more the better, or ``time_to_loss``: seconds of
            training until the loss is reached.
        loss: that is to be reached, in nats.
        sampler: who draws settings.
        trials: settings to try, refused ones not counted; 0: 40, or the whole grid.
        seed: of the draws.
        parameters: count that every model is to have; 0 leaves it open.
        tolerance: largest relative difference from that.
        adapt: what is changed to get there.
        bounds: constraints.
    """

    space: Space
    objective: Objective = "tokens_per_s"
    loss: float = 0.0
    sampler: Sampler = "tpe"
    trials: int = 0
    seed: int = 0
    parameters: int | Literal["start"] = 0
    tolerance: float = 0.02
    adapt: Adapted = "d_ff"
    bounds: tuple[Bound, ...] = ()

    @property
    def is_maximized(self) -> bool:
        """Whether more of the objective is better."""
        return self.objective == "tokens_per_s"

    @property
    def wanted(self) -> int:
        """Trials to make: as asked, else the whole grid or 40; of a finite space not more."""
        size = self.space.size
        if not self.trials:
            return size if self.sampler == "grid" and size is not None else min(40, size or 40)
        return self.trials if size is None else min(self.trials, size)

    def with_words(self, sampler: str | None, trials: int | None, seed: int | None) -> Tune:
        """With what the command line says instead.

        Raises:
            UserError: no such sampler, or one that cannot draw from this space.
        """
        if sampler is not None and sampler not in get_args(Sampler):
            raise unknown("sampler", sampler, get_args(Sampler), "--sampler")
        tune = replace(
            self,
            sampler=self.sampler if sampler is None else cast(Sampler, sampler),
            trials=self.trials if trials is None else trials,
            seed=self.seed if seed is None else seed,
        )
        _check_sampler(tune, "--sampler")
        return tune


class _Table(BaseModel):
    """The shape of the table; space and constraints are checked key by key."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    space: dict[str, Any]
    objective: Objective = "tokens_per_s"
    loss: float | None = Field(None, gt=0)
    sampler: Sampler = "tpe"
    trials: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    parameters: int | Literal["start"] = 0
    tolerance: float = Field(0.02, gt=0, lt=1)
    adapt: Adapted = "d_ff"
    constraints: dict[str, Any] = {}


def read_tune(path: Path, data: Mapping[str, Any]) -> Tune:
    """Check a ``[tune]`` table.

    Raises:
        UserError: anything that cannot be meant, with file, key, value, nearest name.
    """
    from attnbench.suite import validate_table  # which reads this table with its file

    where = f"{path}: [tune]"
    for key, allowed in (("objective", Objective), ("sampler", Sampler), ("adapt", Adapted)):
        if key in data and data[key] not in get_args(allowed):
            raise unknown(key, data[key], get_args(allowed), where)
    table = validate_table(_Table, data, path, "tune")
    tune = Tune(
        space=read_space(table.space, f"{path}: [tune.space]"),
        bounds=_bounds(table.constraints, f"{path}: [tune.constraints]"),
        loss=table.loss or 0.0,
        **table.model_dump(exclude={"space", "constraints", "loss"}),
    )
    _check_together(tune, data, where)
    _check_sampler(tune, f"{where}: sampler")
    return tune


def _check_together(tune: Tune, data: Mapping[str, Any], where: str) -> None:
    if (tune.objective == "time_to_loss") != bool(tune.loss):
        raise UserError(
            f"{where}: objective {tune.objective!r} "
            + ("has no loss to reach; leave it out" if tune.loss else "needs loss = …, in nats")
        )
    for key in _OTHER_LOSS if tune.loss else ():
        if key in tune.space.dimensions:
            raise UserError(
                f"{where}: a time to one loss cannot be told between several of {key}: their "
                "losses are not of one kind; take it out of [tune.space]"
            )
    if isinstance(tune.parameters, int) and tune.parameters < 0:
        raise UserError(f"{where}: parameters must be ≥ 0 or 'start', got {tune.parameters}")
    if not tune.parameters:
        for key in ("adapt", "tolerance"):
            if key in data:
                raise UserError(f"{where}: {key} belongs to parameters, which is not given")
    elif tune.adapt in tune.space.dimensions:
        raise UserError(
            f"{where}: {tune.adapt} is adapted to the count of parameters; "
            "take it out of [tune.space], or adapt another one"
        )


def _check_sampler(tune: Tune, where: str) -> None:
    if tune.sampler == "grid" and tune.space.endless:
        raise UserError(
            f"{where}: a grid has no end in {', '.join(tune.space.endless)}: "
            "give step, or a list of choices"
        )


def _bounds(table: Mapping[str, Any], where: str) -> tuple[Bound, ...]:
    found = []
    for key, told in table.items():
        if key not in _CONSTRAINTS:
            raise unknown("key", key, _CONSTRAINTS, where)
        if key == "memory":
            found.append(Bound(key, most=_bytes(told, f"{where}: memory")))
        elif key == "parity":
            if told is not True:
                raise UserError(f"{where}: parity = {told!r}: must be true, or left out")
            found.append(Bound(key, most=1.0))  # of deviation ÷ what rounding explains
        else:
            found.append(_bound(key, told, f"{where}: {key}"))
    return tuple(found)


def _bound(key: str, told: Any, where: str) -> Bound:
    if not isinstance(told, dict) or not told:
        raise UserError(f"{where} = {told!r}: must look like {{min = 0.9}} or {{max = 2.5}}")
    for name, value in told.items():
        if name not in ("min", "max"):
            raise unknown("key", name, ("min", "max"), where)
        if type(value) not in (int, float):
            raise UserError(f"{where}: {name} must be a number, got {value!r}")
    least, most = told.get("min"), told.get("max")
    if least is not None and most is not None and least > most:
        raise UserError(f"{where}: min {least:g} is more than max {most:g}: nothing can keep both")
    return Bound(key, least, most)


def _bytes(told: Any, where: str) -> int:
    if type(told) is int and told > 0:
        return told
    found = _BYTES.fullmatch(told) if isinstance(told, str) else None
    if found is None or float(found[1]) == 0:
        raise UserError(f"{where} = {told!r}: must be bytes, or look like '2 GiB'")
    return int(float(found[1]) * _UNITS[found[2]])


def start_of(suite: Suite, overrides: Sequence[str]) -> tuple[Tune, Workload]:
    """The search that a suite describes, and the workload it starts from.

    Args:
        suite: as loaded.
        overrides: ``--set`` texts that it was loaded with.

    Raises:
        UserError: there is none, or the rest of the suite is not the start of one.
    """
    tune, path = suite.tune, suite.path
    if tune is None:
        raise UserError(f"{path}: has no [tune] table: there is nothing to search")
    if suite.kind != "training":
        raise UserError(
            f"{path}: [tune] is for kind = 'training'; attentions of one problem are measured "
            "together, in the same rounds, by a [grid] and attnbench run"
        )
    if len(suite.problems) != 1:
        raise UserError(
            f"{path}: [tune] starts from one workload, and this suite describes "
            f"{len(suite.problems)}; what may vary goes into [tune.space]"
        )
    for key in (text.partition("=")[0].strip() for text in overrides):
        if key in tune.space.dimensions:
            raise UserError(f"--set {key}: is searched; change it in {path}: [tune.space]")
    (start,) = suite.problems
    assert isinstance(start, Workload)
    batches = tune.space.dimensions.get("batch")
    open_batch = start.batch if batches is None else min(batches.grid() or (1,), key=float)
    if tune.loss and not open_batch:
        raise UserError(
            f"{path}: [tune]: time to a loss needs a batch that is known: batch 0 is timed with "
            "another than it is learned with"
        )
    if (told := unreported(tune, start)) is not None:
        raise UserError(f"{path}: {told}")
    return tune, start


def unreported(tune: Tune, workload: Workload) -> str | None:
    """A bound of a metric that the workload's task does not report, in words; None if none is."""
    known = reported(workload)
    for bound in tune.bounds:
        if bound.figure in METRICS and bound.figure not in known:
            return (
                f"[tune.constraints]: {bound.figure} is not reported by task {workload.task!r} "
                f"(reports: {', '.join(known)})"
            )
    return None
