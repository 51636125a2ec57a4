"""Searches that lie beside the records are on their page; damaged ones are told and left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import record, sweep, write_run

from attnbench import Problem
from attnbench.report import render
from attnbench.report.points import load_points
from attnbench.report.searches import HEIGHT, WIDTH, find_searches, search_view, without_trials
from attnbench.tune.told import SEARCH_FILE, Told, ToldTrial, write

HOSTILE = "</p><script>alert(1)</script>"


def told(**changes: Any) -> Told:
    trials = [
        ToldTrial(number=0, setting="heads=1", said="100 tokens/s", place="best", is_front=True,
                  value=(100.0, 99.0, 101.0), memory=2e6, loss=2.0),
        ToldTrial(number=1, setting="heads=2", said="90 tokens/s", place="kept",
                  value=(90.0, 89.0, 91.0), memory=3e6, loss=3.0),
        ToldTrial(number=2, setting="heads=4", said="95 tokens/s, too large", place="out",
                  value=(95.0, 94.0, 96.0), memory=9e6, loss=None),
        ToldTrial(number=3, setting="heads=3", said=f"cannot be: {HOSTILE}", place="none"),
    ]  # fmt: skip
    return Told.model_validate({
        "suite": "s", "title": "A search", "objective": "tokens_per_s", "goal": "most tokens/s",
        "sampler": "tpe", "space": {"heads": "1, 2, 3, 4"}, "bounds": ["memory ≤ 8.00 MiB"],
        "counted": "3 tried", "ended": "done", "best": "heads=1", "best_said": "100 tokens/s",
        "gain": "2 times as good", "ties": [], "refusals": {HOSTILE: 1}, "paste": "title = 'x'",
        "importance": {"heads": 1.0}, "trials": trials, **changes,
    })  # fmt: skip


def came_to(ids: Sequence[str], places: Sequence[Any]) -> list[ToldTrial]:
    """Trials of these places, whose records have these ids."""
    return [
        ToldTrial(number=n, setting="", said="", place=place, record=tried)
        for n, (place, tried) in enumerate(zip(places, ids, strict=False))
    ]


def page(folder: Path, out: Path) -> str:
    """The page of a report that has this view alone."""
    definition = folder / "only.toml"
    definition.write_text('[[views]]\nview = "search"\n', encoding="utf-8")
    return render([folder], out, report=str(definition)).page.read_text(encoding="utf-8")


@pytest.mark.parametrize("has_records", [True, False])
def test_a_search_is_shown_with_and_without_attention_records(
    tmp_path: Path, has_records: bool
) -> None:
    records = tmp_path / "records"
    records.mkdir()
    if has_records:
        some = sweep("quick", ("naive",), seqlens=(128,), dtypes=("float32",), masks=("full",))
        write_run(records / "run.jsonl", some)
    write(records / f"run.tune-1{SEARCH_FILE}", told())
    html = page(records, tmp_path / "out")
    for words in ("A search", "Best: heads=1", "2 times as good", "memory ≤ 8.00 MiB", "100 %"):
        assert words in html
    assert HOSTILE not in html
    assert html.count('<g class="dot') == 3


def test_without_a_search_there_is_no_such_view(tmp_path: Path) -> None:
    some = sweep("quick", ("naive",), seqlens=(128,), dtypes=("float32",), masks=("full",))
    write_run(tmp_path / "run.jsonl", some)
    assert "view-search" not in page(tmp_path, tmp_path / "out")


def test_a_damaged_search_is_told_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / f"run.tune-1{SEARCH_FILE}", told())
    (tmp_path / f"run.tune-2{SEARCH_FILE}").write_text('{"title": 3}')
    views, problems = find_searches([tmp_path])
    assert [view.told.title for view in views] == ["A search"]
    assert len(problems) == 1
    assert f"run.tune-2{SEARCH_FILE}: not a search that can be read" in problems[0]


def test_a_record_file_brings_its_own_searches_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("")
        write(tmp_path / f"{name}.tune-1{SEARCH_FILE}", told(title=name))
    views, _ = find_searches([tmp_path / "one.jsonl"])
    assert [view.told.title for view in views] == ["one"]


def test_dots_lie_in_the_chart_and_in_order() -> None:
    view = search_view(told())
    best, kept, out = view.dots
    assert best.y < out.y < kept.y, "faster is higher"
    assert best.x < kept.x < out.x
    assert best.radius < kept.radius, "the larger loss"
    for dot in view.dots:
        assert 0 < dot.x < WIDTH
        assert 0 < dot.high < dot.y < dot.low < HEIGHT
    assert [t.text for t in view.x_ticks] == ["2 MiB", "4 MiB", "6 MiB", "8 MiB"]


def test_a_search_without_figures_has_no_chart(tmp_path: Path) -> None:
    write(tmp_path / f"run.tune-1{SEARCH_FILE}", told(best=None, trials=[], importance={}))
    html = page(tmp_path, tmp_path / "out")
    assert "No setting was measured, right, and within every bound." in html
    assert not re.search('class="search-chart"', html)


def test_the_summary_tells_what_a_search_found_and_stays_markdown(tmp_path: Path) -> None:
    write(tmp_path / f"run.tune-1{SEARCH_FILE}", told(start=HOSTILE, ties=["heads=2: 99 tokens/s"]))
    render([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/summary.md").read_text(encoding="utf-8")
    for words in (
        "## A search: most tokens/s", "3 tried: done. Drawn by tpe.",
        "- best: **heads=1**: 100 tokens/s", "- gain: 2 times as good",
        "- ties: heads=2: 99 tokens/s", "- importance: heads 100 %",
    ):  # fmt: skip
        assert words in text
    assert "<script>" not in text


def test_the_summary_of_a_search_without_a_best_says_so(tmp_path: Path) -> None:
    none = told(best=None, best_said=None, gain=None, importance={}, importance_absent="too few")
    write(tmp_path / f"run.tune-1{SEARCH_FILE}", none)
    render([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/summary.md").read_text(encoding="utf-8")
    assert "- best: no setting was measured, right, and within every bound" in text
    assert "- importance: too few" in text
    assert "- gain" not in text


def test_only_the_best_trial_and_the_start_and_what_failed_have_panels(tmp_path: Path) -> None:
    some = [
        record(problem=Problem.of(seqlen=n), status=status)
        for n, status in zip((1, 2, 3, 4, 5), ("ok", "ok", "ok", "incorrect", "ok"), strict=True)
    ]
    ids = [r.id for r in some]
    places = ["kept", "best", "tie", "out"]
    trials = came_to(ids, places)
    view = search_view(told(suite=some[0].suite, trials=trials, start_record=ids[0]))
    points = load_points([write_run(tmp_path, some)]).points
    kept = {p.record.id for p in without_trials(points, [view])}
    assert set(ids) - kept == {ids[2]}
    assert without_trials(points, []) == list(points)


def test_the_best_of_one_search_is_shown_though_another_only_tried_it(tmp_path: Path) -> None:
    some = [record(problem=Problem.of(seqlen=n)) for n in (1, 2)]
    points = load_points([write_run(tmp_path, some)]).points
    views = [
        search_view(told(suite=some[0].suite, trials=came_to([r.id for r in some], places)))
        for places in (["best", "tie"], ["tie", "best"])
    ]
    for searches in (views, views[::-1]):
        assert without_trials(points, searches) == list(points)


def test_the_same_point_of_another_suite_keeps_its_panel(tmp_path: Path) -> None:
    some = [record(problem=Problem.of(seqlen=n)) for n in (1, 2)]
    points = load_points([write_run(tmp_path, some)]).points
    view = search_view(told(suite="other", trials=came_to([r.id for r in some], ["tie", "best"])))
    assert without_trials(points, [view]) == list(points)
