"""Training in the terminal: how well a model has learned stands beside how fast."""

from __future__ import annotations

import io

from made_records import learned, trained
from rich.console import Console

from attnbench.commands.training_text import print_training
from attnbench.record import Record


def printed(*records: Record) -> list[list[str]]:
    """The columns of every line that has some."""
    console = Console(width=200, file=io.StringIO())
    print_training(console, records)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [[cell for cell in line.split("  ") if cell.strip()] for line in lines if line.strip()]


def test_the_metric_that_the_task_is_judged_by_has_a_column() -> None:
    _, head, good, bad, refused = printed(
        trained("naive", training=learned(metrics={"perplexity": 3.0, "token_accuracy": 0.995})),
        trained(
            "rough", kind="approximate", training=learned(ok=None, metrics={"token_accuracy": None})
        ),
        trained("refuses", status="unsupported", reason="does not do a learned bias"),
    )
    assert head[-1].strip() == "token accuracy"
    assert good[-1].strip() == "99.5 %"
    assert bad[-1].strip() == "not finite"
    assert refused[-1].strip() == "does not do a learned bias"


def test_without_evaluations_there_is_no_such_column() -> None:
    _, head, _ = printed(trained("naive", training=learned(evaluations=[])))
    assert head[-1].strip() == "parity"
