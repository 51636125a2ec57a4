"""Ceilings are measured once, kept, found again, and accuse nobody wrongly."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import HEALTHY, write_suite

from attnbench import environment as environments
from attnbench.limits import Limits, ceilings_of, place_record
from attnbench.pool import WorkerPool
from attnbench.problem import Problem
from attnbench.process import Event, WorkerDied
from attnbench.record import Implementation, Record, Samples, TensorAccuracy
from attnbench.runner import Runner
from attnbench.session import Session, open_session
from attnbench.suite import load_suite

ENVIRONMENT: dict[str, Any] = {
    "identity": {"hardware": {"device": "cpu", "cpu": "Fast CPU", "threads": 2}, "software": {}},
    "context": {"git": None, "os": "Linux"},
}
PROBLEM = Problem.of(seqlen=512, heads=4, head_dim=64)
CLEAN = {"verdict": "clean", "notes": []}
DISTURBED = {"verdict": "disturbed", "notes": ["others used 2 of 2 cores"]}


def told(flops: float, days_ago: float = 0.0, telemetry: dict[str, Any] = CLEAN) -> dict[str, Any]:
    """A section ``ceilings`` in which float32 is multiplied that fast."""
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    rate = {"median": flops, "low": flops, "high": flops, "best": flops, "what": "a test"}
    return {
        "measured": when.isoformat(timespec="seconds"),
        "telemetry": telemetry,
        "bandwidth": {},
        "matmul": {"float32": rate},
    }


class Pool(WorkerPool):
    """Answers with made-up ceilings instead of starting a worker."""

    def __init__(self, *flops: float) -> None:
        super().__init__("cpu")
        self.answers = list(flops)

    def ask(self, task: Event, timeout_s: float) -> Iterable[Event]:
        assert task["do"] == "ceilings"
        flops = self.answers.pop(0)
        if not flops:
            raise WorkerDied("oom", "killed by the kernel", "")
        rates = {k: v for k, v in told(flops).items() if k in ("bandwidth", "matmul")}
        yield {"event": "ceilings", "ceilings": rates, "begin": 0.0, "end": 1.0}


def limits_of(folder: Path | None, *flops: float, **environment: Any) -> Limits:
    return Limits(Pool(*flops), {**copy.deepcopy(ENVIRONMENT), **environment}, folder, 1.0)


def samples_of(flops_a_second: float) -> Samples:
    seconds = PROBLEM.flops() / flops_a_second
    return Samples(
        clock="host", times_s=[[[seconds]]], median_s=seconds, low_s=seconds, high_s=seconds,
        converged=True,
    )  # fmt: skip


def fault(limits: Limits, flops_a_second: float) -> str | None:
    return limits.fault(PROBLEM, samples_of(flops_a_second), is_exact=True, clock_mhz=None)


# ---- keeping -----------------------------------------------------------------------------


def test_they_are_measured_once_and_found_by_the_next_run(tmp_path: Path) -> None:
    first = limits_of(tmp_path, 2e11)
    assert first.settle() == "Ceilings measured: float32 200 GFLOPS"
    first.save()
    second = limits_of(tmp_path)
    assert second.settle().startswith("Ceilings of 20")
    assert second.environment["ceilings"] == first.environment["ceilings"]
    assert second.save() == first.save(), "the same environment has the same file"


def test_they_do_not_make_another_machine(tmp_path: Path) -> None:
    limits = limits_of(tmp_path, 2e11)
    before = environments.machine_id(limits.environment), environments.address(limits.environment)
    limits.settle()
    assert environments.machine_id(limits.environment) == before[0]
    assert environments.address(limits.environment) != before[1]
    (file,) = tmp_path.glob("environment-*.json") if limits.save() else ()
    assert json.loads(file.read_text())["ceilings"]["matmul"]["float32"]["median"] == 2e11


@pytest.mark.parametrize(
    ("why", "ceilings", "identity"),
    [
        ("too old", told(1e11, days_ago=8), {}),
        ("disturbed", told(1e11, telemetry=DISTURBED), {}),
        ("none in it", {"measured": "2026-01-01", "bandwidth": {}, "matmul": {}}, {}),
        ("damaged", {"measured": 7}, {}),
        ("another machine", told(1e11), {"hardware": {"device": "cpu"}}),
    ],
)
def test_what_does_not_fit_is_measured_again(
    tmp_path: Path, why: str, ceilings: dict[str, Any], identity: dict[str, Any]
) -> None:
    earlier = copy.deepcopy(ENVIRONMENT) | {"ceilings": ceilings}
    earlier["identity"] |= identity
    environments.save(earlier, tmp_path)
    (tmp_path / "environment-broken.json").write_text("{")
    limits = limits_of(tmp_path, 3e11)
    assert limits.settle() == "Ceilings measured: float32 300 GFLOPS", why


def test_the_newest_of_several_counts(tmp_path: Path) -> None:
    for days, flops in ((3, 1e11), (1, 2e11), (5, 4e11)):
        told_then = copy.deepcopy(ENVIRONMENT) | {"ceilings": told(flops, days_ago=days)}
        environments.save(told_then, tmp_path)
    limits = limits_of(tmp_path)
    assert "float32 200 GFLOPS" in limits.settle()


def test_without_a_budget_nothing_is_measured() -> None:
    limits = limits_of(None)
    limits.budget_s = 0.0
    assert limits.settle() == ""
    assert "ceilings" not in limits.environment
    assert fault(limits, 1e20) is None


def test_a_worker_that_dies_over_them_costs_only_the_ceilings() -> None:
    limits = limits_of(None, 0.0)
    assert limits.settle() == "Ceilings measured: none (killed by the kernel)"
    assert ceilings_of(limits.environment) is None
    assert fault(limits, 1e20) is None


# ---- judging -----------------------------------------------------------------------------


def test_a_time_that_beats_them_is_named() -> None:
    limits = limits_of(None, ceilings=told(2e11))
    assert fault(limits, 1.9e11) is None
    assert fault(limits, 2.2e11) is None, "a ceiling is a measurement too"
    found = fault(limits, 4e11)
    assert found is not None
    assert found.startswith("implausibly fast: 0.4 TFLOPS; the fastest float32 product")


def test_ceilings_that_were_disturbed_accuse_nobody() -> None:
    limits = limits_of(None, ceilings=told(1e9, telemetry=DISTURBED))
    assert fault(limits, 4e11) is None


def test_the_better_of_two_measurements_counts_and_there_is_no_third() -> None:
    limits = limits_of(None, 1e11, 1e12, ceilings=told(2e11))
    limits.measure_again()
    assert fault(limits, 2.1e11) is None, "the second one was lower; the first still counts"
    limits.measure_again()
    assert fault(limits, 1e12) is not None


def test_a_second_measurement_that_fails_leaves_the_first() -> None:
    limits = limits_of(None, 0.0, ceilings=told(2e11))
    limits.measure_again()
    assert fault(limits, 1e12) is not None


def test_a_record_is_placed_on_load() -> None:
    samples = samples_of(1e11)
    record = Record(
        id="1", suite="s", time="", attnbench="", implementation=Implementation(name="x"),
        problem=PROBLEM.to_json(), problem_id=PROBLEM.id, device="cpu", status="ok",
        samples=samples, accuracy={"out": TensorAccuracy(ok=True, max_abs=0.0)}, environment="e",
    )  # fmt: skip
    found = place_record(record, {"ceilings": told(2e11)})
    assert found is not None
    assert found.share == pytest.approx(0.5)
    doubtful = place_record(record, {"ceilings": told(1e9, telemetry=DISTURBED)})
    assert doubtful is not None
    assert (doubtful.share, doubtful.implausible) == (None, None)
    assert "disturbed" in (doubtful.absent or "")
    assert place_record(record, ENVIRONMENT) is None
    assert place_record(record.model_copy(update={"samples": None}), ENVIRONMENT) is None


# ---- through the runner ------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A real session with one healthy implementation."""
    project = tmp_path_factory.mktemp("project")
    (project / "impls").mkdir()
    (project / "impls" / "one.py").write_text(HEALTHY.format(name="one"))
    with open_session(project, "cpu", lock=False) as opened:
        yield opened


def run(session: Session, tmp_path: Path, ceilings: dict[str, Any], budget_s: float) -> Record:
    suite = load_suite(write_suite(tmp_path, ["one"], seqlen=128, head_dim=64))
    records: list[Record] = []
    environment = {**session.environment, "ceilings": ceilings}
    limits = Limits(session.pool, environment, tmp_path / "kept", budget_s)
    plan = session.plan(suite, tmp_path / "none.jsonl")
    Runner(plan, session.pool, limits.save(), records.append, limits=limits).run()
    (record,) = records
    assert (tmp_path / "kept" / f"environment-{record.environment}.json").exists()
    return record


def test_an_implausible_time_is_an_error_and_no_record_of_a_time(
    session: Session, tmp_path: Path
) -> None:
    record = run(session, tmp_path, told(1e3), budget_s=0.0)  # a thousand FLOPs a second
    assert record.status == "error"
    assert (record.reason or "").startswith("implausibly fast: ")
    assert record.samples is None


def test_ceilings_that_were_too_low_are_measured_again_before_anybody_is_accused(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(limits: Limits) -> None:
        assert limits.pool.is_fresh, "who is suspected may have meddled in the old worker"
        limits.environment["ceilings"] = told(1e15)

    monkeypatch.setattr(Limits, "_measure", measure)
    record = run(session, tmp_path, told(1e3), budget_s=0.1)
    assert record.status == "ok", record.reason
    kept = json.loads((tmp_path / "kept" / f"environment-{record.environment}.json").read_text())
    assert kept["ceilings"]["matmul"]["float32"]["best"] == 1e15
    placed = place_record(record, kept)
    assert placed is not None
    assert placed.share is not None
    assert placed.share < 1


def test_a_real_worker_measures_them_before_any_plugin_was_at_work(session: Session) -> None:
    limits = Limits(session.pool, dict(session.environment), None, budget_s=0.1)
    limits.environment.pop("ceilings", None)
    assert limits.settle().startswith("Ceilings measured: copy ")
    assert session.pool.is_fresh, "the worker that measured them serves the first problem too"
    found = ceilings_of(limits.environment)
    assert found is not None
    assert found.matmul["float32"].best > 1e6
