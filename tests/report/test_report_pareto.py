"""Approximate methods in the report: apart from exact ones, and what they give up for what."""

from __future__ import annotations

from typing import Any

import pytest
from synthetic_records import record, write_run

from attnbench.problem import Problem
from attnbench.record import Implementation, Memory, Record
from attnbench.report import load_frame, pareto, render
from attnbench.report.points import Point, load_points
from attnbench.report.sweep import scopes
from attnbench.report.tables import figures
from attnbench.report.verdicts import verdicts

PROBLEM = Problem.of(heads=8, head_dim=64, seqlen=1024)


def method(
    spec: str, *, rate: float, distance: float, problem: Problem = PROBLEM, **changes: Any
) -> Record:
    name, _, rank = spec.partition(":rank=")
    told = Implementation(name=name, kind="approximate", given={"rank": int(rank)} if rank else {})
    own = {
        "implementation": told, "flops": problem.flops() // 8, "weights_tv": 0.31,
        "distance": {"out": {"rel_l2": distance, "cosine": 0.9, "max_abs": 1.0}}, **changes,
    }  # fmt: skip
    made = record(spec, problem, rate=rate)
    return Record.model_validate({**made.model_dump(), **own})


@pytest.fixture
def folder(tmp_path):  # type: ignore[no-untyped-def]
    smaller = PROBLEM.replace(seqlen_q=512, seqlen_k=512)
    records = [record("naive", p, rate=60.0) for p in (smaller, PROBLEM)]
    records += [
        method("low:rank=8", rate=900.0, distance=0.9),
        method("low:rank=64", rate=300.0, distance=0.2),
        method("worse", rate=250.0, distance=0.4),
        method("low:rank=8", rate=5000.0, distance=0.01, problem=smaller),
    ]
    return write_run(tmp_path, records)


def by_name(points: list[Point]) -> dict[str, Point]:
    return {p.implementation: p for p in points}


def test_an_approximate_method_is_not_ranked_among_exact_ones(folder) -> None:  # type: ignore[no-untyped-def]
    (scope,) = scopes(load_points([folder]).points)
    (panel,) = scope.panels
    for found in verdicts(scope, panel):
        assert [p.implementation for p in found.ranking] == ["naive"]


def test_alone_approximate_methods_are_ranked(tmp_path) -> None:  # type: ignore[no-untyped-def]
    slow, fast = (method(n, rate=r, distance=0.1) for n, r in (("a", 100.0), ("b", 900.0)))
    (scope,) = scopes(load_points([write_run(tmp_path, [slow, fast])]).points)
    (found,) = verdicts(scope, scope.panels[0])
    assert [p.implementation for p in found.ranking] == ["b", "a"]


def test_its_rate_is_effective_and_its_own_stands_beside(folder) -> None:  # type: ignore[no-untyped-def]
    points = by_name([p for p in load_points([folder]).points if p.fields["seqlen_q"] == 1024])
    low = points["low:rank=64"]
    assert low.rate is not None
    assert low.own_rate is not None
    assert low.rate.median == pytest.approx(8 * low.own_rate.median)
    assert " effective (own 37.5 GFLOPS)" in figures(low)["rate"]
    assert "effective" not in figures(points["naive"])["rate"]
    assert figures(low)["distance"] == "out 0.20, cosine 0.900, weights 0.31 apart"
    assert "distance" not in figures(points["naive"])


def test_the_front_is_what_nobody_beats_on_the_largest_problem(folder) -> None:  # type: ignore[no-untyped-def]
    (scope,) = scopes(load_points([folder]).points)
    points = pareto.largest(scope, scope.panels[0])
    assert {p.fields["seqlen_q"] for p in points} == {1024}
    leading = pareto.front(points)
    names = {p.implementation for p in points if p.record.id in leading}
    assert names == {"naive", "low:rank=8", "low:rank=64"}  # worse is slower and farther off


def test_who_takes_less_memory_is_not_beaten(tmp_path) -> None:  # type: ignore[no-untyped-def]
    small = Memory(peak_bytes=1, method="made up")
    records = [
        method("low", rate=900.0, distance=0.1), method("slim", rate=100.0, distance=0.5),
        method("slimmer", rate=90.0, distance=0.6, memory=small),
    ]  # fmt: skip
    points = load_points([write_run(tmp_path, records)]).points
    leading = pareto.front(points)
    assert {p.implementation for p in points if p.record.id in leading} == {"low", "slimmer"}


def test_the_page_has_the_view_only_where_there_is_an_approximate_method(
    folder,  # type: ignore[no-untyped-def]
    tmp_path,
) -> None:
    with_it = render([folder], tmp_path / "one").page.read_text()
    without = render(
        [write_run(tmp_path / "exact", [record("naive", PROBLEM)])], tmp_path / "two"
    ).page.read_text()
    assert "What is given up for what" in with_it
    assert "What is given up for what" not in without
    assert (tmp_path / "one" / "figures" / "quick-pareto.svg").exists()
    assert not (tmp_path / "two" / "figures" / "quick-pareto.svg").exists()


def test_the_frame_has_distance_and_own_flops(folder) -> None:  # type: ignore[no-untyped-def]
    frame = load_frame([folder])
    low = frame[(frame.implementation == "low:rank=64")].iloc[0]
    assert (low.out_distance, low.weights_tv) == (0.2, 0.31)
    assert low.own_flops == PROBLEM.flops() // 8
    assert frame[frame.implementation == "naive"].out_distance.isna().all()
