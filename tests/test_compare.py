"""Verdicts: each is given where it is due, and none where nothing is to be told."""

from __future__ import annotations

import numpy as np
import pytest
from made_records import MACHINE, learned, machine, record, run, trained

from attnbench import environment as environments
from attnbench.compare import Compared, Comparison, compare
from attnbench.errors import UserError
from attnbench.ratio import RunScatter
from attnbench.runs import Run

QUIET = 0.002  # log standard deviation of rounds, and of processes


def rounds(factor: float = 1.0, *, seed: int = 0, processes: int = 3, noise: float = QUIET):
    """Seconds by process and round."""
    rng = np.random.default_rng(seed)
    mood = noise * rng.normal(size=(processes, 1))
    return 1e-3 * factor * np.exp(mood + noise * rng.normal(size=(processes, 10)))


def one(base, new, **options) -> Compared:
    (point,) = compare(run(base), run(new), **options).points
    return point


def pair(factor: float, *, how: dict | None = None, **noise) -> Compared:
    return one(record(rounds(seed=1, **noise), how=how), record(rounds(factor, seed=2, **noise)))


# ---- the five verdicts -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.1, "SLOWER"), (1 / 1.1, "FASTER"), (1.0, "SAME"), (1.01, "SAME")]
)
def test_a_clear_difference_and_clear_equality_are_told(factor: float, verdict: str) -> None:
    point = pair(factor)
    assert (point.verdict, point.reason) == (verdict, "")
    assert point.ratio is not None
    assert point.ratio.low < factor < point.ratio.high
    assert point.is_regression == (verdict == "SLOWER")


def test_new_over_base_not_the_other_way_round() -> None:
    point = pair(1.25)
    assert point.ratio is not None
    assert point.ratio.ratio == pytest.approx(1.25, rel=0.02)


def test_noise_is_inconclusive_and_never_called_the_same() -> None:
    point = pair(1.0, noise=0.2)
    assert point.verdict == "INCONCLUSIVE"
    assert not point.is_regression


def test_a_difference_that_could_be_chance_says_so() -> None:
    point = one(record(rounds(1.0, processes=1)), record(rounds(1.04, processes=1, seed=4)))
    assert point.verdict == "INCONCLUSIVE"
    assert point.reason.startswith("could be chance: adjusted p = 0.")
    assert point.has_one_process


def test_a_true_difference_below_the_threshold_is_no_regression() -> None:
    """A plain significance test would call it: 1.5 % is certain here, and does not matter."""
    many = {"processes": 40, "noise": 0.001}
    assert pair(1.015, **many).verdict == "SAME"
    larger = one(record(rounds(**many)), record(rounds(1.015, **many)), threshold=0.01)
    assert larger.verdict == "SLOWER"


def test_the_threshold_is_raised_to_the_scatter_of_the_rounds() -> None:
    """With enough processes 10 % is certain, but any round of equal code differs by 20 %."""
    rng = np.random.default_rng(8)
    base, new = (record(f * np.exp(0.2 * rng.normal(size=(60, 12)))) for f in (1.0, 1.1))
    point = one(base, new)
    assert point.adjusted_p is not None
    assert point.adjusted_p < 0.001
    assert point.verdict == "INCONCLUSIVE"
    assert point.reason.startswith("rounds or runs of equal code differ by 19")


def test_one_process_whose_rounds_jump_proves_nothing() -> None:
    """Two runs of the same code on a busy machine gave these medians of rounds."""
    base = record([80.0, 76.1e-3, 288e-6, 435e-6, 305e-6, 298e-6])
    new = record([79.6e-3, 80.0e-3, 80.0e-3, 76.0e-3, 77.5e-3])
    assert one(base, new).verdict == "INCONCLUSIVE"


def test_one_calm_process_on_a_restless_machine_proves_nothing_either() -> None:
    """Its own rounds look well; those of most other points of the run do not."""
    rng = np.random.default_rng(5)
    sizes = range(100, 120)
    wild = [[record(np.exp(rng.normal(size=(1, 8))), seqlen=n) for n in sizes] for _ in range(2)]
    calm = [record(rounds(f, processes=1, seed=6), seqlen=99) for f in (1.0, 1.5)]
    found = compare(run(*wild[0], calm[0]), run(*wild[1], calm[1]))
    assert {p.verdict for p in found.points} == {"INCONCLUSIVE"}
    assert one(*calm).verdict == "SLOWER"  # on a quiet machine it would be told


# ---- not comparable ----------------------------------------------------------------------


def other_machine(**software: str) -> tuple[dict, Run]:
    environment = machine(**software)
    new = record(rounds(1.5), environment=environment)
    return environment, run(new, environment=environment)


def test_other_software_is_not_comparable_and_named() -> None:
    _, new = other_machine(torch="2.14.0")
    found = compare(run(record(rounds())), new)
    (point,) = found.points
    assert point.verdict == "NOT COMPARABLE"
    assert point.reason == "software.torch 2.13.0 → 2.14.0"
    assert point.ratio is None
    assert found.exit_code == 2


def test_a_field_that_may_differ_is_what_is_compared() -> None:
    _, new = other_machine(torch="2.14.0")
    found = compare(run(record(rounds())), new, across=["software.torch"])
    assert [p.verdict for p in found.points] == ["SLOWER"]
    assert found.exit_code == 1
    _, both = other_machine(torch="2.14.0", attnbench="0.2.0")
    (point,) = compare(run(record(rounds())), both, across=["software.torch"]).points
    assert point.reason == "software.attnbench 0.1.0 → 0.2.0"
    (point,) = compare(run(record(rounds())), both, across=["software.*"]).points
    assert point.verdict == "SLOWER"


def test_a_field_that_no_environment_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown environment field 'software.torhc'.*software.to"):
        compare(run(record()), run(record()), across=["software.torhc"])


def test_a_failure_on_another_machine_is_no_regression() -> None:
    environment = machine(torch="2.14.0")
    failed = record(status="oom", environment=environment)
    found = compare(run(record()), run(failed, environment=environment))
    assert (found.regressions, found.exit_code) == ([], 2)


def test_many_differences_are_cut_short() -> None:
    _, new = other_machine(torch="2.14.0", python="3.13", triton="4", numpy="3", cuda="14")
    (point,) = compare(run(record(rounds())), new).points
    assert point.reason.endswith(" and 2 more")


@pytest.mark.parametrize("how", [{"clock": "device"}, {"cache": "cold"}])
def test_times_taken_in_different_ways_are_not_compared_but_memory_is(how: dict) -> None:
    base = record(rounds(), how={"cache": "warm"})
    new = record(rounds(1.5), how={"cache": "warm"} | how, memory=base.memory)
    point = one(base, new)
    assert point.verdict == "NOT COMPARABLE"
    assert " → " in point.reason
    grown = new.model_copy(update={"memory": _grown(base)})
    assert [r.kind for r in one(base, grown).regressions] == ["memory"]


def test_equal_memory_lets_no_unknown_time_pass() -> None:
    base, new = record(rounds()), record(rounds(1.5), how={"clock": "device"})
    assert compare(run(base), run(new)).exit_code == 2


def test_points_of_one_side_are_not_comparable_and_no_regression() -> None:
    found = compare(run(record(seqlen=64)), run(record(seqlen=128)))
    assert [p.reason for p in found.points] == ["not in NEW", "not in BASE"]
    assert found.exit_code == 2


def test_a_measurement_is_not_compared_with_itself() -> None:
    same = run(record(rounds()))
    found = compare(same, same)
    assert [p.reason for p in found.points] == ["the same measurement on both sides"]
    assert found.exit_code == 2


def test_a_single_sample_has_no_scatter() -> None:
    assert one(record([[1.0]]), record([[2.0]])).verdict == "NOT COMPARABLE"


def test_without_environments_the_reason_is_the_missing_file() -> None:
    base, new = record(rounds()), record(rounds(), environment=machine(torch="2.14.0"))
    (point,) = compare(run(base), Run((new,), {}, ())).points
    assert point.reason == f"environment-{new.environment}.json is missing"
    strangers = [Run((r,), {}, ()) for r in (record(rounds()), new)]
    (point,) = compare(*strangers).points  # two addresses, of which nothing is known
    assert point.reason == f"environment-{record().environment}.json is missing"
    bare = [Run((record(rounds(f)),), {}, ()) for f in (1.0, 1.5)]
    assert compare(*bare).points[0].verdict == "SLOWER"  # the same address: the same machine


def test_seeds_must_be_equal_because_the_inputs_are() -> None:
    assert one(record(seed=0), record(seed=1)).reason == "seed 0 → 1"


# ---- failures, memory, kernels, notes ----------------------------------------------------


def _grown(base):
    assert base.memory is not None
    return base.memory.model_copy(update={"peak_bytes": 2 * base.memory.peak_bytes})


def test_a_new_failure_is_a_regression_though_there_is_no_time() -> None:
    found = compare(run(record()), run(record(status="incorrect")))
    (point,) = found.points
    assert (point.verdict, point.reason) == ("NOT COMPARABLE", "ok → incorrect")
    assert found.exit_code == 1


def test_a_failure_that_stays_is_none_and_one_that_is_mended_neither() -> None:
    for base, new in (("oom", "oom"), ("oom", "crash"), ("crash", "ok")):
        found = compare(run(record(status=base)), run(record(status=new)))
        assert found.exit_code == 2, (base, new)


def test_more_memory_is_a_regression_though_it_is_faster() -> None:
    base = record(rounds())
    new = record(rounds(0.5), memory=_grown(base))
    found = compare(run(base), run(new))
    assert found.points[0].verdict == "FASTER"
    assert found.exit_code == 1


def test_other_kernels_are_shown_and_no_regression() -> None:
    base, new = (record(rounds(seed=s), kernels=[{"name": n}]) for s, n in ((1, "a"), (2, "b")))
    point = one(base, new)
    assert point.kernels is not None
    assert (point.kernels.gone, point.kernels.added) == (("a",), ("b",))
    assert not point.is_regression


def test_notes_name_the_side_once() -> None:
    wide = {"how": {"converged": False}}
    disturbed = {"telemetry": {"verdict": "disturbed"}}
    point = one(record(rounds(seed=1), **wide), record(rounds(seed=2), **wide, **disturbed))
    assert point.notes == (
        "BASE and NEW: interval wider than asked for",
        "NEW: the machine was disturbed",
    )


def test_a_time_taken_in_another_way_is_told() -> None:
    graph, events = {"method": "cuda graph of events"}, {"method": "cuda events"}
    base, new = record(rounds(), how=graph), record(rounds(seed=3), how=events)
    assert one(base, new).notes == ("timed in another way: cuda graph of events → cuda events",)
    assert one(base, record(rounds(seed=3), how=graph)).notes == ()
    assert one(base, record(rounds(seed=3))).notes == (), "an older record does not say"


def test_a_disturbed_single_process_gives_no_verdict_but_three_do() -> None:
    disturbed = {"telemetry": {"verdict": "disturbed"}}
    for processes, verdict in ((1, "INCONCLUSIVE"), (3, "SLOWER")):
        base = record(rounds(processes=processes))
        new = record(rounds(1.5, processes=processes), **disturbed)
        assert one(base, new).verdict == verdict
    assert "disturbed" in one(record(rounds(processes=1)), record(
        rounds(1.5, processes=1), **disturbed)).reason  # fmt: skip


def test_a_setting_of_the_machine_that_moved_is_told() -> None:
    environment = machine(context={"gpu": {"power_limit_w": 350}})
    base = run(record(rounds(), environment=environment), environment=environment)
    other = machine(context={"gpu": {"power_limit_w": 700}})
    new = run(record(rounds(seed=3), environment=other), environment=other)
    assert compare(base, new).notes == (
        "the machine was set differently: gpu.power_limit_w 350 → 700",
    )


def clocked(mhz: float) -> dict:
    return {"telemetry": {"signals": {"sm_clock_mhz": {"median": mhz}}}}


def test_a_slower_clock_is_not_slower_code() -> None:
    base, new = record(rounds(), **clocked(1980)), record(rounds(1.1), **clocked(1700))
    point = one(base, new)
    assert point.verdict == "INCONCLUSIVE"
    assert point.reason == "not in clock cycles: the GPU ran at 1980 → 1700 MHz"
    assert one(base, record(rounds(1.4), **clocked(1700))).verdict == "SLOWER"


@pytest.mark.parametrize(
    "telemetry",
    [{"signals": []}, {"signals": {"sm_clock_mhz": 3}}, {"verdict": ["?"]}, {"signals": None}],
)
def test_telemetry_of_another_version_breaks_nothing(telemetry: dict) -> None:
    strange = record(rounds(1.5), telemetry=telemetry, a_field_of_tomorrow={"x": [1]})
    assert one(record(rounds()), strange).verdict == "SLOWER"


def test_a_problem_of_another_version_is_compared_by_its_id() -> None:
    sides = [record(rounds(f), problem={"strange": 1}, problem_id="p" * 16) for f in (1.0, 1.5)]
    assert one(*sides).verdict == "SLOWER"


# ---- pairs, histories, many points -------------------------------------------------------


def shared(noise: float):
    """A mood of the machine that moves from round to round, for both alike."""
    mood = noise * np.random.default_rng(7).normal(size=(2, 10))
    return np.exp(mood)


def test_rounds_side_by_side_find_what_is_lost_in_the_noise_otherwise() -> None:
    mood = shared(0.2)
    base, new = rounds(processes=2, seed=1) * mood, rounds(1.05, processes=2, seed=2) * mood
    paired = one(record(base, pair="x"), record(new, pair="x"))
    assert (paired.verdict, paired.is_paired) == ("SLOWER", True)
    assert one(record(base), record(new)).verdict == "INCONCLUSIVE"
    other = one(record(base, pair="x"), record(new, pair="y"))
    assert (other.verdict, other.is_paired) == ("INCONCLUSIVE", False)


def test_a_history_of_restless_runs_raises_the_threshold() -> None:
    base, new = record(rounds()), record(rounds(1.1, seed=2))
    quiet, restless = (RunScatter(sd, 20, 3) for sd in (0.003, 0.06))
    assert one(base, new, scatter={base.id: quiet}).verdict == "SLOWER"
    point = one(base, new, scatter={base.id: restless})
    assert point.verdict == "INCONCLUSIVE"
    assert point.threshold == pytest.approx(np.expm1(1.96 * np.sqrt(2) * 0.06))


def test_p_values_are_adjusted_over_all_points() -> None:
    """The same point alone and among a hundred that are equal."""
    sizes = range(1, 100)
    suspect = [record(rounds(f, processes=1, seed=s), seqlen=256) for f, s in ((1.0, 1), (1.09, 2))]
    alone = one(*suspect)
    crowd = [
        [record(rounds(processes=1, seed=1000 * side + n), seqlen=n) for n in sizes]
        for side in (1, 2)
    ]
    found = compare(run(*crowd[0], suspect[0]), run(*crowd[1], suspect[1]))
    among = next(p for p in found.points if p.record.problem["seqlen_q"] == 256)
    assert alone.ratio is not None
    assert alone.adjusted_p == alone.ratio.p
    assert among.adjusted_p is not None
    assert among.adjusted_p > 20 * alone.ratio.p
    assert (alone.verdict, among.verdict) == ("SLOWER", "INCONCLUSIVE")


def test_the_gravest_come_first() -> None:
    factors = {64: 1.0, 65: 1.1, 66: 1.3, 67: 0.5}
    base = [record(rounds(seed=n), seqlen=n) for n in (63, *factors)]
    new = [record(rounds(f, seed=2 * n), seqlen=n) for n, f in factors.items()]
    found = compare(run(*base), run(*new, record(seqlen=63, status="crash")))
    assert [p.record.problem["seqlen_q"] for p in found.points] == [63, 66, 65, 67, 64]


def test_the_last_source_counts_and_the_others_are_told() -> None:
    times = ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00")
    old = record(rounds(3.0), source="a" * 64, time=times[0])
    new = record(rounds(1.0, seed=3), source="b" * 64, time=times[1])
    found = compare(run(record(rounds())), run(new, old))
    assert [p.verdict for p in found.points] == ["SAME"]
    assert found.notes == (
        "NEW: 1 earlier records of points that were measured again are passed over",
    )


def test_points_of_two_machines_meet_their_own() -> None:
    other = machine(torch="2.14.0")
    base = [record(rounds(f), environment=e) for f, e in ((1.0, MACHINE), (9.0, other))]
    new = [record(rounds(f, seed=4), environment=e) for f, e in ((1.0, MACHINE), (9.0, other))]
    known = {environments.address(dict(e)): e for e in (MACHINE, other)}
    found = compare(Run(tuple(base), known, ()), Run(tuple(new), known, ()))
    assert [p.verdict for p in found.points] == ["SAME", "SAME"]


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.5, 1), (0.5, 0)])
def test_the_exit_code_of_times(factor: float, code: int) -> None:
    assert compare(run(record(rounds())), run(record(rounds(factor, seed=2)))).exit_code == code


def test_nothing_at_all_cannot_be_compared() -> None:
    assert compare(run(), run()) == Comparison((), 0.03, ())
    assert compare(run(), run()).exit_code == 2


# ---- training ----------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, "SLOWER"), (1 / 1.1, "FASTER")])
def test_training_runs_are_compared_by_seconds_a_step(factor: float, verdict: str) -> None:
    base = trained(rounds=rounds(seed=1))
    new = trained(rounds=rounds(factor, seed=2), time="2026-02-02T03:04:05+00:00")
    assert one(base, new).verdict == verdict


def test_steps_of_different_batches_are_not_compared() -> None:
    """Catches a larger batch, found because memory grew, that is told as a regression."""
    base = trained(rounds=rounds(seed=1))
    new = trained(rounds=rounds(2.0, seed=2), training=learned(tokens=1024))
    found = one(base, new)
    assert found.verdict == "NOT COMPARABLE"
    assert found.reason == "tokens a step 512 → 1024: steps of different work"
