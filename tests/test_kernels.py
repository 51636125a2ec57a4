"""What ran is told by stable names, with counts and each operator's own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from attnbench.measure import kernels
from attnbench.measure.kernels import (
    Ran,
    add_up,
    device_kernels,
    operators,
    profile_call,
    shorten,
    stable_name,
    what_ran,
)
from attnbench.record import OTHERS

CPU = torch.device("cpu")


@dataclass
class Event:
    """A profiler's event, as far as it is read."""

    called: str
    start: int
    stop: int
    thread: int = 1
    device: Any = DeviceType.CPU
    annotation: bool = False

    def name(self) -> str:
        return self.called

    def start_ns(self) -> int:
        return self.start

    def end_ns(self) -> int:
        return self.stop

    def duration_ns(self) -> int:
        return self.stop - self.start

    def start_thread_id(self) -> int:
        return self.thread

    def device_type(self) -> Any:
        return self.device

    def is_user_annotation(self) -> bool:
        return self.annotation


def attend() -> Callable[[], None]:
    q_BHMD = torch.randn(1, 2, 32, 8)

    def call() -> None:
        for _ in range(3):
            torch.softmax(q_BHMD @ q_BHMD.mT, -1) @ q_BHMD

    return call


def test_operators_are_named_and_counted_and_what_only_describes_tensors_is_left_out() -> None:
    told = {entry["name"]: entry["count"] for entry in what_ran(attend(), CPU)}
    assert told == {"aten::bmm": 6, "aten::_softmax": 3}


def test_the_longest_comes_first_and_every_time_is_positive() -> None:
    x, small = torch.randn(512, 512), torch.randn(2)

    def call() -> None:
        small.exp()
        for _ in range(20):
            x @ x

    times = [entry["time_s"] for entry in what_ran(call, CPU)]
    assert what_ran(call, CPU)[0]["name"] == "aten::mm"
    assert times == sorted(times, reverse=True)
    assert min(times) > 0


def test_two_runs_of_the_same_code_give_the_same_names() -> None:
    call = attend()
    first, second = ({e["name"]: e["count"] for e in what_ran(call, CPU)} for _ in range(2))
    assert first == second


def test_the_backward_is_told_by_its_operators_not_by_autograds_nodes() -> None:
    x = torch.randn(16, 16, requires_grad=True)

    def call() -> None:
        torch.autograd.grad(x.exp().sum(), x)

    names = {entry["name"] for entry in what_ran(call, CPU)}
    assert {"aten::exp", "aten::sum", "aten::mul"} <= names
    assert not [n for n in names if "Backward" in n or "autograd" in n]


def test_a_python_backward_that_does_its_work_itself_is_told() -> None:
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            time.sleep(0.05)
            return grad

    x = torch.randn(4, requires_grad=True)
    longest = profile_call(lambda: (torch.autograd.grad(Waits.apply(x).sum(), x), None)[1], CPU)[0]
    assert longest.name == "WaitsBackward"
    assert longest.time_s >= 0.05


def test_an_operators_time_is_its_own_in_each_thread() -> None:
    events = [
        Event("a::outer", 0, 100),
        Event("a::inner", 10, 40),
        Event("a::innermost", 20, 30),
        Event("a::inner", 50, 60),
        Event("a::after", 100, 105),
        Event("a::elsewhere", 5, 95, thread=2),
        Event("[memory]", 15, 15),
        Event("kernel", 0, 50, device=DeviceType.CUDA),
    ]
    own_ns = {r.name: (r.count, round(r.time_s * 1e9)) for r in add_up(operators(events))}
    assert own_ns == {
        "a::outer": (1, 60), "a::inner": (2, 30), "a::innermost": (1, 10), "a::after": (1, 5),
        "a::elsewhere": (1, 90),
    }  # fmt: skip


def test_on_a_gpu_the_devices_own_events_are_told_and_nothing_else() -> None:
    events = [
        Event("flash_fwd<128>", 0, 500, device=DeviceType.CUDA),
        Event("flash_fwd<128>", 600, 1000, device=DeviceType.CUDA),
        Event("Memset (Device)", 1000, 1001, device=DeviceType.CUDA),
        Event("forward", 0, 1001, device=DeviceType.CUDA, annotation=True),
        Event("cudaLaunchKernel", 0, 5),
    ]
    assert add_up(device_kernels(events)) == [
        Ran("flash_fwd<128>", 2, pytest.approx(900e-9)),
        Ran("Memset (Device)", 1, pytest.approx(1e-9)),
    ]


def test_a_gpu_is_asked_for_its_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Profile:
        def __init__(self, **words: Any) -> None:
            asked.update(words)

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *exc: object) -> None:
            asked["ran"] = list(ran)

    ran: list[str] = []
    monkeypatch.setattr(kernels, "profile", Profile)
    monkeypatch.setattr(kernels, "events", lambda p: [Event("k", 0, 9, device=DeviceType.CUDA)])
    told = what_ran(lambda: ran.append("once"), torch.device("cuda", 0))
    assert told == [{"name": "k", "count": 1, "time_s": pytest.approx(9e-9)}]
    assert asked == {"use_cpu": False, "use_device": "cuda", "use_kineto": True, "ran": ["once"]}


@pytest.mark.parametrize(
    ("name", "stable"),
    [
        ("## Call CompiledFxGraph fsluscdhxqi4mnx6 ##", "CompiledFxGraph"),
        ("Torch-Compiled Region: 3/1", "Torch-Compiled Region"),
        ("<lambda at 0x7f00aB12>", "<lambda at 0x…>"),
        ("void at::softmax<float, 4>(int)", "void at::softmax<float, 4>(int)"),
    ],
)
def test_what_differs_from_run_to_run_is_no_part_of_a_name(name: str, stable: str) -> None:
    assert stable_name(name) == stable


def test_names_that_become_the_same_are_one_entry() -> None:
    assert add_up([("f 0x1", 1.0), ("f 0x2", 2.0)]) == [Ran("f 0x…", 2, 3.0)]


def test_a_long_tail_is_summed_with_the_number_of_its_names() -> None:
    ran = [Ran(f"k{i:02}", 2, float(100 - i)) for i in range(30)]
    told = shorten(ran)
    assert [entry["name"] for entry in told[:-1]] == [r.name for r in ran[:24]]
    tail = sum(r.time_s for r in ran[24:])
    assert told[-1] == {"name": OTHERS, "count": 12, "time_s": tail, "names": 6}
    assert len(shorten(ran[:24])) == 24


def test_an_error_of_the_call_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        what_ran(lambda: (1 // 0, None)[1], CPU)
    assert what_ran(attend(), CPU), "the profiler was left running"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpus_kernels_are_seen() -> None:
    x = torch.randn(256, 256, device="cuda")
    told = what_ran(lambda: (x @ x, None)[1], torch.device("cuda"))
    assert sum(entry["count"] for entry in told) >= 1
    assert all(entry["time_s"] > 0 for entry in told)
