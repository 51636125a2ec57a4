"""Confirming a regression: a suspect is measured once more before anybody is told.

A point that got slower, larger, less accurate or fails is measured again, on the machine and
with the very source of its record. Where git still has the source of the base's record, both
are measured again, interleaved; else the new figures meet the base's old ones. What does not
show again was no regression: the point becomes INCONCLUSIVE. A suspect that cannot be measured
here stays what it is, and says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attnbench import environment as environments
from attnbench.against import Versions, brought_out
from attnbench.compare import Compared, compare
from attnbench.errors import UserError
from attnbench.matching import differences, in_short
from attnbench.plan import Contender, Plan, Point, choose
from attnbench.problem import Problem
from attnbench.record import Record, point_id
from attnbench.registry import Entry
from attnbench.runs import Run, flatten
from attnbench.session import Session
from attnbench.settings import Verify
from attnbench.suite import Suite

Measure = Callable[[Plan], list[Record]]
"""Measures a plan; raises KeyboardInterrupt if the user stops it."""


UNMEASURED = "not measured again"
"""Begins the note of a suspect that stays one."""


@dataclass
class Rerun:
    """Suspects of one suite and seed, measured again in one session.

    Attributes:
        session: where.
        suite: with the settings of the first measurement.
        base, new: the runs that the suspects are from.
        measure: does it.
        threshold, across: of the comparison that suspects them.
    """

    session: Session
    suite: Suite
    base: Run
    new: Run
    measure: Measure
    threshold: float
    across: Sequence[str] = ()

    def settle(self, suspects: Sequence[Compared]) -> list[Compared]:
        """Each suspect as the second measurement shows it, in the same order."""
        obstacles = [self._obstacle(suspect) for suspect in suspects]
        able = [s for s, obstacle in zip(suspects, obstacles, strict=True) if not obstacle]
        again = iter(self._again(able) if able else [])
        return [
            with_note(suspect, f"{UNMEASURED}: {obstacle}")
            if obstacle
            else judged(suspect, next(again))
            for suspect, obstacle in zip(suspects, obstacles, strict=True)
        ]

    # ---- who can be measured again -----------------------------------------------------

    def _obstacle(self, suspect: Compared) -> str:
        """Why a suspect cannot be measured again here; empty if it can."""
        record = suspect.new
        assert record is not None
        recorded = self.new.identity(record)
        if recorded is None:
            return f"environment-{record.environment}.json is missing"
        if found := differences(recorded, self._machine()):
            return f"this is not the machine of its record: {in_short(found)}"
        if record.kind != "attention":
            return f"a {record.kind} run is not measured again here; run its suite once more"
        try:
            if Problem.from_json(record.problem).id != record.problem_id:
                return "this attnbench reads its problem as another one"
            self._contender(record)
        except UserError as error:
            return str(error)
        return ""

    def _contender(self, record: Record) -> Contender:
        """Who is meant by a record.

        Raises:
            UserError: there is none here, or it is not what it was.
        """
        who = record.implementation
        (contender,) = choose([who.spec], self.session.entries)
        entry = contender.entry
        if entry.reason is not None:
            raise UserError(f"{who.name} is unavailable here: {entry.reason}")
        if not _is_source(entry, record):
            raise UserError(f"the source of {who.name} here is not that of its record")
        return contender

    def _machine(self) -> dict[str, str]:
        return dict(flatten(self.session.environment["identity"]))

    # ---- measuring ---------------------------------------------------------------------

    def _again(self, suspects: Sequence[Compared]) -> list[Compared]:
        """The comparison of the second measurement of each suspect."""
        with contextlib.ExitStack() as stack:
            plan = Plan(self.suite, self.session.device)
            groups: dict[str, list[Point]] = {}
            paired = set()
            bases = self._bases(stack, suspects)
            for suspect in suspects:
                record = suspect.new
                assert record is not None
                contender = self._contender(record)
                base = bases.get(record.point)
                group = groups.setdefault(record.problem_id, [])
                for one in (base, contender) if base else (contender,):
                    group.append(self._planned(record, one, is_paired=base is not None))
                if base is not None:
                    paired.add(record.point)
            plan.groups = list(groups.values())
            records = self.measure(plan)
        return self._compared(suspects, records, paired)

    def _planned(self, record: Record, contender: Contender, *, is_paired: bool) -> Point:
        problem = Problem.from_json(record.problem)
        machine = environments.machine_id(self.session.environment)
        code = contender.entry.code
        address = point_id(problem.id, contender.spec, code, machine, record.seed)
        return Point(contender, problem, address, is_paired)

    def _bases(
        self, stack: contextlib.ExitStack, suspects: Sequence[Compared]
    ) -> dict[tuple[str, str], Contender]:
        """The base of each suspect whose source git still has, by point."""
        by_commit: dict[str, list[Compared]] = {}
        for suspect in suspects:
            if commit := self._commit(suspect):
                by_commit.setdefault(commit, []).append(suspect)
        found = {}
        for commit, some in by_commit.items():
            versions = self._versions(stack, commit, some)
            for suspect in some:
                assert suspect.base is not None
                both = versions.get(suspect.record.implementation.spec)
                if both is not None and _is_source(both.base.entry, suspect.base):
                    found[suspect.record.point] = both.base
        return found

    def _versions(
        self, stack: contextlib.ExitStack, commit: str, suspects: Sequence[Compared]
    ) -> dict[str, Versions]:
        contenders = {s.record.implementation.spec: self._contender(s.record) for s in suspects}
        try:
            brought = stack.enter_context(
                brought_out(self.session, list(contenders.values()), commit)
            )
        except UserError:  # its repository is not at hand: then the old figures must do
            return {}
        return {both.present.spec: both for both in brought.versions}

    def _commit(self, suspect: Compared) -> str | None:
        """Where the base's source may be; None if it was not measured on this machine."""
        base = suspect.base
        assert base is not None
        if self.base.identity(base) != self._machine():
            return None
        if base.implementation.revision:
            return base.implementation.revision
        context = self.base.context(base)
        return context.get("git.commit") if context.get("git.dirty") == "false" else None

    def _compared(
        self, suspects: Sequence[Compared], records: Sequence[Record], paired: set[tuple[str, str]]
    ) -> list[Compared]:
        """Compare again: with what was measured beside, else with what the base had."""
        beside = [r for r in records if r.implementation.revision]
        before = [s.base for s in suspects if s.base and s.base.point not in paired]
        known = {record.environment: self.session.environment for record in records}
        comparison = compare(
            Run((*beside, *before), {**self.base.environments, **known}, ()),
            Run(tuple(r for r in records if not r.implementation.revision), known, ()),
            threshold=self.threshold,
            across=self.across,
        )
        found = {point.record.point: point for point in comparison.points}
        return [found[suspect.record.point] for suspect in suspects]


def with_seed(suite: Suite, seed: int) -> Suite:
    """The suite with the seed of a record, which is part of its point."""
    return replace(suite, verify=Verify(seed=seed))


def judged(suspect: Compared, again: Compared) -> Compared:
    """What remains of a suspect after its second measurement.

    A failure confirms whatever was suspected: the point is not what it was.
    """
    if again.verdict == "NOT COMPARABLE" and not again.regressions:
        return with_note(suspect, f"measured again, but not to be compared: {again.reason}")
    suspected, seen = _kinds(suspect), _kinds(again)
    confirmed = suspected if "failure" in seen else suspected & seen
    if not confirmed:
        reason = f"{_suspicion(suspect)}: not confirmed by a rerun{_figures(again)}"
        return replace(suspect, verdict="INCONCLUSIVE", reason=reason, regressions=())
    if confirmed == suspected:
        return with_note(suspect, f"confirmed by a rerun{_figures(again)}")
    kept = tuple(r for r in suspect.regressions if r.kind in confirmed)
    lost = ", ".join(sorted(suspected - confirmed))
    settled = replace(suspect, regressions=kept)
    if "time" in suspected - confirmed:
        settled = replace(settled, verdict="INCONCLUSIVE", reason="slower at first")
    return with_note(settled, f"confirmed by a rerun but for {lost}{_figures(again)}")


def _kinds(point: Compared) -> set[str]:
    """What got worse."""
    return {r.kind for r in point.regressions} | ({"time"} if point.verdict == "SLOWER" else set())


def _suspicion(suspect: Compared) -> str:
    slower = ["slower"] if suspect.verdict == "SLOWER" else []
    return "; ".join([*slower, *(r.text for r in suspect.regressions)])


def _figures(again: Compared) -> str:
    """What the second measurement saw, in brackets."""
    told = [r.text for r in again.regressions]
    if again.ratio is not None:
        how = "interleaved" if again.is_paired else "against BASE's samples"
        interval = f"[{again.ratio.low:.3f}, {again.ratio.high:.3f}]"
        told = [f"ratio {again.ratio.ratio:.3f} {interval} {how}", *told]
    return f" ({'; '.join(told)})" if told else ""


def with_note(point: Compared, note: str) -> Compared:
    """The point with one thing more to know, which comes first."""
    return replace(point, notes=(note, *point.notes))


def _is_source(entry: Entry, record: Record) -> bool:
    who = record.implementation
    return (entry.source_sha256, entry.version) == (who.source_sha256, who.version)
