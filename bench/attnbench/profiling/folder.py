"""Where profiles lie: beside the records of their machine, one folder each.

A profile is made in a folder of its own and put in place when it is whole, so that a
failed one leaves the last good one as it was.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from attnbench.errors import UserError
from attnbench.whole import replaced

PROFILES = "profiles"


def profile_folder(records: Path, spec: str, problem_id: str) -> Path:
    """The folder of one implementation on one problem.

    Args:
        records: folder of the machine's records.
        spec: the implementation with its options; what no file name should hold becomes ``_``.
        problem_id: of the problem.
    """
    name = re.sub(r"[^\w.,=+-]", "_", spec)
    return records / PROFILES / f"{name}-{problem_id}"


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of ``folder`` if nothing goes wrong.

    Raises:
        UserError: something that is no profile lies where it should go.
    """
    if folder.exists() and not is_profile(folder):
        raise UserError(
            f"--out {folder}: exists and is no profile; name a folder that is not there"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.parent.name == PROFILES:
        (folder.parent / ".gitignore").write_text("*\n")  # traces are large and soon stale
    with replaced(folder) as partial:
        yield partial


def is_profile(folder: Path) -> bool:
    """Whether a folder holds a profile, or nothing."""
    if not folder.is_dir():
        return False
    return (folder / "trace.json.gz").is_file() or not any(folder.iterdir())
