"""The view of generations: a table of times for every model, prompt and batch."""

from __future__ import annotations

from collections.abc import Mapping

from attnbench.report import units
from attnbench.report.points import Point
from attnbench.report.style import Look
from attnbench.report.sweep import Scope
from attnbench.report.training_tables import Row, Table
from attnbench.report.training_text import NONE, TOKENS, against_text, joules_text
from attnbench.stats import Interval
from attnbench.train.generation.figures import Agreement

_COLUMNS = (
    "tokens/s [95 %]", "against {baseline}", "first token [95 %]", "between tokens [95 %]",
    "p90", "p99", "prefill", "decode", "energy a token", "cache", "peak", "logits",
)  # fmt: skip


def serving(scope: Scope, looks: Mapping[str, Look]) -> list[Table]:
    """The tables, in the order of the panels."""
    place = {name: index for index, name in enumerate(looks)}
    return [
        Table(
            number,
            panel,
            columns(scope),
            tuple(
                Row(looks[p.implementation], p, cells(p))
                for p in sorted(panel.points, key=lambda p: (place[p.implementation], p.record.id))
            ),
        )
        for number, panel in enumerate(scope.panels)
    ]


def columns(scope: Scope) -> tuple[str, ...]:
    """What a generation is told by, beside its implementation."""
    return tuple(c.format(baseline=scope.baseline or "the baseline") for c in _COLUMNS)


def cells(point: Point) -> tuple[str, ...]:
    """A generation's figures as the columns have them; nothing of one that is not ok."""
    found, generated = point.served, point.record.generation
    if found is None or generated is None:
        return ()
    return (
        units.interval(found.overall, TOKENS),
        against_text(point) or NONE,
        units.interval(found.first_s, units.SECONDS),
        units.interval(found.between_s, units.SECONDS),
        units.quantity(found.between_p90_s, units.SECONDS),
        units.quantity(found.between_p99_s, units.SECONDS),
        units.interval(found.prefill, TOKENS),
        units.interval(found.decode, TOKENS),
        joules_text(point) or NONE,
        units.quantity(generated.memory.cache_bytes, units.BYTES),
        units.quantity(generated.memory.peak_bytes, units.BYTES),
        _logits(generated.agreement),
    )


def texts(point: Point) -> dict[str, str]:
    """What a tooltip, a card and the table of all points tell of a generation."""
    found, generated = point.served, point.record.generation
    if found is None or generated is None:
        return {}
    return {
        "rate": units.interval(found.overall, TOKENS),
        "step": f"first token {_short(found.first_s)}, between tokens {_short(found.between_s)}",
        "parity": _logits(generated.agreement),
    }


def _short(value: Interval) -> str:
    return units.quantity(value.median, units.SECONDS)


def _logits(agreement: Agreement) -> str:
    """Whether the logits are those without a cache; of approximate methods, how far off."""
    if agreement.ok is None:
        apart = agreement.max_error
        return "not judged" + ("" if apart is None else f": {units.scientific(apart)} apart")
    ratio = "" if agreement.ratio is None else f": {units.number(agreement.ratio, 2)} of the bound"
    return f"{'ok' if agreement.ok else 'NO'}{ratio}"
