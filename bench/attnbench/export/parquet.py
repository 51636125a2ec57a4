"""Parquet: the frame of :func:`attnbench.report.load_frame`, with types; missing is null."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from attnbench.export import Exported
from attnbench.export.frame import load, needs_extra


def write(results: Sequence[Path]) -> Exported:
    """Every point, every column.

    Raises:
        UserError: pandas or pyarrow is not installed.
    """
    frame, problems = load(results, "parquet")
    try:
        import pyarrow  # noqa: F401 - pandas would say so in a paragraph
    except ImportError as error:
        raise needs_extra("parquet", error) from error
    buffer = io.BytesIO()
    frame.to_parquet(buffer, engine="pyarrow", index=False)
    return Exported(buffer.getvalue(), problems)
