"""Training records in the terminal: a small table for each workload."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench.record import Record
from attnbench.report import metrics
from attnbench.runs import problem_label
from attnbench.train.derived import tokens_per_s
from attnbench.train.figures import Evaluation, Parity
from attnbench.train.scaling import in_words, scaling

_COLUMNS = ("implementation", "tokens/s [95 %]", "batch", "loss", "parity")
_SCALING = ("scaling",)


def print_training(console: Console, records: Sequence[Record]) -> None:
    """Who learned how fast and how well; those that have no figures with their status."""
    for problem in dict.fromkeys(record.problem_id for record in records):
        own = [record for record in records if record.problem_id == problem]
        table = Table(box=None, pad_edge=False, title_justify="left")
        table.title = escape(problem_label(own[0]))
        is_shared = any(record.training and record.training.ranks for record in own)
        metric = _metric(own)
        quality = (metrics.metric(metric).label,) if metric else ()
        for column in _COLUMNS + quality + _SCALING * is_shared:
            right = column in ("tokens/s [95 %]", "batch", "loss", *quality)
            table.add_column(column, justify="right" if right else "left", overflow="fold")
        for record in sorted(own, key=_slowness):
            cells = _cells(record)
            if metric:
                cells += (_last(record, metric),)
            if is_shared:
                cells += (in_words(scaling(record, records)),)
            table.add_row(*map(escape, cells))
        console.print(table)
        console.print()


def _metric(records: Sequence[Record]) -> str | None:
    """What the task is judged by, if anybody was evaluated."""
    return metrics.leading(name for r in records for e in _evaluations(r) for name in e.metrics)


def _last(record: Record, metric: str) -> str:
    last = _evaluations(record)[-1:]
    return (
        metrics.text(metric, last[0].metrics[metric]) if last and metric in last[0].metrics else ""
    )


def _evaluations(record: Record) -> Sequence[Evaluation]:
    return record.training.evaluations if record.training else ()


def _slowness(record: Record) -> tuple[float, str]:
    rate = tokens_per_s(record)
    return -rate.median if rate else 0.0, record.implementation.spec


def _cells(record: Record) -> tuple[str, ...]:
    name, training, rate = record.implementation.spec, record.training, tokens_per_s(record)
    if training is None or rate is None:
        return name, record.status, "", "", record.reason or ""
    speed = f"{rate.median:,.0f} [{rate.low:,.0f}–{rate.high:,.0f}]"
    return name, speed, str(training.batch), f"{training.losses[-1]:.4f}", _parity(training.parity)


def _parity(parity: Parity) -> str:
    if parity.max_deviation is None:
        return "the loss is not finite"
    if parity.ok is None:
        return f"not exact: {parity.max_deviation:.2g} off"
    return f"{'ok' if parity.ok else 'NO'}: {parity.ratio:.2g} × bound"
