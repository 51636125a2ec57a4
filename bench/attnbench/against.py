"""Implementations beside their own earlier versions: "did my change make it slower?".

The shelf (``impls/``, as a whole) of each implementation is brought out of git as it was at a
revision, and what it held is measured in the same rounds, in the same process, as what is
there now. Only the implementation's version differs: attnbench, the libraries and whatever
else the implementation imports from elsewhere are today's on both sides.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from attnbench import environment as environments
from attnbench import registry, store
from attnbench.errors import UserError
from attnbench.plan import Contender, Plan, choose, make_plan
from attnbench.pool import discover
from attnbench.record import Record
from attnbench.registry import Entry
from attnbench.revisions import Revision, bring_out, is_shallow, is_tracked, resolve, work_tree
from attnbench.runs import Run, load_run
from attnbench.session import Session
from attnbench.suite import Suite


@dataclass(frozen=True)
class Versions:
    """One implementation with its options, at a revision and now."""

    base: Contender
    present: Contender


@dataclass
class Brought:
    """What a revision has of the chosen implementations.

    Attributes:
        label: names the commit (of each work tree, if there are several).
        revision: what brings it out again: the commit, or its name if there are several.
        versions: those that can be measured side by side.
        same: specs of those whose source has not changed.
        skipped: a line for each that has no earlier version to measure.
    """

    label: str
    revision: str
    versions: list[Versions] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@contextlib.contextmanager
def brought_out(
    session: Session, contenders: Sequence[Contender], revision: str
) -> Iterator[Brought]:
    """The contenders' versions at a revision, for as long as the context lasts.

    Args:
        session: with a worker that can import them.
        contenders: as they are now.
        revision: a branch, tag or hash.

    Raises:
        UserError: git is missing, or the revision means nothing to it.
    """
    by_shelf: dict[Path, list[Contender]] = {}
    skipped = []
    for contender in contenders:
        source = contender.entry.source
        if source.path:
            by_shelf.setdefault(Path(source.path).parent, []).append(contender)
        else:
            skipped.append(f"{contender.spec}: comes from {source.origin}, not from a folder")
    trees = {shelf: _tree(shelf) for shelf in by_shelf}
    revisions = _resolve(revision, {tree for tree in trees.values() if tree})
    commits = list(dict.fromkeys(found.short for found in revisions.values()))
    again = commits[0] if len(commits) == 1 else revision
    brought = Brought("-".join(commits), again, skipped=skipped)
    with tempfile.TemporaryDirectory(prefix="attnbench-against-") as spare:
        for number, (shelf, here) in enumerate(by_shelf.items()):
            tree = trees[shelf]
            if tree is None:
                brought.skipped += [f"{c.spec}: {shelf} is not under version control" for c in here]
            elif tree not in revisions:
                brought.skipped += [f"{c.spec}: {tree} has no revision {revision}" for c in here]
            else:
                into = Path(spare) / str(number)
                into.mkdir()
                origin = here[0].entry.source.origin
                _add(brought, _Shelf(session, revisions[tree], shelf, origin, into), here)
        yield brought


def make_plan_of_both(
    session: Session,
    suite: Suite,
    versions: Sequence[Versions],
    files: tuple[Path, Path],
    problems: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
) -> Plan:
    """The points of a suite for both versions of each implementation, in the same groups.

    Left out is what was measured already; two times count only if taken side by side.

    Args:
        session: where.
        suite: what to measure.
        versions: who.
        files: where the records of the base and of the present versions are kept.
        problems, shard: as in :func:`attnbench.plan.make_plan`.
    """
    contenders = [c for both in versions for c in (both.base, both.present)]
    machine = environments.machine_id(session.environment)
    plan = make_plan(suite, contenders, session.device, machine, problems=problems, shard=shard)
    done = _done(*(_records(file, plan.ids) for file in files))
    groups = [
        [replace(p, is_paired=True) for p in group if (p.problem.id, p.contender.spec) not in done]
        for group in plan.groups
    ]
    plan.finished = len(plan.points) - sum(map(len, groups))
    plan.groups = [group for group in groups if group]
    return plan


def base_file(file: Path, label: str) -> Path:
    """Where the records of the base versions are kept: beside those of the present ones."""
    return file.with_name(f"{file.stem}{store.AGAINST}{label}.jsonl")


def run_of(file: Path, ids: Collection[str]) -> Run:
    """The records of a file that belong to a plan's points."""
    run = load_run([file])
    return replace(run, records=tuple(r for r in run.records if r.id in ids))


# ---- the revision ----------------------------------------------------------------------


def _tree(shelf: Path) -> Path | None:
    """The work tree to which a shelf belongs: not one that merely surrounds an installation."""
    tree = work_tree(shelf)
    return tree if tree is not None and is_tracked(shelf) else None


def _resolve(name: str, trees: Collection[Path]) -> dict[Path, Revision]:
    found = {tree: resolve(tree, name) for tree in sorted(trees)}
    revisions = {tree: revision for tree, revision in found.items() if revision}
    if revisions:
        return revisions
    if not trees:
        raise UserError(
            f"--against {name}: neither a file or folder of records nor a revision: none of "
            "the implementations lies in a git work tree"
        )
    hint = ""
    if any(is_shallow(tree) for tree in trees):
        hint = " (the clone is shallow: git fetch --unshallow brings the rest of its history)"
    places = ", ".join(map(str, found))
    raise UserError(
        f"--against {name}: neither a file or folder of records nor a revision of {places}{hint}"
    )


class _Shelf:
    """One shelf at a revision."""

    def __init__(
        self, session: Session, revision: Revision, present: Path, origin: str, into: Path
    ) -> None:
        self.revision = revision
        self.present = present
        self._session = session
        self._origin = origin
        self.base = bring_out(revision, present, into)
        self.unchanged = self._unchanged()
        self.entries = [] if self.base is None else self._discover(self.base)

    def at(self, entry: Entry) -> list[Entry]:
        """What answers to a present entry: one of its name, or whatever its file held."""
        named = [e for e in self.entries if e.name == entry.name and e.reason is None]
        if named and entry.reason is None:
            return named
        file = Path(entry.source.path).name
        return [e for e in self.entries if Path(e.source.path).name == file
                and (e.reason is not None or entry.reason is not None)]  # fmt: skip

    def _unchanged(self) -> set[str]:
        """Names of the files and folders whose code is the same."""
        if self.base is None:
            return set()
        paths = [Path(source.path) for source in self._sources(self.base)]
        return {
            path.name
            for path in paths
            if (now := self.present / path.name).exists()
            and registry.source_digest(now) == registry.source_digest(path)
        }

    def _sources(self, base: Path) -> list[registry.Source]:
        return registry.sources_at(base, self.present, self._origin, self.revision.commit)

    def _discover(self, base: Path) -> list[Entry]:
        wanted = [s for s in self._sources(base) if Path(s.path).name not in self.unchanged]
        entries = discover(self._session.pool, None, sources=wanted) if wanted else []
        # The folder is gone when somebody reads where an implementation came from.
        return [replace(e, file=f"{self.revision.short}:{self._named(e.file, base)}")
                for e in entries]  # fmt: skip

    def _named(self, file: str, base: Path) -> str:
        top = self.revision.top
        try:
            return str(self.present.relative_to(top) / Path(file).relative_to(base))
        except ValueError:  # its import failed somewhere else
            return file


def _add(brought: Brought, shelf: _Shelf, contenders: Sequence[Contender]) -> None:
    """Find the earlier version of each contender of a shelf, or say why there is none."""
    for contender in contenders:
        entry = contender.entry
        if Path(entry.source.path).name in shelf.unchanged:
            brought.same.append(contender.spec)
            continue
        found = shelf.at(entry)
        if not found:
            brought.skipped.append(f"{contender.spec}: did not exist at {shelf.revision.short}")
        for base in found:
            if base.reason is not None:
                brought.skipped.append(f"{contender.spec}: {base.file} {base.reason}")
                continue
            try:
                (earlier,) = choose([Contender(base, contender.given).spec], [base])
            except UserError as error:
                brought.skipped.append(f"{contender.spec}: at {shelf.revision.short}: {error}")
                continue
            # One that fails to import is known by its file; its versions, by their names.
            present = Contender(replace(entry, name=base.name), contender.given)
            brought.versions.append(Versions(earlier, present))


# ---- resuming --------------------------------------------------------------------------


def _records(file: Path, ids: Collection[str]) -> dict[tuple[str, str], Record]:
    if not file.exists():
        return {}
    records = (r for r in store.load([file]).records if r.id in ids)
    return {r.point: r for r in records}


def _done(
    base: dict[tuple[str, str], Record], present: dict[tuple[str, str], Record]
) -> set[tuple[str, str]]:
    """Points that need no more: both versions have a record, two times were side by side."""
    return {
        point
        for point in base.keys() & present.keys()
        if base[point].samples is None
        or present[point].samples is None
        or (base[point].pair is not None and base[point].pair == present[point].pair)
    }
