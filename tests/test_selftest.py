"""The result of a self-test: kept in the environment, found again, shown by doctor."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import attnbench, write_suite
from pydantic import ValidationError

from attnbench import environment as environments
from attnbench import selftest
from attnbench.cli import main
from attnbench.commands import opening
from attnbench.pool import WorkerPool
from attnbench.process import WorkerDied
from attnbench.registry import Entry, Source
from attnbench.selftest import Result, Row
from attnbench.session import Session

KNOWN: dict[str, Any] = {
    "identity": {
        "hardware": {"device": "cpu", "cpu": "Fast CPU", "cores": 4, "threads": 2},
        "software": {"torch": "2.13.0"},
    },
    "context": {"os": "Linux"},
}
ROWS = (
    Row(check="wait 1 ms", status="passed", expected=1e-3, measured=1.002e-3, low=1.001e-3,
        high=1.003e-3, allowed=1e-5),
    Row(check="wait 2 µs", status="shown", expected=2e-6, measured=2.2e-6),
    Row(check="energy", status="not here", unit="J", reason="no counter"),
)  # fmt: skip
WRONG = Row(check="A/A", status="failed", unit="verdicts", expected=0, measured=3, allowed=0)


def result(*rows: Row, time: str = "2026-11-21T06:00:00+00:00") -> Result:
    return Result(time=time, attnbench="0.1.0", device="cpu", rows=rows or ROWS)


# ---- rows --------------------------------------------------------------------------------


def test_an_error_is_what_was_measured_too_much() -> None:
    assert ROWS[0].error == pytest.approx(2e-6)
    assert ROWS[2].error is None


@pytest.mark.parametrize(
    "row",
    [
        {"check": "x", "status": "passed"},
        {"check": "x", "status": "shown", "expected": 1.0},
        {"check": "x", "status": "not here"},
        {"check": "x", "status": "failed"},
        {"check": "x", "status": "passed", "expected": 1.0, "measured": float("nan")},
    ],
)
def test_a_row_without_an_answer_needs_a_reason_and_cannot_pass(row: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Row(**row)


def test_a_result_passes_when_something_was_proved_and_nothing_failed() -> None:
    assert result().is_passed
    assert result().summary == "1 passed, 1 not here, 1 shown"
    assert not result(*ROWS, WRONG).is_passed
    assert not result(ROWS[2]).is_passed, "nothing was proved"


# ---- kept --------------------------------------------------------------------------------


def test_a_result_is_kept_in_the_environment_whose_identity_stays(tmp_path: Path) -> None:
    path = selftest.keep(KNOWN, result(), tmp_path)
    kept = json.loads(path.read_text())
    assert kept["identity"] == KNOWN["identity"]
    assert environments.machine_id(kept) == environments.machine_id(KNOWN)
    assert kept["context"]["os"] == "Linux"
    assert path.name == f"environment-{environments.address(kept)}.json"
    assert "selftest" not in KNOWN["context"]
    found = selftest.latest(KNOWN, tmp_path)
    assert found is not None
    assert found.result == result()
    assert path.name == f"environment-{found.address}.json"


def test_the_latest_result_of_this_machine_counts(tmp_path: Path) -> None:
    other = copy.deepcopy(KNOWN)
    other["identity"]["software"]["torch"] = "2.14.0"
    selftest.keep(KNOWN, result(WRONG, time="2026-11-20T06:00:00+00:00"), tmp_path)
    selftest.keep(KNOWN, result(time="2026-11-21T06:00:00+00:00"), tmp_path)
    selftest.keep(other, result(WRONG, time="2026-11-22T06:00:00+00:00"), tmp_path)
    found = selftest.latest(KNOWN, tmp_path)
    assert found is not None
    assert found.result.time.startswith("2026-11-21")
    assert found.result.is_passed


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"identity": 1, "context": {"selftest": 3}}'])
def test_files_without_a_result_are_passed_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "environment-000000000000.json").write_text(text)
    environments.save(KNOWN, tmp_path)
    assert selftest.latest(KNOWN, tmp_path) is None
    assert selftest.noted(KNOWN, tmp_path) == KNOWN


def test_a_run_notes_the_result_and_where_it_is_told(tmp_path: Path) -> None:
    selftest.keep(KNOWN, result(*ROWS, WRONG), tmp_path)
    found = selftest.latest(KNOWN, tmp_path)
    assert found is not None
    noted = selftest.noted(KNOWN, tmp_path)
    assert noted["identity"] == KNOWN["identity"]
    assert noted["context"]["selftest"] == {
        "verdict": "failed",
        "time": found.result.time,
        "summary": "1 passed, 1 failed, 1 not here, 1 shown",
        "environment": found.address,
    }
    environments.save(noted, tmp_path)
    assert selftest.latest(KNOWN, tmp_path) == found, "a note is no result"


def test_the_environment_of_a_run_names_the_self_test(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ["naive"])
    words = ("run", suite, "--device", "cpu", "--no-report")
    first = attnbench(*words, cwd=tmp_path)
    assert first.code == 0, first.text
    (file,) = (tmp_path / "results").rglob("environment-*.json")
    here = json.loads(file.read_text())
    selftest.keep(here, result(), file.parent)
    assert attnbench(*words, "--fresh", cwd=tmp_path).code == 0
    (records,) = file.parent.glob("*.2.jsonl")
    address = json.loads(records.read_text())["environment"]
    environment = environments.load(file.parent, address)
    assert environment is not None
    assert environment["context"]["selftest"]["verdict"] == "passed"
    assert environment["identity"] == here["identity"]


# ---- asked -------------------------------------------------------------------------------


class Pool(WorkerPool):
    """A worker that says what it was told to say."""

    def __init__(self, *events: dict[str, Any], dies: WorkerDied | None = None) -> None:
        super().__init__("cpu")
        self.asked: list[dict[str, Any]] = []
        self._events, self._dies = events, dies

    def ask(self, task: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
        self.asked.append(task)
        yield from self._events
        if self._dies is not None:
            raise self._dies


def events(*rows: Row) -> list[dict[str, Any]]:
    """What a worker sends of some rows."""
    told: list[dict[str, Any]] = []
    for row in rows:
        told.append({"event": "step", "who": row.check, "phase": "selftest"})
        told.append({"event": "row", "row": row.model_dump()})
    return told


def test_rows_come_from_a_worker_and_each_check_is_told_as_it_begins() -> None:
    seen: list[str] = []
    pool = Pool(*events(*ROWS))
    found = selftest.prove(pool, seen.append)
    assert found.rows == ROWS
    assert seen == [row.check for row in ROWS]
    assert pool.asked == [{"do": "selftest", "device": "cpu"}]


def test_a_worker_that_dies_fails_the_check_at_work() -> None:
    died = WorkerDied("crash", "the worker process was killed by SIGSEGV", "")
    at_work = {"event": "step", "who": "peak of several", "phase": "selftest"}
    found = selftest.prove(Pool(*events(ROWS[0]), at_work, dies=died))
    assert [row.check for row in found.failed] == ["peak of several"]
    assert found.failed[0].reason == "the worker process was killed by SIGSEGV"
    assert not found.is_passed


# ---- doctor ------------------------------------------------------------------------------


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command on a made-up machine: exit code and what it printed."""
    entry = Entry("naive", Source("naive.py", "naive", "project"), "naive.py", 1)

    def call(*words: str, rows: tuple[Row, ...] = ROWS) -> tuple[int, str]:
        @contextlib.contextmanager
        def session(*words: Any, lock: bool, **more: Any) -> Iterator[Session]:
            assert lock is ("--selftest" in call_words), "only what measures holds the device"
            yield Session(tmp_path, "cpu", Pool(*events(*rows)), [entry], KNOWN)

        call_words = words
        monkeypatch.setattr(opening, "open_session", session)
        monkeypatch.setenv("COLUMNS", "300")
        code = main(["doctor", *words])
        return code, capsys.readouterr().out

    return call


def test_doctor_prints_the_table_with_every_error_and_keeps_the_result(
    doctor: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, out = doctor("--selftest")
    assert code == 0, out
    lines = {line[:9]: line for line in out.splitlines()}
    for text in ("1.000 ms", "1.002 ms [1.001, 1.003]", "+0.20%", "±1.00%"):
        assert text in lines["wait 1 ms"]
    assert "passed" in lines["wait 1 ms"]
    assert "not here" in lines["energy   "]
    assert "energy: no counter" in out.splitlines()
    (file,) = (tmp_path / "results" / "cpu-fast-cpu").iterdir()
    assert f"Kept in {file}" in out
    assert json.loads(file.read_text())["context"]["selftest"]["rows"][0]["check"] == "wait 1 ms"


def test_a_failed_self_test_ends_with_1_and_is_kept_too(
    doctor: Callable[..., tuple[int, str]],
) -> None:
    code, out = doctor("--selftest", rows=(*ROWS, WRONG))
    assert code == 1
    assert "failed: A/A" in out
    code, out = doctor()
    assert code == 0, "looking proves nothing, and refutes nothing"
    assert "note    self-test failed on " in out
    assert "failed: A/A" in out


def test_plain_doctor_shows_an_earlier_result_or_how_to_get_one(
    doctor: Callable[..., tuple[int, str]],
) -> None:
    assert "self-test none on this machine yet: attnbench doctor --selftest" in doctor()[1]
    doctor("--selftest")
    code, out = doctor()
    assert code == 0
    assert "ok      self-test passed on " in out
    assert "1 passed, 1 not here, 1 shown" in out


def test_results_may_be_kept_elsewhere(
    doctor: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    doctor("--selftest", "--results", str(tmp_path / "else"))
    assert not (tmp_path / "results").exists()
    assert "self-test none" in doctor()[1]
    assert "self-test passed" in doctor("--results", str(tmp_path / "else"))[1]


@pytest.mark.slow
def test_the_real_self_test_asks_everything_on_this_machine(tmp_path: Path) -> None:
    ended = attnbench("doctor", "--selftest", "--device", "cpu", cwd=tmp_path, timeout_s=300)
    (file,) = (tmp_path / "results").rglob("environment-*.json")
    found = Result.model_validate(json.loads(file.read_text())["context"]["selftest"])
    rows = {row.check: row for row in found.rows}
    assert list(rows)[-6:] == [
        "A/A", "+3% found",
        "allocation of 1 MiB", "allocation of 64 MiB", "peak of several", "energy",
    ]  # fmt: skip
    assert {"empty call", "wait 100 µs", "wait 10 ms", "16 waits in a row"} < rows.keys()
    # What does not hang on how busy this machine is.
    for check in ("calls counted", "allocation of 64 MiB", "peak of several"):
        assert rows[check].status == "passed", rows[check]
    assert rows["energy"].status == "not here"
    assert ended.code == (0 if found.is_passed else 1), ended.text
