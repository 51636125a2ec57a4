"""Who is searched among, and what a worker is asked about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planted import START, contenders

from attnbench.commands import tune_
from attnbench.errors import UserError
from attnbench.process import WorkerDied
from attnbench.suite import Suite, load_suite
from attnbench.tune.foresight import WorkerForesight
from attnbench.tune.space import Choices

TEXT = """
title = "T"
kind = "training"
impls = {impls}
kinds = ["exact"]
[grid]
task = "copy"
[tune.space]
{space}
"""


def suite(folder: Path, space: str, impls: str = '["slow"]') -> Suite:
    path = folder / "s.toml"
    path.write_text(TEXT.format(space=space, impls=impls))
    return load_suite(path)


def who(loaded: Suite, **changes: Any) -> tuple[list[str], str | None]:
    """The contenders, and who attends alone."""
    entries = [c.entry for c in contenders().values()]
    entries[0] = replace(entries[0], **changes)
    chosen: Any = tune_.choose
    session: Any = SimpleNamespace(
        entries=entries, contenders=lambda suite: chosen(suite.impls, entries)
    )
    assert loaded.tune is not None
    tune, found, alone = tune_._who(loaded.tune, loaded, session)
    if found:
        assert tune.space.dimensions["impl"] == Choices(tuple(found))
    return list(found), alone and alone.spec


def test_globs_are_expanded_once(tmp_path: Path) -> None:
    assert who(suite(tmp_path, 'impl = ["quick", "*"]')) == (
        ["quick", "slow", "fair", "odd"], None,
    )  # fmt: skip


def test_the_kinds_of_the_suite_choose_among_them(tmp_path: Path) -> None:
    found, _ = who(suite(tmp_path, 'impl = ["*"]'), kind="approximate")
    assert found == ["fair", "quick", "odd"]


def test_without_impl_the_suite_must_name_one(tmp_path: Path) -> None:
    assert who(suite(tmp_path, "heads = [1, 2]")) == ([], "slow")
    with pytest.raises(UserError, match=r"impls names 2 implementations; .* as impl = \[...\]"):
        who(suite(tmp_path, "heads = [1, 2]", '["slow", "fair"]'))


@pytest.mark.parametrize(
    ("impl", "told"),
    [
        ("qick", "[tune.space]: impl: unknown implementation 'qick'; allowed: "),
        ("quick:blok=3", "unknown option 'blok'"),
        ("slow:interpret=true", "slow:interpret=true runs in a simulator: its times are no"),
    ],
)
def test_who_cannot_be_meant_is_refused(tmp_path: Path, impl: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        who(
            suite(tmp_path, f'impl = ["fair", "{impl}"]'),
            options={"interpret": False}, simulators={"interpret": "in a simulator"},
        )  # fmt: skip
    assert told in str(caught.value)


# ---- the worker --------------------------------------------------------------------------


class Pool:
    """Answers as a worker would, and counts the questions."""

    device = "cpu"

    def __init__(self, *, dies: bool = False) -> None:
        self.asked: list[dict[str, Any]] = []
        self._dies = dies

    def ask(self, task: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
        self.asked.append(task)
        if self._dies:
            raise WorkerDied("crash", "it crashed", "")
        for place, _ in enumerate(task.get("problems", [])):
            yield {"event": "counted", "place": place, "total": 100 + place, "reason": None}
        for told in task["contenders"] if task["do"] == "foresee" else []:
            reason = "cannot" if told["key"] == "odd" else None
            yield {"event": "foreseen", "who": told["key"], "reason": reason}


def foresight(pool: Any) -> WorkerForesight:
    found = contenders()
    broken = replace(found["slow"], entry=replace(found["slow"].entry, reason="no GPU"))
    return WorkerForesight(pool, [broken, found["quick"], found["odd"]])


def test_a_shape_is_asked_about_once_and_for_everybody_who_is_there() -> None:
    pool, found = Pool(), contenders()
    asked = foresight(pool)
    assert asked.refusal(START, found["odd"]) == "cannot"
    assert asked.refusal(START.replace(lr=1e-5, steps=7, warmup=1), found["quick"]) is None
    assert len(pool.asked) == 1
    assert [told["key"] for told in pool.asked[0]["contenders"]] == ["quick", "odd"]
    asked.refusal(START.replace(heads=2), found["quick"])
    assert len(pool.asked) == 2


def test_parameters_are_counted_once_a_shape() -> None:
    pool = Pool()
    asked = foresight(pool)
    assert asked.parameters([START, START.replace(d_ff=64), START.replace(lr=1e-5)]) == [
        100, 101, 100,
    ]  # fmt: skip
    assert asked.parameters([START.replace(d_ff=64)]) == [101]
    assert len(pool.asked) == 1


def test_a_worker_that_dies_over_the_question_refuses_nobody() -> None:
    pool, found = Pool(dies=True), contenders()
    asked = foresight(pool)
    assert asked.refusal(START, found["odd"]) is None
    with pytest.raises(UserError, match="parameters cannot be counted: it crashed"):
        asked.parameters([START])
