"""A profile is whole, readable and about the right call; its tables agree with what ran."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnbench import Attention, Problem
from attnbench.errors import UserError
from attnbench.execution import Execution
from attnbench.inputs import make_inputs
from attnbench.measure.memory import measure_memory
from attnbench.profiling import collect, ncu, triton_kernels
from attnbench.profiling.folder import fresh, is_profile, profile_folder
from attnbench.profiling.occupancy import Limits, occupancy
from attnbench.profiling.triton_kernels import Launched, resources

CPU = torch.device("cpu")
MIB = 2**20


class Textbook(Attention):
    def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
        return lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v


def execution(direction: str) -> Execution:
    problem = Problem.of(heads=2, seqlen=128, head_dim=8, direction=direction)
    made = Execution(Textbook(), problem, CPU)
    made.load(make_inputs(problem, 0, CPU))
    made.step()
    return made


# ---- traces and timelines ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "parts"),
    [("forward", {"forward"}), ("backward", {"backward"}), ("both", {"forward", "backward"})],
)
def test_the_trace_holds_the_marked_calls_and_the_operators_within_them(
    direction: str, parts: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "trace.json.gz"
    made = execution(direction)
    made.prepare()
    collect.write_trace(made, CPU, path)
    assert os.listdir(tmp_path) == [path.name]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = [e for e in json.load(file)["traceEvents"] if e["ph"] == "X"]
    marks = [e for e in events if e["cat"] == "user_annotation"]
    calls = {f"call {i + 1}" for i in range(collect.TRACED_CALLS)}
    assert {e["name"] for e in marks} == calls | parts
    begin, end = marks[0]["ts"], max(e["ts"] + e["dur"] for e in marks)
    products = [e for e in events if e["name"] == "aten::bmm"]
    each = {"forward": 2, "backward": 4, "both": 6}[direction]
    assert len(products) == each * collect.TRACED_CALLS
    assert all(begin <= e["ts"] <= end for e in products)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_timeline_peaks_where_the_record_does_and_ends_with_what_is_left(
    tmp_path: Path,
) -> None:
    path, made = tmp_path / "memory.csv", execution("both")
    memory = measure_memory(made, CPU)
    made.forget()
    collect.write_timeline(made, path)
    rows = read_csv(path)
    times = [float(row["time_s"]) for row in rows]
    levels = [int(row["allocated_bytes"]) for row in rows]
    assert times == sorted(times)
    assert times[0] == levels[0] == 0
    assert max(levels) == memory.peak_bytes
    assert memory.workspace_bytes is not None
    assert max(levels) - levels[-1] == memory.workspace_bytes
    parts = [row["part"] for row in rows]
    assert parts == ["forward"] * parts.count("forward") + ["backward"] * parts.count("backward")


def test_the_timeline_of_a_backward_alone_shows_the_forward_it_needs(tmp_path: Path) -> None:
    made = execution("backward")
    made.forget()
    collect.write_timeline(made, tmp_path / "memory.csv")
    assert {row["part"] for row in read_csv(tmp_path / "memory.csv")} == {"forward", "backward"}


def test_the_picture_is_a_png_with_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from attnbench.profiling.picture import draw_timeline

    made, picture = execution("both"), tmp_path / "memory.png"
    made.forget()
    collect.write_timeline(made, tmp_path / "memory.csv")
    draw_timeline(tmp_path / "memory.csv", picture, "naive: a problem")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_snapshot_of_a_gpu_is_taken_while_history_is_recorded_and_never_left_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(
        torch.cuda.memory, "_record_memory_history",
        lambda enabled="all", **_: log.append(f"record {enabled}"),
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: log.append(path))
    made: Any = SimpleNamespace(
        prepare=lambda: log.append("prepare"), step=lambda: log.append("step")
    )
    target = tmp_path / "snapshot.pickle"
    collect.write_snapshot(made, torch.device("cuda", 0), target)
    assert log == ["record all", "prepare", "step", "synchronize", str(target), "record None"]
    made.step = lambda: 1 // 0
    with pytest.raises(ZeroDivisionError):
        collect.write_snapshot(made, torch.device("cuda", 0), target)
    assert log[-1] == "record None"


# ---- Triton kernels ----------------------------------------------------------------------

A100 = Limits(
    threads=2048, blocks=32, registers=65536, shared_bytes=167936, reserved_shared_bytes=1024
)
T4 = Limits(threads=1024, blocks=16, registers=65536, shared_bytes=65536, reserved_shared_bytes=0)


@pytest.mark.parametrize(
    ("limits", "registers", "shared_bytes", "num_warps", "share", "limit"),
    [  # as NVIDIA's occupancy calculator has them
        (A100, 32, 0, 8, 1.0, "threads"),
        (A100, 128, 0, 4, 0.25, "registers"),
        (A100, 255, 0, 4, 0.125, "registers"),
        (A100, 33, 0, 4, 0.75, "registers"),  # 33 × 32 becomes 1280 a warp: 51 → 48 warps
        (A100, 32, 49152, 4, 0.1875, "shared memory"),  # 48 KiB and 1 KiB reserved: three blocks
        (A100, 168, 163840, 4, 0.0625, "shared memory"),
        (A100, 16, 0, 1, 0.5, "blocks"),
        (T4, 32, 0, 1, 0.5, "blocks"),
        (T4, 64, 32768, 4, 0.25, "shared memory"),
    ],
)
def test_occupancy_is_what_the_calculator_says(
    limits: Limits, registers: int, shared_bytes: int, num_warps: int, share: float, limit: str
) -> None:
    assert occupancy(registers, shared_bytes, num_warps, limits) == (pytest.approx(share), limit)


def test_a_block_that_does_not_fit_has_no_occupancy() -> None:
    assert occupancy(255, 0, 32, A100)[0] == 0


class CompiledKernel:
    """A stand-in for Triton's: found by its name, as that needs a GPU to exist."""

    def __init__(self, name: str, function: int | None, n_regs: int | None, num_warps: int) -> None:
        self.name, self.function, self.n_spills = name, function, 3
        self.metadata = SimpleNamespace(shared=1024, num_warps=num_warps)
        if n_regs is not None:
            self.n_regs = n_regs


class StaticallyLaunchedCudaKernel:
    """A stand-in for inductor's, which keeps everything in itself."""

    name, function, n_regs, n_spills, shared, num_warps = "triton_poi_0", 30, 40, 0, 0, 4


def test_of_the_loaded_kernels_those_that_ran_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "of", classmethod(lambda cls, device: A100))
    kept = [
        CompiledKernel("attend", 10, 128, 4),
        CompiledKernel("attend", 11, 64, 8),  # another configuration that autotuning tried
        CompiledKernel("idle", 20, 32, 4),
        CompiledKernel("attend", None, None, 4),  # compiled, never loaded
        StaticallyLaunchedCudaKernel(),
    ]
    cuda = torch.device("cuda", 0)
    told = resources({"attend", "triton_poi_0", "ampere_sgemm"}, Launched({10}), cuda)
    assert [(r.name, r.registers, r.num_warps, r.spills) for r in told] == [
        ("attend", 128, 4, 3),
        ("triton_poi_0", 40, 4, 0),
    ]
    assert (told[0].occupancy, told[0].limit) == (0.25, "registers")
    assert resources({"attend"}, Launched({10}), CPU) == []
    del kept


def test_tritons_launches_are_noted_by_its_own_hook_which_is_taken_off_again() -> None:
    triton = pytest.importorskip("triton")
    chain = triton.knobs.runtime.launch_enter_hook
    before = list(chain.calls)
    with triton_kernels.launches() as launched:
        chain(SimpleNamespace(get=lambda: {"name": "attend", "function": 77, "stream": 0}))
    assert launched.handles == {77}
    assert list(chain.calls) == before


# ---- Nsight Compute ----------------------------------------------------------------------


def fake_ncu(folder: Path, body: str) -> str:
    """An ``ncu`` that knows where its report should go and what it should watch."""
    path = folder / "ncu"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "words = sys.argv[1:]\n"
        "report = words[words.index('--export') + 1]\n"
        f"{body}\n"
    )
    path.chmod(0o755)
    return str(path)


def test_ncu_is_given_the_same_task_and_leaves_its_report_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = fake_ncu(
        tmp_path,
        "task = json.load(open(words[-1]))\n"
        "assert words[words.index('-m') + 1] == 'attnbench.profiling.ncu'\n"
        "assert words[words.index('--profile-from-start') + 1] == 'off'\n"
        "open(report, 'w').write(task['device'] + task['project'])",
    )
    report = ncu.run_ncu(path, {"device": "cuda:0"}, tmp_path, tmp_path / "out", 30)
    assert report.read_text() == f"cuda:0{tmp_path}"
    assert list((tmp_path / "out").iterdir()) == [report]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('==PROF== fine')\nprint('==ERROR== no permission')\nprint('x')\nsys.exit(1)",
         "==ERROR== no permission"),
        ("sys.exit(3)", "exit code 3"),
        ("print('nothing to profile')", "nothing to profile"),
        ("import time; time.sleep(60)", "not done after 1 s; killed"),
    ],
)  # fmt: skip
def test_what_ncu_complains_of_is_told_in_a_line(body: str, reason: str, tmp_path: Path) -> None:
    path = fake_ncu(tmp_path, body)
    with pytest.raises(ncu.NcuFailed, match=reason):
        ncu.run_ncu(path, {"device": "cuda:0"}, tmp_path, tmp_path, 1 if "sleep" in body else 30)
    assert not (tmp_path / "ncu-task.json").exists()


def test_no_ncu_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no ncu on PATH"):
        ncu.find_ncu()


# ---- the folder --------------------------------------------------------------------------


def test_a_profile_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    target = profile_folder(tmp_path, "mine:a=1,b=x/y", "abc")
    assert target == tmp_path / "profiles" / "mine_a=1,b=x_y-abc"
    for text in ("first", "second"):
        with fresh(target) as folder:
            (folder / "trace.json.gz").write_text(text)
    with contextlib.suppress(ZeroDivisionError), fresh(target) as folder:
        (folder / "trace.json.gz").write_text("half")
        _ = 1 // 0
    assert (target / "trace.json.gz").read_text() == "second"
    assert sorted(os.listdir(target.parent)) == [".gitignore", target.name]


def test_a_folder_that_is_no_profile_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert not is_profile(tmp_path)
    with pytest.raises(UserError, match="is no profile"), fresh(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").exists()
