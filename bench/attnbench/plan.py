"""The plan of a run: which implementation meets which problem, and what is done already."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from attnbench.errors import UserError, unknown
from attnbench.problem import Problem
from attnbench.record import point_id
from attnbench.registry import Entry
from attnbench.spec import Value, format_spec, parse_spec
from attnbench.subject import PointKind, Subject
from attnbench.suite import Suite, set_keys
from attnbench.train.bound import RERUNS, STEPS
from attnbench.train.generation.spec import Generation

_FLOPS_A_SECOND = {"cpu": 2e10, "cuda": 1e13}  # of the float64 reference; for estimates only
_FLOPS_A_TOKEN = 1e6  # of a tiny model in training; which model it is takes torch to know
_STEP_S = 0.01  # of launching a training step
_READS = 10  # of all tokens, by the model without a cache
_START_S = 3.0  # of a fresh process, which imports torch
_OVERHEAD_S = 0.3  # building, verifying and measuring memory of one small point


@dataclass(frozen=True)
class Contender:
    """An implementation with the options it was asked to run with."""

    entry: Entry
    given: tuple[tuple[str, Value], ...] = ()

    @property
    def spec(self) -> str:
        """``name:key=value``; unique within a run, but for versions of one implementation."""
        return format_spec(self.entry.name, dict(self.given))

    @property
    def simulated(self) -> str | None:
        """The simulator that its options run it in, in words; None if it is timed for real."""
        options = {**self.entry.options, **dict(self.given)}
        words = (w for name, w in self.entry.simulators.items() if options.get(name))
        return next(words, None)

    @property
    def key(self) -> str:
        """Unique within a run: the spec, and the revision of an earlier version."""
        revision = self.entry.source.revision
        return f"{self.spec} @ {revision[:12]}" if revision else self.spec


@dataclass(frozen=True)
class Point:
    """One contender on one problem, or inside one model.

    Attributes:
        id: of its record.
        is_paired: its rounds are to be compared, one by one, with those of another version
            of the same implementation in the same group.
    """

    contender: Contender
    problem: Subject
    id: str
    is_paired: bool = False


@dataclass
class Plan:
    """All points of a run, grouped by problem: contenders of a shape run together.

    Those in a simulator are a group of their own: no real rounds wait for theirs.
    """

    suite: Suite
    device: str
    groups: list[list[Point]] = field(default_factory=list)
    finished: int = 0  # points found in the store, not planned again
    ids: set[str] = field(default_factory=set)  # of every point asked for, finished ones too

    @property
    def points(self) -> list[Point]:
        """Every point still to do."""
        return [point for group in self.groups for point in group]

    def estimated_s(self) -> float:
        """A rough upper guess of the time the run takes."""
        return sum(self.group_s(group) for group in self.groups)

    def group_s(self, group: Sequence[Point]) -> float:
        """The same for one group."""
        measure = self.suite.measure
        usable = sum(point.contender.entry.reason is None for point in group)
        problem, flops_a_second = group[0].problem, _FLOPS_A_SECOND[self.device.partition(":")[0]]
        point_s = _OVERHEAD_S + measure.warmup_cap_s + measure.max_s
        if isinstance(problem, Problem):
            flops = problem.replace(direction="both", decode=False).flops()
            reference_s = 2 * flops / flops_a_second
        elif isinstance(problem, Generation):
            tokens = problem.batch * problem.read
            read_s = tokens * _FLOPS_A_TOKEN / flops_a_second
            reference_s, point_s = _READS * read_s, point_s + read_s + problem.new * _STEP_S
        else:
            tokens = problem.seqlen * max(problem.batch, 1)
            step_s = _STEP_S + tokens * _FLOPS_A_TOKEN / flops_a_second
            learn_s = problem.steps * step_s
            reference_s = learn_s + RERUNS * min(problem.steps, STEPS) * step_s
            point_s += learn_s
        energy_s = usable * measure.energy_s  # by the first process alone
        start_s = _START_S if usable and measure.processes > 1 else 0.0
        return measure.processes * (start_s + usable * point_s + reference_s) + energy_s


def choose(
    globs: Iterable[str],
    entries: Sequence[Entry],
    where: str = "",
    options: Mapping[str, Value] | None = None,
    kind: PointKind = "attention",
) -> list[Contender]:
    """The contenders that globs such as ``sdpa*`` or ``triton:block_m=64`` name.

    Args:
        globs: what was asked for.
        entries: who there is.
        where: it was asked for; errors begin with it.
        options: by ``--set``, for everyone chosen that has such an option and was not given
            a value of its own.
        kind: of the suite, whose keys ``--set`` might have meant.

    Raises:
        UserError: a name nobody has, a glob that matches nothing, an unknown option, or one
            of ``options`` that nobody chosen has.
    """
    for_all = dict(options or {})
    unused = set(for_all)
    chosen: dict[str, Contender] = {}
    for glob in globs:
        name, own = parse_spec(glob)
        matching = [e for e in entries if fnmatch.fnmatchcase(e.name, name)]
        if not matching:
            raise _nobody(name, entries, where)
        for entry in matching:
            given = {k: v for k, v in for_all.items() if k in entry.options} | own
            unused -= given.keys()
            if entry.reason is None:
                _check_options(entry, given)
            contender = Contender(entry, tuple(sorted(given.items())))
            chosen.setdefault(contender.spec, contender)
    for key in sorted(unused):
        known = {name for c in chosen.values() for name in c.entry.options}
        raise unknown("key", key, [*set_keys(kind), *sorted(known)], "--set")
    return list(chosen.values())


def make_plan(
    suite: Suite,
    contenders: Sequence[Contender],
    device: str,
    machine_id: str,
    done: frozenset[str] = frozenset(),
    problems: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
) -> Plan:
    """Lay out the points that are still to be measured.

    Args:
        suite: what to measure.
        contenders: who.
        device: where.
        machine_id: the environment's part of a point's identity.
        done: ids of points that have a record already.
        problems: beginnings of problem ids to restrict the run to; all if empty.
        shard: (i, n): every n-th problem, starting with the i-th.

    Raises:
        UserError: no problem has such an id.
    """
    wanted = [p for p in suite.problems if not problems or p.id.startswith(tuple(problems))]
    if not wanted:
        raise UserError(f"--problem {' '.join(problems)}: suite {suite.name} has no such problem")
    plan = Plan(suite, device)
    index, count = shard
    for problem in wanted[index - 1 :: count]:
        group = [
            Point(
                c,
                problem,
                point_id(problem.id, c.spec, c.entry.code, machine_id, suite.verify.seed),
            )
            for c in contenders
        ]
        plan.ids |= {point.id for point in group}
        todo = [point for point in group if point.id not in done]
        plan.finished += len(group) - len(todo)
        for is_simulated in (False, True):
            own = [p for p in todo if (p.contender.simulated is not None) == is_simulated]
            if own:
                plan.groups.append(own)
    return plan


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` with 1 ≤ i ≤ n."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text!r}: must look like i/n with 1 ≤ i ≤ n, for example 1/4")
    return int(index), int(count)


def _nobody(name: str, entries: Sequence[Entry], where: str) -> UserError:
    """Nobody has the name; one whose file cannot be imported might have had it."""
    error = unknown("implementation", name, [e.name for e in entries], where)
    broken = [f"{e.file} {e.reason}" for e in entries if e.reason is not None]
    return UserError(f"{error}; unavailable: {'; '.join(broken)}") if broken else error


def _check_options(entry: Entry, options: dict[str, Value]) -> None:
    for key, value in options.items():
        if key not in entry.options:
            raise unknown("option", key, entry.options, where=entry.name)
        default = entry.options[key]
        is_number = isinstance(default, float) and type(value) in (int, float)
        if type(value) is not type(default) and not is_number:
            raise UserError(
                f"{entry.name}: option {key} must be of type {type(default).__name__}, "
                f"got {value!r}"
            )
