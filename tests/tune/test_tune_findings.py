"""What came out of a search: best, ties, front, importance, words, and the suite to paste."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import START, tune_of

from attnbench.errors import UserError
from attnbench.record import Implementation, Record, Samples
from attnbench.settings import Measure
from attnbench.stats import Interval
from attnbench.suite import load_suite
from attnbench.train.figures import (
    Breakdown,
    Evaluation,
    MemoryParts,
    ModelFlops,
    Parameters,
    Parity,
    Training,
)
from attnbench.tune.findings import find
from attnbench.tune.journal import Trial
from attnbench.tune.outcome import Outcome, outcome_of
from attnbench.tune.paste import as_suite
from attnbench.tune.words import caution, counted, gain_in_words


def trial(
    number: int, value: float, half: float = 0.01, *, memory: float = 1e6, loss: float = 2.0,
    params: dict[str, Any] | None = None, **changes: Any,
) -> Trial:  # fmt: skip
    told = {
        "status": "ok", "value": Interval(value, value * (1 - half), value * (1 + half)),
        "figures": {"memory": memory, "loss": loss}, "record": f"r{number}",
    }  # fmt: skip
    return Trial(number, params or {"heads": number}, outcome=Outcome(**{**told, **changes}))


def record(losses: list[float], median_s: float = 0.5, **metrics: float | None) -> Record:
    """Of a run that is ok: 100 tokens a step."""
    parity = Parity(ok=True, reference="naive", ratio=0.5, steps=1, batch=4, reruns=5, rule="x")
    training = Training(
        batch=4, tokens=100, learned_steps=len(losses), losses=losses, parity=parity,
        evaluations=[Evaluation(step=1, metrics=metrics)],
        flops=ModelFlops(dense=1, attention_full=1, attention_causal=1),
        parameters=Parameters(total=7, embedding=1, trainable=7),
        breakdown=Breakdown(forward_s=1, backward_s=1, optimizer_s=1, method="x"),
        memory=MemoryParts(
            parameters_bytes=1, gradients_bytes=1, optimizer_bytes=1, activations_bytes=1,
            peak_bytes=2048, method="x",
        ),
    )  # fmt: skip
    samples = Samples(
        clock="host", times_s=[[[median_s]]], median_s=median_s, low_s=0.9 * median_s,
        high_s=1.1 * median_s, converged=True,
    )  # fmt: skip
    return Record(
        kind="training", id="abc", suite="s", time="", attnbench="1", problem=START.to_json(),
        implementation=Implementation(name="naive"), problem_id=START.id, device="cpu",
        status="ok", samples=samples, training=training, environment="",
    )  # fmt: skip


# ---- one record --------------------------------------------------------------------------


def test_tokens_a_second_have_the_interval_of_the_step() -> None:
    found = outcome_of(record([3.0]), tune_of())
    assert found.value is not None
    ends = (found.value.median, found.value.low, found.value.high)
    assert ends == pytest.approx((200.0, 200 / 1.1, 200 / 0.9))
    assert found.figures["memory"] == 2048
    assert found.figures["parameters"] == 7


def test_time_to_a_loss_is_that_of_the_steps_until_the_mean_of_five_reaches_it() -> None:
    """One lucky batch (0.1) has not reached it."""
    tune = tune_of(objective="time_to_loss", loss=1.0)
    losses = [4.0, 0.1, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    found = outcome_of(record(losses), tune)
    assert found.value is not None
    assert found.value.median == pytest.approx(10 * 0.5)


def test_a_loss_that_is_not_reached_is_no_value_and_says_how_far_it_came() -> None:
    found = outcome_of(record([4.0] * 6), tune_of(objective="time_to_loss", loss=1.0))
    assert found.value is None
    assert found.reason == "loss 1 is not reached in 6 steps (least 4)"
    assert not found.is_feasible


def test_bounds_are_held_against_the_last_metrics_memory_and_parity() -> None:
    bounds = {"accuracy": {"min": 0.9}, "memory": 1024, "parity": True}
    found = outcome_of(record([1.0], accuracy=0.95), tune_of(constraints=bounds))
    assert {name: gap <= 0 for name, gap in found.gaps.items()} == {
        "accuracy": True, "memory": False, "parity": True,
    }  # fmt: skip
    assert not found.is_feasible


def test_a_metric_that_the_task_does_not_report_is_told() -> None:
    told = r"accuracy is not reported by this task \(reports: perplexity\)"
    with pytest.raises(UserError, match=told):
        outcome_of(record([1.0], perplexity=3.0), tune_of(constraints={"accuracy": {"min": 1}}))


def test_an_outcome_survives_its_journal() -> None:
    one = trial(3, 100.0)
    assert Trial.from_json({**one.to_json()}) == one


# ---- many --------------------------------------------------------------------------------


def test_overlapping_intervals_are_ties_and_others_are_not() -> None:
    trials = [trial(1, 100.0), trial(2, 99.0), trial(4, 90.0), trial(8, 101.0, gaps={"x": 1.0})]
    found = find(tune_of(), trials)
    assert found.best == trials[0]
    assert found.ties == (trials[1],)


def test_the_front_is_what_nobody_beats_in_all_three() -> None:
    fast = trial(1, 100.0, memory=3e6, loss=3.0)
    small = trial(2, 50.0, memory=1e6, loss=3.0)
    good = trial(3, 50.0, memory=3e6, loss=1.0)
    beaten = trial(4, 49.0, memory=1e6, loss=3.0)
    assert find(tune_of(), [beaten, good, small, fast]).pareto == (fast, good, small)


def test_importance_names_the_key_that_matters() -> None:
    tune = tune_of(space={"heads": [1, 2, 4], "batch": [4, 8, 16, 32]})
    trials = [
        trial(n, 100.0 * heads + batch, params={"heads": heads, "batch": batch})
        for n, (heads, batch) in enumerate((h, b) for h in (1, 2, 4) for b in (4, 8, 16, 32))
    ]
    found = find(tune, trials)
    assert next(iter(found.importance)) == "heads"
    assert sum(found.importance.values()) == pytest.approx(1)
    assert found.importance["heads"] > 2 * found.importance["batch"]


def test_importance_is_not_told_of_a_few_trials_or_of_equal_ones() -> None:
    few = find(tune_of(), [trial(1, 1.0)])
    assert few.importance == {}
    assert few.importance_absent == "1 settings with a value; it takes 10"
    same = find(tune_of(), [trial(n, 1.0) for n in range(12)])
    assert same.importance_absent == "every setting came to the same"


def test_the_gain_over_the_start_has_an_interval_and_says_when_there_is_none() -> None:
    start = trial(0, 50.0).outcome
    gain = find(tune_of(), [trial(1, 100.0)], start).gain
    assert gain is not None
    assert gain.low < gain.median == 2.0 < gain.high
    assert "not told apart" not in gain_in_words(gain)
    close = find(tune_of(), [trial(1, 50.5)], start).gain
    assert close is not None
    assert "not told apart" in gain_in_words(close)
    timed = tune_of(objective="time_to_loss", loss=1.0)
    faster = find(timed, [trial(1, 25.0)], start).gain
    assert faster is not None
    assert faster.median == 2.0


def test_nothing_is_best_where_nothing_may_be() -> None:
    found = find(tune_of(), [replace(trial(1, 1.0), outcome=Outcome("oom", "too large"))])
    assert (found.best, found.ties, found.pareto, found.gain) == (None, (), (), None)


def test_intervals_of_one_process_come_with_a_caution() -> None:
    assert "measure.processes=3" in str(caution(1))
    assert caution(3) is None


def test_words_count_every_kind_of_trial() -> None:
    refused = Trial(5, {"heads": 3}, refused="no")
    trials = [
        trial(1, 1.0), replace(trial(2, 1.0), origin="records"), refused,
        replace(refused, number=6, origin="journal"), replace(trial(1, 1.0), origin="journal"),
    ]  # fmt: skip
    assert counted(trials) == (
        "2 tried, 2 of them right and within bounds; 1 had a record; 1 cannot be, at no cost; "
        "2 draws of what was known, answered from the journal"
    )


@pytest.mark.parametrize("baseline", ["", "naive"])
def test_what_is_to_be_pasted_is_a_suite_with_the_best_setting(
    tmp_path: Path, baseline: str
) -> None:
    workload = START.replace(heads=4, lr=1e-5, model="gpt2-tiny", compile=True)
    measure = Measure(max_s=0.5, samples=3)
    path = tmp_path / "best.toml"
    path.write_text(as_suite('A "title"', "window:window=8", workload.told, measure, baseline))
    loaded = load_suite(path)
    assert loaded.problems == (workload,)
    assert loaded.impls == (*filter(None, [baseline]), "window:window=8")
    assert loaded.measure == measure
    assert loaded.title == 'A "title"'
