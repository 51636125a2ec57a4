"""From what a sampler drew to something to measure, or to the reason why that cannot be.

What is free is asked first: the workload's own checks and whether the implementation can be
used at all. Sizes and ``supports()`` are then asked of a worker, once a shape, before
anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from attnbench.errors import UserError
from attnbench.plan import Contender
from attnbench.spec import Value
from attnbench.subject import make_subject
from attnbench.train.models.presets import sized
from attnbench.train.workload import Workload
from attnbench.tune.space import IMPL, Params
from attnbench.tune.table import Adapted, Tune, unreported

_MULTIPLE = 8  # of d_ff: what matrix units like


@dataclass(frozen=True)
class Setting:
    """One thing to measure.

    Attributes:
        workload: what is trained.
        contender: with whose attention.
        id: of its record.
    """

    workload: Workload
    contender: Contender
    id: str


@dataclass(frozen=True)
class Refused:
    """Why a drawn combination cannot be."""

    reason: str


class Foresight(Protocol):
    """What is known about a training run without training."""

    def parameters(self, workloads: Sequence[Workload]) -> list[int | str]:
        """The count of each one's model, or why there is no such model."""

    def refusal(self, workload: Workload, contender: Contender) -> str | None:
        """Why the implementation cannot attend in this workload; None if it may."""


@dataclass
class Resolver:
    """Makes settings of draws.

    Attributes:
        tune: the search.
        start: the workload that is changed.
        contenders: by the texts of ``impl``.
        foresight: see there.
        name: the id of a setting's record.
        alone: who attends where ``impl`` is not searched.
    """

    tune: Tune
    start: Workload
    contenders: Mapping[str, Contender]
    foresight: Foresight
    name: Callable[[Workload, Contender], str]
    alone: Contender | None = None

    def __post_init__(self) -> None:
        self._target = self.tune.parameters
        if self._target == "start":
            (count,) = self.foresight.parameters([self.start])
            if isinstance(count, str):
                raise UserError(f"[tune]: parameters = 'start': {count}")
            self._target = count

    @property
    def target(self) -> int:
        """The count that every model is to have; 0 leaves it open."""
        return int(self._target)

    def free_refusal(self, params: Params) -> str | None:
        """Why a combination cannot be, as far as it costs nothing to tell."""
        drawn = self._drawn(params)
        return drawn.reason if isinstance(drawn, Refused) else None

    def resolve(self, params: Params) -> Setting | Refused:
        """What to measure."""
        drawn = self._drawn(params)
        if isinstance(drawn, Refused):
            return drawn
        workload, contender = drawn
        if self.target:
            fitted = fit(workload, self.target, self.tune, self.foresight)
            if isinstance(fitted, Refused):
                return fitted
            workload = fitted
        reason = self.foresight.refusal(workload, contender)
        if reason is not None:
            return Refused(f"{contender.spec}: {reason}")
        return Setting(workload, contender, self.name(workload, contender))

    def _drawn(self, params: Params) -> tuple[Workload, Contender] | Refused:
        fields: dict[str, Value] = {k: v for k, v in params.items() if k != IMPL}
        contender = self.contenders[str(params[IMPL])] if IMPL in params else self.alone
        assert contender is not None
        if contender.entry.reason is not None:
            return Refused(f"{contender.spec}: unavailable: {contender.entry.reason}")
        try:
            workload = make_subject("training", {**self.start.to_json(), **fields})
        except UserError as error:
            return Refused(str(error))
        assert isinstance(workload, Workload)
        if (told := unreported(self.tune, workload)) is not None:
            return Refused(told)
        return workload, contender


def fit(workload: Workload, target: int, tune: Tune, foresight: Foresight) -> Workload | Refused:
    """The workload with ``adapt`` changed so that its model has ``target`` parameters.

    The count grows by the same number with every unit of ``d_ff`` and with every layer, so two
    counts tell where the target lies; a third one of what was found proves it.
    """
    name: Adapted = tune.adapt
    one, two = _ends(workload, name)
    counts = foresight.parameters([workload.replace(**{name: n}) for n in (one, two)])
    low, high = counts
    if isinstance(low, str) or isinstance(high, str):
        return Refused(next(str(c) for c in counts if isinstance(c, str)))
    if low == high:
        return Refused(f"parameters: {name} does not change how many the model has")
    exact = one + (target - low) * (two - one) / (high - low)
    rounded = round(exact)
    if name == "d_ff" and rounded >= _MULTIPLE:
        neat = _MULTIPLE * round(exact / _MULTIPLE)
        if abs(neat - exact) * (high - low) / (two - one) <= tune.tolerance * target:
            rounded = neat
    if rounded < 1:
        return Refused(
            f"parameters: even without {name} the model has more than {target:,} of them"
        )
    fitted = workload.replace(**{name: rounded})
    (count,) = foresight.parameters([fitted])
    if isinstance(count, str):
        return Refused(count)
    if abs(count - target) > tune.tolerance * target:
        return Refused(
            f"parameters: with {name} = {rounded} there are {count:,}, which is not within "
            f"{100 * tune.tolerance:g} % of {target:,}"
        )
    return fitted


def _ends(workload: Workload, name: Adapted) -> tuple[int, int]:
    if name == "layers":
        return 1, 2
    width = sized(workload.replace(d_ff=0)).d_ff
    return width, 2 * width
