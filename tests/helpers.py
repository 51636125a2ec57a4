"""What the tests of the machine share: tiny suites, real sessions, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.record import Record
from attnbench.runner import Runner
from attnbench.session import Session
from attnbench.suite import load_suite

BROKEN = Path(__file__).parent / "broken"

MEASURE = """
[measure]
max_s = 0.02
min_rounds = 2
samples = 2
warmup_s = 0.0
ceilings_s = 0.0
"""

HEALTHY = '''
from torch.nn.functional import scaled_dot_product_attention
from attnbench import register

@register("{name}")
def attend(q, k, v, problem):
    """Right."""
    return scaled_dot_product_attention(q, k, v)
'''


def write_suite(
    folder: Path,
    impls: Sequence[str] = ("*",),
    *,
    timeout_s: float = 20,
    name: str = "tiny",
    **grid: object,
) -> Path:
    """A suite that is over in a moment: two heads of 8, seqlen 16, unless told otherwise."""
    told = {"heads": 2, "head_dim": 8, "seqlen": 16, **grid}
    lines = ['title = "Tiny"', f"impls = {list(impls)!r}", "[grid]"]
    lines += [f"{key} = {_toml(value)}" for key, value in told.items()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n" + MEASURE + f"timeout_s = {timeout_s}\n")
    return path


def measure(session: Session, suite: Path, tmp_path: Path) -> dict[tuple[str, str], Record]:
    """Run a suite in a session; the records by implementation and ``seqlen direction``."""
    loaded = load_suite(suite)
    records: dict[tuple[str, str], Record] = {}

    def keep(record: Record) -> None:
        key = (
            record.implementation.spec,
            f"{record.problem['seqlen_q']} {record.problem['direction']}",
        )
        assert key not in records, f"{key} was measured twice"
        records[key] = Record.model_validate_json(record.to_line())

    plan = session.plan(loaded, tmp_path / "none.jsonl")
    Runner(plan, session.pool, "none", keep).run()
    assert len(records) == len(plan.points), "a point has no record"
    return records


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def attnbench(
    *words: str | Path,
    cwd: Path,
    env: dict[str, str] | None = None,
    timeout_s: float = 120,
) -> Ended:
    """Run the command line in a process of its own."""
    ended = subprocess.run(
        command(*words),
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def command(*words: str | Path) -> list[str]:
    """The words that start attnbench, as the console script does."""
    start = "import sys; from attnbench.cli import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", start, *map(str, words)]


def environment(changes: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with wide lines."""
    return {**os.environ, "COLUMNS": "400", **(changes or {})}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
