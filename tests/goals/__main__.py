"""Are the goals of the fused Triton attention reached?  ``python tests/goals RESULT…``

RESULT is what ``attnbench run triton --device cuda`` has left. Exit code 0: every goal is
reached at every problem. 1: one is missed, or its interval does not decide. 2: nothing to judge.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from goals import Result, judge
from rich.console import Console
from rich.table import Table

from attnbench.errors import UserError
from attnbench.report.points import load_points

_STYLES = {"reached": "green", "missed": "bold red", "not decided": "yellow", "not measured": "dim"}


def main(words: list[str]) -> int:
    """See the module."""
    try:
        if not words:
            raise UserError("which records? give record files or folders")
        points = [p for p in load_points([Path(w) for w in words]).points
                  if p.record.suite == "triton"]  # fmt: skip
        results = judge(points)
        if all(r.ratio is None for r in results):
            why = next((r.why for r in results), "no record of suite 'triton'")
            raise UserError(f"nothing to judge in {', '.join(words)}: {why}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(table(results))
    counts = Counter(r.verdict for r in results)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 0 if counts["reached"] == len(results) else 1


def table(results: list[Result]) -> Table:
    """A row for each goal at each problem."""
    found = Table("problem", "rival", "at least", "seen [95 %]", "verdict")
    for r in results:
        seen = "–"
        if r.ratio is not None:
            seen = f"{r.ratio.median:.3f}× [{r.ratio.low:.3f}, {r.ratio.high:.3f}]"
        verdict = f"{r.verdict}: {r.why}" if r.why else r.verdict
        style = _STYLES[r.verdict]
        found.add_row(r.problem, r.goal.rival, f"{r.goal.least:g}×", seen, f"[{style}]{verdict}[/]")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
