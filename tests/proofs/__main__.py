"""Shows on this machine what the documentation claims: ``python tests/proofs BOOK``.

A book is a page of ``docs/`` with its proofs: ``instrument`` (what the instrument says about
itself), ``families`` (what sparse and low-rank methods cost). Prints a table of every claim with
what was measured, and writes it as JSON. On a quiet 2-core machine each takes a quarter of an
hour. Leave the machine alone meanwhile: the load is printed beside the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import agreement
import false_verdicts
import growth
import overhead
import rivals
from proof import Machine, Proof, load_now, markdown, to_json, write_between_marks
from rich.console import Console
from rich.table import Table

from attnbench.errors import UserError
from attnbench.session import open_session

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "reports" / "out"
BOOKS = {
    "instrument": ("false_verdicts", "overhead", "agreement_cpu", "agreement_cuda"),
    "families": ("growth", "rivals"),
}
"""The proofs of each page of docs/."""


def main(words: list[str] | None = None) -> int:
    """0 if every claim is kept, 1 if one is not, 2 if the request cannot be meant."""
    arguments = _parse(words)
    try:
        machine, proofs = run(arguments)
        path = arguments.json or RESULTS / f"{arguments.book}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(machine, proofs), encoding="utf-8")
        if arguments.write_docs:
            for part, group in itertools.groupby(proofs, key=lambda proof: proof.part):
                text = markdown(machine, list(group))
                write_between_marks(DOCS / f"{arguments.book}.md", part, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(machine.line, soft_wrap=True)
    for proof in proofs:
        if proof.skipped:
            console.print(f"{proof.title}: not shown here: {proof.skipped}", soft_wrap=True)
        else:
            console.print(table(proof))
    console.print(f"Results: {path}", soft_wrap=True)
    return 0 if all(proof.is_kept for proof in proofs) else 1


def run(arguments: argparse.Namespace) -> tuple[Machine, list[Proof]]:
    """Run the proofs that are asked for, in order.

    Raises:
        UserError: the device is held by another attnbench, or a point cannot be measured.
    """
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="attnbench-proofs-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Records in {folder}; --folder {folder} goes on from there.", flush=True)
    with open_session(folder, "cpu", [false_verdicts.IMPLS]) as session:
        known: dict[str, Callable[[], list[Proof]]] = {
            "false_verdicts": lambda: [
                false_verdicts.prove(
                    session, folder, false_verdicts.Plan(arguments.trials, arguments.processes)
                )
            ],
            "overhead": lambda: [overhead.prove(session, folder)],
            "agreement_cpu": lambda: [agreement.prove_cpu(arguments.rounds)],
            "agreement_cuda": lambda: [agreement.prove_cuda(folder, arguments.rounds)],
            "growth": growth.prove,
            "rivals": rivals.prove,
        }
        wanted = arguments.proofs or BOOKS[arguments.book]
        programs = {name: known[name] for name in wanted}
        return Machine.of(session.environment), list(_each(programs))


def table(proof: Proof) -> Table:
    """One proof for the terminal."""
    made = Table(title=proof.title, title_justify="left", caption_justify="left")
    for heading in ("", "measured", "asked", ""):
        made.add_column(heading, overflow="fold")
    for row in proof.rows:
        kept = "" if row.is_kept is None else "kept" if row.is_kept else "NOT KEPT"
        made.add_row(row.what, row.figure, row.bound, kept)
    before, after = proof.load
    made.caption = f"{proof.seconds:.0f} s; load {before:.1f} before, {after:.1f} after"
    return made


def _each(programs: Mapping[str, Callable[[], list[Proof]]]) -> Iterator[Proof]:
    for part, prove in programs.items():
        start, load = time.perf_counter(), load_now()
        proofs = prove()
        seconds, loads = time.perf_counter() - start, (load, load_now())
        for proof in proofs:
            yield dataclasses.replace(proof, load=loads, seconds=seconds, part=part)


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/proofs", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("book", metavar="BOOK", choices=BOOKS, help=", ".join(BOOKS))
    parser.add_argument("proofs", nargs="*", metavar="PROOF", help="of the book; default: all")
    parser.add_argument("--trials", type=_count, default=8, help="of each design (8)")
    parser.add_argument("--processes", type=_count, default=3, help="of each side (3)")
    parser.add_argument("--rounds", type=_count, default=agreement.ROUNDS, help="of agreement")
    parser.add_argument("--folder", type=Path, help="records; what it holds is not measured again")
    parser.add_argument("--json", type=Path, help=f"results ({RESULTS}/BOOK.json)")
    parser.add_argument(
        "--write-docs", action="store_true", help="put the results into docs/BOOK.md"
    )
    arguments = parser.parse_args(words)
    for name in arguments.proofs:
        if name not in (known := BOOKS[arguments.book]):
            parser.error(f"no proof {name!r} in {arguments.book}; allowed: {', '.join(known)}")
    return arguments


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
