"""``attnbench merge``: shards become one file, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_records import machine, record, write

from attnbench import cli, store
from attnbench.runs import load_run


def merge(*words: Path) -> int:
    return cli.main(["merge", *map(str, words)])


def test_shards_become_one_file_with_their_environments(tmp_path: Path, capsys) -> None:
    other = machine(torch="2.14.0")
    write(tmp_path / "a", [record(seqlen=1), record(seqlen=2)])
    write(tmp_path / "b", [record(seqlen=3, environment=other)], "run.jsonl", other)
    out = tmp_path / "new" / "all.jsonl"
    assert merge(out, tmp_path / "a", tmp_path / "b" / "run.jsonl") == 0
    merged = load_run([out])
    assert merged.problems == ()
    assert [r.problem["seqlen_q"] for r in merged.records] == [1, 2, 3]
    assert (merged.identity(merged.records[2]) or {})["software.torch"] == "2.14.0"
    assert capsys.readouterr().out == f"3 records: {out}\n"
    assert not list(tmp_path.rglob("*.partial"))


def test_a_record_of_a_newer_version_keeps_its_fields(tmp_path: Path) -> None:
    line = json.loads(record().to_line())
    line |= {"schema_version": "1.99.0", "of_tomorrow": {"x": [1, None]}}
    line["samples"]["also_new"] = "y"
    source = write(tmp_path, [])
    source.write_text(json.dumps(line) + "\n")
    out = tmp_path / "out.jsonl"
    assert merge(out, source) == 0
    told = json.loads(out.read_text())
    assert told["of_tomorrow"] == {"x": [1, None]}
    assert told["samples"]["also_new"] == "y"


def test_of_a_point_in_several_the_last_counts_and_that_is_told(tmp_path: Path, capsys) -> None:
    late, early = (f"2026-01-0{day}T00:00:00+00:00" for day in (2, 1))
    a = write(tmp_path, [record(time=late)], "a.jsonl")
    b = write(tmp_path, [record(time=early)], "b.jsonl")
    assert merge(tmp_path / "out.jsonl", a, b, a) == 0
    (kept,) = store.load([tmp_path / "out.jsonl"]).records
    assert kept.time == late
    assert "points measured more than once: 1; the latest record counts" in capsys.readouterr().out


def test_damaged_lines_and_missing_environments_are_told(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "in", [record()])
    source.write_text(source.read_text() + "nonsense\n")
    for file in source.parent.glob("environment-*"):
        file.unlink()
    assert merge(tmp_path / "out.jsonl", source) == 0
    out = capsys.readouterr().out
    assert "run.jsonl:2: " in out
    assert "missing; its machine cannot be told" in out
    assert out.endswith("1 record: " + str(tmp_path / "out.jsonl") + "\n")


@pytest.mark.parametrize(
    ("name", "said"), [("out.json", "must end in .jsonl"), ("run.jsonl", "merge never overwrites")]
)
def test_a_name_that_would_be_lost_or_overwritten_is_refused(
    tmp_path: Path, capsys, name: str, said: str
) -> None:
    source = write(tmp_path, [record()])
    before = source.read_bytes()
    assert merge(tmp_path / name, source) == 2
    assert said in capsys.readouterr().err
    assert source.read_bytes() == before


def test_nothing_to_merge_is_a_mistake_and_leaves_nothing(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    assert merge(out, write(tmp_path, [], "empty.jsonl")) == 2
    assert merge(out, tmp_path / "none") == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("attnbench: error: no record in ")
    assert "no such file or folder" in errors[1]
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys) -> None:
    source = write(tmp_path, [record()])
    assert merge(source / "out.jsonl", source) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written: Not a directory" in line or "File exists" in line
