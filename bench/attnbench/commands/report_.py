"""``attnbench report``: records to a page, a summary and figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from attnbench.commands import render


def main(arguments: argparse.Namespace) -> int:
    """Render; 0 when done."""
    first: Path = arguments.results[0]
    name = first.stem if first.suffix == ".jsonl" else first.resolve().name
    out = arguments.out or (arguments.project or Path.cwd()) / "reports" / "out" / name
    render.page(
        Console(),
        arguments.results,
        out,
        report=arguments.report,
        title=arguments.title,
        project=arguments.project,
    )
    return 0
