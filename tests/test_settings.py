"""Budgets that cannot be meant are refused; presets are budgets, and the user's word wins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import UserError
from attnbench.measure.sampling import Budget
from attnbench.session import reproduce
from attnbench.settings import PRESETS, Measure
from attnbench.suite import Suite, load_suite

SUITE = 'title = "T"\n[grid]\nseqlen = 8\n[measure]\nmax_s = 7.0\ntimeout_s = 99.0\n'


def load(folder: Path, *overrides: str, preset: Any = None) -> Suite:
    path = folder / "s.toml"
    path.write_text(SUITE)
    return load_suite(path, overrides, preset)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("measure.warmup_s=2", "warmup_cap_s = 1.0: must be at least warmup_s, which is 2"),
        ("measure.warmup_cap_s=99", "timeout_s = 99.0: must be longer than warmup_cap_s"),
        ("measure.processes=0", "processes = 0"),
        ("measure.cache=tepid", "cache = \"tepid\": should be 'auto', 'cold' or 'warm'"),
        ("measure.steady_share=0", "steady_share = 0"),
        ("measure.proceses=2", "did you mean 'processes'?"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, override: str, told: str
) -> None:
    with pytest.raises(UserError) as refused:
        load(tmp_path, override)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_worker_is_told_every_key_of_its_budget_and_no_other() -> None:
    told = Measure().budget()
    assert set(told) == {f.name for f in dataclasses.fields(Budget)}
    assert Budget(**told) == Budget(), "the same defaults on both sides"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_budget_and_wins_over_the_suite(tmp_path: Path, preset: Any) -> None:
    loaded = load(tmp_path, preset=preset).measure
    assert {key: getattr(loaded, key) for key in PRESETS[preset]} == PRESETS[preset]
    assert loaded.timeout_s == 99.0, "what the preset does not say stays the suite's"


def test_what_is_set_wins_over_a_preset(tmp_path: Path) -> None:
    loaded = load(tmp_path, "measure.max_s=2", "measure.processes=1", preset="precise").measure
    assert (loaded.max_s, loaded.processes) == (2.0, 1)
    assert loaded.min_rounds == PRESETS["precise"]["min_rounds"]


def test_runs_with_different_presets_never_resume_each_other(tmp_path: Path) -> None:
    digests = {load(tmp_path, preset=preset).digest for preset in (None, *PRESETS)}
    assert len(digests) == 3


def test_precise_is_what_a_published_figure_needs_and_quick_is_cheaper() -> None:
    precise, quick = Measure(**PRESETS["precise"]), Measure(**PRESETS["quick"])
    assert precise.processes >= 3
    assert precise.min_rounds >= 8
    assert precise.precision <= 0.01
    assert (precise.warmup_s, precise.warmup_cap_s) == (0.5, 10.0)
    assert quick.max_s < Measure().max_s < precise.max_s


def test_the_command_that_reproduces_a_point_names_the_preset() -> None:
    assert reproduce("seqlen", preset="precise", overrides=["measure.max_s=2"]) == (
        "attnbench run seqlen --precise --set measure.max_s=2"
    )
