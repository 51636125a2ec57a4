"""``--confirm``: suspects of a comparison, measured once more and judged again."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from attnbench import store
from attnbench.commands import run_
from attnbench.compare import Compared, Comparison
from attnbench.confirm import UNMEASURED, Rerun, with_note, with_seed
from attnbench.errors import UserError
from attnbench.plan import Plan
from attnbench.record import Record
from attnbench.report import units
from attnbench.runs import Run
from attnbench.session import Session, open_session, reproduce
from attnbench.settings import PRESETS, Preset
from attnbench.suite import Suite, find_suite, load_suite


@dataclass(frozen=True)
class Asked:
    """How a record was asked for: the inverse of :func:`attnbench.session.reproduce`."""

    device: str
    seed: int
    suite: str
    overrides: tuple[str, ...]
    preset: Preset | None = None

    @classmethod
    def by(cls, record: Record) -> Asked:
        """Read it from the record's command.

        Only the suite and its settings: a record may come from anywhere, and must not say
        whose code is to be imported.

        Raises:
            UserError: the command is not that of a run.
        """
        try:
            words = shlex.split(record.command)
        except ValueError:  # a quotation without its end
            words = []
        if words[:2] != ["attnbench", "run"] or len(words) < 3:
            raise UserError("its record does not say how it was measured")
        pairs = itertools.pairwise(words)
        overrides = tuple(value for option, value in pairs if option == "--set")
        preset = next((name for name in PRESETS if f"--{name}" in words), None)
        return cls(record.device, record.seed, words[2], overrides, preset)


def with_suite(
    console: Console,
    comparison: Comparison,
    runs: tuple[Run, Run],
    session: Session,
    suite: Suite,
    command: str,
    file: Path,
    across: Sequence[str] = (),
) -> Comparison:
    """Confirm the suspects of a run in its own session.

    Args:
        console: where to tell what goes on.
        comparison: whose regressions are suspects.
        runs: base and new.
        session: where to measure.
        suite: how to measure.
        command: beginning of the command that measures a point again.
        file: of the run's records; those of the suspects go beside it.
        across: as in :func:`attnbench.compare.compare`.
    """
    suspects = comparison.regressions
    settled = _settle(console, suspects, comparison, runs, session, suite, command, file, across)
    return _put(comparison, dict(zip(map(id, suspects), settled, strict=True)))


def with_commands(
    console: Console,
    comparison: Comparison,
    runs: tuple[Run, Run],
    project: Path | None,
    impls_dirs: Sequence[Path],
    across: Sequence[str],
) -> Comparison:
    """Confirm suspects with the suites that their records name.

    Args:
        console, comparison, runs, across: as in :func:`with_suite`.
        project, impls_dirs: as in :func:`attnbench.session.open_session`.
    """
    asked: dict[Asked, list[Compared]] = {}
    settled: dict[int, Compared] = {}
    for suspect in comparison.regressions:
        assert suspect.new is not None
        try:
            asked.setdefault(Asked.by(suspect.new), []).append(suspect)
        except UserError as error:
            settled[id(suspect)] = _left(suspect, error)
    for how, some in asked.items():
        try:
            suite = load_suite(find_suite(how.suite, project), how.overrides, how.preset)
            suite = with_seed(suite, how.seed)
            with open_session(project, how.device, impls_dirs) as session:
                command = reproduce(
                    how.suite,
                    device=how.device,
                    project=project,
                    impls_dirs=impls_dirs,
                    overrides=how.overrides,
                    preset=how.preset,
                )
                file = session.results_file(suite)
                again = _settle(
                    console, some, comparison, runs, session, suite, command, file, across
                )
        except UserError as error:
            again = [_left(suspect, error) for suspect in some]
        settled |= dict(zip(map(id, some), again, strict=True))
    return _put(comparison, settled)


def _settle(
    console: Console,
    suspects: Sequence[Compared],
    comparison: Comparison,
    runs: tuple[Run, Run],
    session: Session,
    suite: Suite,
    command: str,
    file: Path,
    across: Sequence[str],
) -> list[Compared]:
    """Measure suspects again, records into a file beside the run's, and judge them."""

    def measure(plan: Plan) -> list[Record]:
        count = sum(not point.contender.entry.source.revision for point in plan.points)
        console.print(f"Measuring {units.count(count, 'suspect')} again.")
        records: list[Record] = []
        with store.Store(file.with_name(f"{file.stem}{store.CONFIRM}.jsonl")) as kept:

            def keep(record: Record) -> None:
                kept.append(record)
                records.append(record)

            if run_.take(console, session, plan, keep, file.parent, command):
                raise KeyboardInterrupt
        console.print(f"Records of suspects: {escape(str(kept.path))}", soft_wrap=True)
        return records

    rerun = Rerun(session, suite, *runs, measure, comparison.threshold, across)
    return rerun.settle(suspects)


def _left(suspect: Compared, error: UserError) -> Compared:
    return with_note(suspect, f"{UNMEASURED}: {error}")


def _put(comparison: Comparison, settled: dict[int, Compared]) -> Comparison:
    """The comparison with its suspects as they are now, by the identity of what they were."""
    if not settled:
        return comparison
    points = [settled.get(id(point), point) for point in comparison.points]
    left = sum(UNMEASURED in note for p in settled.values() for note in p.notes)
    red = sum(point.is_regression for point in settled.values()) - left
    measured = len(settled) - left
    notes = []
    if measured:
        notes.append(f"{units.count(measured, 'suspect')} measured again: {red} confirmed")
    if left:
        notes.append(f"{units.count(left, 'suspect')} could not be measured again")
    return comparison.with_points(points, *notes)
