"""Both versions of an implementation in one run: found, told apart, measured side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_records
import pytest
from helpers import Ended, attnbench
from versions import attend, commit, git, row, two_versions, write

from attnbench import registry, store
from attnbench.against import Brought, Versions, base_file, brought_out, make_plan_of_both
from attnbench.cli import main
from attnbench.commands import opening
from attnbench.compare import compare
from attnbench.errors import UserError
from attnbench.neighbours import of_its_time
from attnbench.plan import Contender, Plan
from attnbench.pool import discover
from attnbench.problem import Problem
from attnbench.process import WorkerDied
from attnbench.record import Record
from attnbench.registry import Entry, Source
from attnbench.runner import Runner
from attnbench.session import Session, open_session
from attnbench.settings import Measure, Verify

# ---- through the command line ----------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    two_versions(folder)
    return folder


@pytest.fixture(scope="module")
def ended(project: Path) -> Ended:
    """The run that most tests look at."""
    words = ("run", "tiny.toml", "--against", "HEAD", "--no-report")
    return attnbench(*words, cwd=project)


@pytest.fixture(scope="module")
def session(project: Path, ended: Ended) -> Iterator[Session]:
    """One for all further commands: a new one for each would take longer than all of them."""
    with open_session(project, "cpu") as opened:
        yield opened


Run = Callable[..., Ended]


@pytest.fixture
def run(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the suite against something, in the shared session."""

    def run(*words: str | Path) -> Ended:
        code = main(["run", "tiny.toml", "--no-report", *map(str, words)])
        told = capsys.readouterr()
        return Ended(code, told.out, told.err)

    monkeypatch.setattr(opening, "open_session", lambda *a, **k: nullcontext(session))
    monkeypatch.chdir(session.project)
    monkeypatch.setenv("COLUMNS", "400")
    return run


def records(project: Path) -> tuple[dict[str, Record], dict[str, Record]]:
    """Base and present records by name."""
    sides: tuple[dict[str, Record], dict[str, Record]] = {}, {}
    for file in project.glob("results/*/tiny-*.jsonl"):
        side = sides[store.AGAINST not in file.name]
        side |= {r.implementation.name: r for r in store.load([file]).records}
    return sides


def test_what_got_slower_is_called_slower_and_the_build_is_red(ended):
    assert ended.code == 1, ended.text
    assert row(ended, "slow").startswith("SLOWER")


def test_what_got_wrong_is_a_regression(ended):
    assert "failure: ok → incorrect" in row(ended, "wrong")


def test_another_comment_is_not_slower(ended):
    assert not row(ended, "steady").startswith("SLOWER")


def test_what_is_not_measured_is_told_with_the_reason(ended, project):
    commit_id = git(project, "rev-parse", "HEAD")[:12]
    assert f"not measured: newer: did not exist at {commit_id}\n" in ended.out
    assert f"the same at {commit_id}, not measured: same\n" in ended.out


def test_both_versions_have_records_that_share_a_pair(ended, project):
    base, present = records(project)
    assert set(base) == set(present) == {"slow", "wrong", "steady"}
    for name in ("slow", "steady"):
        assert base[name].pair == present[name].pair is not None
        assert base[name].implementation.spec == present[name].implementation.spec
        assert base[name].implementation.source_sha256 != present[name].implementation.source_sha256
    assert base["slow"].pair != base["steady"].pair
    assert {r.implementation.revision for r in base.values()} == {git(project, "rev-parse", "HEAD")}
    assert {r.implementation.revision for r in present.values()} == {None}


def test_a_record_is_reproduced_against_the_same_commit(ended, project):
    base, _ = records(project)
    assert f" --against {git(project, 'rev-parse', 'HEAD')[:12]} " in base["slow"].command


def test_a_folder_is_read_without_the_versions_beside_it(ended, project):
    found = store.load([project / "results"]).records
    assert {r.implementation.revision for r in found} == {None}


def test_the_work_tree_is_left_alone(ended, project):
    assert git(project, "status", "--porcelain").split() == [
        "M", "impls/slow.py", "M", "impls/steady.py", "M", "impls/wrong.py", "??", "impls/newer.py",
    ]  # fmt: skip


def test_a_finished_run_is_resumed_with_the_same_verdict(run, project):
    again = run("--against", "main")
    assert "Every point has its records already" in again.out
    assert again.code == 1
    assert row(again, "slow").startswith("SLOWER")


def test_records_can_be_the_base(run, project):
    """Here those of the earlier version, which today's is compared with unpaired."""
    (file,) = project.glob(f"results/*/*{store.AGAINST}*.jsonl")
    again = run("--against", file, "--impls", "slow")
    assert again.code == 1
    assert row(again, "slow").startswith("SLOWER")
    assert "steady" not in again.out


def test_records_are_not_compared_with_themselves(run, project):
    again = run("--against", project / "results", "--impls", "slow")
    assert "1 point not measured now: BASE holds the very records" in again.out
    assert again.code == 2


def test_nothing_changed_is_no_regression(run):
    ended = run("--against", "HEAD", "--impls", "same")
    assert ended.code == 0
    assert "Nothing is left to compare." in ended.out


def test_nothing_to_compare_with_is_neither(run):
    ended = run("--against", "HEAD", "--impls", "newer")
    assert ended.code == 2
    assert "did not exist at" in ended.out


def test_a_dry_run_names_both_versions(run, project):
    ended = run("--against", "HEAD", "--impls", "slow", "--fresh", "--dry-run")
    assert ended.code == 0
    assert f"    slow @ {git(project, 'rev-parse', 'HEAD')[:12]}\n    slow\n" in ended.out


def test_a_base_that_means_nothing_is_refused(run):
    ended = run("--against", "nowhere")
    assert ended.code == 2
    assert "--against nowhere: neither a file or folder of records nor a revision of" in ended.err


def test_a_folder_without_records_may_have_the_name_of_a_branch(run, project):
    (project / "main").mkdir(exist_ok=True)
    ended = run("--against", "main", "--impls", "slow", "--fresh", "--dry-run")
    assert ended.code == 0
    assert "    slow @ " in ended.out


def test_outside_of_git_is_told(session, tmp_path):
    write(tmp_path, mine=attend("mine"))
    entry = Entry("mine", Source("project", "mine", str(tmp_path / "impls" / "mine.py")), "", 1)
    told = "none of the implementations lies in a git work tree"
    context = brought_out(session, [Contender(entry)], "HEAD")
    with pytest.raises(UserError, match=told), context:
        pass


def test_confirming_without_a_base_is_refused(run):
    ended = run("--confirm")
    assert ended.code == 2
    assert "it needs --against BASE" in ended.err


# ---- what a revision has ---------------------------------------------------------------


def at_head(session: Session, folder: Path, then: str, now: str, *words: str) -> Brought:
    """What the commit before has of ``impls/mine.py``, for an implementation ``mine:WORDS``."""
    write(folder, mine=then)
    commit(folder)
    write(folder, mine=now)
    path = str(folder / "impls" / "mine.py")
    (entry,) = discover(session.pool, None, sources=[Source("project", "mine", path)])
    given = tuple((word, 1) for word in words)
    with brought_out(session, [Contender(entry, given)], "HEAD") as brought:
        return brought


def test_one_that_is_broken_now_is_measured_as_what_its_file_held(session, tmp_path):
    """So that the failure is a regression."""
    brought = at_head(session, tmp_path, attend("fast"), "1 / 0\n")
    (both,) = brought.versions
    assert both.base.spec == both.present.spec == "fast"
    assert both.base.entry.reason is None
    assert "ZeroDivisionError" in str(both.present.entry.reason)


def test_one_that_was_broken_has_nothing_to_compare_with(session, tmp_path):
    brought = at_head(session, tmp_path, "1 / 0\n", attend("mine"))
    assert brought.versions == []
    (line,) = brought.skipped
    assert line.startswith(f"mine: {brought.label}:impls/mine.py fails to import: ZeroDivision")


def test_an_option_that_did_not_exist_is_told(session, tmp_path):
    now = attend("mine").replace('"mine"', '"mine", options={"block": 64}')
    brought = at_head(session, tmp_path, attend("mine"), now, "block")
    assert brought.versions == []
    (line,) = brought.skipped
    assert line.startswith(f"mine:block=1: at {brought.label}: mine: unknown option 'block'")


def test_an_implementation_is_found_in_the_file_where_it_was(session, tmp_path):
    write(tmp_path, elsewhere=attend("mine"))
    commit(tmp_path)
    (tmp_path / "impls" / "elsewhere.py").unlink()
    brought = at_head(session, tmp_path, attend("other"), attend("mine", seconds=1))
    assert [both.present.spec for both in brought.versions] == []
    with brought_out(session, [contender_at(tmp_path)], "HEAD~1") as before:
        assert [both.base.entry.file for both in before.versions] == [
            f"{before.label}:impls/elsewhere.py"
        ]


def test_what_names_the_revision_again_means_something_in_every_work_tree(session, tmp_path):
    """Two commits joined by a dash would be no revision of either."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        write(folder, mine=attend("mine", seconds=len(folder.name)))
        commit(folder)
        write(folder, mine=attend("mine"))
    contenders = [contender_at(folder) for folder in folders]
    with brought_out(session, contenders[:1], "HEAD") as alone:
        assert alone.revision == alone.label == git(folders[0], "rev-parse", "HEAD")[:12]
    with brought_out(session, contenders, "HEAD") as both:
        assert len(both.versions) == 2
        assert both.revision == "HEAD"
        assert both.label == "-".join(git(f, "rev-parse", "HEAD")[:12] for f in sorted(folders))


def contender_at(folder: Path) -> Contender:
    path = str(folder / "impls" / "mine.py")
    return Contender(Entry("mine", Source("project", "mine", path), path, 1))


def test_one_from_a_package_is_told(session):
    entry = Entry("far", Source("package far 1.0", "far", entry_point="far:it"), "far.py", 1)
    with brought_out(session, [Contender(entry), *some(session, "slow")], "HEAD") as brought:
        assert brought.skipped == ["far: comes from package far 1.0, not from a folder"]
        assert [both.present.spec for both in brought.versions] == ["slow"]


def some(session: Session, *names: str) -> list[Contender]:
    return [Contender(entry) for entry in session.entries if entry.name in names]


# ---- two versions in one process -------------------------------------------------------

USES_NEIGHBOUR = """
from attnbench import register
from impls._common import VALUE

@register("mine")
def attend(q, k, v, problem):
    return VALUE
"""


@pytest.fixture
def shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The shelf as it was and as it is; they differ in what the plugin imports."""
    found = []
    for when in ("then", "now"):
        write(tmp_path / when, mine=USES_NEIGHBOUR, _common=f"VALUE = {when!r}\n")
        found.append(tmp_path / when / "impls")
    monkeypatch.syspath_prepend(str(tmp_path / "now"))
    return found[0], found[1]


def test_each_version_finds_the_neighbours_of_its_time(shelves, monkeypatch):
    then, now = shelves
    monkeypatch.setattr(registry, "_loaded", {})
    here = Source("project", "mine", str(now / "mine.py"))
    (there,) = registry.sources_at(then, now, "project", "0123456789abcdef")
    entries = [registry.discover([source])[0] for source in (there, here, there)]
    assert [e.reason for e in entries] == [None] * 3
    modules = [sys.modules[registry.load(entry).__module__] for entry in entries]
    assert [module.VALUE for module in modules] == ["then", "now", "then"]


def test_the_search_path_is_put_back(shelves):
    then, now = shelves
    before = list(sys.path)
    with of_its_time(then, now):
        assert sys.path.index(str(then.parent)) < sys.path.index(str(now.parent))
    assert sys.path == before


def test_a_neighbour_that_changed_is_another_code(shelves):
    then, now = shelves
    assert registry.digest(then / "mine.py") == registry.digest(now / "mine.py")
    assert registry.source_digest(then / "mine.py") != registry.source_digest(now / "mine.py")
    (then / "_common.py").write_text((now / "_common.py").read_text())
    (then / "README.md").write_text("Not code.")
    (then / "other.py").write_text("# another implementation\n")
    assert registry.source_digest(then / "mine.py") == registry.source_digest(now / "mine.py")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of one test are not those of the next."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("impls", "attnbench_impls")):
            del sys.modules[name]


# ---- who is measured again, and who is a pair ------------------------------------------

PROBLEM = Problem.of(seqlen=16)
SUITE = SimpleNamespace(
    name="tiny", kind="attention", title="", baseline="", path=Path("tiny.toml"),
    problems=(PROBLEM,),
    measure=Measure(), verify=Verify(),
)  # fmt: skip


def contender(revision: str = "") -> Contender:
    source = Source("project", "mine", "/impls/mine.py", revision=revision)
    code = "a" if revision else "b"
    return Contender(Entry("mine", source, "/impls/mine.py", 1, source_sha256=code * 64))


BOTH = Versions(contender("0123abcd" * 5), contender())


def planned(folder: Path, *pairs: str | None) -> Plan:
    """The plan after a run that left a base and a present record with these pairs."""
    session = SimpleNamespace(environment=made_records.MACHINE, device="cpu")
    files = (folder / "base.jsonl", folder / "present.jsonl")
    fresh: Any = make_plan_of_both(session, SUITE, [BOTH], files)
    for point, file, pair in zip(fresh.points, files, pairs, strict=False):
        record = made_records.record(implementation="mine", seqlen=16, pair=pair)
        file.write_text(record.model_copy(update={"id": point.id}).to_line())
    return make_plan_of_both(session, SUITE, [BOTH], files)


def test_both_versions_meet_in_one_group(tmp_path):
    plan = planned(tmp_path)
    assert [[p.contender for p in group] for group in plan.groups] == [[BOTH.base, BOTH.present]]
    assert all(point.is_paired for point in plan.points)


def test_a_pair_that_is_whole_is_done(tmp_path):
    plan = planned(tmp_path, "side by side", "side by side")
    assert plan.groups == []
    assert plan.finished == 2


@pytest.mark.parametrize("pairs", [("one", "other"), (None, None), ("one",)])
def test_times_that_were_not_taken_side_by_side_are_taken_again(tmp_path, pairs):
    assert len(planned(tmp_path, *pairs).points) == 2


class _Pool:
    """Answers with results; dies over the contenders it is told to, the first time."""

    device = "cpu"
    is_fresh = True
    sampler = None

    def __init__(self, *fatal: str) -> None:
        self._fatal = set(fatal)

    def drop(self) -> None:
        pass

    def ask(self, task: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
        ok = made_records.record()
        assert ok.samples is not None
        for told in task["contenders"]:
            yield {"event": "step", "who": told["key"], "phase": "measure"}
            if told["key"] in self._fatal:
                self._fatal.clear()
                raise WorkerDied("oom", "out of memory", "")
            yield {
                "event": "result", "who": told["key"], "status": "ok", "alone": False,
                "samples": ok.samples.model_dump(), "wall_s": 1.0,
                "accuracy": {n: a.model_dump() for n, a in ok.accuracy.items()},
            }  # fmt: skip


def pairs(pool: _Pool, folder: Path) -> list[str | None]:
    found: list[Record] = []
    Runner(planned(folder), pool, "none", found.append).run()
    assert [r.status for r in found] == ["ok", "ok"]
    return [record.pair for record in found]


def test_rounds_of_one_attempt_are_a_pair(tmp_path):
    one, other = pairs(_Pool(), tmp_path)
    assert one == other is not None


def test_rounds_of_two_attempts_are_no_pair(tmp_path):
    """Memory was too small for both: the first one tries again by itself, later."""
    one, other = pairs(_Pool(BOTH.base.key), tmp_path)
    assert one != other


def test_the_base_has_a_file_of_its_own_beside():
    assert base_file(Path("r/tiny-1-2.2.jsonl"), "0123") == Path("r/tiny-1-2.2.against-0123.jsonl")


def test_an_earlier_version_counts_only_where_there_is_nothing_else():
    """Though it was measured last: two files of a run may be given together."""
    now = made_records.record()
    who = now.implementation.model_copy(update={"revision": "0123abcd"})
    then = now.model_copy(update={"implementation": who, "time": "2027-01-01T00:00:00+00:00"})
    (point,) = compare(made_records.run(now), made_records.run(now, then)).points
    assert point.new is now
