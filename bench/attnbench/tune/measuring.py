"""Measuring a setting for real: one point, by the ordinary runner, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from attnbench.environment import machine_id
from attnbench.limits import Limits
from attnbench.plan import Contender, Plan, Point
from attnbench.record import Record, point_id
from attnbench.runner import Progress, Quiet, Runner
from attnbench.session import Session
from attnbench.suite import Suite
from attnbench.train.workload import Workload
from attnbench.tune.outcome import Outcome, outcome_of
from attnbench.tune.resolve import Setting
from attnbench.tune.table import Tune


@dataclass
class Measuring:
    """Measures settings and keeps their records.

    Attributes:
        session: where.
        suite: how; its one workload is the start.
        tune: what is asked of a record.
        keep: takes each record as soon as it is there.
        command: the command that measures a point again, of the keys that it changes.
        limits: the device's ceilings.
        progress: told what the runner does.
        records: those that are there already, by id; grows.
    """

    session: Session
    suite: Suite
    tune: Tune
    keep: Callable[[Record], None]
    command: Callable[[Sequence[str]], str]
    limits: Limits
    progress: Progress = field(default_factory=Quiet)
    records: dict[str, Record] = field(default_factory=dict)

    def name(self, workload: Workload, contender: Contender) -> str:
        """The id of a setting's record: that of any point."""
        seed = self.suite.verify.seed
        machine = machine_id(self.session.environment)
        return point_id(workload.id, contender.spec, contender.entry.code, machine, seed)

    def recall(self, setting: Setting) -> Outcome | None:
        """What a setting came to, where it has a record."""
        record = self.records.get(setting.id)
        return None if record is None else outcome_of(record, self.tune)

    def __call__(self, setting: Setting) -> Outcome:
        """Measure a setting; its record is on disk when this returns."""
        point = Point(setting.contender, setting.workload, setting.id)
        suite = replace(self.suite, problems=(setting.workload,))
        plan = Plan(suite, self.session.device, [[point]])

        def keep(record: Record) -> None:
            self.keep(record)
            self.records[record.id] = record

        # A runner begins with a worker in which nobody was at work before.
        Runner(
            plan,
            self.session.pool,
            self.limits.save(),
            keep,
            self.progress,
            self.command(self._overrides(setting.workload)),
            self.limits,
        ).run()
        return outcome_of(self.records[setting.id], self.tune)

    def _overrides(self, workload: Workload) -> list[str]:
        """What ``--set`` must say to get from the start to a workload."""
        (start,) = self.suite.problems
        before, now = start.to_json(), workload.to_json()
        return [f"{k}={json.dumps(v)}" for k, v in now.items() if v != before[k]]
