"""Bencher and github-action-benchmark: the shapes that their readers ask for."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from export_records import results
from made_records import machine, record, trained, write

from attnbench.errors import UserError
from attnbench.export import FORMATS, export


def exported(name: str, path: Path) -> Any:
    return json.loads(export(name, [path]).data, parse_constant=pytest.fail)


def is_metric(value: Any) -> bool:
    """A metric of Bencher: ``value``, maybe ``lower_value`` and ``upper_value``."""
    return (
        isinstance(value, dict)
        and {"value"} <= value.keys() <= {"value", "lower_value", "upper_value"}
        and all(isinstance(v, float) and math.isfinite(v) for v in value.values())
        and value.get("lower_value", -math.inf) <= value["value"]
        and value["value"] <= value.get("upper_value", math.inf)
    )


def test_bencher_is_benchmark_measure_metric(tmp_path: Path) -> None:
    document = exported("bencher", results(tmp_path))
    assert len(document) == 2
    for name, measures in document.items():
        assert 0 < len(name) <= 1024
        assert all(re.fullmatch(r"[a-z-]+", measure) for measure in measures)
        assert all(map(is_metric, measures.values()))
    triton, sdpa = document.values()
    assert triton["latency"]["value"] == pytest.approx(1e6)  # nanoseconds
    assert triton["peak-memory"] == {"value": 2.0**24}
    assert "peak-memory" not in sdpa  # not measured is not 0


def test_github_action_is_an_array_of_named_values_with_units(tmp_path: Path) -> None:
    entries = exported("github-action-benchmark", results(tmp_path))
    assert [e["unit"] for e in entries] == ["ms", "MiB", "ms"]
    assert len({e["name"] for e in entries}) == 3
    for entry in entries:
        assert entry.keys() <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], float)
    time, memory, _ = entries
    assert (time["value"], memory["value"]) == (pytest.approx(1.0), 16.0)
    assert re.fullmatch(r"± [\d.e-]+", time["range"])
    assert time["extra"].splitlines()[0] == "host clock, 6 samples"


JSON = ("pytest-benchmark", "bencher", "github-action-benchmark")


@pytest.mark.parametrize("name", JSON)
def test_what_did_not_measure_is_left_out_and_told(name: str, tmp_path: Path) -> None:
    told = export(name, [results(tmp_path)])
    assert b"bad-" not in told.data
    assert told.problems[0].startswith("without a time, left out: 1 crash, ")


@pytest.mark.parametrize("name", JSON)
def test_a_run_in_which_nothing_measured_is_an_empty_document(name: str, tmp_path: Path) -> None:
    document = exported(name, write(tmp_path, [record(status="oom")]))
    assert not (document["benchmarks"] if name == "pytest-benchmark" else document)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_file_or_an_empty_one_is_a_mistake(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        export(name, [tmp_path / "none.jsonl"])
    with pytest.raises(UserError, match="no record in"):
        export(name, [write(tmp_path, [])])


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown format 'benchr'.*did you mean 'bencher'\?"):
        export("benchr", [])


def test_a_name_is_the_same_whatever_else_is_exported(tmp_path: Path) -> None:
    """Histories are drawn along names: another machine must not rename a point of one."""
    alone = exported("bencher", write(tmp_path / "a", [record()]))
    both = exported("bencher", write(tmp_path / "b", [record(), record(seqlen=64)]))
    assert alone.keys() <= both.keys()


def test_points_of_two_machines_and_two_seeds_are_told_apart(tmp_path: Path) -> None:
    other = machine(torch="2.14.0")
    other["identity"]["hardware"] = {"cpu": "Another", "device": "cpu"}
    told = [record(), record(environment=other), record(seqlen=64), record(seqlen=64, seed=1)]
    told = [r.model_copy(update={"id": f"id{i}"}) for i, r in enumerate(told)]
    path = write(tmp_path, told, "run.jsonl", machine(), other)
    names = list(exported("bencher", path))
    assert names[0].endswith(" on Imaginary Processor 9000 cpu")
    assert names[1].endswith(" on Another cpu")
    assert names[2].endswith(" as id2")
    assert names[3].endswith(" as id3")


def test_a_source_that_was_edited_leaves_its_earlier_records_out(tmp_path: Path) -> None:
    old, new = (
        record([t, t], source=s * 64, time=f"2026-01-0{day}T00:00:00+00:00")
        for t, s, day in ((5.0, "a", 1), (1.0, "b", 2))
    )
    told = export("bencher", [write(tmp_path, [new, old])])
    ((measures),) = json.loads(told.data).values()
    assert measures["latency"]["value"] == pytest.approx(1e9)
    assert told.problems == ("1 earlier records of points that were measured again: left out",)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"parquet"}))
def test_training_runs_are_told_with_their_tokens_a_second(name: str, tmp_path: Path) -> None:
    """Catches a format that leaves them out, or calls them after single attentions."""
    path = write(tmp_path, [trained("naive"), trained("other", status="unsupported"), record()])
    text = export(name, [path]).data.decode()
    assert "gpt2-tiny" in text
    assert re.search(r"\b512\b", text), "tokens a second, at a second a step"


def test_bencher_has_a_measure_of_its_own_for_tokens_a_second(tmp_path: Path) -> None:
    document = exported("bencher", write(tmp_path, [trained("naive"), record()]))
    rates = {name: m.get("tokens-per-second") for name, m in document.items()}
    assert [name.split(":")[0] for name, rate in rates.items() if rate] == ["train-tiny"]
    assert all(is_metric(rate) for rate in rates.values() if rate)


def test_a_training_run_is_called_by_its_kind_and_grouped_by_its_fields(tmp_path: Path) -> None:
    document = exported("pytest-benchmark", write(tmp_path, [trained("naive"), record()]))
    by_kind = {b["name"].split("[")[0]: b for b in document["benchmarks"]}
    assert set(by_kind) == {"test_training", "test_attention"}
    told = by_kind["test_training"]
    assert told["params"]["model"] == "gpt2-tiny"
    assert "mask" not in told["params"]
    assert told["extra_info"]["tokens_per_s"]["median"] == pytest.approx(512.0)
