"""A generation suite from its file to its records: refused, planned, survived, told, kept apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import attnbench
from pydantic import ValidationError
from rich.console import Console
from serving import SPEAKERS, generation, run_group

from attnbench import shelves, store
from attnbench.commands.generation_text import print_generation
from attnbench.errors import UserError
from attnbench.processes import Held
from attnbench.record import Implementation, Record
from attnbench.runner import Runner
from attnbench.session import open_session
from attnbench.subject import subject_of
from attnbench.suite import Suite, kind_of, load_suite
from attnbench.train.generation.clock import thinned
from attnbench.train.generation.derived import served
from attnbench.train.generation.spec import Generation

GRID = 'model = "llama-tiny"\nd_model = 32\nprompt = 8\nnew = 3\nbatch = 2\n'
MEASURE = """
[measure]
max_s = 1e-9
min_rounds = 2
samples = 1
warmup_s = 0.0
ceilings_s = 0.0
timeout_s = 60
"""


def suite(folder: Path, grid: str = GRID, impls: tuple[str, ...] = ("*",), *sets: str) -> Suite:
    path = folder / "serving.toml"
    head = f'title = "Tiny"\nkind = "generation"\nimpls = {json.dumps(impls)}\n[grid]\n'
    path.write_text(head + grid + MEASURE)
    return load_suite(path, sets)


# ---- the file ----------------------------------------------------------------------------


def test_a_grid_sweeps_generations(tmp_path: Path) -> None:
    loaded = suite(tmp_path, GRID.replace("prompt = 8", "prompt = [8, 16]"), ("*",), "batch=3")
    assert loaded.problems == (
        generation(prompt=8, new=3, batch=3), generation(prompt=16, new=3, batch=3),
    )  # fmt: skip
    assert kind_of(loaded.path) == loaded.kind == "generation"


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ("promt = 8", "did you mean 'prompt'?"),
        ("seqlen = 8", "unknown key 'seqlen'; allowed: "),
        ("new = 1", "new must be ≥ 2, got 1"),
        ("batch = 0", "batch must be ≥ 1, got 0"),
        ("prompt = 8.5", "prompt must be of type int, got 8.5"),
        ("precision = 'int4'", "unknown precision 'int4'"),
        ("model = 'llama-tinny'", "did you mean 'llama-tiny'?"),
        ("model = 'gpt2-tiny'\nheads_kv = 2", "its heads share no keys"),
        (
            "model = 'bert-tiny'",
            "model bert-tiny has no cache to generate with; families that have: ",
        ),
        ("model = 'vit-tiny'", "model vit-tiny has no cache"),
        ("position = 'rope'", "position is an option of our own models"),
        ("position = 'ropes'", "did you mean 'rope'?"),
        ("d_model = 30", "d_model 30 is not divisible by heads 4"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(tmp_path: Path, grid: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        suite(tmp_path, grid)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_do_not_depend_on_fields_that_keep_their_default() -> None:
    assert Generation().id == Generation(compile=False).id
    assert len({generation().id, generation(new=5).id, generation(precision="int8").id}) == 3
    assert Generation.from_json(generation().to_json()) == generation()


def test_the_shipped_suite_is_sound() -> None:
    loaded = load_suite(shelves.builtin("suites") / "generate-tiny.toml")
    assert loaded.kind == "generation"
    assert len({p.id for p in loaded.problems}) == len(loaded.problems) == 9


# ---- records -----------------------------------------------------------------------------


def record_of(name: str, of: Generation, told: dict[str, Any]) -> Record:
    """As the runner makes it."""
    kept = ("status", "reason", "samples", "memory", "accuracy", "generation", "kernels", "wall_s")
    return Record(
        kind="generation", id=name, suite="serving", time="2026-01-01T00:00:00+00:00",
        attnbench="0", implementation=Implementation(name=name), problem=of.to_json(),
        problem_id=of.id, device="cpu", environment="none",
        **{key: told[key] for key in kept if key in told},
    )  # fmt: skip


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    """Of two processes a point."""
    of = generation(new=3)
    first, second = (run_group(of, "fair", "linear", process=number) for number in range(2))
    point: Any = None  # nobody asks
    held = Held(point, [{**one["fair"], "telemetry": {}} for one in (first, second)])
    told = {"fair": held.joined(0.01), "linear": first["linear"]}
    return {name: record_of(name, of, one) for name, one in told.items()}


def test_records_are_read_back_as_they_were(records: dict[str, Record]) -> None:
    for record in records.values():
        assert Record.model_validate_json(record.to_line()) == record
        assert subject_of(record) == generation(new=3)


def test_several_processes_are_one_record_with_the_first_ones_verdict(
    records: dict[str, Record],
) -> None:
    found = records["fair"].generation
    assert found is not None
    for samples in (found.first, found.rest, found.between, records["fair"].samples):
        assert samples is not None
        assert len(samples.times_s) == 2
    assert found.gaps == 2 * sum(len(r) for r in found.between.times_s[0])
    assert found.agreement.ok is True


def test_thinning_keeps_the_distribution_of_a_round() -> None:
    """Broken: every tenth gap, which is always the same place of a generation."""
    rounds = [[float(i % 10 == 9) for i in range(1000)], [2.0]]
    kept = thinned(rounds, most=40)
    assert kept[1] == [2.0]
    assert len(kept[0]) == 20
    assert sum(kept[0]) == 2


def test_tokens_a_second_follow_from_seconds(records: dict[str, Record]) -> None:
    record = records["fair"]
    figures, found, whole = served(record), record.generation, record.samples
    assert figures is not None
    assert found is not None
    assert whole is not None
    assert figures.prefill.median == pytest.approx(2 * 8 / found.first.median_s)
    assert figures.decode.median == pytest.approx(2 * 2 / found.rest.median_s)
    assert figures.overall.median == pytest.approx(2 * 3 / whole.median_s)
    assert figures.decode.low <= figures.decode.median <= figures.decode.high
    assert figures.between_s.median <= figures.between_p90_s * 2
    assert figures.between_p90_s <= figures.between_p99_s
    assert served(records["linear"]) is None


def test_an_exact_implementation_without_agreement_is_no_ok_record(
    records: dict[str, Record],
) -> None:
    data = records["fair"].model_dump()
    data["generation"]["agreement"]["ok"] = None
    with pytest.raises(ValidationError, match="needs agreement"):
        Record.model_validate(data)
    with pytest.raises(ValidationError, match="needs its figures"):
        Record.model_validate({**data, "generation": None})


def test_the_terminal_tells_latencies_rates_and_reasons(records: dict[str, Record]) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_generation(console, list(records.values()))
    text = console.export_text()
    for told in ("llama-tiny B2 8+3 tokens fp32", "KV cache", "fair", "÷ bound", "decode",
                 "linear: unsupported: does not do a decode step on a KV cache"):  # fmt: skip
        assert told in text


def test_records_are_shown_and_compared_among_their_own_kind(
    records: dict[str, Record], tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("".join(record.to_line() for record in records.values()))
    loaded = store.load([file])
    assert loaded.records == []
    assert loaded.problems == ["2 generation records: left out here, where attention is shown"]
    assert len(store.load([file], "generation").records) == 2
    assert store.load([file], "training").records == []


# ---- workers -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_crash_leaves_the_others_and_gives_a_status(tmp_path: Path) -> None:
    loaded = suite(tmp_path, GRID, ("fair", "dies", "linear"), "measure.processes=2")
    found: dict[str, Record] = {}
    with open_session(tmp_path, "cpu", [SPEAKERS], lock=False) as session:
        plan = session.plan(loaded, tmp_path / "none.jsonl")
        Runner(plan, session.pool, "none", lambda r: found.update({r.implementation.name: r})).run()
    assert {n: r.status for n, r in found.items()} == {
        "fair": "ok", "dies": "crash", "linear": "unsupported",
    }  # fmt: skip
    assert found["fair"].generation is not None
    assert len(found["fair"].generation.between.times_s) == 2


@pytest.mark.slow
def test_the_command_runs_resumes_and_compares(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    suite(tmp_path / "suites", GRID, ("naive", "window:window=4"))
    ended = attnbench("run", "serving", "--device", "cpu", cwd=tmp_path)
    assert ended.code == 0, ended.text
    assert "2 points: 2 ok" in ended.out
    again = attnbench("run", "serving", "--device", "cpu", cwd=tmp_path)
    assert "Every point has its record already" in again.out
    (file,) = tmp_path.glob("results/*/serving-*.jsonl")
    compared = attnbench("compare", str(file), str(file), "--verbose", cwd=tmp_path)
    assert "llama-tiny B2 8+3 tokens fp32" in compared.out
    assert "the same measurement on both sides" in compared.out
