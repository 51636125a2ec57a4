"""The frame that both tables are written from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    return frame, tuple(frame.attrs.get("problems", ()))


def needs_extra(name: str, error: ImportError) -> UserError:
    """The error for a library that is not there."""
    return UserError(f"export {name} needs {error.name}: pip install 'attnbench[export]'")
