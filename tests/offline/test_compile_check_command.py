"""``attnbench compile-check``: what is asked for, told, kept and exited with; nothing compiles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench import cli
from attnbench.commands import compile_check_
from attnbench.offline import Compiled, Figures
from attnbench.offline.result import CompileCheck, Row, read_check
from attnbench.offline.workers import Job, Offer, representatives
from attnbench.plan import Contender
from attnbench.registry import Entry, Source

FIGURES = Figures(
    registers=168, spill_bytes=0, shared_bytes=164 * 1024, num_warps=12,
    tensor_memory_columns=None, occupancy=0.1875, limit="registers",
    instructions={"HGMMA": 48}, atomics_written=0, atomics_kept=0, atomics=0, loops_to_specialize=1,
    loops_specialized=1,
)  # fmt: skip
SPILLS = "spills: 24 bytes a thread go to local memory, 0 may"


def entry(name: str, reason: str | None = None) -> Entry:
    return Entry(name, Source("project", name, f"{name}.py"), f"{name}.py", 7, reason)


ENTRIES = [entry("triton"), entry("naive"), entry("broken", "fails to import: ImportError: no x")]
KERNELS = [  # case, kernel, expects, targets
    ("forward 64", "forward", ("tensor_cores",), ("sm_80", "sm_90")),
    ("forward 128", "forward", ("tensor_cores",), ("sm_80", "sm_90")),
    ("forward split", "forward", ("warp_specialize",), ("sm_90",)),
    ("backward 64", "backward", ("tensor_cores",), ("sm_80", "sm_90")),
]


@pytest.fixture
def compiled() -> list[tuple[str, str]]:
    """What was compiled: (case, target)."""
    return []


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[tuple[str, str]]
) -> Callable[..., int]:
    """The command, on ``triton`` and its four cases; "backward 64" spills on sm_80."""

    @contextmanager
    def session(*words: Any, **more: Any) -> Iterator[Any]:
        kept = tmp_path / "results" / "cpu-toy"
        yield SimpleNamespace(
            project=tmp_path, entries=ENTRIES, results_folder=lambda results: results or kept
        )

    def offers(contenders: Sequence[Contender], *more: Any) -> tuple[list[Offer], dict[str, str]]:
        found = [
            Offer(c, *kernel, 0, 4)
            for c in contenders
            if c.entry.name == "triton"
            for kernel in KERNELS
        ]
        return found, {}

    def run_jobs(jobs: Sequence[Job], *more: Any) -> list[Row]:
        rows = []
        for job in jobs:
            name, target = job.offer.name, job.target
            compiled.append((name, target))
            told = Compiled(
                case=name, kernel=job.offer.kernel, target=target, expects=job.offer.expects,
                spill_budget_bytes=0, num_warps=4, seconds=1.0, figures=FIGURES,
            )  # fmt: skip
            faults = (SPILLS,) if (name, target) == ("backward 64", "sm_80") else ()
            rows.append(Row(implementation=job.offer.contender.spec, compiled=told, faults=faults))
        return rows

    monkeypatch.setattr(compile_check_, "open_session", session)
    monkeypatch.setattr(compile_check_, "offers", offers)
    monkeypatch.setattr(compile_check_, "run_jobs", run_jobs)
    monkeypatch.setattr(compile_check_, "triton_version", lambda: "3.7.1")
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: cli.main(["compile-check", *map(str, words)])


def kept(folder: Path) -> CompileCheck | None:
    return read_check(folder / "results" / "cpu-toy" / "compile-check.json")


def test_the_first_of_each_kernel_and_expectation_stands_for_the_others(
    check: Callable[..., int], compiled: list[tuple[str, str]], tmp_path: Path
) -> None:
    check()
    assert {case for case, _ in compiled} == {"forward 64", "forward split", "backward 64"}
    found = kept(tmp_path)
    assert found is not None
    assert not found.is_complete


def test_targets_with_cases_of_their_own_are_not_left_out() -> None:
    """Tiles chosen by target: the first case alone would check one target."""
    mine = Contender(entry("mine"))
    found = [
        Offer(mine, f"{size} {target}", "forward", ("tensor_cores",), (target,), 0, 4)
        for target in ("sm_80", "sm_90")
        for size in ("large", "small")
    ]
    assert [offer.name for offer in representatives(found)] == ["large sm_80", "large sm_90"]


def test_everything_is_compiled_when_asked_and_kept_beside_the_records(
    check: Callable[..., int], compiled: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert check("--all") == 1
    assert len(compiled) == 7
    found = kept(tmp_path)
    assert found is not None
    assert found.is_complete
    assert not found.is_passed
    assert [row.faults for row in found.rows if row.faults] == [(SPILLS,)]
    assert found.triton == "3.7.1"


def test_a_narrowed_check_leaves_the_kept_one_as_it_is(
    check: Callable[..., int], compiled: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert check("trit*", "--target", "sm_90", "--json", tmp_path / "mine.json") == 0
    assert {target for _, target in compiled} == {"sm_90"}
    assert kept(tmp_path) is None
    mine = read_check(tmp_path / "mine.json")
    assert mine is not None
    assert mine.is_passed


def test_the_table_has_the_figures_and_every_fault_is_told(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check() == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("forward split"))
    assert row.split() == ["forward", "split", "sm_90", "168", "none", "164.0", "KiB", "19%",
                           "48", "HGMMA,", "12", "warps", "ok"]  # fmt: skip
    assert f"fault backward 64 on sm_80: {SPILLS}" in out
    assert "5 compiled in" in out
    assert "1 with faults; 3 of 4 cases, --all compiles every one" in out
    assert "broken unavailable: broken.py:7: fails to import: ImportError: no x" in out


def test_who_was_asked_for_and_cannot_be_imported_is_a_fault(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("triton", "broken", "--target", "sm_90") == 1
    assert "broken unavailable: broken.py:7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "sm90"], "--target: unknown target 'sm90'; allowed: sm_80, sm_89, sm_90, "
         "sm_100, gfx942; did you mean 'sm_90'?"),
        (["tritn"], "unknown implementation 'tritn'; allowed: triton, naive, broken; "
         "did you mean 'triton'?"),
        (["naive"], "naive: no kernels to compile: compile_cases() gives none for naive "
         "(naive.py:7); allowed: triton"),
        (["triton", "n*"], "n*: no kernels to compile: compile_cases() gives none for naive "
         "(naive.py:7); allowed: triton"),
        (["brok*"], "brok*: no kernels to compile: none of them can be imported; allowed: triton"),
        (["triton", "--target", "gfx942"], "no kernel is for gfx942"),
        (["triton", "--timeout", "0"], "must be a positive number of seconds"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_meant_is_refused_with_the_nearest_name(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert check(*words) == 2
    assert said in capsys.readouterr().err


def test_without_triton_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert cli.main(["compile-check"]) == 2
    assert "compile-check needs triton, which cannot be imported" in capsys.readouterr().err
