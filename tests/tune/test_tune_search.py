"""The search: it finds what is planted, measures nothing twice, refuses at no cost, and resumes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import planted
import pytest
from planted import BEST, BEST_VALUE, Foresight, outcome, run, search_in, tune_of

from attnbench.errors import UserError
from attnbench.plan import Contender
from attnbench.train.workload import Workload
from attnbench.tune.findings import find, measured
from attnbench.tune.journal import Journal
from attnbench.tune.outcome import Outcome
from attnbench.tune.resolve import Refused, Resolver, Setting, fit
from attnbench.tune.samplers import make_sampler
from attnbench.tune.search import Search

HALF = 48  # of the grid's 96 trials
SMALL = {**planted.SPACE, "impl": ["odd", "quick"], "precision": ["bf16"]}  # 24 settings


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as fast; tests that kill a process start one, which does wait."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


class Counting:
    """Measures what is planted, and remembers what it was asked."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.asked: list[str] = []
        self.search: Search | None = None
        self._stop_after = stop_after

    def __call__(self, setting: Setting) -> Outcome:
        self.asked.append(setting.id)
        if len(self.asked) == self._stop_after and self.search is not None:
            self.search.stop_requested = True
        return outcome(setting)


def best_of(search: Search) -> Outcome:
    best = find(search.tune, search.trials).best
    assert best is not None
    assert best.outcome is not None
    return best.outcome


# ---- finding -----------------------------------------------------------------------------


def test_a_grid_finds_the_planted_best_and_measures_each_setting_once(tmp_path: Path) -> None:
    measure = Counting()
    search = run(tmp_path / "j", tune_of(sampler="grid"), measure=measure)
    found = find(search.tune, search.trials)
    assert found.best is not None
    assert dict(found.best.params) == BEST
    assert len(measure.asked) == len(set(measure.asked)) == search.tried == 96
    assert found.ties == ()


@pytest.mark.parametrize("seed", range(3))
def test_tpe_reaches_95_percent_of_it_in_half_the_trials(tmp_path: Path, seed: int) -> None:
    measure = Counting()
    search = run(tmp_path / "j", tune_of(trials=HALF, seed=seed), measure=measure)
    assert len(measure.asked) == len(set(measure.asked)) == HALF
    value = best_of(search).value
    assert value is not None
    assert value.median >= 0.95 * BEST_VALUE


def test_gaussian_processes_search_within_bounds_and_repeat_none(tmp_path: Path) -> None:
    tune = tune_of(sampler="gp", trials=14, constraints={"memory": 1000})
    measure = Counting()

    def bounded(setting: Setting) -> Outcome:
        return replace(measure(setting), gaps={"memory": setting.workload.batch - 8.0})

    search = run(tmp_path / "j", tune, measure=bounded)
    assert len(measure.asked) == len(set(measure.asked)) == search.tried == 14
    best = find(tune, search.trials).best
    assert best is not None
    assert int(str(best.params["batch"])) <= 8


@pytest.mark.slow
def test_tpe_does_so_for_ten_seeds_and_random_draws_do_not(tmp_path: Path) -> None:
    """So that the planted best is nothing that anybody stumbles upon."""
    reached = Counter[str]()
    for sampler, seed in itertools.product(("tpe", "random"), range(10)):
        tune = tune_of(sampler=sampler, trials=HALF, seed=seed)
        value = best_of(run(tmp_path / f"{sampler}{seed}", tune)).value
        assert value is not None
        reached[sampler] += value.median >= 0.95 * BEST_VALUE
    assert reached["tpe"] == 10
    assert reached["random"] < 8


def test_less_is_better_where_time_is_the_objective(tmp_path: Path) -> None:
    tune = tune_of(sampler="grid", space=SMALL, objective="time_to_loss", loss=1.0)
    search = run(tmp_path / "j", tune, measure=lambda s: outcome(s, 1e4 / planted.speed(s)))
    found = find(tune, search.trials)
    assert found.best is not None
    assert dict(found.best.params) == BEST


# ---- bounds and failures -----------------------------------------------------------------


def test_the_best_is_within_every_bound(tmp_path: Path) -> None:
    tune = tune_of(sampler="grid", space=SMALL, constraints={"memory": 1000})

    def measure(setting: Setting) -> Outcome:
        memory = 100.0 * setting.workload.batch  # batch 16, of the best, is too large
        gaps = {bound.figure: bound.gap(memory) for bound in tune.bounds}
        return replace(outcome(setting), figures={"memory": memory, "loss": 2.0}, gaps=gaps)

    found = find(tune, run(tmp_path / "j", tune, measure=measure).trials)
    assert found.best is not None
    assert dict(found.best.params) == {**BEST, "batch": 8}
    assert all(t.params["batch"] != 16 for t in (*found.ties, *found.pareto))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers_live_with_bounds_that_nothing_keeps(tmp_path: Path, sampler: str) -> None:
    tune = tune_of(sampler=sampler, trials=12, constraints={"memory": 1})
    search = run(tmp_path / "j", tune, measure=lambda s: replace(outcome(s), gaps={"memory": 1e6}))
    assert search.tried == 12
    assert find(tune, search.trials).best is None


@pytest.mark.parametrize("status", ["oom", "crash", "timeout", "incorrect", "error"])
def test_what_failed_is_kept_with_its_status_and_never_best(tmp_path: Path, status: str) -> None:
    def measure(setting: Setting) -> Outcome:
        if setting.contender.spec == "quick":
            return Outcome(status, "it is so", record=setting.id)
        return outcome(setting)

    space = {**planted.SPACE, "batch": [16], "precision": ["bf16"]}
    tune = tune_of(sampler="grid", space=space)
    search = run(tmp_path / "j", tune, measure=measure)
    found = find(tune, search.trials)
    assert found.best is not None
    assert found.best.params["impl"] == "fair"
    failed = [t for t in measured(search.trials) if t.outcome and t.outcome.status == status]
    assert len(failed) == 4
    assert run(tmp_path / "j", tune, measure=Counting()).tried == 16, "nothing is tried again"


# ---- refusals ----------------------------------------------------------------------------


def test_combinations_that_cannot_be_cost_nothing(tmp_path: Path) -> None:
    foresight, measure = Foresight(), Counting()
    space = {"heads": [3, 5, 4], "impl": ["quick"]}  # d_model is 32
    search = run(
        tmp_path / "j", tune_of(sampler="grid", space=space), measure=measure, foresight=foresight
    )
    assert len(measure.asked) == search.tried == 1
    reasons = sorted(t.refused for t in search.trials if t.refused)
    assert reasons == [f"d_model 32 is not divisible by heads {n}" for n in (3, 5)]
    assert search.ended == "every setting of the space was drawn"


def test_who_says_unsupported_or_is_unavailable_is_not_measured(tmp_path: Path) -> None:
    def refuses(workload: Workload, contender: Contender) -> str | None:
        odd = contender.spec == "odd" and workload.heads > 1
        return "does one head only" if odd else None

    measure = Counting()
    search = run(
        tmp_path / "j", tune_of(sampler="grid", space=SMALL), measure=measure,
        foresight=Foresight(refuses),
    )  # fmt: skip
    assert len(measure.asked) == search.tried == 24 - 9
    assert sum(t.refused == "odd: does one head only" for t in search.trials) == 9


def test_unavailable_implementations_are_refused_for_free() -> None:
    contenders = planted.contenders()
    broken = replace(contenders["slow"], entry=replace(contenders["slow"].entry, reason="no GPU"))
    foresight = Foresight()
    resolver = Resolver(tune_of(), planted.START, {"slow": broken}, foresight, planted.name)
    found = resolver.resolve({"impl": "slow", "heads": 1, "batch": 4, "precision": "fp32"})
    assert found == Refused("slow: unavailable: no GPU")


def test_a_drawn_task_that_lacks_a_metric_with_a_bound_is_refused_for_free() -> None:
    tune = tune_of(constraints={"bits_per_character": {"max": 3}})
    contenders = {"slow": planted.contenders()["slow"]}
    resolver = Resolver(tune, planted.START, contenders, Foresight(), planted.name)
    told = "bits_per_character is not reported by task 'copy'"
    assert told in str(resolver.free_refusal({"impl": "slow", "task": "copy"}))
    assert resolver.free_refusal({"impl": "slow", "task": "text"}) is None


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_a_space_in_which_nothing_can_be_is_refused_before_it_begins(
    tmp_path: Path, sampler: str
) -> None:
    tune = tune_of(sampler=sampler, space={"heads": [3, 5], "impl": ["quick"]})
    with pytest.raises(UserError, match="none of its 2 settings can be: 1 × d_model 32 is not"):
        run(tmp_path / "j", tune)


@pytest.mark.parametrize(
    "space", [{"heads": [1, 2], "impl": ["odd"]}, {"lr": {"low": 1e-4, "high": 1e-2}}]
)
def test_a_space_that_everybody_refuses_ends(
    tmp_path: Path, space: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a worker can tell, drawn from a space with an end and from one without."""
    monkeypatch.setattr("attnbench.tune.search._REFUSED_IN_A_ROW", 20)
    tune = tune_of(sampler="random", trials=5, space={"impl": ["odd"], **space})
    foresight = Foresight(lambda workload, contender: "never")
    search = run(tmp_path / "j", tune, foresight=foresight)
    assert search.tried == 0
    assert "every setting" in search.ended or "20 draws in a row cannot be" in search.ended


def test_a_space_with_less_in_it_than_trials_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range so narrow that its numbers, with four digits, are only two."""
    monkeypatch.setattr("attnbench.tune.search._IDLE_IN_A_ROW", 20)
    tune = tune_of(sampler="random", trials=5, space={"lr": {"low": 1e-3, "high": 1.001e-3}})
    with Journal(tmp_path / "j", tune) as journal:
        (alone,) = planted.contenders("quick").values()
        resolver = Resolver(tune, planted.START, {}, Foresight(), planted.name, alone)
        search = Search(tune, journal, resolver, outcome, lambda setting: None, planted.Silent())
        search.run()
    assert search.tried == 2
    assert search.ended == "20 draws in a row were nothing new"


# ---- the count of parameters --------------------------------------------------------------


@pytest.mark.parametrize("d_model", [16, 32, 48, 64])
def test_every_model_has_as_many_parameters_as_asked(d_model: int) -> None:
    foresight = Foresight()
    (target,) = foresight.parameters([planted.START.replace(d_model=48)])
    assert isinstance(target, int)
    tune = tune_of(parameters=target, tolerance=0.02)
    found = fit(planted.START.replace(d_model=d_model), target, tune, foresight)
    assert isinstance(found, Workload)
    (count,) = foresight.parameters([found])
    assert abs(int(count) - target) <= 0.02 * target
    assert found.replace(d_ff=0) == planted.START.replace(d_model=d_model)


def test_a_width_that_is_too_large_for_the_count_is_refused() -> None:
    tune = tune_of(parameters=10_000)
    found = fit(planted.START.replace(d_model=256), 10_000, tune, Foresight())
    assert found == Refused("parameters: even without d_ff the model has more than 10,000 of them")


def test_layers_that_are_too_coarse_for_the_tolerance_are_refused() -> None:
    tune = tune_of(parameters=40_000, tolerance=0.01, adapt="layers")
    found = fit(planted.START, 40_000, tune, Foresight())
    assert isinstance(found, Refused)
    assert "with layers = 3 there are 36,864, which is not within 1 % of 40,000" in found.reason


# ---- again -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_stopped_and_resumed_it_repeats_none_and_draws_as_if_it_had_not_been(
    tmp_path: Path, sampler: str
) -> None:
    tune = tune_of(sampler=sampler, trials=14)
    asked: list[str] = []
    for stop_after in (5, 4, 10**9):
        measure = Counting(stop_after)
        with Journal(tmp_path / "j", tune) as journal:
            measure.search = search_in(journal, tune, measure)
            measure.search.run()
        asked += measure.asked
    assert len(asked) == len(set(asked)) == 14
    whole = Counting()
    run(tmp_path / "whole", tune, measure=whole)
    assert asked == whole.asked


def test_what_has_a_record_is_not_measured_again(tmp_path: Path) -> None:
    """Another sampler's search over the same records."""
    records: dict[str, Outcome] = {}

    def measure(setting: Setting) -> Outcome:
        return records.setdefault(setting.id, outcome(setting))

    run(tmp_path / "one", tune_of(sampler="tpe", space=SMALL, trials=10), measure=measure)
    again = Counting()
    search = run(
        tmp_path / "two", tune_of(sampler="grid", space=SMALL), measure=again,
        recall=lambda setting: records.get(setting.id),
    )  # fmt: skip
    assert len(again.asked) == 14
    assert sum(t.origin == "records" for t in search.trials) == 10


def test_a_setting_drawn_twice_is_answered_by_the_journal(tmp_path: Path) -> None:
    measure = Counting()
    tune = tune_of(trials=6, space={"heads": [1, 2, 4], "batch": [4, 8], "impl": ["quick"]})
    search = run(tmp_path / "j", tune, measure=measure)
    assert len(measure.asked) == len(set(measure.asked)) == 6
    again = [t for t in search.trials if t.origin == "journal"]
    assert again, "six draws of six settings without a repetition: the test tests nothing"
    for trial in again:
        first = next(t for t in search.trials if t.params == trial.params)
        assert trial.outcome == first.outcome


def test_a_second_search_on_the_same_journal_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", tune_of()), pytest.raises(UserError, match="another attnbench"):
        Journal(tmp_path / "j", tune_of())


def test_a_torn_line_and_a_lock_left_behind_are_put_right(tmp_path: Path) -> None:
    path, tune = tmp_path / "j", tune_of(sampler="grid", trials=3)
    run(path, tune)
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"tri')
    path.with_name("j.lock").symlink_to(path)  # Optuna would wait for half a minute
    began = time.monotonic()
    search = run(path, tune_of(sampler="grid", trials=5))
    assert search.tried == 5
    assert time.monotonic() - began < 25
    assert run(path, tune_of(sampler="grid", trials=5)).tried == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_in_a_process_and_resumed_it_repeats_none(
    tmp_path: Path, number: signal.Signals
) -> None:
    journal, log = tmp_path / "j", tmp_path / "log"
    words = [sys.executable, planted.__file__, str(journal), str(log), "tpe"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not log.exists() or len(log.read_text().split()) < 5:
            assert process.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
    assert (process.returncode == 0) == (number == signal.SIGINT)
    before = log.read_text().split()
    assert 5 <= len(before) < 24
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.stdout == "24\n", ended.stderr
    after = log.read_text().split()
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 24


# ---- samplers ----------------------------------------------------------------------------


def test_every_sampler_is_made_with_a_seed_of_its_trial() -> None:
    for sampler, name in (("tpe", "TPESampler"), ("gp", "GPSampler"), ("random", "RandomSampler")):
        assert type(make_sampler(tune_of(sampler=sampler), 3)).__name__ == name
