"""Goals are reached only where the whole interval says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from goals import GOALS, Goal, Result, judge
from made_records import record, write

from attnbench.record import Record
from attnbench.report.points import load_points
from attnbench.stats import Interval
from attnbench.suite import load_suite

SUITE = Path(__file__).parents[2] / "suites" / "triton.toml"
GOAL = Goal("forward", "sdpa-flash", 1.2)


def made(name: str, seconds: float, **changes: object) -> Record:
    rounds = [seconds * (1 + 0.001 * i) for i in (-2, -1, 0, 1, 2)]
    return record(rounds, implementation=name, suite="triton", **changes)  # type: ignore[arg-type]


def run(tmp_path: Path, *records: Record) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(Path(__file__).parent), str(write(tmp_path, records))]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.3, 1.25, 1.35), "reached"), ((1.3, 1.2, 1.4), "reached"),
        ((1.3, 1.19, 1.4), "not decided"), ((1.1, 1.0, 1.2), "not decided"),
        ((1.1, 1.0, 1.19), "missed"),
    ],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(
    interval: tuple[float, float, float], verdict: str
) -> None:
    assert Result(GOAL, "p", Interval(*interval)).verdict == verdict


def test_the_ratio_is_the_rivals_time_over_ours(tmp_path: Path) -> None:
    ours, flash, cudnn = made("triton", 1.0), made("sdpa-flash", 1.3), made("sdpa-cudnn", 0.8)
    points = load_points([write(tmp_path, [ours, flash, cudnn])]).points
    seen = {r.goal.rival: (round(r.ratio.median, 3), r.verdict) for r in judge(points) if r.ratio}
    assert seen == {"sdpa-flash": (1.3, "reached"), "sdpa-cudnn": (0.8, "missed")}


def test_the_program_says_which_is_missed_and_why_one_is_not_measured(tmp_path: Path) -> None:
    refused = made("sdpa-cudnn", 1.0, status="unsupported")
    ended = run(tmp_path, made("triton", 1.0), made("sdpa-flash", 1.0), refused)
    assert ended.returncode == 1, ended.stderr
    assert "missed" in ended.stdout
    assert "1 missed, 1 not measured" in ended.stdout
    assert run(tmp_path, made("triton", 1.0), refused).returncode == 2


def test_it_exits_with_0_only_if_all_are_reached(tmp_path: Path) -> None:
    rivals = made("sdpa-flash", 2.0), made("sdpa-cudnn", 2.0)
    assert run(tmp_path, made("triton", 1.0), *rivals).returncode == 0
    ended = run(tmp_path)
    assert (ended.returncode, "no record of suite 'triton'" in ended.stderr) == (2, True)


def test_the_suite_has_every_goal_at_16k_tokens() -> None:
    suite = load_suite(SUITE)
    assert suite.impls[0] == "triton"
    assert {g.rival for g in GOALS} <= set(suite.impls)
    for p in suite.problems:
        assert (p.batch * p.seqlen_q, p.d_model, p.dtype) == (16384, 2048, "bfloat16")
    kinds = {(p.head_dim, str(p.mask), p.seqlen_q, p.direction) for p in suite.problems}
    assert len(kinds) == 2 * 2 * 4 * 2
