"""Record files: what is on disk stays, what is damaged is told and left out."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from attnbench import store
from attnbench.errors import UserError
from attnbench.record import SCHEMA, Implementation, Record
from attnbench.store import Store, load


def record(point="a", **changes):
    told = {
        "id": point, "suite": "quick", "time": "2026-01-01T00:00:00+00:00", "attnbench": "0.1.0",
        "implementation": Implementation(name="naive"), "problem": {}, "problem_id": "p",
        "device": "cpu", "status": "unsupported", "reason": "because", "environment": "e",
    }  # fmt: skip
    return Record(**(told | changes))


def line(point="a", **changes):
    return record(point, **changes).to_line().encode()


def ids(loaded):
    return [r.id for r in loaded.records]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.jsonl"


# ---- writing ---------------------------------------------------------------------------


def test_what_is_appended_reads_back_in_order(file):
    with Store(file) as kept:
        kept.append(record("b"))
        kept.append(record("a", reason="× “quoted”\nand broken"))
    loaded = load([file])
    assert loaded.records == [record("b"), record("a", reason="× “quoted”\nand broken")]
    assert loaded.problems == []


def test_a_second_store_appends_behind_the_first(file):
    for point in ("a", "b"):
        with Store(file) as kept:
            assert kept.mended is None
            kept.append(record(point))
    assert ids(load([file])) == ["a", "b"]


def test_folders_are_made(tmp_path):
    file = tmp_path / "results" / "my machine" / "run.jsonl"
    with Store(file) as kept:
        kept.append(record())
    assert ids(load([tmp_path / "results"])) == ["a"]


def test_each_record_is_synced_to_disk_before_append_returns(file, monkeypatch):
    """The whole line must be in the file when fsync is called, and fsync on that file."""
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append((os.fstat(descriptor).st_ino, file.read_bytes()))
        real(descriptor)

    with Store(file) as kept:
        monkeypatch.setattr(os, "fsync", fsync)
        kept.append(record("a"))
        assert synced == [(file.stat().st_ino, line("a"))]
        kept.append(record("b"))
        assert synced[1:] == [(file.stat().st_ino, line("a") + line("b"))]


def test_the_folder_of_a_new_file_is_synced_so_that_its_name_survives(file, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(os.fstat(d).st_ino))
    Store(file).close()
    assert synced == [file.parent.stat().st_ino]
    Store(file).close()
    assert len(synced) == 1  # an existing file has its name already


@pytest.mark.parametrize("torn", [b"{", line("b")[:-2], b'{"id": "b', b"null", b"\xff\xfe", b"12"])
def test_a_torn_last_line_is_cut_off_before_the_next_record(file, torn):
    file.write_bytes(line("a") + torn)
    with Store(file) as kept:
        assert kept.mended == f"{file}: a torn last line ({len(torn)} bytes) was cut off"
        kept.append(record("c"))
    assert file.read_bytes() == line("a") + line("c")
    assert load([file]).problems == []


def test_a_file_of_nothing_but_a_torn_line_starts_anew(file):
    file.write_bytes(line("a")[:-5])
    with Store(file) as kept:
        kept.append(record("b"))
    assert file.read_bytes() == line("b")


def test_a_whole_last_record_without_newline_is_kept(file):
    """An editor took the newline away; the record was measured and stays."""
    file.write_bytes(line("a") + line("b").rstrip(b"\n"))
    assert ids(load([file])) == ["a", "b"]
    assert load([file]).problems == []
    with Store(file) as kept:
        assert kept.mended == f"{file}: the last line had no newline; it was kept"
        kept.append(record("c"))
    assert file.read_bytes() == line("a") + line("b") + line("c")


def test_a_line_in_the_writing_is_not_taken_for_a_torn_one(file):
    """Two GPUs of one machine share a file: opening waits until the other's line is whole."""
    whole = line("b")
    with open(file, "ab", buffering=0) as other, ThreadPoolExecutor() as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(whole[:20])
        opening = pool.submit(Store, file)
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.1)
        other.write(whole[20:])
        fcntl.flock(other, fcntl.LOCK_UN)
        kept = opening.result(timeout=10)
        assert kept.mended is None

        fcntl.flock(other, fcntl.LOCK_EX)
        appending = pool.submit(kept.append, record("c"))
        with pytest.raises(TimeoutError):
            appending.result(timeout=0.1)
        fcntl.flock(other, fcntl.LOCK_UN)
        appending.result(timeout=10)
        kept.close()
    assert file.read_bytes() == line("b") + line("c")


@pytest.mark.parametrize("before", [b"", line("a")])
def test_a_sound_file_is_not_touched_by_opening_it(file, before):
    file.write_bytes(before)
    with Store(file) as kept:
        assert kept.mended is None
    assert file.read_bytes() == before


def test_every_cut_of_a_line_is_seen_as_torn(file):
    """Wherever a writer is killed, no prefix of a record passes for a record."""
    whole = line("b").rstrip(b"\n")
    for length in range(1, len(whole)):
        file.write_bytes(line("a") + whole[:length])
        loaded = load([file])
        assert ids(loaded) == ["a"]
        assert loaded.problems == [
            f"{file}:2: torn last line left out ({length} bytes; its writer was interrupted)"
        ]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="results cannot be written here: "):
        Store(tmp_path / "results" / "run.jsonl")
    with pytest.raises(UserError, match="results cannot be written here: Is a directory"):
        Store(tmp_path)


# ---- reading ---------------------------------------------------------------------------

DEEP = b'{"schema_version": "1.0.0", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
FOREIGN = {
    "an empty line": (b"", "not JSON"),
    "text": (b"Traceback (most recent call last):", "not JSON"),
    "a number": (b"3", "not an attnbench record"),
    "a list": (b"[1, 2]", "not an attnbench record"),
    "another tool's object": (b'{"name": "x", "value": 3}', "not an attnbench record"),
    "a version that is no number": (b'{"schema_version": "x"}', "not an attnbench record"),
    "another major": (
        line("z", schema_version="2.0.0").rstrip(),
        f"schema 2.0.0 cannot be read by this attnbench ({SCHEMA})",
    ),
    "an older major": (b'{"schema_version": "0.9"}', "schema 0.9 cannot be read"),
    "not UTF-8": (b'{"id": "\xff\xfe"}', "not JSON"),
    "zero bytes": (b"\x00" * 64, "not JSON"),
    "NaN": (line("z")[:-2] + b',"wall_s":NaN}', "not strict JSON: NaN"),
    "Infinity": (line("z")[:-2] + b',"wall_s":-Infinity}', "not strict JSON: -Infinity"),
    "an overflowing number": (line("z")[:-2] + b',"wall_s":1e999}', "wall_s: "),
    "a huge integer": (line("z")[:-2] + b',"seed":' + b"9" * 5000 + b"}", "line left out"),
    "endless nesting": (DEEP, "line left out"),
    "a field of the wrong type": (
        line("z").replace(b'"device":"cpu"', b'"device":3').rstrip(),
        "not a valid record: device: Input should be a valid string",
    ),
    "a field that is missing": (
        line("z").replace(b'"device":"cpu",', b"").rstrip(),
        "not a valid record: device: Field required",
    ),
    "a status of tomorrow": (
        line("z").replace(b"unsupported", b"paused").rstrip(),
        "not a valid record: status: Input should be 'ok'",
    ),
    "ok without samples": (
        line("z").replace(b"unsupported", b"ok").rstrip(),
        "not a valid record: record: Value error, status ok needs samples",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_line_that_is_no_record_is_left_out_and_told_with_file_and_line(file, kind):
    foreign, says = FOREIGN[kind]
    file.write_bytes(line("a") + foreign + b"\n" + line("b"))
    loaded = load([file])
    assert ids(loaded) == ["a", "b"]
    (problem,) = loaded.problems
    assert problem.startswith(f"{file}:2: ")
    assert says in problem
    assert "\n" not in problem


def test_an_empty_file_holds_nothing_and_is_no_problem(file):
    file.write_bytes(b"")
    assert load([file]) == store.Loaded()


def test_windows_line_ends_are_read(file):
    file.write_bytes(line("a").replace(b"\n", b"\r\n") + line("b"))
    assert ids(load([file])) == ["a", "b"]


def test_a_newer_minor_is_read(file):
    file.write_bytes(line("a", schema_version="1.9.0", carbon={"grams": 3}))
    (read,) = load([file]).records
    assert read.carbon == {"grams": 3}


def test_a_point_that_appears_again_counts_once_the_later_winning(file):
    file.write_bytes(line("a", reason="first") + line("b") + line("a", reason="second"))
    loaded = load([file])
    assert [(r.id, r.reason) for r in loaded.records] == [("b", "because"), ("a", "second")]
    assert loaded.problems == [
        f"{file}: points measured more than once: 1; the latest record counts"
    ]


def test_of_a_point_measured_again_the_latest_counts_whatever_the_files_are_called(tmp_path):
    older, newer = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    (tmp_path / "quick.2.jsonl").write_bytes(line("a", reason="new", time=newer))
    (tmp_path / "quick.jsonl").write_bytes(line("a", reason="old", time=older))
    assert [r.reason for r in load([tmp_path]).records] == ["new"]


def test_a_point_that_two_suites_share_is_a_record_of_each(file):
    file.write_bytes(line("a", suite="one") + line("a", suite="two"))
    assert [r.suite for r in load([file]).records] == ["one", "two"]


def test_folders_are_read_with_all_that_is_below_in_the_order_of_names(tmp_path):
    for name, point in (("b/2.jsonl", "c"), ("a.jsonl", "a"), ("b/1.jsonl", "b")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(line(point))
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "a-folder.jsonl").mkdir()
    assert ids(load([tmp_path])) == ["a", "b", "c"]
    assert load([tmp_path]).problems == []


def test_a_file_that_is_given_twice_is_read_once(file):
    file.write_bytes(line("a"))
    (file.parent / "link.jsonl").symlink_to(file)
    loaded = load([file, file.parent, file])
    assert ids(loaded) == ["a"]
    assert loaded.problems == []


def test_a_path_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder of results"):
        load([tmp_path / "nowhere"])


# ---- killed ----------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from attnbench.record import Record
from attnbench.store import Store
template = Record.model_validate_json(sys.argv[2])
with Store(Path(sys.argv[1])) as kept:
    for number in range(10**9):
        kept.append(template.model_copy(update={"id": str(number)}))
        print(number, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.013, 0.05])
def test_kill_9_loses_at_most_the_record_in_flight(file, delay_s):
    """Every record whose append returned is there, whole, and the file goes on."""
    template = record(log_tail="x" * 20_000).to_line()  # larger than one buffer
    command = [sys.executable, "-c", WRITER, str(file), template]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "0\n"
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        told = ["0", *writer.stdout.read().split("\n")]
    assert writer.returncode == -signal.SIGKILL
    finished = [int(number) for number in told[:-1]]  # the last one may be torn
    loaded = load([file])
    written = [int(r.id) for r in loaded.records]
    assert written == list(range(len(written)))
    assert len(finished) <= len(written) <= len(finished) + 1
    assert len(loaded.problems) <= 1

    with Store(file) as kept:
        kept.append(record("next"))
    again = load([file])
    assert ids(again) == [*map(str, written), "next"]
    assert again.problems == []
    for text in file.read_text().splitlines():
        json.loads(text)


def test_a_write_that_stops_in_the_middle_is_mended_by_the_next_store(file):
    """A kill between two bytes of one line, wherever it falls."""
    whole = line("b")
    for length in (1, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        file.write_bytes(line("a") + whole[:length])
        with Store(file) as kept:
            kept.append(record("c"))
        is_whole = length == len(whole) - 1  # all but the newline
        assert ids(load([file])) == (["a", "b", "c"] if is_whole else ["a", "c"])
        assert load([file]).problems == []
