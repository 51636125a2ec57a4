"""Killed, interrupted, run again: every point is recorded once, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import HEALTHY, attnbench, command, environment, write_suite

SEQLENS = list(range(16, 24))
IMPLS = ("one", "two")

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two implementations, eight problems: long enough to be interrupted."""
    (tmp_path / "impls").mkdir()
    for name in IMPLS:
        (tmp_path / "impls" / f"{name}.py").write_text(HEALTHY.format(name=name))
    suite = write_suite(tmp_path, IMPLS, seqlen=SEQLENS)
    suite.write_text(suite.read_text().replace("max_s = 0.02", "max_s = 0.2\nprecision = 1e-9"))
    return tmp_path


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Starts the run in the background; whatever is still alive afterwards is killed."""
    runs: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        with open(project / "log", "ab") as log:
            runs.append(
                subprocess.Popen(
                    command("run", "tiny.toml", "--no-report"),
                    cwd=project,
                    env=environment(),
                    stdout=log,
                    stderr=log,
                )
            )
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()
        run.wait()


def lines(project: Path) -> list[bytes]:
    return [line for f in project.glob("results/*/*.jsonl") for line in f.read_bytes().split(b"\n")]


def wait_for_lines(project: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while len(lines(project)) <= count:
        log = (project / "log").read_text()
        assert process.poll() is None, f"the run ended before it could be interrupted: {log}"
        assert time.monotonic() < deadline, f"no record was written: {log}"
        time.sleep(0.01)


def points(project: Path) -> Counter[tuple[str, int]]:
    """How often each point is in the file, read line by line and strictly."""
    records = [json.loads(line) for line in lines(project) if line]
    assert all(record["status"] == "ok" for record in records)
    return Counter((r["implementation"]["name"], r["problem"]["seqlen_q"]) for r in records)


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def is_worker(pid: int) -> bool:
    """Whether this child measures; the other one watches the machine."""
    return b"attnbench.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_killed_twice_and_run_again_every_point_is_recorded_once(
    project: Path, start: Start
) -> None:
    for _ in range(2):
        run = start()
        wait_for_lines(project, len(lines(project)) + 2, run)
        started = children_of(run.pid)
        assert len(started) == 2, "the worker, and who watches it"
        run.kill()
        run.wait()
        deadline = time.monotonic() + 10
        while any(map(is_alive, started)):
            assert time.monotonic() < deadline, "somebody outlived the parent"
            time.sleep(0.05)
    finished = points(project)
    (file,) = project.glob("results/*/*.jsonl")
    with open(file, "ab") as torn:
        torn.write(b'{"schema_version":"1.0.0","id":"to')
    ended = attnbench("run", "tiny.toml", "--no-report", cwd=project)
    assert ended.code == 0, ended.text
    assert f"{finished.total()} done before" in ended.out
    assert "was cut off" in ended.out
    assert points(project) == Counter({(i, n): 1 for i in IMPLS for n in SEQLENS})
    again = attnbench("run", "tiny.toml", "--no-report", cwd=project)
    assert again.code == 0
    assert "Every point has its record already" in again.out
    assert points(project).total() == len(IMPLS) * len(SEQLENS)


def test_the_first_interrupt_finishes_what_is_in_flight_and_the_run_resumes(
    project: Path, start: Start
) -> None:
    run = start()
    wait_for_lines(project, 1, run)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 130
    finished = points(project)
    by_problem = Counter(seqlen for _, seqlen in finished)
    assert 0 < finished.total() < len(IMPLS) * len(SEQLENS)
    assert set(by_problem.values()) == {len(IMPLS)}, "a problem in flight was not finished"
    assert attnbench("run", "tiny.toml", "--no-report", cwd=project).code == 0
    assert points(project) == Counter({(i, n): 1 for i in IMPLS for n in SEQLENS})


def test_the_second_interrupt_stops_at_once_and_leaves_whole_lines(
    project: Path, start: Start
) -> None:
    suite = project / "tiny.toml"
    suite.write_text(suite.read_text().replace("max_s = 0.2", "max_s = 60"))
    run = start()
    deadline = time.monotonic() + 60
    while not (run.poll() is not None or children_of(run.pid)):
        time.sleep(0.01)
    while not list(project.glob("results/*/*.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # into the measurement of the first problem, which takes two minutes
    started = time.monotonic()
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 130
    assert time.monotonic() - started < 20
    assert all(json.loads(line) for line in lines(project) if line)


def test_fresh_measures_again_in_a_new_file_and_keeps_the_old_one(project: Path) -> None:
    words = ("run", "tiny.toml", "--no-report", "--set", "seqlen=16")
    assert attnbench(*words, cwd=project).code == 0
    (first,) = project.glob("results/*/*.jsonl")
    before = first.read_bytes()
    assert attnbench(*words, "--fresh", cwd=project).code == 0
    files = sorted(project.glob("results/*/*.jsonl"))
    assert len(files) == 2
    assert first.read_bytes() == before
    assert "already" in attnbench(*words, cwd=project).out


def test_shards_cover_everything_once(project: Path) -> None:
    for shard in ("1/2", "2/2"):
        ended = attnbench(
            "run", "tiny.toml", "--no-report", "--shard", shard,
            "--set", "seqlen=[16, 17, 18]", "--set", "measure.max_s=0.02", cwd=project,
        )  # fmt: skip
        assert ended.code == 0, ended.text
    assert points(project) == Counter({(i, n): 1 for i in IMPLS for n in (16, 17, 18)})


def test_a_resumed_run_has_the_page_of_an_uninterrupted_one(project: Path) -> None:
    """The same records, written in two goes or in one, give the same page to the byte."""
    words = ("--set", "seqlen=[16, 17]", "--set", "measure.max_s=0.02")
    ended = attnbench("run", "tiny.toml", *words, "--impls", "one", cwd=project)
    assert ended.code == 0, ended.text
    assert attnbench("run", "tiny.toml", *words, cwd=project).code == 0
    (file,) = project.glob("results/*/*.jsonl")
    (resumed,) = project.glob("reports/out/*/tiny/index.html")
    whole = project / "whole" / file.parent.name
    whole.mkdir(parents=True)
    in_order = sorted(file.read_bytes().splitlines(keepends=True))
    (whole / file.name).write_bytes(b"".join(in_order))
    for sidecar in file.parent.glob("environment-*.json"):
        (whole / sidecar.name).write_bytes(sidecar.read_bytes())
    once = project / "once"
    assert attnbench("report", whole / file.name, "--out", once, cwd=project).code == 0
    assert (once / "index.html").read_bytes() == resumed.read_bytes()


def test_the_worker_killed_from_outside_costs_one_point_and_the_sweep_goes_on(
    project: Path, start: Start
) -> None:
    run = start()
    wait_for_lines(project, 1, run)
    (worker,) = (p for p in children_of(run.pid) if is_worker(p))
    os.kill(worker, signal.SIGKILL)
    assert run.wait(timeout=120) in (0, 1)  # 0 if it fell between two problems
    records = [json.loads(line) for line in lines(project) if line]
    assert len(records) == len(IMPLS) * len(SEQLENS)
    crashed = [r for r in records if r["status"] != "ok"]
    assert len(crashed) <= 1
    assert all(r["status"] == "crash" and "SIGKILL" in r["reason"] for r in crashed)
