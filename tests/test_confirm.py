"""A suspect is measured again before it counts, where that can be done, and says how it went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_records
import pytest
from helpers import Ended, attnbench
from versions import attend, row, two_versions, write

from attnbench import store
from attnbench.commands.rerun import Asked
from attnbench.compare import Compared, compare
from attnbench.confirm import Rerun, judged
from attnbench.errors import UserError
from attnbench.gate import Regression
from attnbench.record import Record
from attnbench.registry import Entry, Source

# ---- through the command line ----------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """A run that found `slow` slower, to which false suspects are added, is confirmed.

    `steady` is said to take a hundred times as long and `wrong` to be of another source.
    """
    folder = tmp_path_factory.mktemp("project")
    two_versions(folder)
    write(folder, wrong=attend("wrong", seconds=0.011))
    words = ("run", "tiny.toml", "--against", "HEAD", "--no-report")
    first = attnbench(*words, cwd=folder)
    assert first.code == 1, first.text
    base, new = sides(folder)
    doctored = [slower(r) if r.implementation.name != "slow" else r for r in new[1]]
    new[0].write_text("".join(r.to_line() for r in doctored))
    write(folder, wrong=attend("wrong", seconds=0.012))
    return attnbench("compare", base[0], new[0], "--confirm", cwd=folder), folder


def sides(folder: Path) -> tuple[tuple[Path, list[Record]], tuple[Path, list[Record]]]:
    files = sorted(folder.glob("results/*/tiny-*.jsonl"), key=lambda f: store.AGAINST not in f.name)
    base, new = ((file, store.load([file]).records) for file in files)
    return base, new


def slower(record: Record) -> Record:
    """A hundred times slower than it was."""
    samples = record.samples
    assert samples is not None
    times = [[[100 * t for t in r] for r in process] for process in samples.times_s]
    changes: dict[str, Any] = {"times_s": times}
    changes |= {k: 100 * getattr(samples, k) for k in ("median_s", "low_s", "high_s")}
    return record.model_copy(update={"samples": samples.model_copy(update=changes)})


def test_what_is_slower_again_is_confirmed(ended):
    assert row(ended[0], "slow").startswith("SLOWER")
    assert "confirmed by a rerun (ratio " in row(ended[0], "slow")
    assert "interleaved" in row(ended[0], "slow")


def test_what_is_not_slower_again_is_inconclusive(ended):
    assert row(ended[0], "steady").startswith("INCONCLUSIVE")
    assert "slower: not confirmed by a rerun (ratio " in row(ended[0], "steady")


def test_what_cannot_be_measured_again_stays_and_says_why(ended):
    assert row(ended[0], "wrong").startswith("SLOWER")
    told = "not measured again: the source of wrong here is not that of its record"
    assert told in row(ended[0], "wrong")


def test_the_counts_are_told_and_the_build_is_red(ended):
    assert ended[0].code == 1
    assert "2 suspects measured again: 1 confirmed\n" in ended[0].out
    assert "1 suspect could not be measured again\n" in ended[0].out


def test_records_of_suspects_are_kept_apart(ended):
    (file,) = ended[1].glob(f"results/*/*{store.CONFIRM}.jsonl")
    names = sorted(r.implementation.name for r in store.load([file]).records)
    assert set(names) == {"slow", "steady"}
    assert not {r.id for r in store.load([file]).records if r.implementation.revision} & {
        r.id for r in store.load([ended[1] / "results"]).records
    }


# ---- the judgement ---------------------------------------------------------------------

MEMORY = Regression("memory", "peak memory 1 → 2 MiB")
FAILURE = Regression("failure", "ok → crash: gone")


def point(new: Any = 1.0, *regressions: Regression, verdict: Any = None) -> Compared:
    """Compared with a base of 1 s; ``new`` in seconds."""
    base = made_records.record([1.0, 1.001, 0.999, 1.0, 1.002])
    times = [new * t for t in (1.0, 1.001, 0.999, 1.0, 1.002)]
    other = made_records.record(times, time="2026-02-03T04:05:06+00:00")
    (found,) = compare(made_records.run(base), made_records.run(other)).points
    return replace(found, regressions=regressions, verdict=verdict or found.verdict)


def test_slower_twice_is_slower():
    found = judged(point(1.5), point(1.4))
    assert found.verdict == "SLOWER"
    assert found.notes[0].startswith("confirmed by a rerun (ratio 1.400 [")


def test_slower_once_is_inconclusive_and_no_regression():
    found = judged(point(1.5), point(1.0))
    assert (found.verdict, found.is_regression) == ("INCONCLUSIVE", False)
    assert found.reason.startswith("slower: not confirmed by a rerun (ratio 1.000 [")


def test_more_memory_twice_is_a_regression():
    found = judged(point(1.0, MEMORY, verdict="SAME"), point(1.0, MEMORY))
    assert (found.verdict, found.regressions) == ("SAME", (MEMORY,))
    assert found.notes[0].startswith("confirmed by a rerun")


def test_more_memory_once_is_none():
    found = judged(point(1.0, MEMORY), point(1.0))
    assert (found.verdict, found.is_regression) == ("INCONCLUSIVE", False)
    assert found.reason.startswith(f"{MEMORY.text}: not confirmed")


def test_a_suspect_may_be_confirmed_in_part():
    found = judged(point(1.5, MEMORY), point(1.0, MEMORY))
    assert (found.verdict, found.regressions) == ("INCONCLUSIVE", (MEMORY,))
    assert found.notes[0].startswith("confirmed by a rerun but for time (")


def test_a_failure_that_does_not_come_back_is_inconclusive():
    found = judged(point(1.0, FAILURE, verdict="NOT COMPARABLE"), point(1.0))
    assert (found.verdict, found.is_regression) == ("INCONCLUSIVE", False)


def test_one_that_fails_the_second_time_is_confirmed():
    found = judged(point(1.5), point(1.0, FAILURE, verdict="NOT COMPARABLE"))
    assert found.verdict == "SLOWER"


def test_a_second_measurement_without_a_base_settles_nothing():
    again = replace(point(1.0, verdict="NOT COMPARABLE"), reason="oom → ok")
    found = judged(point(1.5), again)
    assert found.verdict == "SLOWER"
    assert found.notes[0] == "measured again, but not to be compared: oom → ok"


# ---- who can be measured again ---------------------------------------------------------

CODE = "a" * 64


def rerun(entry: Entry, environment: Any = made_records.MACHINE) -> tuple[Rerun, Compared]:
    """A suspect of the made-up machine, and a session that has ``entry``."""
    base = made_records.run(made_records.record())
    slow = made_records.record([1.5 * t for t in (1.0, 1.001, 0.999, 1.0, 1.002)])
    new = made_records.run(slow)
    (suspect,) = compare(base, new).regressions
    session: Any = SimpleNamespace(entries=[entry], environment=environment, device="cpu")
    return Rerun(session, SimpleNamespace(), base, new, refuse, 0.03), suspect


def refuse(plan: object) -> list[Record]:
    raise AssertionError("it must not be measured")


def entry(**changes: Any) -> Entry:
    told = {"name": "triton", "source_sha256": CODE} | changes
    return Entry(source=Source("project", "triton"), file="triton.py", line=1, **told)


@pytest.mark.parametrize(
    ("changes", "machine", "told"),
    [
        ({"source_sha256": "b" * 64}, {}, "the source of triton here is not that of its record"),
        ({"version": "2"}, {}, "the source of triton here is not that of its record"),
        ({"name": "other"}, {}, "unknown implementation 'triton'"),
        ({"reason": "needs a GPU"}, {}, "triton is unavailable here: needs a GPU"),
        ({}, {"torch": "9"}, "not the machine of its record: software.torch 2.13.0 → 9"),
    ],
)
def test_an_obstacle_is_told_and_the_suspect_stays(changes, machine, told):
    again, suspect = rerun(entry(**changes), made_records.machine(**machine))
    (found,) = again.settle([suspect])
    assert found.verdict == "SLOWER"
    assert "not measured again: " in found.notes[0]
    assert told in found.notes[0]


def test_without_git_the_old_samples_of_the_base_are_the_measure(monkeypatch):
    """Base and suspect have the same source here, so that nothing is to be brought out."""
    again, suspect = rerun(entry())
    monkeypatch.setattr("attnbench.confirm.brought_out", _nothing)
    assert suspect.new is not None
    machine = made_records.environments.address(dict(made_records.MACHINE))

    def measured(plan: Any) -> list[Record]:
        assert [p.is_paired for p in plan.points] == [False]
        return [suspect.new.model_copy(update={"environment": machine})]

    again.measure = measured
    (found,) = again.settle([suspect])
    assert found.verdict == "SLOWER"
    assert "against BASE's samples" in found.notes[0]


def _nothing(*words: object) -> Any:
    raise UserError("there is no git here")


# ---- how it was measured ---------------------------------------------------------------


def asked(command: str) -> Asked:
    return Asked.by(made_records.record(command=command, seed=3))


def test_the_settings_are_those_of_the_record():
    told = asked("attnbench run 'my suite' --set heads=2 --set measure.max_s=1 --impls x --fresh")
    assert told == Asked("cpu", 3, "my suite", ("heads=2", "measure.max_s=1"))


def test_a_record_cannot_say_whose_code_is_imported():
    assert asked("attnbench run s --impls-dir /elsewhere --project /there") == asked(
        "attnbench run s"
    )


@pytest.mark.parametrize("command", ["", "rm -rf /", "attnbench run", "attnbench 'run"])
def test_a_record_without_a_run_says_nothing(command):
    with pytest.raises(UserError, match="does not say how it was measured"):
        asked(command)
