"""Whole runs that are watched: telemetry in each record, repeats after heat, blind machines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from helpers import HEALTHY, attnbench, write_suite

from attnbench.conditions import MOST_REPEATS
from attnbench.measure.energy_counters import Absent, meter_for
from attnbench.measure.sight import telemetry_sight
from attnbench.measure.telemetry import Sampler
from attnbench.record import Record
from attnbench.runner import Quiet, Runner
from attnbench.session import Session, open_session
from attnbench.suite import load_suite


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Holds the device, and so is watched."""
    project = tmp_path_factory.mktemp("project")
    (project / "impls").mkdir()
    for name in ("one", "two"):
        (project / "impls" / f"{name}.py").write_text(HEALTHY.format(name=name))
    wrong = HEALTHY.format(name="wrong").replace("(q, k, v)\n", "(q, k, v) * 1.5\n")
    (project / "impls" / "wrong.py").write_text(wrong)
    with open_session(project, "cpu") as opened:
        yield opened


class Phases(Quiet):
    """Counts who was told to have begun what."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str | None, str]] = Counter()

    def step(self, who: str | None, phase: str) -> None:
        self.begun[who, phase] += 1


def run(
    session: Session, tmp_path: Path, impls: tuple[str, ...] = ("one", "two"), **measure: Any
) -> tuple[dict[str, Record], Phases]:
    overrides = [f"measure.{key}={value}" for key, value in measure.items()]
    suite = load_suite(write_suite(tmp_path, impls, timeout_s=60), overrides)
    plan = session.plan(suite, tmp_path / "none.jsonl")
    kept: list[Record] = []
    phases = Phases()
    Runner(plan, session.pool, "none", kept.append, phases).run()
    records = {record.implementation.spec: record for record in kept}
    assert len(kept) == len(records) == len(impls), "every point has one record"
    assert all(r == Record.model_validate_json(r.to_line()) for r in kept)
    return records, phases


def test_each_record_says_what_the_machine_did_meanwhile(session: Session, tmp_path: Path) -> None:
    records, _ = run(session, tmp_path, max_s=0.5, precision=1e-9)
    told = records["one"].telemetry
    assert told == records["two"].telemetry, "they were timed together"
    assert told["verdict"] in ("clean", "disturbed")
    assert told["duration_s"] >= 1.0
    assert told["signals"]["worker_cores"]["mean"] > 0, "the fresh worker is the one watched"
    assert len(told["strip"]["t_s"]) <= 24
    assert all(why for why in told["absent"].values())
    assert len(json.dumps(told)) < 20_000


def test_what_failed_was_not_timed_and_has_no_telemetry(session: Session, tmp_path: Path) -> None:
    records, _ = run(session, tmp_path, ("one", "wrong"))
    assert records["wrong"].status == "incorrect"
    assert records["wrong"].telemetry == {}


def test_energy_is_measured_or_the_record_says_why_not(session: Session, tmp_path: Path) -> None:
    meter = meter_for("cpu")
    if not isinstance(meter, Absent):
        pytest.skip("this machine has RAPL: measuring would take half a minute")
    asked, phases = run(session, tmp_path, energy_s=10)
    assert asked["one"].energy is None
    assert asked["one"].energy_absent == meter.reason
    assert phases.begun["one", "energy"] == 1
    unasked, phases = run(session, tmp_path)
    assert (unasked["one"].energy, unasked["one"].energy_absent) == (None, None)
    assert phases.begun["one", "energy"] == 0


def test_energy_that_would_look_like_a_hang_is_refused(tmp_path: Path) -> None:
    words = ("--set", "measure.energy_s=30", "--dry-run")
    ended = attnbench("run", write_suite(tmp_path), *words, cwd=tmp_path)
    assert ended.code == 2
    assert "[measure]: energy_s = 30: needs a timeout_s of 90 or more" in ended.err


# ---- heat --------------------------------------------------------------------------------


class Hot:
    """Stands in for a sampler whose device is throttled during its first timings."""

    def __init__(self, hot_timings: int) -> None:
        self.hot_timings, self.cooled = hot_timings, 0

    def watch(self, pid: int) -> None: ...

    def window(self, t0: float, t1: float) -> dict[str, Any]:
        assert 0 < t0 < t1
        is_hot = self.cooled < self.hot_timings
        return {"verdict": "throttled" if is_hot else "clean", "notes": [], "signals": {}}

    def strip(self, t0: float, t1: float, points: int) -> dict[str, Any]:
        return {"t_s": []}

    def until_cool(self) -> float:
        self.cooled += 1
        return 1.0


@pytest.fixture
def make_hot(session: Session, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a stand-in in the sampler's place for a test."""

    def place(hot_timings: int) -> Hot:
        hot = Hot(hot_timings)
        monkeypatch.setattr(session.pool, "_sampler", cast(Sampler, hot))
        return hot

    return place


def test_a_throttled_timing_is_taken_again_and_recorded_once(
    session: Session, tmp_path: Path, make_hot: Any
) -> None:
    hot = make_hot(1)
    records, phases = run(session, tmp_path, ("one", "two", "wrong"))
    assert {spec: r.status for spec, r in records.items()} == {
        "one": "ok", "two": "ok", "wrong": "incorrect",
    }  # fmt: skip
    assert hot.cooled == 1
    assert phases.begun["one", "warm-up"] == phases.begun["two", "warm-up"] == 2
    assert records["one"].telemetry["repeats"] == 1
    assert records["one"].telemetry["verdict"] == "clean"


def test_a_device_that_stays_hot_is_recorded_as_throttled_after_two_repeats(
    session: Session, tmp_path: Path, make_hot: Any
) -> None:
    hot = make_hot(99)
    records, phases = run(session, tmp_path)
    assert hot.cooled == MOST_REPEATS
    assert phases.begun["one", "warm-up"] == 1 + MOST_REPEATS
    assert records["two"].status == "ok"
    assert records["two"].telemetry["verdict"] == "throttled"
    assert records["two"].telemetry["repeats"] == MOST_REPEATS


# ---- blind -------------------------------------------------------------------------------


def test_a_run_goes_on_without_its_sampler_and_says_that_it_was_blind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNBENCH_LOCK_DIR", str(tmp_path / "locks"))
    (tmp_path / "impls").mkdir()
    (tmp_path / "impls" / "one.py").write_text(HEALTHY.format(name="one"))
    with open_session(tmp_path, "cpu") as session:
        sampler = session.pool.sampler
        assert sampler is not None
        sampler._process.kill()
        sampler._process.wait()
        records, _ = run(session, tmp_path, ("one",))
    told = records["one"].telemetry
    assert records["one"].status == "ok"
    assert told["verdict"] == "unknown"
    assert "the sampler ended" in told["absent"]["sampler"]


def test_a_machine_that_tells_nothing_says_so_signal_by_signal(tmp_path: Path) -> None:
    seen = telemetry_sight("cuda:0", "GPU-none", tmp_path)
    assert {"others_cores", "cpu_frequency_mhz", "throttle", "gpu_others", "power_w"} <= set(seen)
    assert all(seen.values()), seen
    assert "NVML" in (seen["throttle"] or "")
    assert "No such file" in (seen["others_cores"] or "")


def test_doctor_lists_what_can_be_seen_and_why_not_the_rest(tmp_path: Path) -> None:
    ended = attnbench("doctor", "--device", "cpu", cwd=tmp_path)
    assert "telemetry sees others_cores" in ended.out
    meter = meter_for("cpu")
    expected = f"energy none: {meter.reason}" if isinstance(meter, Absent) else "energy RAPL"
    assert expected in ended.out
    for signal, why in telemetry_sight("cpu").items():
        if why is not None:
            assert signal in ended.out
            assert why in ended.out
