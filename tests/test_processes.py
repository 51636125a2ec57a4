"""Processes are joined so that each counts once, and nothing of any of them is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import HEALTHY, measure, write_suite

from attnbench.plan import Contender, Plan, Point
from attnbench.process import WorkerDied
from attnbench.processes import Held, join
from attnbench.record import Record, Samples
from attnbench.registry import Entry, Source
from attnbench.runner import Runner
from attnbench.session import open_session
from attnbench.stats import median_interval, process_interval
from attnbench.suite import load_suite

PRECISION = 0.01
LATE = """
import os
from pathlib import Path
from torch.nn.functional import scaled_dot_product_attention
from attnbench import register

SEEN = Path({seen!r})

@register("{name}")
def attend(q, k, v, problem):
    with open(SEEN, "a") as seen:
        print(os.getpid(), file=seen)
    is_first = SEEN.read_text().split()[0] == str(os.getpid())
    out = scaled_dot_product_attention(q, k, v)
    return out if is_first or not {is_wrong} else 1.1 * out
"""


def part(level_s: float, **changes: Any) -> Samples:
    rounds = [[level_s * x for x in (0.99, 1.0, 1.01)]] * 5
    interval = median_interval(rounds)
    told = {
        "clock": "host", "method": "perf_counter_ns", "cache": "warm", "times_s": [rounds],
        "warmup_s": 0.5, "spent_s": 2.0, "steady": True, "median_s": interval.median,
        "low_s": interval.low, "high_s": interval.high, "converged": True,
    }  # fmt: skip
    return Samples.model_validate(told | changes)


def test_one_process_is_what_it_was() -> None:
    assert join([part(1.0)], PRECISION) == part(1.0)


def test_samples_are_kept_by_process_and_the_interval_is_over_processes() -> None:
    parts = [part(1.0), part(1.02), part(1.05)]
    whole = join(parts, PRECISION)
    assert whole.times_s == [p.times_s[0] for p in parts]
    assert (whole.median_s, whole.low_s, whole.high_s) == (
        (i := process_interval(whole.times_s)).median, i.low, i.high,
    )  # fmt: skip
    assert whole.median_s == pytest.approx(1.02)
    assert whole.low_s < 1.0, "each process by itself was sure to a percent"
    assert (whole.warmup_s, whole.spent_s) == (1.5, 6.0)


@pytest.mark.parametrize("name", ["converged", "steady"])
def test_one_process_that_was_not_sure_makes_the_whole_not_sure(name: str) -> None:
    whole = join([part(1.0), part(1.0, **{name: False}), part(1.0)], PRECISION)
    assert getattr(whole, name) is False
    assert getattr(join([part(1.0)] * 3, PRECISION), name) is True


def test_processes_that_are_each_sure_but_disagree_are_not_sure_together() -> None:
    whole = join([part(1.0), part(1.02), part(1.05)], PRECISION)
    assert (whole.high_s - whole.low_s) / 2 / whole.median_s > PRECISION
    assert not whole.converged
    assert join([part(1.0), part(1.0001), part(1.0002)], PRECISION).converged


def test_without_warm_up_nothing_is_said_of_steadiness() -> None:
    assert join([part(1.0, steady=None)] * 2, PRECISION).steady is None


def test_another_method_in_a_later_process_is_told() -> None:
    graph = part(1.0, method="cuda graph of events")
    eager = part(1.0, method="cuda events", fallback="a CUDA graph was wanted, but no")
    whole = join([graph, eager, graph], PRECISION)
    assert whole.method == "cuda graph of events or cuda events"
    assert whole.fallback == "a CUDA graph was wanted, but no"


def test_what_only_the_first_process_measured_is_kept() -> None:
    def told(level_s: float, memory: Any) -> dict[str, Any]:
        return {
            "status": "ok", "samples": part(level_s).model_dump(), "host_samples": None,
            "memory": memory, "accuracy": {}, "telemetry": {}, "wall_s": 4.0,
        }  # fmt: skip

    held = Held(point=None, told=[told(1.0, {"peak_bytes": 7}), told(1.1, None)])  # type: ignore[arg-type]
    whole = held.joined(PRECISION)
    assert whole["memory"] == {"peak_bytes": 7}
    assert whole["host_samples"] is None
    assert len(whole["samples"]["times_s"]) == 2
    assert whole["wall_s"] == 8.0


def test_the_largest_error_of_all_processes_counts() -> None:
    def told(**max_abs: float) -> dict[str, Any]:
        accuracy = {name: {"ok": True, "max_abs": error} for name, error in max_abs.items()}
        return {
            "status": "ok", "samples": part(1.0).model_dump(), "accuracy": accuracy,
            "telemetry": {}, "wall_s": 1.0,
        }  # fmt: skip

    held = Held(point=None, told=[told(out=1e-6, dq=3e-6), told(out=2e-6, dq=1e-6)])  # type: ignore[arg-type]
    errors = {name: a["max_abs"] for name, a in held.joined(PRECISION)["accuracy"].items()}
    assert errors == {"out": 2e-6, "dq": 3e-6}


# ---- through the runner ------------------------------------------------------------------


class FakePool:
    """Workers that tell what a script says: by process, what becomes of each contender."""

    device = "cpu"
    sampler = None

    def __init__(self, script: list[dict[str, str]]) -> None:
        self.script = script
        self.is_fresh = True
        self.log: list[str] = []

    def drop(self) -> None:
        self.is_fresh = True

    def ask(self, task: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
        process, keys = task["process"], [told["key"] for told in task["contenders"]]
        fresh = "fresh" if self.is_fresh else "used"
        self.log.append(f"{process} {fresh}: {' '.join(keys)}")
        self.is_fresh = False
        for key in keys:
            yield {"event": "step", "who": key, "phase": "measure"}
            fate = self.script[process][key]
            if fate == "dies":
                self.drop()
                raise WorkerDied("crash", "it died", "")
            yield {"event": "result", "who": key, "alone": len(keys) == 1} | self.result(fate)

    @staticmethod
    def result(fate: str) -> dict[str, Any]:
        if fate != "ok":
            return {"status": fate, "reason": "because", "log_tail": None}
        return {
            "status": "ok", "samples": part(1.0).model_dump(), "host_samples": None,
            "memory": None, "accuracy": {"out": {"ok": True, "max_abs": 0.0}}, "wall_s": 1.0,
        }  # fmt: skip


def ended(tmp_path: Path, script: list[dict[str, str]]) -> tuple[list[str], dict[str, Record]]:
    """What was asked of whom, and the records."""
    path = write_suite(tmp_path, list(script[0]))
    path.write_text(path.read_text() + f"processes = {len(script)}\n")
    suite = load_suite(path)
    (problem,) = suite.problems
    points = [
        Point(Contender(Entry(name, Source("project", name), f"{name}.py", 1)), problem, name)
        for name in script[0]
    ]
    pool, records = FakePool(script), dict[str, Record]()
    plan = Plan(suite, "cpu", [points])
    Runner(plan, pool, "none", lambda r: records.setdefault(r.id, r) and None).run()  # type: ignore[arg-type]
    assert len(records) == len(points)
    return pool.log, records


def test_a_group_goes_through_fresh_processes_one_after_the_other(tmp_path: Path) -> None:
    log, records = ended(tmp_path, [{"a": "ok", "b": "ok"}] * 3)
    assert log == ["0 fresh: a b", "1 fresh: a b", "2 fresh: a b"]
    assert [len(r.samples.times_s) for r in records.values() if r.samples] == [3, 3]
    assert records["a"].wall_s == 3.0


@pytest.mark.parametrize("fate", ["incorrect", "oom", "dies"])
def test_who_fails_in_a_later_process_has_failed_and_the_others_go_on(
    tmp_path: Path, fate: str
) -> None:
    fates = [{"a": "ok", "b": "ok"}, {"a": fate, "b": "ok"}, {"a": "ok", "b": "ok"}]
    log, records = ended(tmp_path, fates)
    assert records["a"].status == ("crash" if fate == "dies" else fate)
    assert records["a"].samples is None
    assert records["b"].samples is not None
    assert len(records["b"].samples.times_s) == 3
    assert log[-1] == "2 fresh: b", "who has failed is not measured again"


def test_nobody_left_ends_the_group(tmp_path: Path) -> None:
    log, records = ended(tmp_path, [{"a": "incorrect"}, {"a": "ok"}])
    assert log == ["0 fresh: a"]
    assert records["a"].status == "incorrect"


def test_one_process_need_not_be_a_fresh_one(tmp_path: Path) -> None:
    log, records = ended(tmp_path, [{"a": "ok"}])
    assert len(log) == 1
    assert records["a"].samples == part(1.0)


# ---- through real workers ----------------------------------------------------------------


@pytest.mark.slow
def test_every_process_is_a_fresh_one_and_who_fails_in_a_later_one_has_failed(
    tmp_path: Path,
) -> None:
    impls = tmp_path / "impls"
    impls.mkdir()
    for name, is_wrong in (("steady", False), ("late", True)):
        text = LATE.format(seen=str(tmp_path / name), name=name, is_wrong=is_wrong)
        (impls / f"{name}.py").write_text(text)
    (impls / "healthy.py").write_text(HEALTHY.format(name="healthy"))
    suite = write_suite(tmp_path, ["steady", "late", "healthy"])
    suite.write_text(suite.read_text() + "processes = 2\n")
    with open_session(tmp_path, "cpu", lock=False) as session:
        records = measure(session, suite, tmp_path)
    told = {spec: record for (spec, _), record in records.items()}
    assert {spec: r.status for spec, r in told.items()} == {
        "steady": "ok", "late": "incorrect", "healthy": "ok",
    }  # fmt: skip
    assert "1.1" in (told["late"].reason or "")
    assert len(set((tmp_path / "steady").read_text().split())) == 2
    for spec in ("steady", "healthy"):
        samples, memory = told[spec].samples, told[spec].memory
        assert samples is not None
        assert len(samples.times_s) == 2
        assert all(len(rounds) >= 2 for rounds in samples.times_s)
        assert memory is not None
        assert memory.peak_bytes is not None
        assert (samples.method, samples.cache) == ("perf_counter_ns", "warm")
        assert (told[spec].wall_s or 0) > (samples.spent_s or 0) > 0
