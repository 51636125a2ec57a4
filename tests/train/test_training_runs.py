"""A training suite from its file to its records: refused, planned, survived, resumed, told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Ended, attnbench
from tiny import LEARNERS

from attnbench import shelves, store
from attnbench.errors import UserError
from attnbench.record import Record
from attnbench.runner import Runner
from attnbench.session import Session, open_session
from attnbench.suite import Suite, load_suite
from attnbench.train.derived import mfu_measured, tokens_per_s
from attnbench.train.workload import Workload

HEAD = 'title = "Tiny"\nkind = "training"\n'
MEASURE = """
[measure]
max_s = 1e-9
min_rounds = 2
samples = 1
warmup_s = 0.0
ceilings_s = 0.0
timeout_s = 60
"""
GRID = """
[grid]
task = "copy"
seqlen = 16
batch = 4
steps = 8
warmup = 2
d_model = 32
"""


def suite(folder: Path, text: str = GRID, impls: tuple[str, ...] = ("*",), *sets: str) -> Suite:
    path = folder / "learning.toml"
    path.write_text(HEAD + f"impls = {json.dumps(impls)}\n" + text + MEASURE)
    return load_suite(path, sets)


def refusal(folder: Path, text: str, *sets: str) -> str:
    with pytest.raises(UserError) as caught:
        suite(folder, text, ("*",), *sets)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/")


# ---- the file ----------------------------------------------------------------------------


def test_a_grid_sweeps_workloads(tmp_path: Path) -> None:
    loaded = suite(tmp_path, GRID.replace("seqlen = 16", "seqlen = [16, 32]"), ("*",), "lr=1e-4")
    assert [p.replace(seqlen=16) for p in loaded.problems] == [loaded.problems[0]] * 2
    assert all(isinstance(p, Workload) and p.lr == 1e-4 for p in loaded.problems)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[grid]\nseqlne = 8", "learning.toml: [grid]: unknown key 'seqlne'; allowed: "),
        ("[grid]\nhead_dim = 8", "learning.toml: [grid]: unknown key 'head_dim'; allowed: "),
        ("[grid]\npreset = 'gpt2'", "learning.toml: [grid]: unknown key 'preset'; allowed: "),
        ("[[points]]\nsteps = 0", "learning.toml: [[points]]: steps must be ≥ 1, got 0 (in "),
        ("[grid]\nmodel = 'gpt2-tinny'", "did you mean 'gpt2-tiny'?"),
        ("[grid]\ntask = 'copi'", "did you mean 'copy'?"),
        ("[grid]\nmodel = 't5-tiny'\ntask = 'mqar'", "model t5-tiny is not made for objective"),
        ("[grid]\nprecision = 'fp23'", "did you mean 'fp32'?"),
        ("[grid]\noptimizer = 'sgd'\nbeta2 = 0.9", "optimizer sgd has no beta2, got 0.9"),
        ("[grid]\nlora_rank = 4", "lora_rank 4 needs finetune lora, got 'full'"),
        ("[grid]\nmodel = 'llama-tiny'\nd_model = 36", "d_model / heads must be even, got 9"),
        ("[grid]\nd_model = 36", "RoPE turns pairs: d_model / heads must be even, got 9"),
        ("[grid]\nposition = 'sinusoidal'\nheads = 3\nd_model = 33", "must be even, got 33"),
        ("[grid]\ntask = 'pairs'\nmodel = 'pair-tiny'\nseqlen = 17\nbatch = 0", "give a batch"),
        ("[grid]\nmodel = 'gpt2-tiny'\ntask = 'images'", "needs tokens, and task 'images' has"),
        ("[grid]\nmodel = 'vit-tiny'\ntask = 'listops'", "needs pictures, and task 'listops' has"),
        ("", "nothing to measure; it needs a [grid] or [[points]]"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(tmp_path, text)


def test_cold_caches_are_refused_where_no_call_begins_with_them(tmp_path: Path) -> None:
    """A step finds what the one before left: nothing would be colder for the key."""
    assert '[measure]: cache = "cold": in kind = "training"' in refusal(
        tmp_path, GRID, "measure.cache=cold"
    )
    assert suite(tmp_path, GRID, ("*",), "measure.cache=warm").measure.cache == "warm"


def test_set_knows_the_keys_of_workloads_and_no_others(tmp_path: Path) -> None:
    assert "must be ≥ 1" in refusal(tmp_path, GRID, "seqlen=0")
    loaded = suite(tmp_path, GRID, ("*",), "head_dim=8")
    assert loaded.options == {"head_dim": 8}, "an implementation's option, as far as is known"


@pytest.mark.parametrize(
    ("name", "points"), [("train-tiny", 4), ("quality", 4), ("train-parallel", 3)]
)
def test_shipped_training_suites_are_sound(name: str, points: int) -> None:
    loaded = load_suite(shelves.builtin("suites") / f"{name}.toml")
    assert loaded.kind == "training"
    assert len({p.id for p in loaded.problems}) == len(loaded.problems) == points


def test_the_digest_tells_two_ways_of_learning_apart(tmp_path: Path) -> None:
    one = suite(tmp_path).digest
    assert one == suite(tmp_path).digest
    assert one != suite(tmp_path, GRID, ("*",), "lr=2e-3").digest


# ---- workers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    project = tmp_path_factory.mktemp("project")
    with open_session(project, "cpu", [LEARNERS], lock=False) as opened:
        yield opened


def test_a_crash_while_learning_leaves_the_others_and_gives_a_status(
    session: Session, tmp_path: Path
) -> None:
    loaded = suite(tmp_path, GRID, ("fair", "dies", "raises", "window"))
    records: dict[str, Record] = {}
    plan = session.plan(loaded, tmp_path / "none.jsonl")
    Runner(plan, session.pool, "none", lambda r: records.update({r.implementation.name: r})).run()
    found = {name: record.status for name, record in records.items()}
    assert found == {"fair": "ok", "dies": "crash", "raises": "error", "window": "ok"}
    again = {n: Record.model_validate_json(r.to_line()) for n, r in records.items()}
    assert again == records
    for name in ("fair", "window"):
        record = records[name]
        assert (record.kind, record.training is not None) == ("training", True)
        assert record.problem == loaded.problems[0].to_json()
        rate = tokens_per_s(record)
        assert rate is not None
        assert rate.low <= rate.median <= rate.high
    assert records["dies"].training is None


@pytest.mark.slow
def test_several_processes_learn_once_and_are_timed_each(session: Session, tmp_path: Path) -> None:
    loaded = suite(tmp_path, GRID, ("fair",), "measure.processes=2")
    records: list[Record] = []
    Runner(session.plan(loaded, tmp_path / "n.jsonl"), session.pool, "none", records.append).run()
    (record,) = records
    assert record.status == "ok", record.reason
    assert record.samples is not None
    assert len(record.samples.times_s) == 2
    assert record.training is not None


# ---- the command -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose suite was run once."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "suites").mkdir()
    suite(folder / "suites", GRID, ("naive", "sdpa", "window:window=4"))
    ended = attnbench("run", "learning", "--device", "cpu", cwd=folder)
    assert ended.code == 0, ended.text
    assert "3 points: 3 ok" in ended.out
    for told in ("tokens/s", "sdpa", "× bound", "not exact: "):
        assert told in ended.out
    return folder


def results(project: Path) -> Path:
    (file,) = project.glob("results/*/learning-*.jsonl")
    return file


def again(project: Path, *words: str) -> Ended:
    return attnbench("run", "learning", "--device", "cpu", *words, cwd=project)


def test_the_same_command_goes_on_where_it_was(project: Path) -> None:
    before = results(project).read_bytes()
    ended = again(project)
    assert "Every point has its record already" in ended.out
    assert results(project).read_bytes() == before


def test_a_dry_run_names_the_points_and_measures_nothing(project: Path) -> None:
    ended = again(project, "--dry-run", "--fresh", "--set", "seqlen=32")
    assert ended.code == 0
    assert "own-tiny copy N32 B4 fp32" in ended.out
    assert "window:window=4" in ended.out
    assert len(list(project.glob("results/*/learning-*.jsonl"))) == 1


def test_against_a_revision_and_pytest_refuse_it_with_what_to_do(project: Path) -> None:
    ended = again(project, "--against", "HEAD")
    assert ended.code == 2
    assert "let attnbench compare hold the records against each other" in ended.err


def test_records_of_both_kinds_are_never_mixed(project: Path) -> None:
    file = results(project)
    loaded = store.load([file])
    assert loaded.records == []
    assert loaded.problems == ["3 training records: left out here, where attention is shown"]
    assert len(store.load([file], "training").records) == 3
    assert len(store.load([file], None).records) == 3


def test_two_runs_are_compared_by_seconds_a_step(project: Path) -> None:
    file = results(project)
    ended = attnbench("compare", str(file), str(file), "--verbose", cwd=project)
    assert "own-tiny copy N16 B4 fp32" in ended.out
    assert "the same measurement on both sides" in ended.out


def test_mfu_is_a_share_of_what_was_measured(project: Path) -> None:
    record = store.load([results(project)], "training").records[0]
    rate = {"median": 1e12, "low": 1e12, "high": 1e12, "best": 1e12, "what": "a shape"}
    ceilings = {"bandwidth": {}, "matmul": {"float32": rate}}
    found = mfu_measured(record, {"ceilings": ceilings})
    assert found is not None
    assert record.samples is not None
    assert record.training is not None
    flops = record.training.flops
    assert found.full == pytest.approx(flops.full / record.samples.median_s / 1e12)
    assert found.causal < found.full
    assert mfu_measured(record, {"ceilings": {"bandwidth": {}, "matmul": {"tf32": rate}}}) is None
