"""A search in words, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnbench.report import units
from attnbench.stats import Interval
from attnbench.tune.findings import measured
from attnbench.tune.journal import Trial
from attnbench.tune.outcome import Outcome
from attnbench.tune.table import Bound, Tune


def in_words(params: Mapping[str, Any]) -> str:
    """``heads=4 impl=naive``."""
    return " ".join(f"{k}={v:g}" if type(v) is float else f"{k}={v}" for k, v in params.items())


def counted(trials: Sequence[Trial]) -> str:
    """How many trials there were, and what became of them."""
    settings = measured(trials)
    ok = sum(t.outcome is not None and t.outcome.is_feasible for t in settings)
    recalled = sum(t.origin == "records" for t in settings)
    again = sum(t.origin == "journal" for t in trials)
    refused = len({tuple(t.params.items()) for t in trials if t.refused})
    parts = [f"{len(settings)} tried, {ok} of them right and within bounds"]
    parts += [f"{recalled} had a record"] * bool(recalled)
    parts += [f"{refused} cannot be, at no cost"] * bool(refused)
    parts += [f"{units.count(again, 'draw')} of what was known, answered from the journal"] * bool(
        again
    )
    return "; ".join(parts)


def gain_in_words(gain: Interval) -> str:
    """How the best beats the start, or that it cannot be told."""
    text = f"{gain.median:.3g} times as good as the start [{gain.low:.3g}–{gain.high:.3g}]"
    return text if gain.low > 1 else f"{text}: not told apart from it"


def caution(processes: int) -> str | None:
    """What the intervals do not know, where each is of one process; None where they do."""
    if processes > 1:
        return None
    return (
        "Each interval is of one process, and the best of many figures is a little lucky: measure "
        "the suite below once more, or search with --set measure.processes=3."
    )


def value_in_words(objective: str, value: Interval) -> str:
    """With its unit and interval."""
    if objective == "tokens_per_s":
        return f"{value.median:,.0f} tokens/s [{value.low:,.0f}–{value.high:,.0f}]"
    return units.interval(value, units.SECONDS)


def said(tune: Tune, trial: Trial) -> str:
    """What a trial came to, or why it cannot be."""
    return f"cannot be: {trial.refused}" if trial.refused else came(tune, trial.outcome)


def came(tune: Tune, outcome: Outcome | None) -> str:
    """What an outcome is, in a line."""
    if outcome is None:
        return "nothing"
    if outcome.value is None:
        return (
            (outcome.reason or "")
            if outcome.status == "ok"
            else f"{outcome.status}: {outcome.reason}"
        )
    parts = [value_in_words(tune.objective, outcome.value)]
    memory, loss = outcome.figures.get("memory"), outcome.figures.get("loss")
    parts += [units.quantity(memory, units.BYTES)] if memory is not None else []
    parts += [f"loss {loss:.4g}"] if loss is not None else []
    for bound in tune.bounds:
        if outcome.gaps.get(bound.figure, 0.0) > 0:
            parts.append(f"not within {bound_in_words(bound)}")
    return ", ".join(parts)


def bound_in_words(bound: Bound) -> str:
    """``memory ≤ 2 GiB``, ``token_accuracy ≥ 0.9``."""
    if bound.figure == "memory" and bound.most is not None:
        return f"memory ≤ {units.quantity(bound.most, units.BYTES)}"
    return bound.label


def goal(tune: Tune) -> str:
    """What is searched for."""
    return "most tokens/s" if tune.is_maximized else f"least time to loss {tune.loss:g}"


def dimension_in_words(told: Any) -> str:
    """The values that a key may have; ``told`` is a dimension as plain values."""
    if isinstance(told, list):
        return ", ".join(map(str, told))
    extra = f", step {told['step']:g}" if "step" in told else ", log" if "log" in told else ""
    return f"{told['low']:g} to {told['high']:g}{extra}"
