"""``attnbench tune`` for real: tiny models, two implementations, stopped and resumed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import Ended, attnbench, command, environment

from attnbench import store
from attnbench.suite import load_suite
from attnbench.tune.told import Told

pytestmark = pytest.mark.slow

SUITE = """
title = "Tiny, searched"
kind = "training"
baseline = "naive"
impls = ["naive"]
[grid]
task = "copy"
seqlen = 16
batch = 4
steps = 8
warmup = 2
d_model = 32
[tune]
sampler = "grid"
parameters = "start"
tolerance = 0.05
[tune.space]
impl = ["naive", "sdpa-math", "sdpa-cudnn"]
heads = [2, 3, 4]
d_model = [16, 32]
[tune.constraints]
memory = "1 GiB"
[measure]
max_s = 1e-9
min_rounds = 2
samples = 1
warmup_s = 0.0
ceilings_s = 0.0
"""
SETTINGS = 8  # two that can run here, two heads that divide, two widths
ENVIRONMENT = {k: v for k, v in environment().items() if not k.startswith("PYTEST_")}


def tune(project: Path, *words: str) -> Ended:
    return attnbench(
        "tune", "tiny", "--device", "cpu", *words, cwd=project, env=ENVIRONMENT, timeout_s=500
    )


def records(project: Path) -> Counter[str]:
    """How often each record is in the file, line by line."""
    lines = [
        json.loads(line)
        for file in project.glob("results/*/tiny-*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert {line["status"] for line in lines} <= {"ok"}, [line["reason"] for line in lines]
    return Counter(line["id"] for line in lines)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "tiny.toml").write_text(SUITE)
    return tmp_path


def test_a_search_is_stopped_resumed_told_and_can_be_pasted(project: Path) -> None:
    words = command("tune", "tiny", "--device", "cpu")
    with (project / "log").open("wb") as log:
        run = subprocess.Popen(words, cwd=project, env=ENVIRONMENT, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while sum(records(project).values()) < 3:
        assert run.poll() is None, (project / "log").read_text()
        assert time.monotonic() < deadline, (project / "log").read_text()
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert run.wait(200) == 130
    assert "the same command goes on from here" in (project / "log").read_text()
    before = records(project)
    assert before.total() < SETTINGS

    ended = tune(project)
    assert ended.code == 0, ended.text
    after = records(project)
    # The start has the preset's own count of heads, which no setting says.
    assert set(after.values()) == {1}
    assert len(after) == SETTINGS + 1
    assert before.keys() < after.keys()
    for told in ("Best: ", "Importance", "sdpa-cudnn: does not do device cpu", "heads 3"):
        assert told in ended.out
    again = tune(project)
    assert again.code == 0, again.text
    other = tune(project, "--sampler", "tpe", "--trials", "5")
    assert other.code == 0, other.text
    assert "5 had a record" in other.out
    assert records(project) == after, "nothing was measured again"
    _check_page_and_paste(project)
    _check_commands(project)


def _check_page_and_paste(project: Path) -> None:
    files = sorted(project.glob("results/*/*.search.json"))
    assert len(files) == 2, "one for each sampler"
    told = Told.model_validate_json(files[0].read_text())
    assert told.best is not None
    assert told.paste is not None
    (page,) = project.glob("reports/out/*/tiny/index.html")
    assert f"Best: {told.best}" in page.read_text()
    pasted = project / "suites" / "best.toml"
    pasted.write_text(told.paste)
    assert len(load_suite(pasted).problems) == 1
    ended = attnbench("run", "best", "--device", "cpu", "--dry-run", cwd=project, env=ENVIRONMENT)
    assert ended.code == 0, ended.text


def _check_commands(project: Path) -> None:
    """Each record's command names the workload that it is of."""
    (file,) = project.glob("results/*/tiny-*.jsonl")
    for record in store.load([file], "training").records:
        words = shlex.split(record.command)
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        (problem,) = load_suite(project / "suites" / "tiny.toml", sets).problems
        assert problem.id == record.problem_id
        assert words[words.index("--problem") + 1] == problem.id


def test_killed_and_called_again_it_repeats_none(project: Path) -> None:
    words = command("tune", "tiny", "--device", "cpu", "--no-report")
    with (project / "log").open("ab") as log:
        run = subprocess.Popen(words, cwd=project, env=ENVIRONMENT, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while sum(records(project).values()) < 2:
        assert run.poll() is None, (project / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    before = records(project)
    ended = tune(project, "--no-report")
    assert ended.code == 0, ended.text
    after = records(project)
    assert set(after.values()) == {1}
    assert len(after) == SETTINGS + 1
    assert before.keys() < after.keys()
