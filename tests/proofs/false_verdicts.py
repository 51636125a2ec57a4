"""How often ``compare`` is wrong: equal sides called different, a 5 % slower twin not found.

A trial is what happens to a pull request: a suite of 30 points is measured before and
after, and ``compare`` judges all of them at once. 25 points are the same on both sides
(A/A); any FASTER or SLOWER is false. 5 points are the twin: the same kernel, which on the
side ``new`` spins for another 5 % of each call; anything but SLOWER is a miss. 8 trials
make 200 A/A comparisons and 40 twins.

Two designs, each with all the trials:

    paired     both sides in the same processes, rounds interleaved, joined by ``pair``
    unpaired   first all of ``base``, then all of ``new``, in processes of their own

Everything is the real thing: the suite file, the session, the runner with its worker
processes, the store, the files that ``compare`` reads. Only two things are done here. The
sides are one implementation with an option ``side``, which is taken off the records before
they are compared, as two states of one source would be called alike. And each record is
made of several processes: the runner is started once for each.

What a process has measured is on disk; a second call with the same folder goes on there.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from proof import Proof, Row, share_of

from attnbench import environment as environments
from attnbench.compare import Comparison, compare
from attnbench.errors import UserError
from attnbench.record import Record
from attnbench.runner import Runner
from attnbench.runs import load_run
from attnbench.session import Session
from attnbench.stats import median_interval
from attnbench.store import Store, load
from attnbench.suite import Suite, load_suite

Design = Literal["paired", "unpaired"]
DESIGNS: tuple[Design, ...] = ("paired", "unpaired")
SIDES = ("base", "new")
TWIN = "changed"
IMPLS = Path(__file__).parent / "impls"

MOST_FALSE = 0.01
LEAST_FOUND = 0.95

SUITE = """
title = "Two sides of a change"
impls = ["flash", "math", "matmul", "einsum", "heads", "changed"]

[grid]
heads = 4
head_dim = 64
seqlen = [192, 256, 320, 384, 512]

[measure]
min_rounds = 12
samples = 3
warmup_s = 0.02
warmup_cap_s = 0.1
max_s = 0.06
ceilings_s = 0
"""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        trials: comparisons of two runs, for each design.
        processes: of each side.
        seqlens: fewer problems than the suite has; None is all.
        designs: which.
    """

    trials: int = 8
    processes: int = 3
    seqlens: Sequence[int] | None = None
    designs: Sequence[Design] = DESIGNS


@dataclass(frozen=True)
class Counts:
    """Verdicts of one design: of points that are equal, and of twins."""

    same: Counter[str]
    twins: Counter[str]

    @property
    def false(self) -> int:
        """Equal points that were called different."""
        return self.same["FASTER"] + self.same["SLOWER"]

    @property
    def found(self) -> int:
        """Twins that were called slower."""
        return self.twins["SLOWER"]


def prove(session: Session, folder: Path, plan: Plan) -> Proof:
    """Measure and compare; print each trial as it is done.

    Args:
        session: holds the device; its implementations include those of ``IMPLS``.
        folder: for the records; what it holds already is not measured again.
        plan: how much.
    """
    counts: dict[Design, Counts] = {}
    for design in plan.designs:
        counts[design] = Counts(Counter(), Counter())
        for number in range(1, plan.trials + 1):
            place = folder / design / f"trial-{number:02}"
            judged = trial(session, place, design, plan)
            add(counts[design], judged)
            told = ", ".join(f"{v.lower()} {n}" for v, n in sorted(judged.counts.items()))
            print(f"{design}, trial {number} of {plan.trials}: {told}", flush=True)
    return as_proof(counts, plan)


def trial(session: Session, folder: Path, design: Design, plan: Plan) -> Comparison:
    """Measure both sides in processes of their own or in the same ones, and compare."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / "sides.toml"
    path.write_text(SUITE)
    suite = load_suite(path, [f"seqlen={list(plan.seqlens)}"] if plan.seqlens else [])
    visits = [SIDES] if design == "paired" else [(side,) for side in SIDES]
    files = [
        _measure(session, suite, folder / f"{'-'.join(sides)}-{process}.jsonl", sides)
        for sides in visits
        for process in range(1, plan.processes + 1)
    ]
    environments.save(session.environment, folder)
    by_process = [load([file]).records for file in files]
    for side in SIDES:
        records = join(by_process, side, pair=folder.name if design == "paired" else None)
        (folder / f"{side}.jsonl").unlink(missing_ok=True)
        with Store(folder / f"{side}.jsonl") as store:
            for record in records:
                store.append(record)
    return compare(*(load_run([folder / f"{side}.jsonl"]) for side in SIDES))


def _measure(session: Session, suite: Suite, file: Path, sides: Iterable[str]) -> Path:
    """Measure everything in one fresh worker, unless the file says that it was done before.

    All or nothing: sides that were measured half before and half after a stop are no pairs.
    """
    if file.exists():
        return file
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    impls = [f"{name}:side={side}" for name in suite.impls for side in sides]
    plan = session.plan(suite, partial, impls)
    address = environments.save(session.environment, file.parent)
    with Store(partial) as store:
        Runner(plan, session.pool, address, store.append).run()
    return partial.rename(file)


def join(
    by_process: Iterable[Iterable[Record]], side: str, pair: str | None = None
) -> Iterator[Record]:
    """One record a point of a side, with the rounds of all processes.

    Args:
        by_process: what each process measured; records of the other side are passed over.
        side: whose records.
        pair: name of the trial, if both sides were measured in the same processes.

    Raises:
        UserError: a point was not measured: then there is nothing to judge.
    """
    points: dict[tuple[str, str], list[Record]] = {}
    for record in itertools.chain.from_iterable(by_process):
        if record.samples is None:
            raise UserError(f"{record.implementation.spec}: {record.status}: {record.reason}")
        if record.implementation.given["side"] == side:
            key = (record.problem_id, record.implementation.name)
            points.setdefault(key, []).append(record)
    for (problem, name), records in points.items():
        yield _joined(records, f"{pair} {problem} {name}" if pair else None)


def _joined(records: Sequence[Record], pair: str | None) -> Record:
    samples = [record.samples for record in records if record.samples is not None]
    times_s = [process for one in samples for process in one.times_s]
    interval = median_interval([round_ for process in times_s for round_ in process])
    data = records[-1].model_dump()
    data["samples"] |= {
        "times_s": times_s,
        "warmup_s": sum(one.warmup_s for one in samples),
        "converged": all(one.converged for one in samples),
        "median_s": interval.median,
        "low_s": interval.low,
        "high_s": interval.high,
    }
    data["implementation"]["given"] = {}
    data["implementation"]["options"] = {}
    return Record.model_validate({**data, "pair": pair})


def add(counts: Counts, judged: Comparison) -> None:
    """Count the verdicts of one trial."""
    for point in judged.points:
        is_twin = point.record.implementation.name == TWIN
        (counts.twins if is_twin else counts.same)[point.verdict] += 1


def as_proof(counts: dict[Design, Counts], plan: Plan) -> Proof:
    """Shares with their intervals, and what the other verdicts were."""
    rows = []
    for design, found in counts.items():
        same, twins = found.same.total(), found.twins.total()
        rows += [
            Row(
                f"{design}: equal sides called FASTER or SLOWER",
                share_of(found.false, same),
                f"≤ {MOST_FALSE:.0%}",
                found.false <= MOST_FALSE * same,
            ),
            Row(f"· the {same} verdicts", _told(found.same)),
            _of_twins(design, found),
            Row(f"· the {twins} verdicts", _told(found.twins)),
        ]
    title = f"False verdicts ({plan.trials} trials a design, {plan.processes} processes a side)"
    return Proof("false_verdicts", title, rows)


def _of_twins(design: Design, found: Counts) -> Row:
    """How many were found: a bound where both sides met in one process, else worth knowing.

    What three processes a side can find depends on how much processes differ on the machine,
    which no comparison can mend.
    """
    twins = found.twins.total()
    name = f"{design}: twins 5 % slower called SLOWER"
    if design == "unpaired":
        return Row(name, share_of(found.found, twins))
    is_kept = found.found >= LEAST_FOUND * twins
    return Row(name, share_of(found.found, twins), f"≥ {LEAST_FOUND:.0%}", is_kept)


def _told(verdicts: Counter[str]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
