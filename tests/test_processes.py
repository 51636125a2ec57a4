"""Processes are joined so that each counts once, and nothing of any of them is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import HEALTHY, measure, write_suite

from attnbench.processes import Held, join
from attnbench.record import Samples
from attnbench.session import open_session
from attnbench.stats import median_interval, process_interval

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
    assert join([part(1.0)]) == part(1.0)


def test_samples_are_kept_by_process_and_the_interval_is_over_processes() -> None:
    parts = [part(1.0), part(1.02), part(1.05)]
    whole = join(parts)
    assert whole.times_s == [p.times_s[0] for p in parts]
    assert (whole.median_s, whole.low_s, whole.high_s) == (
        (i := process_interval(whole.times_s)).median, i.low, i.high,
    )  # fmt: skip
    assert whole.median_s == pytest.approx(1.02)
    assert whole.low_s < 1.0, "each process by itself was sure to a percent"
    assert (whole.warmup_s, whole.spent_s) == (1.5, 6.0)


@pytest.mark.parametrize("name", ["converged", "steady"])
def test_one_process_that_was_not_sure_makes_the_whole_not_sure(name: str) -> None:
    whole = join([part(1.0), part(1.0, **{name: False}), part(1.0)])
    assert getattr(whole, name) is False
    assert getattr(join([part(1.0)] * 3), name) is True


def test_without_warm_up_nothing_is_said_of_steadiness() -> None:
    assert join([part(1.0, steady=None)] * 2).steady is None


def test_another_method_in_a_later_process_is_told() -> None:
    graph = part(1.0, method="cuda graph of events")
    eager = part(1.0, method="cuda events", fallback="a CUDA graph was wanted, but no")
    whole = join([graph, eager, graph])
    assert whole.method == "cuda graph of events or cuda events"
    assert whole.fallback == "a CUDA graph was wanted, but no"


def test_what_only_the_first_process_measured_is_kept() -> None:
    def told(level_s: float, memory: Any) -> dict[str, Any]:
        return {
            "status": "ok", "samples": part(level_s).model_dump(), "host_samples": None,
            "memory": memory, "wall_s": 4.0,
        }  # fmt: skip

    held = Held(point=None, told=[told(1.0, {"peak_bytes": 7}), told(1.1, None)])  # type: ignore[arg-type]
    whole = held.joined()
    assert whole["memory"] == {"peak_bytes": 7}
    assert whole["host_samples"] is None
    assert len(whole["samples"]["times_s"]) == 2
    assert whole["wall_s"] == 8.0


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
