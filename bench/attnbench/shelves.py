"""Where the shelves are: ``impls/``, ``suites/``, ``reports/``, of attnbench and of a project.

The one place that knows that the built-in shelves lie beside ``bench/`` in a checkout and
inside the package in an installed wheel. A project's shelves have the same names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["impls", "suites", "reports"]


def builtin(kind: Kind) -> Path:
    """The built-in shelf."""
    package = Path(__file__).resolve().parent
    packed = package / "_shelves" / kind
    return packed if packed.is_dir() else package.parents[1] / kind


def find(kind: Kind, project: Path | None = None) -> list[Path]:
    """Existing shelves of one kind: the project's first, the built-in one last.

    Args:
        project: folder of the user's project; None is the current folder.
    """
    own = (Path.cwd() if project is None else project).resolve() / kind
    shelves = [own, builtin(kind)]
    return [s for i, s in enumerate(shelves) if s.is_dir() and s not in shelves[:i]]
