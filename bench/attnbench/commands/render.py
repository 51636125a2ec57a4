"""Rendering a page from a command, and saying where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from attnbench.errors import UserError


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
        UserError: the report libraries are not installed, or the report is not known.
    """
    try:
        from attnbench.report import render
    except ImportError as error:
        raise UserError(
            f"the page needs the report extra (no module {error.name!r}): "
            "pip install 'attnbench[report]'; the records are safe"
        ) from error
    rendered = render(results, out, report=report, title=title, project=project)
    for problem in rendered.problems:
        console.print(escape(problem), soft_wrap=True)
    console.print(f"Page: {escape(str(rendered.page))}", soft_wrap=True)
