"""Who meets which problem: globs and options, shards, and points that are done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnbench.errors import UserError
from attnbench.plan import Contender, Plan, choose, make_plan, parse_shard
from attnbench.registry import Entry, Source
from attnbench.session import Session
from attnbench.suite import Suite, load_suite


def entry(
    name: str, sha: str = "0", reason: str | None = None, **options: bool | int | float
) -> Entry:
    source = Source("built-in", name)
    return Entry(name, source, f"{name}.py", 1, reason, options=dict(options), source_sha256=sha)


ENTRIES = [
    entry("naive"),
    entry("sdpa-math"),
    entry("sdpa-flash"),
    entry("tiled", block=128, eps=1.0, fast=True),
    entry("absent", reason="not installed"),
]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    path = tmp_path / "s.toml"
    path.write_text('title = "T"\n[grid]\nseqlen = [8, 9, 10, 11, 12, 13, 14]\n')
    return load_suite(path)


def specs(*globs: str) -> list[str]:
    return [contender.spec for contender in choose(globs, ENTRIES)]


def ids(plan: Plan) -> list[str]:
    return [point.id for point in plan.points]


# ---- choose ------------------------------------------------------------------------------


def test_a_suite_says_which_kinds_take_part_and_who_asks_gets_what_was_asked_for(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.toml"
    path.write_text('title = "T"\nkinds = ["exact"]\n[grid]\nseqlen = 8\n')
    entries = [entry("dense"), replace(entry("sparse"), kind="approximate")]
    session = Session(tmp_path, "cpu", None, entries, {})  # type: ignore[arg-type]
    exact, both = load_suite(path), replace(load_suite(path), kinds=("exact", "approximate"))
    assert [c.spec for c in session.contenders(exact)] == ["dense"]
    assert [c.spec for c in session.contenders(both)] == ["dense", "sparse"]
    assert [c.spec for c in session.contenders(exact, ["sparse"])] == ["sparse"]


def test_a_kind_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('title = "T"\nkinds = ["exakt"]\n[grid]\nseqlen = 8\n')
    with pytest.raises(UserError, match=r"s\.toml: kinds\.0 = \"exakt\": should be 'exact' or"):
        load_suite(path)


def test_globs_name_implementations_once_in_order() -> None:
    assert specs("sdpa*", "naive", "*math") == ["sdpa-math", "sdpa-flash", "naive"]


def test_an_unavailable_implementation_is_chosen_so_that_it_gets_its_record() -> None:
    assert specs("*") == ["naive", "sdpa-math", "sdpa-flash", "tiled", "absent"]
    assert specs("absent:whatever=1") == ["absent:whatever=1"]


def test_options_make_contenders_of_their_own_whatever_their_order() -> None:
    assert specs("tiled", "tiled:block=64,fast=false", "tiled:fast=false,block=64") == [
        "tiled", "tiled:block=64,fast=false",
    ]  # fmt: skip


def test_a_whole_number_is_a_value_of_a_float_option() -> None:
    assert specs("tiled:eps=2") == ["tiled:eps=2"]


@pytest.mark.parametrize(
    ("glob", "told"),
    [
        ("sdpa-mth", "unknown implementation 'sdpa-mth'; allowed: naive, "),
        ("sdpa-mth", "did you mean 'sdpa-math'?"),
        ("triton*", "unknown implementation 'triton*'"),
        ("SDPA*", "unknown implementation 'SDPA*'"),
        ("tiled:blok=64", "tiled: unknown option 'blok'; allowed: block, eps, fast; did you mean"),
        ("naive:block=64", "naive: unknown option 'block'; allowed: none"),
        ("tiled:block=64.0", "tiled: option block must be of type int, got 64.0"),
        ("tiled:block=true", "tiled: option block must be of type int, got True"),
        ("tiled:eps=true", "tiled: option eps must be of type float, got True"),
        ("tiled:fast=1", "tiled: option fast must be of type bool, got 1"),
        ("tiled:block", "must look like key=value"),
    ],
)
def test_a_wrong_name_or_option_is_refused(glob: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(["naive", glob], ENTRIES)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- shards and selection ----------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_shards_hold_every_point_exactly_once(suite: Suite, count: int) -> None:
    contenders = choose(["naive", "sdpa*"], ENTRIES)
    whole = make_plan(suite, contenders, "cpu", "m")
    shards = [
        make_plan(suite, contenders, "cpu", "m", shard=(i, count)) for i in range(1, count + 1)
    ]
    assert sorted(id_ for shard in shards for id_ in ids(shard)) == sorted(ids(whole))
    assert len(set(ids(whole))) == 7 * 3
    sizes = [len(shard.groups) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_contenders_of_a_problem_stay_together(suite: Suite) -> None:
    plan = make_plan(suite, choose(["naive", "sdpa*"], ENTRIES), "cpu", "m", shard=(2, 3))
    for group in plan.groups:
        assert len({point.problem for point in group}) == 1
        assert [point.contender.spec for point in group] == ["naive", "sdpa-math", "sdpa-flash"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "-1/2", "1", "1/", "/2", "a/b", "1/2/3", ""])
def test_a_shard_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="must look like i/n with 1 ≤ i ≤ n"):
        parse_shard(text)


def test_a_shard_is_read() -> None:
    assert (parse_shard("1/1"), parse_shard("3/16")) == ((1, 1), (3, 16))


def test_problems_are_selected_by_the_beginning_of_their_id(suite: Suite) -> None:
    wanted = suite.problems[3]
    plan = make_plan(suite, choose(["naive"], ENTRIES), "cpu", "m", problems=[wanted.id[:10]])
    assert [point.problem for point in plan.points] == [wanted]


def test_a_problem_id_that_nobody_has_is_refused(suite: Suite) -> None:
    with pytest.raises(UserError, match="--problem zz: suite s has no such problem"):
        make_plan(suite, choose(["naive"], ENTRIES), "cpu", "m", problems=["zz"])


# ---- done points -------------------------------------------------------------------------


def test_points_that_are_done_are_left_out_and_counted(suite: Suite) -> None:
    contenders = choose(["naive", "sdpa-math"], ENTRIES)
    points = make_plan(suite, contenders, "cpu", "m").points
    done = frozenset(p.id for p in points[:3])
    plan = make_plan(suite, contenders, "cpu", "m", done)
    assert ids(plan) == [p.id for p in points[3:]]
    assert plan.finished == 3
    assert len(plan.groups) == 6, "a group with nothing to do is no group"


def test_when_all_is_done_nothing_is_planned_and_no_time_is_needed(suite: Suite) -> None:
    contenders = choose(["naive"], ENTRIES)
    done = frozenset(ids(make_plan(suite, contenders, "cpu", "m")))
    plan = make_plan(suite, contenders, "cpu", "m", done)
    assert (plan.points, plan.finished, plan.estimated_s()) == ([], 7, 0)


# ---- identity ----------------------------------------------------------------------------


def first_id(
    suite: Suite, contender: Contender, machine: str = "m", seed: int | None = None
) -> str:
    overrides = [] if seed is None else [f"verify.seed={seed}"]
    plan = make_plan(load_suite(suite.path, overrides), [contender], "cpu", machine)
    return plan.points[0].id


def test_a_point_keeps_its_id_when_nothing_about_it_changes(suite: Suite) -> None:
    tiled = entry("tiled", "0", block=128)
    again = entry("tiled", "0", block=128, added_later=1)
    assert first_id(suite, Contender(tiled)) == first_id(suite, Contender(again))


def test_a_points_id_changes_with_source_options_machine_and_seed(suite: Suite) -> None:
    tiled = entry("tiled", "0", block=128)
    seen = [
        first_id(suite, Contender(tiled)),
        first_id(suite, Contender(entry("tiled", "1", block=128))),
        first_id(suite, Contender(tiled, (("block", 64),))),
        first_id(suite, Contender(entry("other", "0", block=128))),
        first_id(suite, Contender(replace(tiled, version="1.1"))),  # of the library it calls
        first_id(suite, Contender(tiled), machine="n"),
        first_id(suite, Contender(tiled), seed=1),
    ]
    assert len(set(seen)) == len(seen)


def test_loops_for_energy_take_time_too_but_in_one_process_only(suite: Suite) -> None:
    def estimated_s(*overrides: str) -> float:
        asked = load_suite(suite.path, ["measure.processes=3", *overrides])
        return make_plan(asked, choose(["naive"], ENTRIES), "cpu", "m").estimated_s()

    more_s = estimated_s("measure.energy_s=10") - estimated_s()
    assert more_s == pytest.approx(10 * len(suite.problems))


def test_fresh_processes_take_time_to_start(suite: Suite) -> None:
    def estimated_s(processes: int) -> float:
        asked = load_suite(suite.path, [f"measure.processes={processes}"])
        return make_plan(asked, choose(["naive"], ENTRIES), "cpu", "m").estimated_s()

    assert estimated_s(3) >= 3 * estimated_s(1) + 3 * len(suite.problems)


def test_only_implementations_that_can_be_used_take_time(suite: Suite) -> None:
    usable, absent = choose(["naive"], ENTRIES), choose(["absent"], ENTRIES)
    both = make_plan(suite, [*usable, *absent], "cpu", "m").estimated_s()
    assert both == make_plan(suite, usable, "cpu", "m").estimated_s()
    assert both > make_plan(suite, absent, "cpu", "m").estimated_s()
