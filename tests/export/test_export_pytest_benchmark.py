"""pytest-benchmark's JSON, read back by pytest-benchmark itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from export_records import results
from made_records import machine, record, samples, write
from pytest_benchmark.stats import Stats

from attnbench.export import export
from attnbench.record import Energy


def exported(path: Path) -> dict:
    return json.loads(export("pytest-benchmark", [path]).data, parse_constant=pytest.fail)


def compared(*files: Path, group: str = "group") -> str:
    """What ``pytest-benchmark compare`` prints."""
    words = ["compare", *map(str, files), f"--group-by={group}", "--columns=median,rounds,ops"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", *words],
        capture_output=True, text=True, check=True, timeout=60, cwd=files[0].parent,
    )  # fmt: skip
    return ended.stdout + ended.stderr


def test_pytest_benchmark_compares_two_exports(tmp_path: Path) -> None:
    files = []
    for name, factor in (("a", 1.0), ("b", 2.0)):
        path = write(tmp_path / name, [record([[factor * 1e-3] * 4])])
        files.append(tmp_path / f"{name}.json")
        files[-1].write_bytes(export("pytest-benchmark", [path]).data)
    out = compared(*files)
    assert "2 tests" in out
    assert "test_attention[triton-B1-" in out
    assert re.search(r"\((\d+/)?a\)", out)
    assert "1.0000 (1.0)" in out
    assert "2.0000 (2.0" in out  # milliseconds, twice as long


@pytest.mark.parametrize("param", ["implementation", "seqlen", "mask", "dtype", "heads"])
def test_it_can_be_grouped_by_what_a_problem_is_made_of(tmp_path: Path, param: str) -> None:
    path = write(tmp_path, [record(seqlen=64), record(seqlen=128)])
    file = tmp_path / "a.json"
    file.write_bytes(export("pytest-benchmark", [path]).data)
    assert f"benchmark '{param}=" in compared(file, group=f"param:{param}")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 23])
def test_statistics_are_pytest_benchmarks_own(tmp_path: Path, count: int) -> None:
    times = [1e-3 * (1 + (i * i) % 7 + (10 if i == 3 else 0)) for i in range(count)]
    path = write(tmp_path, [record([times])])
    (benchmark,) = exported(path)["benchmarks"]
    real = Stats()
    for time in times:
        real.update(time)
    ours = benchmark["stats"]
    assert ours.pop("iterations") == 1
    assert ours.pop("data") == times
    for field, value in ours.items():
        expected = getattr(real, field)
        if not isinstance(value, str):
            expected = pytest.approx(expected)
        assert value == expected, field


def test_what_did_not_measure_is_left_out_and_told(tmp_path: Path) -> None:
    told = export("pytest-benchmark", [results(tmp_path)])
    names = [b["name"] for b in json.loads(told.data)["benchmarks"]]
    assert len(names) == 2
    assert not [name for name in names if "bad" in name]
    assert told.problems == (
        "without a time, left out: 1 crash, 1 error, 1 incorrect, 1 oom, 1 timeout, "
        "1 unavailable, 1 unsupported",
    )


def test_the_interval_the_machine_and_the_commit_are_told(tmp_path: Path) -> None:
    document = exported(results(tmp_path))
    info = document["benchmarks"][0]["extra_info"]
    assert info["samples"]["low_s"] <= info["samples"]["median_s"] <= info["samples"]["high_s"]
    assert info["samples"]["per_round"] == [[1, 1, 1], [1, 1, 1]]
    assert document["machine_info"]["cpu"]["brand_raw"] == "Imaginary Processor 9000"
    assert document["commit_info"]["id"] == "0123abcd" * 5
    assert document["commit_info"]["dirty"] is False


def test_host_time_energy_and_what_disturbed_are_told_beside(tmp_path: Path) -> None:
    host = samples([[2.0, 2.1]], clock="host", method="perf_counter_ns, synchronized")
    energy = Energy(
        gross_j=2.0, gross_low_j=1.9, gross_high_j=2.1, idle_w=80.0, power_w=500.0,
        joules=[2.0], calls=500, method="a counter",
    )  # fmt: skip
    telemetry = {"verdict": "disturbed", "notes": ["others"], "strip": {"t_s": [1]}}
    one = record(host_samples=host, energy=energy, telemetry=telemetry)
    (benchmark,) = exported(write(tmp_path, [one]))["benchmarks"]
    info = benchmark["extra_info"]
    assert info["host_samples"]["median_s"] == host.median_s
    assert "times_s" not in info["host_samples"]
    assert info["energy"]["gross_j"] == 2.0
    assert info["telemetry"] == {"verdict": "disturbed", "notes": ["others"]}


def test_names_are_the_same_in_every_run_and_hold_no_path(tmp_path: Path) -> None:
    path = results(tmp_path)
    first, second = exported(path), exported(path)
    assert first == second
    (name, other) = (b["fullname"] for b in first["benchmarks"])
    assert name.startswith("suites/quick.toml::test_attention[triton-B1-")
    assert name != other
    assert str(tmp_path) not in json.dumps(first)


@pytest.mark.parametrize("part", [{}, [], "x", {"git": "y"}, {"hardware": 3, "software": None}])
def test_an_environment_of_another_shape_breaks_nothing(tmp_path: Path, part: object) -> None:
    path = write(tmp_path, [record()])
    (file,) = tmp_path.glob("environment-*")
    file.write_text(json.dumps({"identity": part, "context": part}))
    assert exported(path)["commit_info"]["id"] == "unversioned"


def test_a_problem_of_another_version_goes_by_its_id(tmp_path: Path) -> None:
    path = write(tmp_path, [record(problem={"mask": ["new"], "seqlen_q": 3}, problem_id="p7")])
    (benchmark,) = exported(path)["benchmarks"]
    assert benchmark["group"] == "p7"
    assert benchmark["params"]["seqlen_q"] == 3


def test_two_machines_have_two_names(tmp_path: Path) -> None:
    other = machine(torch="2.14.0")
    told = [record(), record(environment=other)]
    path = write(tmp_path, told, "run.jsonl", machine(), other)
    names = {b["fullname"] for b in exported(path)["benchmarks"]}
    assert len(names) == 2
