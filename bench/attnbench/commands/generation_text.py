"""Generation records in the terminal: a small table for each model and length."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench.record import Record
from attnbench.runs import problem_label
from attnbench.stats import Interval
from attnbench.train.generation.derived import served
from attnbench.train.generation.figures import Agreement

_COLUMNS = (
    "implementation", "first token,\nms, 95 %", "between,\nms, 95 %", "p90\np99",
    "prefill\ntok/s", "decode\ntok/s", "all\ntok/s", "logits\n÷ bound",
)  # fmt: skip


def print_generation(console: Console, records: Sequence[Record]) -> None:
    """Who answers how fast; those that have no figures with their status and reason."""
    for problem in dict.fromkeys(record.problem_id for record in records):
        own = [record for record in records if record.problem_id == problem]
        table = Table(box=None, pad_edge=False, title_justify="left")
        table.title = escape(f"{problem_label(own[0])}{_cache(own)}")
        for column in _COLUMNS:
            is_name = column == "implementation"
            table.add_column(column, justify="left" if is_name else "right", overflow="fold")
        for record in sorted(own, key=_slowness):
            if (cells := _cells(record)) is not None:
                table.add_row(*map(escape, cells))
        console.print(table)
        for record in own:
            if record.samples is None:
                told = f"{record.implementation.spec}: {record.status}: {record.reason}"
                console.print(escape(told), soft_wrap=True, highlight=False)
        console.print()


def _cache(records: Sequence[Record]) -> str:
    """The size of the cache, which is the same for all."""
    sizes = {r.generation.memory.cache_counted_bytes for r in records if r.generation}
    return "".join(f" (KV cache {size / 2**20:.3g} MiB)" for size in sizes)


def _slowness(record: Record) -> float:
    found = served(record)
    return -found.overall.median if found else 0.0


def _cells(record: Record) -> tuple[str, ...] | None:
    found = served(record)
    if found is None or record.generation is None:
        return None
    return (
        record.implementation.spec,
        _ms(found.first_s),
        _ms(found.between_s),
        f"{found.between_p90_s * 1e3:.3g}\n{found.between_p99_s * 1e3:.3g}",
        *(f"{rate.median:,.0f}" for rate in (found.prefill, found.decode, found.overall)),
        _logits(record.generation.agreement),
    )


def _ms(value: Interval) -> str:
    median, low, high = (f"{x * 1e3:.3g}" for x in (value.median, value.low, value.high))
    return f"{median}\n{low}–{high}"


def _logits(agreement: Agreement) -> str:
    """Exact ones as a share of what rounding explains; others by how far they are off."""
    if agreement.ok is None:
        return f"{agreement.max_error:.2g} off"
    return f"{agreement.ratio:.2g}"
