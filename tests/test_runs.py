"""Runs from files and folders: what cannot be read is told, and costs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_records import MACHINE, machine, record, run, write

from attnbench.errors import UserError
from attnbench.runs import load_history, load_run, problem_label, sidecars

TIMES = [f"2026-01-{day:02}T00:00:00+00:00" for day in range(1, 10)]


def test_a_file_brings_the_environments_beside_it(tmp_path: Path) -> None:
    loaded = load_run([write(tmp_path, [record()])])
    assert loaded.problems == ()
    (told,) = loaded.records
    assert loaded.identity(told) == {
        "hardware.device": "cpu",
        "hardware.cpu": "Imaginary Processor 9000",
        "hardware.cores": "16",
        "software.attnbench": "0.1.0",
        "software.torch": "2.13.0",
    }  # what is null is not there
    assert loaded.context(told)["git.dirty"] == "false"


def test_a_folder_brings_everything_below_it(tmp_path: Path) -> None:
    other = machine(torch="2.14.0")
    write(tmp_path / "a", [record(seqlen=1)])
    write(tmp_path / "b" / "c", [record(seqlen=2, environment=other)], "x.jsonl", other)
    loaded = load_run([tmp_path])
    torches = [(loaded.identity(r) or {})["software.torch"] for r in loaded.records]
    assert torches == ["2.13.0", "2.14.0"]


def test_a_missing_environment_is_told_and_its_records_stay(tmp_path: Path) -> None:
    path = write(tmp_path, [record()])
    for file in sidecars([path]).values():
        file.unlink()
    loaded = load_run([path])
    assert loaded.identity(loaded.records[0]) is None
    assert loaded.context(loaded.records[0]) == {}
    assert loaded.problems == (
        f"environment-{loaded.records[0].environment}.json: missing; its machine cannot be told",
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_environment_is_told_and_its_records_stay(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, [record()])
    (file,) = sidecars([path]).values()
    file.write_text(text)
    loaded = load_run([path])
    assert loaded.identity(loaded.records[0]) is None
    assert loaded.problems[0].startswith(f"{file}: cannot be read: ")


@pytest.mark.parametrize("identity", [{}, [], "x", {"hardware": ["a"]}, {"hardware": {"a": [1]}}])
def test_an_environment_of_another_shape_breaks_nothing(tmp_path: Path, identity: object) -> None:
    path = write(tmp_path, [record()])
    (file,) = sidecars([path]).values()
    file.write_text(json.dumps({"identity": identity, "context": identity}))
    loaded = load_run([path])
    assert isinstance(loaded.identity(loaded.records[0]), dict)
    assert isinstance(loaded.context(loaded.records[0]), dict)


def test_an_empty_file_is_a_run_of_no_records(tmp_path: Path) -> None:
    assert load_run([write(tmp_path, [])]).records == ()


def test_a_missing_path_is_a_mistake(tmp_path: Path) -> None:
    for load in (load_run, load_history):
        with pytest.raises(UserError, match=r"nothing\.jsonl: no such file"):
            load([tmp_path / "nothing.jsonl"])


def test_a_history_keeps_a_point_once_a_file_in_order_of_time(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        again = [record(time=TIMES[index]), record(time=TIMES[index + 3])]
        write(tmp_path, again, f"{index}.jsonl")
    assert [r.time for r in load_history([tmp_path]).records] == TIMES[3:6]
    assert len(load_run([tmp_path]).records) == 1  # as a run, the point counts once


def test_a_copied_file_does_not_count_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, [record()], f"{name}.jsonl")
    path = tmp_path / "a.jsonl"
    assert len(load_history([tmp_path, path, path]).records) == 1


def test_a_problem_that_cannot_be_read_goes_by_its_id() -> None:
    assert problem_label(record(problem={"strange": 1}, problem_id="p1")) == "p1"
    assert problem_label(record(problem={"mask": [7], "seqlen_q": "x"}, problem_id="p2")) == "p2"
    assert problem_label(record()).startswith("B1 ")


def test_a_run_in_memory_is_a_run() -> None:
    made = run(record(), environment=MACHINE)
    assert made.identity(made.records[0]) is not None
