"""The search itself: draw, refuse or measure, tell; stop where it should, go on where it was.

Whatever measures is handed in, so that the same code searches a planted optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from attnbench.errors import UserError
from attnbench.spec import Value
from attnbench.tune.journal import Journal, Trial
from attnbench.tune.outcome import Outcome
from attnbench.tune.resolve import Refused, Resolver, Setting
from attnbench.tune.samplers import make_sampler, seed_of
from attnbench.tune.space import Params
from attnbench.tune.table import Tune

if TYPE_CHECKING:
    import optuna

_KNOWN_IN_A_ROW = 5  # draws of what is known, before something new is tried instead
_REFUSED_IN_A_ROW = 200  # draws that cannot be, before the search gives up
_IDLE_IN_A_ROW = 400  # draws that brought nothing to measure: refused or known
_MOST_LISTED = 20_000  # settings of a finite space that are gone through one by one

Key = tuple[tuple[str, Value], ...]


class Progress(Protocol):
    """What the search tells while it works."""

    def trial_begins(self, setting: Setting, tried: int) -> None:
        """A setting is about to be measured; ``tried`` were before."""

    def trial_done(self, trial: Trial) -> None:
        """A trial was told, refused ones too."""


@dataclass
class Search:
    """One search.

    Attributes:
        tune: what is searched.
        journal: of its trials.
        resolver: makes settings of draws.
        measure: measures one and keeps its record.
        recall: what a setting came to in a record that is there already.
        progress: told what goes on.
        stop_requested: ends the search after the trial in flight.
        ended: why it ended, in words.
    """

    tune: Tune
    journal: Journal
    resolver: Resolver
    measure: Callable[[Setting], Outcome]
    recall: Callable[[Setting], Outcome | None]
    progress: Progress
    stop_requested: bool = False
    ended: str = ""
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trials = self.journal.trials()
        self._seen: set[Key] = {_key(t.params) for t in self.trials}
        self._known = {t.outcome.record: t.outcome for t in self.trials if t.outcome}
        self._listed: list[dict[str, Value]] | None = None
        self._checked()

    @property
    def tried(self) -> int:
        """Different settings that were measured, or had a record."""
        return len(self._known)

    def run(self) -> None:
        """Search until the trials are made, nothing is left, or somebody asks to stop."""
        known = refused = idle = 0
        while not self.stop_requested:
            if self.tried >= self.tune.wanted:
                self.ended = f"{self.tried} of {self.tune.wanted} trials made"
                return
            if len(self._seen) == self.tune.space.size:
                self.ended = "every setting of the space was drawn"
                return
            if refused >= _REFUSED_IN_A_ROW:
                self.ended = f"{refused} draws in a row cannot be; see why they were refused"
                return
            if idle >= _IDLE_IN_A_ROW:
                self.ended = f"{idle} draws in a row were nothing new"
                return
            drawn = self._draw(is_new=known >= _KNOWN_IN_A_ROW)
            trial = self._try(drawn)
            idle = idle + 1 if trial.refused or trial.origin == "journal" else 0
            known = known + 1 if trial.origin == "journal" else 0
            refused = refused + 1 if trial.refused else 0
        self.ended = "stopped"

    # ---- one trial -------------------------------------------------------------------

    def _draw(self, *, is_new: bool) -> optuna.Trial:
        """The next trial of the study, its parameters drawn.

        A grid is gone through here: Optuna's GridSampler wants to end the study by itself, which
        it can only within ``optimize()``; so does one that draws what is left.
        """
        number = self.journal.length
        study = self.journal.study
        study.sampler = make_sampler(self.tune, number)
        if not self.journal.has_waiting() and (is_new or self.tune.sampler == "grid"):
            params = self._unseen(number)
            if params is not None:
                study.enqueue_trial(params)
        return study.ask(self.tune.space.distributions())

    def _try(self, drawn: optuna.Trial) -> Trial:
        """What the trial comes to, told to the journal."""
        params = self.tune.space.neat(drawn.params)
        same = next((t for t in self.trials if _key(t.params) == _key(params)), None)
        if same is not None and same.refused:
            trial = Trial(drawn.number, params, refused=same.refused, origin="journal")
        else:
            resolved = self.resolver.resolve(params)
            if isinstance(resolved, Refused):
                trial = Trial(drawn.number, params, refused=resolved.reason)
            else:
                trial = self._evaluated(drawn.number, params, resolved)
        self.journal.tell(drawn, trial)
        self.trials.append(trial)
        self._seen.add(_key(params))
        self.progress.trial_done(trial)
        return trial

    def _evaluated(self, number: int, params: Params, setting: Setting) -> Trial:
        outcome, origin = self._known.get(setting.id), "journal"
        if outcome is None:
            outcome, origin = self.recall(setting), "records"
        if outcome is None:
            self.progress.trial_begins(setting, self.tried)
            outcome, origin = self.measure(setting), "measured"
        self._known[setting.id] = outcome
        return Trial(
            number, params, None, outcome, setting.contender.spec, setting.workload.told, origin
        )

    # ---- a finite space --------------------------------------------------------------

    def _unseen(self, number: int) -> dict[str, Value] | None:
        """A setting that was never drawn, by a shuffle that the seed decides; None: no end."""
        if self._listed is None:
            size = self.tune.space.size
            if size is None or (size > _MOST_LISTED and self.tune.sampler != "grid"):
                return None
            self._listed = list(self.tune.space.combinations())
            np.random.default_rng(seed_of(self.tune, 0)).shuffle(self._listed)
        left = (params for params in self._listed if _key(params) not in self._seen)
        return next(left, None)

    def _checked(self) -> None:
        """Refuse a space in which nothing can be, before anything begins.

        Raises:
            UserError: with the reasons, the most frequent first.
        """
        size = self.tune.space.size
        if size is None or size > _MOST_LISTED:
            return
        reasons: dict[str, int] = {}
        for params in self.tune.space.combinations():
            reason = self.resolver.free_refusal(params)
            if reason is None:
                return
            reasons[reason] = reasons.get(reason, 0) + 1
        raise UserError(f"[tune.space]: none of its {size} settings can be: {in_words(reasons)}")


def refusals(trials: Iterable[Trial]) -> dict[str, int]:
    """How many different settings were refused, by reason, the most frequent first."""
    reasons = {_key(t.params): t.refused for t in trials if t.refused}
    counts: dict[str, int] = {}
    for reason in reasons.values():
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def in_words(reasons: dict[str, int], most: int = 3) -> str:
    """``2 × reason; 1 × another; and 4 more``."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    shown = "; ".join(f"{count} × {reason}" for reason, count in ordered[:most])
    left = sum(count for _, count in ordered[most:])
    return f"{shown}; and {left} more" if left else shown


def _key(params: Params) -> Key:
    return tuple(sorted(params.items()))
