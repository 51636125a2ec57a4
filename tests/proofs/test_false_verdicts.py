"""Joining and counting, on made-up records and one tiny real trial; slow: the real shares."""

from __future__ import annotations

import importlib.util
import types
from collections import Counter
from pathlib import Path

import false_verdicts
import numpy as np
import pytest
from false_verdicts import IMPLS, TWIN, Counts, Plan, add, as_proof, join
from made_records import record, run, samples

from attnbench.compare import compare
from attnbench.errors import UserError
from attnbench.record import Implementation, Record
from attnbench.session import open_session
from attnbench.store import load

RNG = np.random.default_rng(7)


def measured(name: str, side: str, rounds: object, **changes: object) -> Record:
    """What one process wrote."""
    named = Implementation(name=name, options={"side": side}, given={"side": side})
    return record(rounds, **{"implementation": name, **changes}).model_copy(
        update={"implementation": named}
    )


def judged(factors: dict[str, float]) -> Counts:
    """A trial of three processes a side in which the new side is slower by these factors."""
    sides = []
    for side in false_verdicts.SIDES:
        files = [
            [
                measured(
                    name,
                    side,
                    RNG.normal(1.0, 0.002, 8) * (factor if side == "new" else 1.0),
                    seqlen=seqlen,
                )
                for name, factor in factors.items()
                for seqlen in (128, 256, 512)
            ]
            for _ in range(3)
        ]
        sides.append(run(*join(files, side)))
    counts = Counts(Counter(), Counter())
    add(counts, compare(*sides))
    return counts


def test_a_record_is_made_of_the_rounds_of_all_processes() -> None:
    wide = measured("flash", "base", [1.0, 2.0, 3.0], how={"warmup_s": 0.5, "converged": False})
    files = [[wide], [measured("flash", "base", [5.0, 6.0], how={"warmup_s": 0.25})]]
    (joined,) = join(files, "base")
    assert joined.samples is not None
    assert joined.samples.times_s == [[[1.0], [2.0], [3.0]], [[5.0], [6.0]]]
    assert joined.samples.median_s == 3.0
    assert joined.samples.warmup_s == 0.75
    assert not joined.samples.converged
    assert joined.pair is None


def test_the_sides_are_called_alike_and_kept_apart() -> None:
    both = [[measured("flash", "base", [1.0, 1.0]), measured("flash", "new", [2.0, 2.0])]]
    (base,), (new,) = (join(both, side, pair="trial-01") for side in ("base", "new"))
    assert base.implementation.spec == new.implementation.spec == "flash"
    assert base.pair == new.pair
    assert base.pair is not None
    assert (base.samples, new.samples) == (samples([1.0, 1.0]), samples([2.0, 2.0]))


def test_points_have_pairs_of_their_own() -> None:
    files = [[measured("flash", "base", [1.0, 1.0], seqlen=n) for n in (128, 256)]]
    one, other = join(files, "base", pair="trial-01")
    assert one.pair != other.pair


def test_a_trial_with_a_point_that_failed_is_not_judged() -> None:
    with pytest.raises(UserError, match="flash:side=base: crash"):
        list(join([[measured("flash", "base", [1.0], status="crash")]], "base"))


def test_a_difference_between_equal_sides_is_false_and_a_twin_found() -> None:
    counts = judged({"flash": 1.0, "math": 1.2, "matmul": 0.8, TWIN: 1.05})
    assert counts.false == 6
    assert counts.same["SLOWER"] == counts.same["FASTER"] == 3
    assert counts.found == 3


def test_a_twin_that_is_no_slower_is_not_found() -> None:
    counts = judged({"flash": 1.0, TWIN: 1.0})
    assert (counts.false, counts.found) == (0, 0)
    assert counts.twins.total() == 3


def test_a_twin_called_faster_is_not_found_either() -> None:
    assert judged({TWIN: 0.8}).found == 0


@pytest.mark.parametrize(
    ("false", "found", "is_kept"), [(2, 38, True), (3, 38, False), (2, 37, False), (0, 40, True)]
)
def test_the_bounds_are_one_false_in_a_hundred_and_19_of_20_found(
    false: int, found: int, is_kept: bool
) -> None:
    same = Counter({"SLOWER": false - false // 2, "FASTER": false // 2, "SAME": 200 - false})
    twins = Counter({"SLOWER": found, "INCONCLUSIVE": 40 - found})
    assert as_proof({"paired": Counts(same, twins)}, Plan()).is_kept is is_kept


def test_the_plan_makes_200_equal_comparisons_and_40_twins() -> None:
    grid = false_verdicts.SUITE.partition("seqlen = [")[2].partition("]")[0].split(",")
    assert Plan().trials * len(grid) * 5 == 200
    assert Plan().trials * len(grid) == 40


@pytest.fixture
def two_sides() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("two_sides", IMPLS / "two_sides.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_twin_waits_for_five_per_cent_of_each_call(
    two_sides: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0

    def perf_counter_ns() -> int:
        nonlocal now
        now += 10
        return now

    def attend(q: object, k: object, v: object) -> str:
        nonlocal now
        now += 100_000
        return "out"

    monkeypatch.setattr(two_sides, "time", types.SimpleNamespace(perf_counter_ns=perf_counter_ns))
    monkeypatch.setattr(two_sides, "scaled_dot_product_attention", attend)
    for side, lasts in (("base", 100_000), ("new", 105_000)):
        start = now
        assert two_sides.changed(1, 2, 3, None, side=side) == "out"
        assert now - start == pytest.approx(lasts, abs=50)


def test_a_trial_is_measured_judged_and_not_measured_twice(tmp_path: Path) -> None:
    plan = Plan(trials=1, processes=1, seqlens=(16,), designs=("paired",))
    file = tmp_path / "paired" / "trial-01" / "base-new-1.jsonl"
    file.parent.mkdir(parents=True)
    file.with_suffix(".partial").write_text("stopped in the middle")
    with open_session(tmp_path, "cpu", [IMPLS]) as session:
        proof = false_verdicts.prove(session, tmp_path, plan)
        before = file.read_bytes()
        false_verdicts.prove(session, tmp_path, plan)
    assert file.read_bytes() == before
    assert len(load([file]).records) == len(before.splitlines()) == 12
    assert not file.with_suffix(".partial").exists()
    assert "of 5," in proof.rows[0].figure
    assert "of 1," in proof.rows[2].figure
    assert "NOT COMPARABLE" not in f"{proof.rows[1].figure} {proof.rows[3].figure}"


@pytest.mark.slow
def test_compare_is_hardly_ever_wrong(tmp_path: Path) -> None:
    """On a quiet machine: see docs/instrument.md."""
    with open_session(tmp_path, "cpu", [IMPLS]) as session:
        proof = false_verdicts.prove(session, tmp_path, Plan())
    assert proof.is_kept, proof.rows
