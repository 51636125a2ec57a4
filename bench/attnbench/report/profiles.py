"""Profiles beside the records of a report: linked from the page, never embedded in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from attnbench.profiling.folder import is_profile, profile_folder
from attnbench.report.points import Point


@dataclass(frozen=True)
class Profile:
    """One profile: whose it is, and its files as (name, address relative to the page)."""

    label: str
    files: tuple[tuple[str, str], ...]


def find_profiles(results: Sequence[Path], points: Iterable[Point], out: Path) -> list[Profile]:
    """The profiles of points, wherever below ``results`` (or beside those files) they lie.

    Args:
        results: record files, and folders of them.
        points: what the page shows.
        out: the page's folder.
    """
    parents = sorted({parent for path in results for parent in record_folders(path)})
    found: dict[Path, Profile] = {}
    for point in points:
        for parent in parents:
            folder = profile_folder(parent, point.implementation, point.record.problem_id)
            if folder not in found and is_profile(folder):
                found[folder] = Profile(f"{point.implementation}: {point.label}",
                                        tuple(_links(folder, out)))  # fmt: skip
    return sorted(found.values(), key=lambda p: (p.label, p.files))


def record_folders(path: Path) -> list[Path]:
    """The folders of the record files that a path names or holds."""
    if path.is_dir():
        return [file.parent for file in path.rglob("*.jsonl")]
    return [path.parent]


def _links(folder: Path, out: Path) -> list[tuple[str, str]]:
    relative = os.path.relpath(folder.resolve(), out.resolve())
    return [(f.name, quote(f"{relative}/{f.name}")) for f in sorted(folder.iterdir())]
