"""``attnbench compare``: verdicts between two runs, steps in a history; the gate's exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from attnbench.commands import compare_text, rerun
from attnbench.compare import THRESHOLD, Comparison, compare
from attnbench.errors import UserError
from attnbench.history import FEWEST_RUNS, Series, Step, find_steps, run_scatter, series_of
from attnbench.runs import load_history, load_run


class _Output(Console):
    """A console whose reader may leave (``| head``) without changing the verdict."""

    def on_broken_pipe(self) -> None:
        """Go on in silence: the exit code is still to come."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: argparse.Namespace) -> int:
    """0 no regression, 1 regression, 2 nothing to compare. Steps of a history are only told."""
    console = _Output()
    _check(arguments)
    _check_rerun(arguments)
    threshold = THRESHOLD if arguments.threshold is None else arguments.threshold
    series: list[Series] = []
    steps: list[Step] = []
    if arguments.history:
        history = load_history(arguments.history).timings()
        series = series_of(history)
        steps = find_steps(series, threshold)
        for problem in history.problems:
            console.print(escape(problem), soft_wrap=True)
    comparison = None
    if arguments.results:
        base, new = ([path] for path in arguments.results)
        runs = load_run(base, None), load_run(new, None)
        comparison = compare(
            *runs, threshold=threshold, across=arguments.across, scatter=run_scatter(series)
        )
        if arguments.confirm:
            comparison = rerun.with_commands(
                console,
                comparison,
                runs,
                arguments.project,
                arguments.impls_dir,
                arguments.across,
            )
        _write(arguments, comparison, steps)
        compare_text.print_comparison(console, comparison, verbose=arguments.verbose)
    long = sum(len(s.records) >= FEWEST_RUNS for s in series)
    if arguments.history:
        compare_text.print_steps(console, steps, len(series), long)
    if comparison is not None:
        return comparison.exit_code
    return 0 if long else 2


def _check(arguments: argparse.Namespace) -> None:
    count = len(arguments.results)
    if count not in (0, 2) or not (count or arguments.history):
        raise UserError(
            f"compare needs BASE and NEW, or --history FOLDER; got {count} "
            f"{'path' if count == 1 else 'paths'}"
        )
    if not count:
        for option in ("markdown", "json", "across", "verbose", "confirm"):
            if getattr(arguments, option):
                raise UserError(f"--{option} is about BASE and NEW, which are not given")
    if arguments.markdown and arguments.markdown == arguments.json:
        raise UserError(f"{arguments.json}: --markdown and --json cannot share a file")


def _check_rerun(arguments: argparse.Namespace) -> None:
    if not arguments.confirm:
        for option in ("project", "impls_dir"):
            if getattr(arguments, option):
                name = option.replace("_", "-")
                raise UserError(f"--{name} is about what is measured again: it needs --confirm")


def _write(arguments: argparse.Namespace, comparison: Comparison, steps: list[Step]) -> None:
    if arguments.markdown:
        _save(arguments.markdown, compare_text.markdown(comparison))
    if arguments.json:
        data = compare_text.to_json(comparison, steps)
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
        _save(arguments.json, text + "\n")


def _save(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
