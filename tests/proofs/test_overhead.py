"""The sums of the overhead benchmark, on made-up records; slow: the real share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import overhead
import pytest
from made_records import record
from overhead import Stopwatch, as_proof, shares

from attnbench.session import open_session


def test_the_share_counts_every_call_of_a_sample_and_the_warm_up() -> None:
    records = [
        record([0.1, 0.1, 0.1], how={"calls_per_sample": 10, "warmup_s": 1.0}),
        record([[1.0, 1.0], [0.5, 0.5]], how={"warmup_s": 1.0}),
    ]
    phases = Counter({"measure": 7.0, "warm-up": 2.0, "verify": 1.0})
    found = shares(records, 10.0, phases)
    assert (found.samples_s, found.warmup_s, found.points) == (6.0, 2.0, 2)
    assert found.share == pytest.approx(0.8)
    assert found.rest_s == pytest.approx(
        {"between samples": 1.0, "verify": 1.0, "between warm-ups": 0.0}
    )


def test_the_untimed_calls_of_the_rounds_are_warm_up_where_the_record_tells_them() -> None:
    told = record([1.0, 1.0, 1.0], how={"warmup_s": 1.0, "spent_s": 3.5})
    found = shares([told], 10.0, Counter({"measure": 4.0, "warm-up": 1.0}))
    assert found.openings_s == pytest.approx(0.5)
    assert found.share == pytest.approx(0.45)
    assert found.rest_s["between samples"] == pytest.approx(0.5)


def test_the_rest_adds_up_to_the_wall() -> None:
    phases = Counter({"start": 2.0, "measure": 3.0, "warm-up": 1.5, "reference": 1.0})
    found = shares([record([1.0, 1.0], how={"warmup_s": 1.0})], phases.total(), phases)
    assert sum(found.rest_s.values()) + found.samples_s + found.warmup_s == found.wall_s


def test_a_run_with_a_point_that_failed_has_no_share() -> None:
    with pytest.raises(ValueError, match="because of crash"):
        shares([record(), record(status="crash")], 10.0, Counter())


@pytest.mark.parametrize(("samples_s", "is_kept"), [(7.0, True), (6.9, False)])
def test_the_bound_is_on_the_share(samples_s: float, is_kept: bool) -> None:
    proof = as_proof(shares([record([samples_s / 2] * 2)], 10.0, Counter()))
    assert proof.is_kept is is_kept


def test_the_stopwatch_gives_time_to_the_phase_that_was_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(moments))
    watch = Stopwatch()
    watch.group_begins([])
    watch.step(None, "reference")
    watch.step("naive", "build")
    watch.group_begins([])
    watch.stop()
    assert watch.seconds == {
        "start": 1.0 + 2.0, "reference": 3.0, "build": 4.0, "between problems": 5.0,
    }  # fmt: skip


@pytest.mark.slow
def test_most_of_a_run_is_measuring(tmp_path: Path) -> None:
    """On a quiet machine: see docs/instrument.md."""
    with open_session(tmp_path, "cpu") as session:
        proof = overhead.prove(session, tmp_path)
    assert proof.is_kept, proof.rows
