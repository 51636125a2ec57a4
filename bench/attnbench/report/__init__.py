"""From records to a page: points → scopes and panels → HTML, figures, Markdown.

Needs the ``report`` extra; importing this package does not, so that a bare GPU box can
measure without it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.report.rendering import Rendered

__all__ = ["load_frame", "render"]


def render(
    results: Sequence[Path],
    out: Path,
    *,
    report: str = "default",
    title: str | None = None,
    project: Path | None = None,
) -> Rendered:
    """Write the page, its figures and its summary: see :func:`attnbench.report.rendering.render`.

    Raises:
        UserError: also when the ``report`` extra is not installed.
    """
    try:
        from attnbench.report import rendering
    except ImportError as error:
        raise _needs_extra(error) from error
    return rendering.render(results, out, report=report, title=title, project=project)


def load_frame(results: Sequence[Path]) -> pd.DataFrame:
    """Records as a pandas DataFrame: see :func:`attnbench.report.frame.load_frame`.

    Raises:
        UserError: also when the ``report`` extra is not installed.
    """
    try:
        from attnbench.report import frame
    except ImportError as error:
        raise _needs_extra(error) from error
    return frame.load_frame(results)


def _needs_extra(error: ImportError) -> UserError:
    return UserError(f"a report needs {error.name}: pip install 'attnbench[report]'")
