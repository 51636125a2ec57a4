"""What a search has found: the best and its ties, the Pareto front, what mattered.

The objective is noisy. The best has the best median among the settings that are right and
within every bound; whose interval overlaps its interval cannot be told from it, and is a tie.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnbench.stats import Interval
from attnbench.tune.journal import Trial
from attnbench.tune.outcome import Outcome
from attnbench.tune.table import Tune

LEAST_FOR_IMPORTANCE = 10
_TOP = 5  # trials, at least, that are called good ones when importance is asked for


@dataclass(frozen=True)
class Findings:
    """What a search has found.

    Attributes:
        best: None where nothing may be.
        ties: others that cannot be told from the best.
        pareto: that nobody beats in objective, memory and loss at once, the best first.
        importance: shares by key, which sum to 1, the most important first.
        importance_absent: why there is none.
        gain: of the best over the start: how many times as good, with what the two intervals
            allow; None without both.
    """

    best: Trial | None
    ties: tuple[Trial, ...]
    pareto: tuple[Trial, ...]
    importance: Mapping[str, float]
    importance_absent: str | None
    gain: Interval | None


def find(tune: Tune, trials: Sequence[Trial], start: Outcome | None = None) -> Findings:
    """Look at every trial of a search; ``start`` is what the suite's own workload came to."""
    distinct = measured(trials)
    feasible = [t for t in distinct if t.outcome is not None and t.outcome.is_feasible]
    feasible.sort(key=lambda t: _loss(tune, t))
    best = feasible[0] if feasible else None
    importance, absent = _importance(tune, distinct)
    return Findings(
        best=best,
        ties=tuple(t for t in feasible[1:] if best is not None and _overlap(best, t)),
        pareto=tuple(_front(tune, feasible)),
        importance=importance,
        importance_absent=absent,
        gain=_gain(tune, best, start),
    )


def measured(trials: Sequence[Trial]) -> list[Trial]:
    """Every setting that has an outcome, once."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.outcome is not None:
            found.setdefault(trial.outcome.record, trial)
    return list(found.values())


def _value(trial: Trial) -> Interval:
    assert trial.outcome is not None
    assert trial.outcome.value is not None
    return trial.outcome.value


def _loss(tune: Tune, trial: Trial) -> float:
    """The objective as something to make small."""
    return -_value(trial).median if tune.is_maximized else _value(trial).median


def _overlap(one: Trial, other: Trial) -> bool:
    a, b = _value(one), _value(other)
    return a.low <= b.high and b.low <= a.high


def _front(tune: Tune, feasible: Sequence[Trial]) -> list[Trial]:
    """Those that nobody beats; a figure that is not there is the worst."""
    costs = [(_loss(tune, t), _figure(t, "memory"), _figure(t, "loss")) for t in feasible]
    return [
        trial
        for trial, cost in zip(feasible, costs, strict=True)
        if not any(
            other != cost and all(o <= c for o, c in zip(other, cost, strict=True))
            for other in costs
        )
    ]


def _figure(trial: Trial, name: str) -> float:
    assert trial.outcome is not None
    value = trial.outcome.figures.get(name)
    return float("inf") if value is None else value


def _gain(tune: Tune, best: Trial | None, start: Outcome | None) -> Interval | None:
    if best is None or start is None or start.value is None:
        return None
    a, b = _value(best), start.value
    if not tune.is_maximized:
        a, b = b, a
    return Interval(a.median / b.median, a.low / b.high, a.high / b.low)


def _importance(tune: Tune, trials: Sequence[Trial]) -> tuple[dict[str, float], str | None]:
    """By PED-ANOVA (arXiv 2304.10255): what tells the good trials from all of them.

    Asked of a study of its own in which every setting counts once: the search itself draws
    good ones again and again.
    """
    valued = [t for t in trials if t.outcome is not None and t.outcome.value is not None]
    if len(valued) < LEAST_FOR_IMPORTANCE:
        return {}, f"{len(valued)} settings with a value; it takes {LEAST_FOR_IMPORTANCE}"
    if len({_value(t).median for t in valued}) == 1:
        return {}, "every setting came to the same"
    import optuna

    study = optuna.create_study(direction="maximize" if tune.is_maximized else "minimize")
    distributions = tune.space.distributions()
    study.add_trials(
        optuna.trial.create_trial(
            params=dict(t.params), distributions=distributions, value=_value(t).median
        )
        for t in valued
    )
    share = min(0.5, max(0.1, _TOP / len(valued)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is experimental in Optuna
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
        )
    return dict(found), None
