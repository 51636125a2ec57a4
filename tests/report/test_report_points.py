"""From records to points and the frame: derived figures, and what may not be mixed."""

import math
import subprocess
import sys

import pandas as pd
import pytest
from synthetic_records import (
    BASELINE,
    ENVIRONMENT,
    environment_address,
    record,
    sweep,
    write_run,
)

from attnbench.errors import UserError
from attnbench.problem import Problem
from attnbench.record import Record, Samples
from attnbench.report import load_frame
from attnbench.report.points import current, load_points, speedup
from attnbench.report.tables import figures
from attnbench.stats import Interval

PROBLEM = Problem.of(heads=8, head_dim=64, seqlen=128)


def timed(median: float, low: float, high: float) -> dict[str, Samples]:
    return {
        "samples": Samples(
            clock="host", times_s=[[[median]]], median_s=median, low_s=low, high_s=high,
            converged=True,
        )
    }  # fmt: skip


def test_the_frame_has_one_row_a_point_with_figures_that_follow_from_the_record(tmp_path):
    base = record("naive", PROBLEM, **timed(4e-3, 3.9e-3, 4.1e-3))
    fast = record("sdpa", PROBLEM, **timed(1e-3, 0.9e-3, 1.2e-3))
    frame = load_frame([write_run(tmp_path, [base, fast])]).set_index("implementation")
    row = frame.loc["sdpa"]
    flops = 4 * 8 * 128 * 128 * 64  # two matrix products, two FLOPs a multiply-add
    assert row.flops == flops
    assert row.tflops == pytest.approx(flops / 1e-3 / 1e12)
    assert row.tflops_low == pytest.approx(flops / 1.2e-3 / 1e12)  # the slow end
    assert row.tflops_high == pytest.approx(flops / 0.9e-3 / 1e12)
    assert row.intensity == pytest.approx(flops / PROBLEM.ideal_bytes())
    assert row.speedup == pytest.approx(4.0)
    assert list(frame.loc["naive"][["speedup", "speedup_low", "speedup_high"]]) == [1, 1, 1]
    assert row.seqlen_q == 128
    assert row.d_model == 512
    assert row["mask"] == "full"
    assert row.peak_bytes == fast.memory.peak_bytes
    assert row.out_rel_l2 == fast.accuracy["out"].rel_l2


def test_the_interval_of_a_speedup_combines_both_intervals_on_the_log_scale():
    found = speedup(Interval(4.0, 3.0, 5.0), Interval(2.0, 1.5, 3.0))
    down = math.hypot(math.log(4 / 3), math.log(3 / 2))
    up = math.hypot(math.log(5 / 4), math.log(2 / 1.5))
    assert found.median == pytest.approx(2.0)
    assert found.low == pytest.approx(2 * math.exp(-down))
    assert found.high == pytest.approx(2 * math.exp(up))
    assert found.low > 3.0 / 3.0  # tighter than dividing the worst ends by each other


def test_what_was_not_measured_is_missing_and_never_zero(tmp_path):
    frame = load_frame([write_run(tmp_path, sweep())])
    failed = frame[frame.status != "ok"]
    assert len(failed) > 0
    for column in ("median_s", "low_s", "tflops", "speedup", "peak_bytes"):
        assert failed[column].isna().all()
    assert failed.reason.notna().all()
    assert set(frame.status) >= {"ok", "incorrect", "unsupported", "oom", "crash", "timeout"}


def test_without_the_baselines_time_there_is_no_speedup(tmp_path):
    records = [record("naive", PROBLEM, status="oom"), record("sdpa", PROBLEM)]
    frame = load_frame([write_run(tmp_path, records)])
    assert frame.speedup.isna().all()
    alone = load_frame([write_run(tmp_path / "b", [record("sdpa", PROBLEM, baseline="gone")])])
    assert alone.speedup.isna().all()


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cuda:1"},
        {"environment": "another-place"},
        {"suite": "another"},
        {"problem": PROBLEM.replace(dtype="bfloat16")},
    ],
)
def test_a_baseline_of_another_device_machine_suite_or_problem_does_not_count(tmp_path, other):
    problem = other.pop("problem", PROBLEM)
    records = [record("naive", problem, **other), record("sdpa", PROBLEM)]
    frame = load_frame([write_run(tmp_path, records)]).set_index("implementation")
    assert math.isnan(frame.loc["sdpa"].speedup)


def test_a_baseline_with_options_is_found_however_its_options_are_ordered(tmp_path):
    baseline = "triton:block_n=32,block_m=64"
    records = [
        record("triton:block_m=64,block_n=32", PROBLEM, baseline=baseline),
        record("triton:block_m=16,block_n=32", PROBLEM, baseline=baseline),
    ]
    frame = load_frame([write_run(tmp_path, records)])
    assert frame.is_baseline.sum() == 1
    assert frame.speedup.notna().all()


def test_the_order_of_records_and_files_does_not_matter(tmp_path):
    records = sweep()
    one = load_frame([write_run(tmp_path / "one", records)])
    write_run(tmp_path / "two", records[::-2], name="a.jsonl")
    write_run(tmp_path / "two", records[-2::-2], name="b.jsonl")
    pd.testing.assert_frame_equal(one, load_frame([tmp_path / "two"]))


def test_an_earlier_source_of_an_implementation_is_left_out_and_told(tmp_path):
    old = record("mine", PROBLEM, source="a" * 64, time="2026-01-01T00:00:00Z")
    new = record("mine", PROBLEM, source="b" * 64, time="2026-01-02T00:00:00Z")
    other = record("naive", PROBLEM, time="2026-01-01T00:00:00Z")
    loaded = load_points([write_run(tmp_path, [new, old, other])])
    kept, told = current(loaded.points)
    assert {p.record.id for p in kept} == {new.id, other.id}
    assert len(told) == 1
    assert "mine: 1 older record(s)" in told[0]
    assert len(load_frame([tmp_path])) == 3  # the frame keeps everything


def test_a_problem_of_a_newer_attnbench_keeps_its_time_but_has_no_flops(tmp_path):
    known = record("sdpa", PROBLEM)
    newer = known.to_line().replace('"batch":1', '"batch":1,"twist":7')
    newer = newer.replace('"schema_version":"1.0.0"', '"schema_version":"1.9.0","colour":"red"')
    path = write_run(tmp_path, [])
    path.write_text(newer, encoding="utf-8")
    loaded = load_points([path])
    (point,) = loaded.points
    assert point.time_s is not None
    assert point.flops is None
    assert point.rate is None
    assert point.fields["twist"] == 7
    assert any("twist" in line for line in loaded.problems)


def test_a_mask_of_a_newer_attnbench_is_called_by_its_kind(tmp_path):
    line = (
        record("sdpa", PROBLEM).to_line().replace('{"kind":"full"}', '{"kind":"spiral","turns":3}')
    )
    path = write_run(tmp_path, [])
    path.write_text(line, encoding="utf-8")
    (point,) = load_points([path]).points
    assert point.fields["mask"] == "spiral"
    assert point.fields["turns"] == 3


def test_the_worst_error_is_that_of_the_tensor_nearest_its_tolerance(tmp_path):
    backward = PROBLEM.replace(direction="backward")
    one = record("sdpa", backward)
    worst = max(a.rel_l2 / a.rel_l2_allowed for a in one.accuracy.values())
    frame = load_frame([write_run(tmp_path, [one])])
    assert frame.error_ratio[0] == pytest.approx(worst)
    assert one.accuracy[frame.worst_tensor[0]].rel_l2 / one.accuracy[
        frame.worst_tensor[0]
    ].rel_l2_allowed == pytest.approx(worst)


def test_host_time_stands_beside_device_time_and_both_say_how_they_were_taken(tmp_path):
    plain = record("sdpa", PROBLEM)
    host = plain.samples.model_copy(
        update={"median_s": 3.0, "low_s": 2.9, "high_s": 3.1, "method": "wall"}
    )
    device = plain.samples.model_copy(
        update={"clock": "device", "method": "cuda events", "cache": "cold", "fallback": "no graph"}
    )
    both = plain.model_copy(update={"samples": device, "host_samples": host})
    path = write_run(tmp_path, [both, record("naive", PROBLEM)])
    bare, timed = load_points([path]).points
    assert timed.host_s == Interval(3.0, 2.9, 3.1)
    assert figures(timed)["host_time"] == "3.00 s [2.90, 3.10]"
    assert figures(timed)["how"] == "device clock, cuda events, cold caches (no graph)"
    assert bare.host_s is None
    assert "host_time" not in figures(bare)
    frame = load_frame([path]).set_index("implementation")
    assert frame.host_median_s["sdpa"] == 3.0
    assert frame.host_median_s.isna()["naive"]
    assert (frame.clock["sdpa"], frame.cache["sdpa"]) == ("device", "cold")


def test_a_missing_or_damaged_sidecar_is_told_and_not_fatal(tmp_path):
    path = write_run(tmp_path, [record("sdpa", PROBLEM)], environment=None)
    loaded = load_points([path])
    assert len(loaded.points) == 1
    assert any("missing" in line for line in loaded.problems)
    sidecar = tmp_path / f"environment-{environment_address()}.json"
    sidecar.write_text("{torn", encoding="utf-8")
    assert any("cannot be read" in line for line in load_points([path]).problems)


def test_environments_with_one_identity_are_one_machine_and_others_are_not(tmp_path):
    later = {**ENVIRONMENT, "context": {"git": {"commit": "ffff", "dirty": False}}}
    elsewhere = {**ENVIRONMENT, "identity": {"hardware": {"cpu": "Another"}}}
    for environment in (ENVIRONMENT, later, elsewhere):
        address = environment_address(environment)
        one = record("sdpa", PROBLEM, environment=address)
        write_run(tmp_path, [one], name=f"{address}.jsonl", environment=environment)
    frame = load_frame([tmp_path])
    assert len(frame) == 3
    assert frame.machine.nunique() == 2


def test_damaged_lines_are_told(tmp_path):
    path = write_run(tmp_path, [record("sdpa", PROBLEM)])
    with path.open("a", encoding="utf-8") as file:
        file.write("not a record\n" + record("naive", PROBLEM).to_line()[:50])
    frame = load_frame([path])
    assert len(frame) == 1
    assert len(frame.attrs["problems"]) == 2


def test_no_records_give_an_empty_frame_and_a_missing_path_an_error(tmp_path):
    assert len(load_frame([write_run(tmp_path, [])])) == 0
    with pytest.raises(UserError, match="no such file"):
        load_frame([tmp_path / "nowhere.jsonl"])


def test_reporting_never_imports_torch(tmp_path):
    path = write_run(tmp_path, [record("sdpa", PROBLEM), record(BASELINE, PROBLEM)])
    code = (
        "import sys\nfrom pathlib import Path\nfrom attnbench.report import load_frame, render\n"
        f"load_frame([Path({str(path)!r})])\n"
        f"render([Path({str(path)!r})], Path({str(tmp_path / 'out')!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_records_of_the_generator_are_valid():
    for one in sweep():
        assert Record.model_validate_json(one.to_line()) == one
