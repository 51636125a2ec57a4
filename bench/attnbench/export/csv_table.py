"""CSV: the frame of :func:`attnbench.report.load_frame`, one row a point.

UTF-8 with a header; a figure that was not measured is an empty cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnbench.export import Exported
from attnbench.export.frame import load


def write(results: Sequence[Path]) -> Exported:
    """Every point, every column."""
    frame, problems = load(results, "csv")
    return Exported(frame.to_csv(index=False).encode(), problems)
