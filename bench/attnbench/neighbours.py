"""Two versions of a shelf in one process: each file finds the neighbours of its own time.

A plugin may import what lies beside it (``from impls._common import …``, or through
``sys.path``). Python keeps one module for each name, so a version that git brought out would
be handed today's neighbours. While it is imported, theirs are out of sight.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


@contextlib.contextmanager
def of_its_time(shelf: Path, stands_for: Path) -> Iterator[None]:
    """Import from ``shelf`` what would be imported from ``stands_for``.

    Only imports that run meanwhile: one inside a function that is called later finds
    today's neighbour.

    Args:
        shelf: folder of implementations as it was.
        stands_for: the same folder as it is.
    """
    todays = _modules_in(stands_for)
    paths = list(sys.path)
    for name in todays:
        del sys.modules[name]
    sys.path[:] = _before(paths, {stands_for: shelf, stands_for.parent: shelf.parent})
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in _modules_in(shelf):
            del sys.modules[name]
        sys.modules.update(todays)


def _before(paths: list[str], stand_ins: dict[Path, Path]) -> list[str]:
    """The paths, each that has a stand-in after it."""
    found = []
    for path in paths:
        stand_in = stand_ins.get(Path(path).resolve())
        found += [str(stand_in), path] if stand_in is not None else [path]
    return found


def _modules_in(shelf: Path) -> dict[str, ModuleType]:
    """Imported modules and packages that lie in a shelf, but for the plugins themselves."""
    return {
        name: module
        for name, module in list(sys.modules.items())
        if not name.startswith("attnbench_impls.")
        and any(place == shelf or shelf in place.parents for place in _places(module))
    }


def _places(module: ModuleType) -> list[Path]:
    """Where a module or a package (a namespace may have several folders) was found."""
    try:
        return [Path(p) for p in (module.__file__, *getattr(module, "__path__", ())) if p]
    except Exception:  # modules of others need not have these, or may compute them and fail
        return []
