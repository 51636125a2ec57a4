"""Rendering a page from a command, and saying where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from attnbench.report import render


def page(
    console: Console,
    results: Sequence[Path],
    out: Path,
    *,
    report: str = "default",
    title: str | None = None,
    project: Path | None = None,
) -> None:
    """Render records to ``out`` and print the path of the page.

    Raises:
        UserError: the report extra is not installed, or the report is not known.
    """
    rendered = render(results, out, report=report, title=title, project=project)
    for problem in rendered.problems:
        console.print(escape(problem), soft_wrap=True)
    console.print(f"Page: {escape(str(rendered.page))}", soft_wrap=True)
