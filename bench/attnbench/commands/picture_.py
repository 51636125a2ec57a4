"""``attnbench picture``: heat maps of the weights that methods really use."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench import __version__
from attnbench.commands.opening import open_for
from attnbench.errors import UserError
from attnbench.pictures import result
from attnbench.pictures.facts import facts_of, notes
from attnbench.pictures.result import Panel, Picture, PictureFile, picture_folder
from attnbench.plan import Contender, choose
from attnbench.pool import make_task
from attnbench.problem import Problem
from attnbench.process import Event, WorkerDied
from attnbench.session import Session
from attnbench.suite import one_problem
from attnbench.whole import replaced

_REFERENCE = "softmax, float64"
_FAULTS = ("incorrect", "oom", "timeout", "crash", "error")
_HOW = {
    result.PAGE: "open it in a browser",
    result.FILE: "problem, methods, and what is to be seen",
    result.WEIGHTS: "the weights, panel_0 is the reference",
}


def main(arguments: argparse.Namespace) -> int:
    """Draw; 0 when done, 1 if a method failed or nobody has weights to show."""
    console = Console()
    problem, title = _problem(arguments)
    heads = _heads(arguments, problem)
    with open_for(arguments, lock=False) as session:
        contenders = choose(arguments.impls, session.entries)
        names = [c.spec for c in contenders]
        told = [title, problem.id, heads, arguments.scale, session.device, names]
        out = arguments.out or picture_folder(
            session.results_folder(), _short_name(arguments.tensors, problem), repr(told)
        )
        if out.exists() and not result.is_picture(out):
            raise UserError(
                f"--out {out}: exists and is no picture; name a folder that is not there"
            )
        console.print(
            f"[bold]{escape(title)}[/] on {session.device}, "
            f"head{'s' if len(heads) > 1 else ''} {', '.join(map(str, heads))}",
            soft_wrap=True,
        )
        asked = _Asked(console, session, problem, heads, arguments)
        picture, has_fault = asked.make(contenders, title)
    with replaced(out) as folder:
        picture.write(folder)
        missing = _draw(picture, folder)
    _print_facts(console, picture)
    for path in sorted(out.iterdir()):
        console.print(f"{escape(str(path))}  {_HOW.get(path.name, '')}".rstrip(), soft_wrap=True)
    for line in missing:
        console.print(escape(line), soft_wrap=True)
    return 1 if has_fault or len(picture.weights) == 1 else 0


def _problem(arguments: argparse.Namespace) -> tuple[Problem, str]:
    """The problem, and the picture's title.

    Raises:
        UserError: also for a problem that a picture cannot show.
    """
    words = list(arguments.set)
    if arguments.tensors is not None:
        from attnbench.pictures.tensors import layer_problem_words, read_tensors

        words = layer_problem_words(read_tensors(arguments.tensors), words)
    problem = one_problem(words)
    for name in ("seqlen_q", "seqlen_k"):
        if (length := getattr(problem, name)) > result.LONGEST:
            raise UserError(
                f"{name} {length} is too long for a picture, where each weight is a pixel; "
                f"allowed: up to {result.LONGEST}"
            )
    for is_wrong, what in (
        (problem.direction != "forward", f"direction {problem.direction!r}; it has the forward's"),
        (problem.dropout_p > 0, "dropout, whose weights change from call to call"),
        (problem.decode, "decode, which has one row; leave it out for the same weights"),
        (problem.level != "op", f"level {problem.level!r}; give it q and k (level 'op')"),
    ):
        if is_wrong:
            raise UserError(f"a picture does not show {what}")
    if arguments.tensors is None:
        return problem, problem.label
    return problem, f"{arguments.tensors.name}: {problem.label}"


def _heads(arguments: argparse.Namespace, problem: Problem) -> list[int]:
    """The numbers of the heads to show.

    Raises:
        UserError: the problem has no such head, or they are too many.
    """
    count = arguments.heads or 1
    heads = list(dict.fromkeys(arguments.head)) or list(range(count))
    if max(heads) >= problem.heads_q:
        asked = f"--head {max(heads)}" if arguments.head else f"--heads {count}"
        raise UserError(f"{asked}: the problem has {problem.heads_q} heads, from 0")
    if len(heads) > result.MOST_HEADS:
        raise UserError(f"{len(heads)} heads are too many; allowed: up to {result.MOST_HEADS}")
    return heads


def _short_name(tensors: Path | None, problem: Problem) -> str:
    lengths = {problem.seqlen_q: None, problem.seqlen_k: None}
    words = ["x".join(map(str, lengths)), problem.mask.kind, problem.inputs]
    return "-".join([tensors.stem, words[1]] if tensors else words)


class _Asked:
    """One request, and the worker that is asked for its weights."""

    def __init__(
        self,
        console: Console,
        session: Session,
        problem: Problem,
        heads: Sequence[int],
        arguments: argparse.Namespace,
    ) -> None:
        self._console, self._session, self._problem = console, session, problem
        self._heads, self._arguments = tuple(heads), arguments

    def make(self, contenders: Sequence[Contender], title: str) -> tuple[Picture, bool]:
        """The picture, and whether some method failed."""
        self._session.pool.drop()  # finding implementations has imported all of them
        with tempfile.TemporaryDirectory(prefix="attnbench-picture-") as name:
            folder, has_fault = Path(name), False
            first = self._ask("picture-reference", [], folder)
            reference_hMN = np.load(folder / "reference.npy")
            forbidden_MN = np.load(folder / "forbidden.npy")
            weights, panels = {0: reference_hMN}, [_panel(_REFERENCE, reference_hMN, reference_hMN,
                                                          forbidden_MN)]  # fmt: skip
            for number, contender in enumerate(contenders, start=1):
                told = self._method(contender, folder)
                if told["event"] == "shown":
                    weights[number] = np.load(folder / "method.npy")
                    panel = _panel(contender.spec, weights[number], reference_hMN, forbidden_MN)
                else:
                    reason = f"{told['status']}: {told['reason']}"
                    panel = Panel(name=contender.spec, reason=reason)
                    has_fault = has_fault or told["status"] in _FAULTS
                panels.append(panel)
        told_file = PictureFile(
            attnbench=__version__, title=title, problem=self._problem.to_json(),
            heads=self._heads, scale=self._arguments.scale, epsilon=first["epsilon"],
            device=self._session.device, command=_command(self._arguments), panels=tuple(panels),
        )  # fmt: skip
        kept = {number: w_hMN.astype(np.float32) for number, w_hMN in weights.items()}
        return Picture(told_file, kept, forbidden_MN), has_fault

    def _method(self, contender: Contender, folder: Path) -> Event:
        entry = contender.entry
        if entry.reason is not None:
            reason = f"{entry.file}:{entry.line}: {entry.reason}"
            return {"event": "failed", "status": "unavailable", "reason": reason}
        try:
            return self._ask("picture", [contender], folder)
        except WorkerDied as death:  # of this method alone
            return {"event": "failed", "status": death.status, "reason": death.reason}

    def _ask(self, do: str, contenders: Sequence[Contender], folder: Path) -> Event:
        """What the worker says in the end.

        Raises:
            WorkerDied: it crashed, was killed or hung.
        """
        tensors = self._arguments.tensors
        task = {
            **make_task(do, contenders, self._session.device),
            "problem": self._problem.to_json(),
            "heads": self._heads,
            "tensors": None if tensors is None else str(tensors.resolve()),
            "folder": str(folder),
        }
        who = contenders[0].spec if contenders else "reference"
        told: Event | None = None
        with self._console.status(escape(who)):
            for event in self._session.pool.ask(task, self._arguments.timeout):
                if event["event"] != "step":
                    told = event
        if told is None:
            raise WorkerDied("crash", "the worker gave no result", "")
        return told


def _panel(
    name: str,
    weights_hMN: NDArray[np.float64],
    reference_hMN: NDArray[np.float64],
    forbidden_MN: NDArray[np.bool_],
) -> Panel:
    heads = zip(weights_hMN, reference_hMN, strict=True)
    return Panel(name=name, facts=tuple(facts_of(w, r, forbidden_MN) for w, r in heads))


def _command(arguments: argparse.Namespace) -> str:
    """The command that makes the picture again."""
    words: list[Any] = ["attnbench", "picture", *arguments.impls]
    words += [word for override in arguments.set for word in ("--set", override)]
    words += ["--tensors", arguments.tensors] if arguments.tensors else []
    words += [word for head in arguments.head for word in ("--head", head)]
    words += ["--heads", arguments.heads] if arguments.heads else []
    words += ["--scale", arguments.scale] if arguments.scale != "log" else []
    words += [word for folder in arguments.impls_dir for word in ("--impls-dir", folder)]
    words += ["--device", arguments.device] if arguments.device != "auto" else []
    return shlex.join(map(str, words))


def _draw(picture: Picture, folder: Path) -> list[str]:
    """Draw the figures and the page; what could not be made."""
    if any(importlib.util.find_spec(name) is None for name in ("matplotlib", "jinja2")):
        return ["No page, PNG and SVG: pip install 'attnbench[report]'"]
    from attnbench.pictures.figure import draw_picture
    from attnbench.report.pictures import write_page

    draw_picture(picture, folder)
    write_page(picture, folder / result.PAGE)
    return []


def _print_facts(console: Console, picture: Picture) -> None:
    """How far each method is from softmax, and what else is to be seen."""
    several = len(picture.told.heads) > 1
    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    if several:
        table.add_column("head", justify="right")
    table.add_column("total variation", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for panel in picture.told.panels[1:]:
        if panel.reason is not None:
            table.add_row(escape(panel.name), *[""] * several, "", escape(panel.reason))
        for head, facts in zip(picture.told.heads, panel.facts, strict=False):
            said = "; ".join(notes(facts, picture.told.epsilon))
            table.add_row(escape(panel.name), *[str(head)] * several, f"{facts.tv:.3g}", said)
    console.print(table)
