"""Steps: those that are there are found where they are, and noise has none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from made_records import learned, machine, record, trained

from attnbench import environment as environments
from attnbench.history import FEWEST_RUNS, find_steps, run_scatter, series_of
from attnbench.record import Record
from attnbench.runs import Run


def when(index: int) -> str:
    return f"2026-{1 + index // 28:02}-{1 + index % 28:02}T00:00:00+00:00"


def history(levels: Sequence[float], *, seed: int = 0, noise: float = 0.01, **changes) -> Run:
    """One record a run: its level with noise between runs."""
    times = np.exp(noise * np.random.default_rng(seed).normal(size=len(levels))) * levels * 1e-3
    records = [record([t, t, t], time=when(i), **changes) for i, t in enumerate(times)]
    return of(records)


def of(records: Sequence[Record], *environment: dict) -> Run:
    known = {environments.address(e): e for e in (machine(), *environment)}
    return Run(tuple(records), known, ())


def steps(run: Run):
    return find_steps(series_of(run), 0.03)


def test_a_step_is_found_where_it_is() -> None:
    (step,) = steps(history([1.0] * 12 + [1.1] * 8))
    assert step.index == 12
    assert step.record.time == when(12)
    assert step.ratio == pytest.approx(1.1, rel=0.01)
    assert step.runs == (12, 8)


def test_two_steps_are_two_the_latest_first() -> None:
    found = steps(history([1.0] * 10 + [1.2] * 10 + [0.9] * 10))
    assert [s.index for s in found] == [20, 10]
    assert [round(s.ratio, 1) for s in found] == [0.8, 1.2]
    assert [s.runs for s in found] == [(10, 10), (10, 10)]


def test_noise_has_no_step() -> None:
    found = [steps(history([1.0] * 30, seed=s, noise=0.05)) for s in range(100)]
    assert sum(map(bool, found)) <= 2


def test_many_series_of_noise_have_no_step_either() -> None:
    """Without the adjustment over series about five of a hundred would have one."""
    runs = [history([1.0] * 12, seed=s, noise=0.05, seqlen=100 + s) for s in range(100)]
    assert steps(of([r for run in runs for r in run.records])) == []


def test_the_noise_on_both_sides_of_a_step_is_not_split_further() -> None:
    found = [steps(history([1.0] * 15 + [1.5] * 15, seed=s, noise=0.06)) for s in range(30)]
    assert sum(len(f) == 1 and abs(f[0].index - 15) <= 1 for f in found) >= 28


def test_one_run_that_went_wrong_is_no_step() -> None:
    levels = [1.0] * 20
    levels[9] = 3.0
    assert steps(history(levels)) == []


def test_a_step_smaller_than_the_threshold_is_not_told() -> None:
    run = history([1.0] * 20 + [1.02] * 20, noise=0.001)
    assert steps(run) == []
    assert len(find_steps(series_of(run), 0.01)) == 1


def test_too_few_runs_are_not_looked_at() -> None:
    few = FEWEST_RUNS // 2
    assert len(steps(history([1.0] * few + [2.0] * few))) == 1
    assert steps(history([1.0] * few + [2.0] * (few - 1))) == []


def test_a_step_names_what_changed_with_it() -> None:
    after = machine(context={"git": {"commit": "f" * 40}}, torch="2.14.0")
    told = [
        record([1.0, 1.0], time=when(i), kernels=[{"name": "old"}], source="a" * 64)
        for i in range(6)
    ]
    told += [
        record(
            [1.2, 1.2], time=when(i), kernels=[{"name": "new"}], source="b" * 64, environment=after
        )
        for i in range(6, 12)
    ]
    (step,) = steps(of(told, after))
    assert step.changed == (
        "software.torch 2.13.0 → 2.14.0",
        f"source {'a' * 12} → {'b' * 12}",
        "commit 0123abcd0123 → ffffffffffff",
        "kernels −old +new",
    )


def test_a_step_that_nothing_explains_says_nothing() -> None:
    (step,) = steps(history([1.0] * 10 + [1.2] * 10))
    assert step.changed == ()


def test_other_hardware_clock_seed_or_device_is_another_series() -> None:
    other = machine()
    other["identity"]["hardware"] = {"device": "cpu", "cpu": "Another"}
    told = [
        record(),
        record(time=when(2)),
        record(environment=other),
        record(seed=1),
        record(how={"clock": "device"}),
        record(how={"cache": "cold"}),
        record(device="cuda:0"),
        record(status="oom"),
    ]
    assert [len(s.records) for s in series_of(of(told, other))] == [2, 1, 1, 1, 1, 1]


def test_records_without_environments_are_series_of_their_own() -> None:
    known = machine(torch="2.14.0")
    told = Run((record(), record(environment=known)), {}, ())
    assert [len(s.records) for s in series_of(told)] == [1, 1]


def test_a_history_tells_how_much_equal_runs_differ_though_there_is_a_step() -> None:
    (series,) = series_of(history([1.0] * 20 + [1.5] * 20, noise=0.02))
    scatter = run_scatter([series])[series.records[-1].id]
    assert scatter.log_sd == pytest.approx(0.02, rel=0.5)
    assert scatter.band == pytest.approx(1.96 * math.sqrt(2) * scatter.log_sd)
    assert scatter.processes == 1


def test_runs_of_changed_code_do_not_count_as_equal() -> None:
    told = [record([t, t], time=when(i), id=f"point{i}") for i, t in enumerate([1.0, 2.0] * 10)]
    assert run_scatter(series_of(of(told))) == {}
    assert run_scatter(series_of(history([1.0] * 4))) == {}  # too few


def test_no_history_has_no_steps() -> None:
    assert steps(of([])) == []


def test_steps_of_training_with_another_batch_are_another_series() -> None:
    """Catches a step in the history where only the batch has changed."""
    records = [
        trained(rounds=[t, t, t], time=when(i), training=learned(tokens=tokens))
        for i, (t, tokens) in enumerate([(1.0, 512)] * 3 + [(2.0, 1024)] * 3)
    ]
    assert [len(series.records) for series in series_of(of(records))] == [3, 3]
