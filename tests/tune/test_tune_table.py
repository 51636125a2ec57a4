"""The [tune] table: every key is checked, and what cannot be meant is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted import SPACE, tune_of

from attnbench import shelves
from attnbench.cli import main
from attnbench.errors import UserError
from attnbench.suite import load_suite
from attnbench.tune.space import Range
from attnbench.tune.table import read_tune, start_of

SUITE = """
title = "T"
kind = "training"
impls = ["naive"]
[grid]
task = "copy"
batch = 4
[tune]
{tune}
[tune.space]
{space}
"""


def suite(folder: Path, tune: str = "", space: str = "heads = [1, 2]", text: str = SUITE) -> Path:
    path = folder / "s.toml"
    path.write_text(text.format(tune=tune, space=space))
    return path


@pytest.mark.parametrize(
    ("tune", "space", "told"),
    [
        ("tirals = 3", "heads = [1]", "[tune]: unknown key 'tirals'; allowed: "),
        ("trials = -1", "heads = [1]", "[tune]: trials = -1: "),
        ("trials = 1.5", "heads = [1]", "[tune]: trials = 1.5: "),
        ("sampler = 'tpo'", "heads = [1]", "unknown sampler 'tpo'; allowed: grid, random, tpe, gp"),
        ("objective = 'token_per_s'", "heads = [1]", "did you mean 'tokens_per_s'?"),
        ("objective = 'time_to_loss'", "heads = [1]", "needs loss = …, in nats"),
        ("loss = 2.0", "heads = [1]", "has no loss to reach; leave it out"),
        ("objective = 'time_to_loss'\nloss = 2.0", "task = ['copy']", "several of task"),
        ("parameters = 'begin'", "heads = [1]", "[tune]: parameters"),
        ("parameters = -5", "heads = [1]", "parameters must be ≥ 0 or 'start', got -5"),
        ("tolerance = 0.1", "heads = [1]", "tolerance belongs to parameters"),
        ("parameters = 9\nadapt = 'heads'", "heads = [1]", "unknown adapt 'heads'; allowed: d_ff"),
        ("parameters = 9", "d_ff = [64]", "d_ff is adapted to the count of parameters"),
        ("constraints = {memroy = 1}", "heads = [1]", "[tune.constraints]: unknown key 'memroy'"),
        ("constraints = {memory = '2 GB'}", "heads = [1]", "'2 GB': must be bytes, or look like"),
        ("constraints = {memory = 0}", "heads = [1]", "memory = 0: must be bytes"),
        ("constraints = {parity = false}", "heads = [1]", "parity = False: must be true"),
        ("constraints = {accuracy = 0.9}", "heads = [1]", "must look like {min = 0.9}"),
        ("constraints = {accuracy = {mni = 0.9}}", "heads = [1]", "did you mean 'min'?"),
        ("constraints = {accuracy = {min = 'a'}}", "heads = [1]", "min must be a number, got 'a'"),
        ("constraints = {loss = {min = 2, max = 1}}", "heads = [1]", "nothing can keep both"),
        ("", "", "[tune.space]: is empty; there is nothing to search"),
        ("", "haeds = [1]", "[tune.space]: unknown key 'haeds'; allowed: impl, model, "),
        ("", "heads = 4", "heads = 4: must be a list of choices, or a range"),
        ("", "heads = []", "heads is an empty list"),
        ("", "heads = [1, 1]", "heads has 1 twice"),
        ("", "heads = ['a']", "heads must be of type int, got 'a'"),
        ("", "heads = [-1]", "heads must be ≥ 0, got -1"),
        ("", "precision = ['fp31']", "unknown precision 'fp31'; allowed: fp32, tf32, bf16, fp16"),
        ("", "model = ['gpt2-tinny']", "did you mean 'gpt2-tiny'?"),
        ("", "task = ['copi']", "did you mean 'copy'?"),
        ("", "impl = [3]", "impl must be of type str, got 3"),
        ("", "impl = {low = 1, high = 2}", "implementations have no range"),
        ("", "lr = {low = 1e-4}", "lr: high is missing"),
        ("", "lr = {low = 1e-4, high = 1e-2, lgo = true}", "lr: unknown key 'lgo'; allowed: low"),
        ("", "lr = {low = 1e-2, high = 1e-4}", "low 0.01 must be less than high 0.0001"),
        ("", "lr = {low = 'a', high = 1}", "low must be a number, got 'a'"),
        ("", "lr = {low = 1e-4, high = 1e-2, log = 1}", "log must be true or false, got 1"),
        ("", "lr = {low = 1e-4, high = 1, log = true, step = 0.1}", "exclude each other"),
        ("", "weight_decay = {low = 0, high = 1, log = true}", "log needs low > 0"),
        ("", "heads = {low = 1, high = 8, step = 9}", "step must be a int in (0, 7], got 9"),
        ("", "heads = {low = 1, high = 8.5}", "heads must be of type int, got 8.5"),
        ("", "precision = {low = 1, high = 2}", "precision must be of type str, got 1"),
        ("sampler = 'grid'", "lr = {low = 1e-4, high = 1e-2}", "a grid has no end in lr"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(
    tmp_path: Path, tune: str, space: str, told: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_suite(suite(tmp_path, tune, space))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 's.toml'}: ")


@pytest.mark.parametrize(
    ("text", "sets", "told"),
    [
        (SUITE.replace('kind = "training"', "").replace('task = "copy"', "heads = 2"), [],
         "[tune] is for kind = 'training'"),
        (SUITE.replace("batch = 4", "batch = [4, 8]"), [], "this suite describes 2"),
        (SUITE, ["heads=2"], "--set heads: is searched"),
        (SUITE.partition("[tune]")[0], [], "has no [tune] table"),
        (SUITE.replace("batch = 4", "batch = 0").replace(
            "[tune]", "[tune]\nobjective = 'time_to_loss'\nloss = 1.0"), [], "batch 0 is timed"),
        (SUITE + "[tune.constraints]\naccuracy = {{min = 0.9}}\n", [],
         "accuracy is not reported by task 'copy' (reports: cross_entropy, perplexity, token_ac"),
    ],
)  # fmt: skip
def test_the_rest_of_the_suite_must_be_one_start(
    tmp_path: Path, text: str, sets: list[str], told: str
) -> None:
    loaded = load_suite(suite(tmp_path, text=text), sets)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        start_of(loaded, sets)
    assert told in str(caught.value)


def test_run_may_set_what_tune_searches(tmp_path: Path) -> None:
    """Otherwise no record of a trial could be measured again by its own command."""
    loaded = load_suite(suite(tmp_path), ["heads=2"])
    assert loaded.problems[0].to_json()["heads"] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sampler", "girdd"], "--sampler: unknown sampler 'girdd'"),
        (["--trials", "0"], "must be a whole number from 1"),
        (["--set", "heads=2"], "--set heads: is searched"),
        (["--tirals", "3"], "did you mean '--trials'?"),
    ],
)
def test_the_command_refuses_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["tune", str(suite(tmp_path)), *words]) == 2
    assert told in capsys.readouterr().err


def test_gp_without_scipy_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "scipy" else 1)
    assert main(["tune", str(suite(tmp_path)), "--sampler", "gp"]) == 2
    assert "sampler gp needs scipy: pip install 'attnbench[train]'" in capsys.readouterr().err


def test_sizes_and_values_of_ranges() -> None:
    space = {
        "heads": {"low": 1, "high": 8, "step": 3}, "lr": {"low": 0.1, "high": 0.5, "step": 0.1},
    }  # fmt: skip
    tune = read_tune(Path("x"), {"space": space})
    assert tune.space.dimensions["heads"].grid() == (1, 4, 7)
    assert tune.space.dimensions["lr"].grid() == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert tune.space.size == 15
    assert Range(1e-4, 1e-2, log=True).grid() is None


def test_draws_have_as_many_digits_as_mean_something_and_choices_all_of_theirs() -> None:
    """A rounded draw stays within its range, and what a step made twice is one setting."""
    space = {
        "lr": {"low": 1.00004e-3, "high": 9.99996e-3}, "weight_decay": [0.123456789],
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1}, "batch": {"low": 1, "high": 100_000},
    }  # fmt: skip
    neat = read_tune(Path("x"), {"space": space}).space.neat
    assert neat({"lr": 0.00333940174015}) == {"lr": 0.003339}
    assert neat({"lr": 0.00999995}) == {"lr": 9.99996e-3}
    assert neat({"lr": 0.00100004}) == {"lr": 1.00004e-3}
    assert neat({"weight_decay": 0.123456789, "dropout": 0.1 + 0.2, "batch": 98765}) == {
        "weight_decay": 0.123456789, "dropout": 0.3, "batch": 98765,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"sampler": "grid"}, 96),
        ({"sampler": "grid", "trials": 10}, 10),
        ({}, 40),
        ({"trials": 500}, 96),
    ],
)
def test_trials_are_as_asked_or_fit_the_space(changes: dict[str, Any], wanted: int) -> None:
    assert tune_of(**changes).wanted == wanted


@pytest.mark.parametrize(
    ("bound", "value", "kept"),
    [
        ({"accuracy": {"min": 0.9}}, 0.9, True),
        ({"accuracy": {"min": 0.9}}, 0.89, False),
        ({"perplexity": {"max": 40}}, 41.0, False),
        ({"loss": {"min": 1, "max": 2}}, 0.5, False),
        ({"memory": "2 KiB"}, 2048.0, True),
        ({"memory": "2 KiB"}, 2049.0, False),
        ({"parity": True}, 1.01, False),
        ({"perplexity": {"max": 40}}, None, False),
    ],
)
def test_a_bound_is_kept_or_not(bound: dict[str, Any], value: float | None, kept: bool) -> None:
    (found,) = tune_of(constraints=bound).bounds
    assert (found.gap(value) <= 0) == kept


def test_the_shipped_search_is_sound() -> None:
    loaded = load_suite(shelves.builtin("suites") / "tune-tiny.toml")
    tune, start = start_of(loaded, [])
    assert tune.parameters == "start"
    assert start == loaded.problems[0]
    assert set(SPACE) - {"batch", "precision"} <= set(tune.space.dimensions)
