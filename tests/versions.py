"""A project under git whose implementations have two versions, for the tests of the gate."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

from helpers import Ended, write_suite

from attnbench.compare import VERDICTS

SLEEPS = '''
import time
from torch.nn.functional import scaled_dot_product_attention
from attnbench import register

@register("{name}")
def attend(q, k, v, problem):
    """Takes {seconds} s, and gives {factor} of what is right."""
    time.sleep({seconds})
    return scaled_dot_product_attention(q, k, v) * {factor}
'''


def attend(name: str, seconds: float = 0.01, factor: float = 1.0) -> str:
    """A plugin that is as slow, and as wrong, as told."""
    return SLEEPS.format(name=name, seconds=seconds, factor=factor)


def git(folder: Path, *words: str) -> str:
    """Run git with nobody's settings."""
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    ran = subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return ran.stdout.strip()


def write(folder: Path, **files: str) -> None:
    """Write ``impls/NAME.py`` for each."""
    (folder / "impls").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / "impls" / f"{name}.py").write_text(text)


def commit(folder: Path) -> str:
    """Commit everything; return the commit."""
    if not (folder / ".git").exists():
        git(folder, "init", "-q", "-b", "main", ".")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "state")
    return git(folder, "rev-parse", "HEAD")


def two_versions(folder: Path) -> str:
    """One that got 15 times slower, one wrong, one with a comment, one the same, one new.

    A busy machine may double a time: the slower one must be slower than that.

    Returns the commit of the first version; the second lies in the work tree.
    """
    names = ("slow", "wrong", "steady", "same")
    suite = write_suite(folder, (*names, "newer"))
    text = suite.read_text().replace("min_rounds = 2", "min_rounds = 8")
    suite.write_text(text.replace("samples = 2", "samples = 1"))
    (folder / ".gitignore").write_text("results/\n__pycache__/\n")
    write(folder, **{name: attend(name) for name in names})
    first = commit(folder)
    write(
        folder,
        slow=attend("slow", seconds=0.15),
        wrong=attend("wrong", factor=1.5),
        steady=attend("steady") + "# another comment\n",
        newer=attend("newer"),
    )
    return first


def row(ended: Ended, name: str) -> str:
    """What the comparison says about an implementation."""
    told = ended.out.splitlines()
    (first,) = [
        i for i, line in enumerate(told) if line.startswith(VERDICTS) and f" {name} " in line
    ]
    more = itertools.takewhile(lambda line: line.startswith(" "), told[first + 1 :])
    return "\n".join([told[first], *more])
