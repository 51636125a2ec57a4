"""Where a run's time goes: the share of it in samples and warm-up, and what the rest is.

A suite of 100 points (20 problems × 5 implementations, forward and backward, seqlen 128 to
1024) is measured at the default budget through the real runner. What is counted:

    wall       from the first worker's start (its interpreter, the import of torch) to the
               end of the last point; not what precedes a run once: looking for
               implementations and describing the machine
    samples    Σ over records of the samples' times × calls a sample
    warm-up    Σ over records of ``warmup_s``, and the untimed call with which each round
               begins, so that it does not start on the caches of the one before: what the
               rounds took (``spent_s``) less their samples. A record that does not tell
               ``spent_s`` leaves those calls with the rest.

The reference, building, verification, memory and everything else count as overhead, listed
by the phase that the worker announced.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proof import Proof, Row, percent

from attnbench import environment as environments
from attnbench.plan import Point
from attnbench.record import Record
from attnbench.runner import Runner
from attnbench.session import Session
from attnbench.store import Store
from attnbench.suite import load_suite

LEAST_SHARE = 0.70

SUITE = """
title = "A hundred ordinary points at the default budget"
impls = ["sdpa", "sdpa-math", "sdpa-flash", "naive", "blockwise"]

[grid]
heads = 4
head_dim = 64
seqlen = [128, 256, 512, 768, 1024]
mask = ["full", "causal"]
direction = ["forward", "backward"]
"""


@dataclass
class Stopwatch:
    """Progress that adds up the time of each announced phase, seen from the parent.

    What a worker does between two announcements belongs to the first of them. Before the
    first it is ``start``: the worker's interpreter and the import of torch.
    """

    now: float = field(default_factory=lambda: time.perf_counter())
    phase: str = "start"
    seconds: Counter[str] = field(default_factory=Counter)

    def group_begins(self, group: Sequence[Point]) -> None:
        """The runner turns to the next problem; its worker has finished the last."""
        self._turn("start" if not self.seconds else "between problems")

    def step(self, who: str | None, phase: str) -> None:
        """The phase before is over."""
        self._turn(phase)

    def point_done(self, record: Record) -> None:
        """Still the phase that the worker announced."""

    def stop(self) -> None:
        """The run is over."""
        self._turn("over")

    def _turn(self, phase: str) -> None:
        before, self.now = self.now, time.perf_counter()
        self.seconds[self.phase] += self.now - before
        self.phase = phase


@dataclass(frozen=True)
class Shares:
    """Seconds of one run, and what they were spent on."""

    points: int
    wall_s: float
    samples_s: float
    warmup_s: float  # before the rounds
    openings_s: float  # the untimed calls with which rounds begin
    rest_s: dict[str, float]  # by phase, the largest first

    @property
    def share(self) -> float:
        """Of the wall time, in samples and warm-up."""
        return (self.samples_s + self.warmup_s + self.openings_s) / self.wall_s


def shares(records: Iterable[Record], wall_s: float, phases_s: Counter[str]) -> Shares:
    """Divide a run's time into what was measuring and what was not.

    Raises:
        ValueError: a point was not measured, so that the share would mean nothing.
    """
    samples_s = warmup_s = openings_s = 0.0
    points = 0
    for record in records:
        if record.samples is None:
            raise ValueError(f"{record.implementation.spec}: {record.status}: {record.reason}")
        points += 1
        times_s = [t for process in record.samples.times_s for round_ in process for t in round_]
        sampled_s = sum(times_s) * record.samples.calls_per_sample
        spent_s = record.samples.spent_s
        samples_s += sampled_s
        warmup_s += record.samples.warmup_s
        openings_s += 0.0 if spent_s is None else spent_s - sampled_s
    rest_s = Counter(phases_s)
    rest_s["measure"] -= samples_s + openings_s
    rest_s["warm-up"] -= warmup_s
    named = {"measure": "between samples", "warm-up": "between warm-ups"}
    return Shares(
        points,
        wall_s,
        samples_s,
        warmup_s,
        openings_s,
        {named.get(phase, phase): seconds for phase, seconds in rest_s.most_common()},
    )


def prove(session: Session, folder: Path, seqlens: Sequence[int] | None = None) -> Proof:
    """Measure the suite and divide its time.

    Args:
        session: holds the device.
        folder: for the suite's file and the records.
        seqlens: fewer problems than the suite has; None is all.
    """
    path = folder / "overhead.toml"
    path.write_text(SUITE)
    suite = load_suite(path, [f"seqlen={list(seqlens)}"] if seqlens else [])
    file = folder / "overhead.jsonl"
    address = environments.save(session.environment, folder)
    records: list[Record] = []
    with Store(file) as kept:

        def keep(record: Record) -> None:
            kept.append(record)
            records.append(record)

        session.pool.drop()
        start, watch = time.perf_counter(), Stopwatch()
        Runner(session.plan(suite, folder / "none.jsonl"), session.pool, address, keep, watch).run()
        watch.stop()
        wall_s = time.perf_counter() - start
    return as_proof(shares(records, wall_s, watch.seconds))


def as_proof(found: Shares) -> Proof:
    """The share, and every cost beside it."""
    rows = [
        Row(
            f"time in samples and warm-up, {found.points} points, default budget",
            f"{percent(found.share)} of {found.wall_s:.1f} s",
            f"≥ {LEAST_SHARE:.0%}",
            found.share >= LEAST_SHARE,
        ),
    ]
    parts = {
        "samples": found.samples_s,
        "warm-up before the rounds": found.warmup_s,
        "the untimed call that opens each round": found.openings_s,
        **{f"not measuring: {phase}": seconds for phase, seconds in found.rest_s.items()},
    }
    rows += [
        Row(f"· {part}", f"{seconds:.1f} s, {percent(seconds / found.wall_s)}")
        for part, seconds in parts.items()
    ]
    return Proof("overhead", "Time in samples and warm-up", rows)
