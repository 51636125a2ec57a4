"""Memory is known to a percent: the peak of a call, and what belongs to which part of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from attnbench import Attention, ForwardBackward, Problem
from attnbench.execution import Execution
from attnbench.inputs import make_inputs
from attnbench.measure import high_water as high_water_module
from attnbench.measure.high_water import Unseen, bound_bytes, high_water
from attnbench.measure.memory import disagreement, measure_memory, peak_memory
from attnbench.record import Memory

MIB = 2**20
CPU = torch.device("cpu")
FORWARD, SAVED, BACKWARD = 24, 16, 40  # MiB of scratch, kept, and scratch


def allocate(mib: int, device: torch.device = CPU) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8, device=device)


def peak_mib(call: Callable[[], object], device: torch.device = CPU) -> float:
    memory = peak_memory(lambda: (call(), None)[1], device)
    assert memory.peak_bytes is not None
    return memory.peak_bytes / MIB


def one_after_the_other() -> None:
    for mib in (8, 16, 4):
        allocate(mib)  # freed before the next


def side_by_side() -> None:
    kept = [allocate(mib) for mib in (8, 16, 4)]
    del kept


def tower_then_rest() -> torch.Tensor:
    tower = [allocate(16), allocate(16)]
    del tower
    return allocate(2)


def freed_in_between() -> None:
    first, second = allocate(8), allocate(8)
    del first
    third = allocate(16)
    del second, third


@pytest.mark.parametrize(
    ("call", "mib"),
    [
        (one_after_the_other, 16),
        (side_by_side, 28),
        (tower_then_rest, 32),
        (freed_in_between, 24),
    ],
)
def test_the_peak_is_known_to_a_percent(call: Callable[[], object], mib: int) -> None:
    assert peak_mib(call) == pytest.approx(mib, rel=0.01)


def test_what_was_there_before_does_not_count() -> None:
    before = allocate(64)
    assert peak_mib(lambda: before.clone()[:1].add_(1)) == pytest.approx(64, rel=0.01)
    assert peak_mib(lambda: allocate(8)) == pytest.approx(8, rel=0.01)


def test_work_in_place_has_next_to_no_peak() -> None:
    x = torch.zeros(1024, 1024)
    assert peak_mib(lambda: x.add_(1)) < 0.001  # a scalar


def test_the_textbook_attention_needs_its_matrix_and_more() -> None:
    q_BHMD = torch.randn(1, 4, 512, 64)
    matrix_mib = 4 * 512 * 512 * 4 / MIB

    def attend() -> torch.Tensor:
        logits_BHMN = q_BHMD @ q_BHMD.transpose(-1, -2)
        return torch.softmax(logits_BHMN, -1) @ q_BHMD

    # Logits and weights side by side; then weights and output, which is smaller.
    assert 2 * matrix_mib <= peak_mib(attend) < 2.6 * matrix_mib


def test_what_autograd_saves_counts_while_it_is_kept() -> None:
    x = torch.ones(4 * MIB, requires_grad=True)  # 16 MiB
    kept: list[torch.Tensor] = []

    def forward() -> None:
        kept.append(x.exp().exp())  # the inner result is saved for the backward

    assert peak_mib(forward) == pytest.approx(32, rel=0.01)


def test_each_pass_stands_alone() -> None:
    large, small = peak_mib(lambda: allocate(32)), peak_mib(lambda: allocate(4))
    assert (large, small) == (pytest.approx(32, rel=0.01), pytest.approx(4, rel=0.01))


def test_how_it_was_measured_is_told_and_what_a_cpu_cannot_tell_is_absent() -> None:
    memory = peak_memory(lambda: None, CPU)
    assert "profiler" in memory.method
    assert memory.reserved_bytes is None


def test_the_error_of_a_call_is_not_swallowed() -> None:
    def call() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        peak_memory(call, CPU)


# ---- the parts of a call -----------------------------------------------------------------


def touch(mib: int) -> torch.Tensor:
    return torch.ones(mib * MIB, dtype=torch.uint8)


def answer(q_BHMD: torch.Tensor) -> torch.Tensor:
    """An output whose size does not matter beside the MiBs."""
    touch(FORWARD)
    return q_BHMD.detach().clone()


class Own(Attention):
    """Its own forward and backward, of known sizes."""

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        def forward(q: torch.Tensor, k: Any, v: Any) -> tuple[torch.Tensor, torch.Tensor]:
            saved = touch(SAVED)
            return answer(q), saved

        def backward(saved: torch.Tensor, grad: torch.Tensor) -> Any:
            touch(BACKWARD)
            return grad.clone(), grad.clone(), grad.clone()

        return ForwardBackward(forward, backward)


class Differentiated(torch.autograd.Function):
    """The same through autograd; what it saves lies on the context, where hooks do not look."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.saved = touch(SAVED)
        return answer(q)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        touch(BACKWARD)
        return grad.clone(), grad.clone(), grad.clone()


class ByAutograd(Attention):
    def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
        return Differentiated.apply


class Frugal(Attention):
    """Saves nothing beyond its inputs and output, and gives its scratch back before it ends."""

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[Any, Any]:
            out = answer(q)
            return out, (q, k, v, out)

        return ForwardBackward(forward, lambda saved, grad: (grad.clone(),) * 3)


def measured(implementation: type[Attention], direction: str) -> Memory:
    problem = Problem.of(heads=1, seqlen=64, head_dim=8, direction=direction)  # 2 KiB a tensor
    execution = Execution(implementation(), problem, CPU)
    execution.load(make_inputs(problem, 0, CPU))
    execution.step()
    return measure_memory(execution, CPU)


def mib(size: int | None) -> float | None:
    return None if size is None else pytest.approx(size / MIB, rel=0.01, abs=0.02)


@pytest.mark.parametrize("implementation", [Own, ByAutograd])
@pytest.mark.parametrize(
    ("direction", "peak", "forward", "saved", "backward", "workspace"),
    [
        ("forward", FORWARD + SAVED, FORWARD + SAVED, None, None, FORWARD + SAVED),
        ("backward", BACKWARD, None, SAVED, BACKWARD, BACKWARD),
        ("both", SAVED + BACKWARD, FORWARD + SAVED, SAVED, BACKWARD, SAVED + BACKWARD),
    ],
)
def test_each_part_of_a_call_is_known_to_a_percent_and_absent_where_it_is_not_timed(
    implementation: type[Attention],
    direction: str,
    peak: int,
    forward: int | None,
    saved: int | None,
    backward: int | None,
    workspace: int,
) -> None:
    memory = measured(implementation, direction)
    assert mib(memory.peak_bytes) == peak
    assert mib(memory.forward_peak_bytes) == forward
    assert mib(memory.saved_bytes) == saved
    assert mib(memory.backward_peak_bytes) == backward
    assert mib(memory.workspace_bytes) == workspace
    assert memory.resident_bytes == pytest.approx(peak * MIB, abs=bound_bytes(0))
    assert memory.note is None
    assert memory.reserved_bytes is memory.foreign_bytes is None


def test_inputs_and_output_that_are_kept_for_the_backward_are_not_saved_beyond_them() -> None:
    memory = measured(Frugal, "both")
    assert memory.saved_bytes == 0
    assert mib(memory.peak_bytes) == FORWARD


def test_outputs_and_gradients_are_no_workspace() -> None:
    class Plain(Attention):
        def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
            return lambda q, k, v: q.mul(2) + k.mul(2) + v.mul(2)

    problem = Problem.of(heads=1, seqlen=16384, head_dim=64, direction="forward")  # 4 MiB a tensor
    execution = Execution(Plain(), problem, CPU)
    execution.load(make_inputs(problem, 0, CPU))
    memory = measure_memory(execution, CPU)
    assert mib(memory.peak_bytes) == 12
    assert mib(memory.workspace_bytes) == 8


def test_the_execution_can_be_called_again_after_its_memory_was_measured() -> None:
    problem = Problem.of(heads=1, seqlen=64, head_dim=8, direction="backward")
    execution = Execution(Own(), problem, CPU)
    execution.load(make_inputs(problem, 0, CPU))
    measure_memory(execution, CPU)
    execution.prepare()
    execution.step()
    assert set(execution.results()) == {"out", "dq", "dk", "dv"}


# ---- the cross-check ---------------------------------------------------------------------


def malloc_behind_torchs_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(32 * MIB)
    ctypes.memset(block, 1, 32 * MIB)
    libc.free(block)


class Hidden(Attention):
    """Takes its workspace where torch does not see it."""

    def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
        def call(q: torch.Tensor, k: Any, v: Any) -> torch.Tensor:
            malloc_behind_torchs_back()
            return q.clone()

        return call


def test_what_a_library_takes_behind_torchs_back_is_seen_and_told() -> None:
    memory = measured(Hidden, "forward")
    assert memory.peak_bytes is not None
    assert memory.peak_bytes < MIB
    assert memory.resident_bytes == pytest.approx(32 * MIB, abs=MIB)
    assert memory.note is not None
    assert "behind torch's back" in memory.note


def test_what_is_allocated_and_never_touched_is_told() -> None:
    class Untouched(Attention):
        def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
            return lambda q, k, v: (allocate(64), q.clone())[1]

    memory = measured(Untouched, "forward")
    assert mib(memory.peak_bytes) == 64
    assert memory.note is not None
    assert "never touched" in memory.note


@pytest.fixture
def holes() -> Iterator[None]:
    """A heap with free blocks in it, as in a worker that has measured others before."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 32 * MIB)
    libc.mallopt(-1, 64 * MIB)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(8 * MIB) for _ in range(8)]
    for block in blocks[::2]:
        libc.free(block)
    yield
    for block in blocks[1::2]:
        libc.free(block)


def test_the_high_water_mark_is_a_peak_even_where_malloc_has_holes_to_fill(holes: None) -> None:
    def call() -> None:
        for size in (8, 6, 4, 12):
            touch(size)  # freed before the next: 12 at a time, 30 if holes stay resident

    for _ in range(2):  # what is put back afterwards does not spoil the next
        assert high_water(call) / MIB == pytest.approx(12, abs=0.5)


def test_the_bound_holds_for_small_sums_grows_with_large_ones_and_is_stated() -> None:
    assert disagreement(0, bound_bytes(0)) == ""
    assert disagreement(1000 * MIB, 1040 * MIB) == ""
    text = disagreement(100 * MIB, 140 * MIB)
    assert "140.0 MiB" in text
    assert "100.0 MiB" in text
    assert f"{bound_bytes(100 * MIB) / MIB:.1f} MiB" in text


def test_a_machine_without_the_mark_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(high_water_module, "_CLEAR_REFS", tmp_path / "no" / "clear_refs")
    with pytest.raises(Unseen, match="clear_refs cannot be written: No such file"):
        high_water(lambda: None)
    memory = measured(Own, "forward")
    assert memory.resident_bytes is None
    assert memory.note is not None
    assert memory.note.startswith("not cross-checked: ")
    assert mib(memory.peak_bytes) == FORWARD + SAVED


# ---- CUDA, against a stand-in ------------------------------------------------------------


class FakeCuda:
    """The counters of torch.cuda, moved by calls."""

    def __init__(self) -> None:
        self.allocated, self.peak, self.reserved, self.foreign = 64 * MIB, 0, 128 * MIB, 500 * MIB

    def take(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        self.reserved = max(self.reserved, self.allocated)

    def reset_peak_memory_stats(self, device: Any) -> None:
        self.peak = self.allocated

    def synchronize(self, device: Any) -> None:
        pass

    def memory_allocated(self, device: Any) -> int:
        return self.allocated

    def max_memory_allocated(self, device: Any) -> int:
        return self.peak

    def memory_reserved(self, device: Any) -> int:
        return self.reserved

    max_memory_reserved = memory_reserved

    def empty_cache(self) -> None:
        self.reserved = self.allocated

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        total = 80 * 1024 * MIB
        return total - self.reserved - self.foreign, total


class FakeExecution:
    """Forward 30 (leaves 4 of output and 10 saved), backward 50 (leaves 12 of gradients)."""

    def __init__(self, cuda: FakeCuda, direction: str) -> None:
        self.problem = Problem.of(direction=direction)
        self.cuda, self.held = cuda, {"out": 0, "saved": 0, "gradients": 0}

    def _hold(self, name: str, size: int) -> None:
        self.cuda.take((size - self.held[name]) * MIB)
        self.held[name] = size

    def _scratch(self, size: int) -> None:
        self.cuda.take(size * MIB)
        self.cuda.take(-size * MIB)

    def forward(self) -> None:
        self._hold("out", 4)
        if self.problem.direction != "forward":
            self._hold("saved", 10)
        self._scratch(16)

    def backward(self) -> None:
        self._hold("gradients", 12)
        self._scratch(38)
        self.cuda.foreign += 7 * MIB  # a library's own cudaMalloc, kept

    def drop_saved(self) -> None:
        self._hold("saved", 0)

    def forget(self) -> None:
        for name in self.held:
            self._hold(name, 0)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (
            "forward",
            {"peak": 20, "forward_peak": 20, "workspace": 16, "reserved": 20, "foreign": 0},
        ),
        (
            "backward",
            {"peak": 50, "saved": 10, "backward_peak": 50, "workspace": 38, "reserved": 64,
             "foreign": 7},
        ),
        (
            "both",
            {"peak": 64, "forward_peak": 30, "saved": 10, "backward_peak": 50, "workspace": 48,
             "reserved": 64, "foreign": 7},
        ),
    ],
)  # fmt: skip
def test_the_parts_on_a_gpu_come_from_the_allocators_counters(
    direction: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCuda()
    for name in dir(fake):
        if not name.startswith("_") and hasattr(torch.cuda, name):
            monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    execution: Any = FakeExecution(fake, direction)
    memory = measure_memory(execution, torch.device("cuda", 0))
    told = memory.model_dump(exclude_none=True)
    assert told.pop("method") == "torch.cuda.max_memory_allocated"
    assert told == {f"{name}_bytes": size * MIB for name, size in expected.items()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_peak_on_a_gpu_is_known_to_a_percent() -> None:
    device = torch.device("cuda")
    before = allocate(64, device)

    def call() -> None:
        kept = [allocate(8, device), allocate(16, device)]
        del kept
        allocate(4, device)

    memory = peak_memory(call, device)
    assert memory.peak_bytes == pytest.approx(24 * MIB, rel=0.01)
    del before
