"""Render a report: the page, its static figures and the Markdown summary, into one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.report.compile_checks import find_checks
from attnbench.report.definition import load_definition
from attnbench.report.figures import draw_figures
from attnbench.report.markdown import summary
from attnbench.report.page import page
from attnbench.report.pictures import find_pictures
from attnbench.report.points import current, load_points
from attnbench.report.profiles import find_profiles
from attnbench.report.searches import find_searches, without_trials
from attnbench.report.simulated import apart
from attnbench.report.style import looks
from attnbench.report.sweep import scopes


@dataclass(frozen=True)
class Rendered:
    """What was written, and a line for everything that was left out of it."""

    page: Path
    markdown: Path
    figures: tuple[Path, ...]
    problems: tuple[str, ...]


def render(
    results: Sequence[Path],
    out: Path,
    *,
    report: str = "default",
    title: str | None = None,
    project: Path | None = None,
) -> Rendered:
    """Write ``index.html``, ``summary.md`` and ``figures/*.png`` and ``.svg`` into ``out``.

    The same records give the same bytes, in whatever order their files hold them.

    Args:
        results: record files, and folders of them.
        out: a folder; made if it is not there.
        report: name of a definition on a ``reports`` shelf, or a path that ends in .toml.
        title: instead of the definition's.
        project: folder whose ``reports/`` comes before the built-in one; None is the
            current folder.

    Raises:
        UserError: a path does not exist, or the definition is unknown or not valid.
    """
    definition = load_definition(report, project)
    if title is not None:
        definition = definition.model_copy(update={"title": title})
    loaded = load_points(results)
    points, superseded = current(loaded.points)
    searches, unread = find_searches(results)
    problems = (*loaded.problems, *superseded, *unread)
    points, simulated = apart(without_trials(points, searches))
    split = scopes(points, definition.axis)
    looked = looks(points)
    out.mkdir(parents=True, exist_ok=True)
    html, text = out / "index.html", out / "summary.md"
    html.write_text(
        page(
            definition,
            split,
            looked,
            loaded.environments,
            problems,
            find_profiles(results, points, out),
            find_checks(results),
            simulated,
            find_pictures(results, out),
            searches,
        ),
        encoding="utf-8",
    )
    drawn = draw_figures(definition, split, looked, loaded.environments, out / "figures")
    text.write_text(
        summary(
            definition,
            split,
            looked,
            loaded.environments,
            problems,
            drawn,
            out,
            simulated,
            [search.told for search in searches],
        ),
        encoding="utf-8",
    )
    return Rendered(html, text, tuple(drawn), problems)
