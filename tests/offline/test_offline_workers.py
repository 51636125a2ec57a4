"""Toy kernels, compiled: each fault is found, and a compiler that dies ends only its own case."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import attnbench

from attnbench.offline.result import Row
from attnbench.offline.workers import Job, Offer, offers, run_jobs
from attnbench.plan import Contender
from attnbench.registry import Entry, Source

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
TOY = Path(__file__).parent / "toys" / "toy.py"
TIMEOUT_S = 300.0
INTERPRETED = {"TRITON_INTERPRET": "1"}  # as tests of kernels on a CPU have it


def contender(name: str) -> Contender:
    return Contender(Entry(name, Source("project", "toy", str(TOY)), str(TOY), 1))


def offer(name: str, case: str) -> Offer:
    """A case as it is offered, without asking."""
    return Offer(contender(name), case, "kernel", (), (), 0, 4)


def rows_of(name: str, folder: Path) -> dict[str, Row]:
    """Every case of a toy, compiled; by ``case target``."""
    found, refusals = offers([contender(name)], folder, TIMEOUT_S)
    assert not refusals
    jobs = [Job(offer, target) for offer in found for target in offer.targets]
    rows = run_jobs(jobs, folder, TIMEOUT_S)
    assert [(r.compiled.case, r.compiled.target) for r in rows] == [
        (job.offer.name, job.target) for job in jobs
    ]
    return {f"{row.compiled.case} {row.compiled.target}": row for row in rows}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    return rows_of("toy-faulty", tmp_path_factory.mktemp("faulty"))


def test_kernels_are_compiled_though_the_interpreter_is_on_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in INTERPRETED.items():
        monkeypatch.setenv(name, value)
    told: list[tuple[int, str]] = []
    fine, refused = run_jobs(
        [Job(offer("toy-quick", "fine"), "sm_90"), Job(offer("toy-quick", "refused"), "sm_80")],
        tmp_path, TIMEOUT_S, lambda done, job: told.append((done, job.offer.name)),
    )  # fmt: skip
    assert fine.faults == ()
    figures = fine.compiled.figures
    assert figures is not None
    assert figures.instructions["HGMMA"] > 0
    assert figures.instructions["LDGSTS"] > 0  # loads of 16 bytes: pointers and K are such
    assert 0 < figures.registers <= 255
    assert figures.shared_bytes >= 2 * 64 * 32 * 2  # a buffer of A, one of B
    assert figures.num_warps == 4
    assert 0 < figures.occupancy <= 1
    assert refused.compiled.figures is None
    assert refused.faults[0].startswith("does not compile: CompileTimeAssertionFailure: tiles")
    assert sorted(name for _, name in told) == ["fine", "refused"]
    assert [done for done, _ in told] == [1, 2]


def test_cases_that_cannot_be_offered_are_told_and_hinder_nobody_else(tmp_path: Path) -> None:
    names = ("toy-broken", "toy-misnamed", "toy-short", "toy-silent", "toy-quick")
    found, refusals = offers([contender(name) for name in names], tmp_path, TIMEOUT_S)
    assert [offer.name for offer in found] == ["fine", "fine too", "refused"]
    assert refusals == {
        "toy-broken": "compile_cases(): KeyError: 'no such configuration'",
        "toy-misnamed": "compile_cases(): case 'misnamed': unknown argument 'M'; allowed: A, C, N",
        "toy-short": "compile_cases(): case 'short': the launch has no argument 'N'",
    }


@pytest.mark.slow
def test_what_is_sound_passes_on_every_target(tmp_path: Path) -> None:
    rows = rows_of("toy-sound", tmp_path)
    assert {name: row.faults for name, row in rows.items() if row.faults} == {}
    kinds = {"sm_80": "HMMA", "sm_89": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA",
             "gfx942": "MFMA"}  # fmt: skip
    for target, kind in kinds.items():
        figures = rows[f"product {target}"].compiled.figures
        assert figures is not None
        assert figures.instructions[kind] > 0
        assert rows[f"launched {target}"].compiled.figures == figures, "not as it was told"
    specialized = rows["specialized sm_90"].compiled.figures
    assert specialized is not None
    assert specialized.num_warps == 12  # a producer and two consumers, of four warps each
    assert specialized.instructions["UTMALDG"] > 0
    few = rows["few registers sm_90"].compiled.figures
    assert few is not None
    assert few.registers <= 80
    assert few.spill_bytes > 0, "spills within the budget are no fault"
    for target in kinds:
        adding = rows[f"adding {target}"].compiled.figures
        assert adding is not None
        assert adding.atomics > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("spilling sm_80", "spills: "),
        ("large sm_80", "shared memory: "),
        ("large sm_89", "shared memory: "),
        ("large sm_90", "shared memory: "),
        ("large sm_100", "shared memory: "),
        ("small sm_90", "tensor cores: HMMA but no HGMMA"),
        ("eight warps sm_90", "warp specialisation: asked for in 1 of its loops, silently lost"),
        ("dropping sm_90", "atomics: 1 written, 0 left after Triton's optimisation"),
        ("crashing sm_80", "does not compile: the worker process was killed by SIGABRT: "
         "LLVM ERROR: Cannot select: a toy"),
        ("untold sm_80", "does not compile: argument 'C' has neither a type nor a value"),
    ],
)  # fmt: skip
def test_a_fault_is_found_in_real_code(faulty: dict[str, Row], row: str, fault: str) -> None:
    assert any(said.startswith(fault) for said in faulty[row].faults), faulty[row]


@pytest.mark.slow
def test_the_command_goes_on_past_who_cannot_say_what_it_offers(tmp_path: Path) -> None:
    (tmp_path / "impls").mkdir()
    shutil.copy(TOY, tmp_path / "impls")
    words = ["toy-broken", "toy-quick", "--target", "sm_90", "--all", "--json", "check.json"]
    ended = attnbench("compile-check", *words, cwd=tmp_path, env=INTERPRETED)
    assert ended.code == 1, ended.text
    assert "compile_cases(): KeyError: 'no such configuration'" in ended.out
    told: dict[str, Any] = json.loads((tmp_path / "check.json").read_text())
    assert [row["compiled"]["case"] for row in told["rows"]] == ["fine", "fine too"]
    assert not any(row["faults"] for row in told["rows"])
    assert list(told["refusals"]) == ["toy-broken"]
