"""The peak of one call is known to a percent, and is a peak: not a sum, not a rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attnbench.measure.memory import peak_memory

MIB = 2**20
CPU = torch.device("cpu")


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
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes >= (64 + 24) * MIB
    del before
