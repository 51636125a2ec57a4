"""The frame that both tables are written from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def load(results: Sequence[Path], name: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Records as a frame, and a line for everything left out.

    Raises:
        UserError: no record; or pandas is not installed.
    """
    try:
        from attnbench.report.frame import load_frame
    except ImportError as error:
        raise needs_extra(name, error) from error
    frame = load_frame(results)
    if frame.empty:
        raise UserError(f"no record in {', '.join(map(str, results))}")
    problems = tuple(frame.attrs.pop("problems", ()))  # Parquet would keep them in the file
    whole = {c: "Int64" for c in frame if c == "flops" or str(c).endswith("_bytes")}
    return frame.apply(_one_type).astype(whole), problems  # Int64 knows missing, int does not


def _one_type(column: pd.Series[Any]) -> pd.Series[Any]:
    """Text where records of several versions disagree on what a field is; else unchanged."""
    present = column.dropna()
    kinds = {"number" if isinstance(v, (int, float)) else type(v).__name__ for v in present}
    return column if len(kinds) < 2 else present.astype(str).reindex(column.index)


def needs_extra(name: str, error: ImportError) -> UserError:
    """The error for a library that is not there."""
    return UserError(f"export {name} needs {error.name}: pip install 'attnbench[export]'")
