"""Git: what a revision means in a work tree, and a folder as it was at that revision.

Nothing here changes the work tree or its index.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserError

_PATIENCE_S = 120.0  # a partial clone may have to fetch what it is asked for
_OUTSIDE = ("not a git repository", "must be run in a work tree")


@dataclass(frozen=True)
class Revision:
    """A commit of the work tree whose topmost folder is ``top``."""

    top: Path
    commit: str

    @property
    def short(self) -> str:
        """Enough of the commit to name it."""
        return self.commit[:12]


def work_tree(folder: Path) -> Path | None:
    """The topmost folder of the git work tree that holds ``folder``; None outside of any.

    Raises:
        UserError: git is not installed, or refuses to look at the repository.
    """
    ran = _git(folder, "rev-parse", "--show-toplevel")
    if ran.returncode == 0:
        return Path(os.fsdecode(ran.stdout).rstrip("\n"))
    said = _said(ran)
    if any(words in said for words in _OUTSIDE):
        return None
    raise UserError(f"{folder}: git: {said}")


def resolve(top: Path, name: str) -> Revision | None:
    """What a branch, tag or hash means in a work tree; None if it means nothing there.

    Raises:
        UserError: git is not installed.
    """
    ran = _git(top, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return Revision(top, ran.stdout.decode().strip()) if ran.returncode == 0 else None


def is_shallow(top: Path) -> bool:
    """Whether the clone has only part of its history, as CI's often do."""
    return _git(top, "rev-parse", "--is-shallow-repository").stdout.strip() == b"true"


def is_tracked(folder: Path) -> bool:
    """Whether git knows any file of a folder as it is now."""
    return bool(_git(folder, "ls-files", "-z", "--", ".").stdout)


def bring_out(revision: Revision, folder: Path, into: Path) -> Path | None:
    """Write a folder as it was at a revision to ``into``; return where it lies there.

    Through an index of its own, not ``git archive``: that leaves out what the repository
    marks ``export-ignore``, and rewrites what it marks ``export-subst``.

    Args:
        revision: when.
        folder: of the revision's work tree; its path inside the tree is kept.
        into: an existing folder.

    Returns:
        None if there was no such folder.

    Raises:
        UserError: git cannot read the revision.
    """
    inside = folder.relative_to(revision.top)
    only = [] if inside == Path() else ["--", f"{inside}/"]
    names = _must(revision.top, "ls-tree", "-r", "-z", "--name-only", "--full-tree",
                  revision.commit, *only)  # fmt: skip
    if not names:
        return None
    with tempfile.TemporaryDirectory(prefix="attnbench-index-") as spare:
        index = {"GIT_INDEX_FILE": str(Path(spare) / "index")}
        _must(revision.top, "read-tree", revision.commit, environment=index)
        _must(revision.top, "checkout-index", "-z", "--stdin", f"--prefix={into.resolve()}/",
              environment=index, told=names)  # fmt: skip
    return into.resolve() / inside


def _must(
    top: Path, *words: str, environment: dict[str, str] | None = None, told: bytes = b""
) -> bytes:
    ran = _git(top, *words, environment=environment, told=told)
    if ran.returncode != 0:
        raise UserError(f"{top}: git {words[0]}: {_said(ran)}")
    return ran.stdout


def _git(
    folder: Path, *words: str, environment: dict[str, str] | None = None, told: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            input=told,
            capture_output=True,
            timeout=_PATIENCE_S,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
    except FileNotFoundError as error:
        raise UserError("git is not installed, and only it knows earlier versions") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{folder}: git {words[0]} takes longer than {_PATIENCE_S:g} s") from error


def _said(ran: subprocess.CompletedProcess[bytes]) -> str:
    lines = ran.stderr.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"exit code {ran.returncode}"
