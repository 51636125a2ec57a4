"""Training runs and generations in the Markdown summary: a table a suite, a row a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnbench.report import generation_tables, metrics, units
from attnbench.report.points import Point
from attnbench.report.sweep import Panel, Scope
from attnbench.report.training_tables import is_local_only
from attnbench.report.training_text import (
    NONE,
    against_text,
    deviation_text,
    joules_text,
    metric_names,
    mfu_cell,
    parity_text,
    part,
    rate_text,
)  # fmt: skip

LOCAL_ONLY = "Nothing but character models: what this suite says of quality is no verdict."


def runs(scope: Scope, escape: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """What stands before a suite's rows, and the rows, for as many as there is room."""
    against = f"against {escape(scope.baseline)}" if scope.baseline else "against the baseline"
    head = [
        f"## {escape(scope.title)}: training", "",
        *([LOCAL_ONLY, ""] if is_local_only(scope) else []),
        f"| workload | implementation | tokens/s [95 %] | {against} | MFU full | MFU causal "
        "| energy a token | peak memory | last loss | parity | quality |",
        "|" + "---|" * 11,
    ]  # fmt: skip
    rows = [
        f"| {' | '.join([*map(escape, (point.label, point.implementation)), *cells])} |"
        for panel in scope.panels
        for point in panel.points
        if (cells := _cells(panel, point))
    ]
    return head, rows


def generations(scope: Scope, escape: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """The same of a suite of generations."""
    columns = ("generation", "implementation", *generation_tables.columns(scope))
    head = [
        f"## {escape(scope.title)}: generation", "",
        f"| {' | '.join(map(escape, columns))} |", "|" + "---|" * len(columns),
    ]  # fmt: skip
    rows = [
        f"| {' | '.join([*map(escape, (point.label, point.implementation)), *cells])} |"
        for point in scope.points
        if (cells := generation_tables.cells(point))
    ]
    return head, rows


def _cells(panel: Panel, point: Point) -> Sequence[str]:
    """The figures of a run that is ok; nothing of others, which have a table of their own."""
    training = part(point)
    if training is None:
        return ()
    texts = (
        rate_text(point),
        against_text(point),
        mfu_cell(point, "full"),
        mfu_cell(point, "causal"),
        joules_text(point),
        units.quantity(training.memory.peak_bytes, units.BYTES),
        units.number(training.losses[-1], 5) if training.losses else "",
        f"{parity_text(training.parity)}, {deviation_text(training.parity)}",
        _quality(panel, point),
    )
    return [text or NONE for text in texts]


def _quality(panel: Panel, point: Point) -> str:
    training, names = part(point), metric_names(panel)
    if training is None or not names or not training.evaluations:
        return ""
    last = training.evaluations[-1].metrics
    if names[0] not in last:
        return ""
    return f"{metrics.text(names[0], last[names[0]])} {metrics.metric(names[0]).label}"
