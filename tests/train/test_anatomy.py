"""A step taken apart: its bytes and seconds are those of its parts."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from tiny import attention, workload

from attnbench.train import anatomy
from attnbench.train.attentions import around
from attnbench.train.data import make_task
from attnbench.train.figures import MemoryParts
from attnbench.train.setup import make_teacher, make_trainer
from attnbench.train.sizes import MOST, Largest, largest_batch
from attnbench.train.step import Piece, Trainer

CPU = torch.device("cpu")


def stepped(pause_s: float = 0.0, **fields: Any) -> tuple[Trainer, list[Piece]]:
    """A trainer that has made a step, so that its optimizer has its state."""
    of = workload(**fields)

    def wait(problem: Any, run: Any) -> Any:
        time.sleep(pause_s)
        return run()

    trainer = make_trainer(of, around(attention("naive"), wait), CPU, 0)
    pieces = trainer.put(make_task(of, 0).batch(0))
    trainer.step(pieces)
    return trainer, pieces


def test_memory_by_part_is_what_the_tensors_take() -> None:
    trainer, pieces = stepped()
    parts, memory = anatomy.memory_parts(trainer, pieces)
    numbers = sum(p.numel() for p in trainer.model.parameters())
    tensors = sum(1 for _ in trainer.model.parameters())
    assert parts.parameters_bytes == parts.gradients_bytes == 4 * numbers
    assert parts.optimizer_bytes == 8 * numbers + 4 * tensors  # two moments, and Adam's count
    assert parts.activations_bytes > 0
    standing = parts.parameters_bytes + parts.optimizer_bytes
    assert parts.peak_bytes >= standing + parts.gradients_bytes
    assert parts.peak_bytes == standing + (memory.peak_bytes or 0)


def test_a_teachers_weights_are_in_the_peak_and_nowhere_else() -> None:
    def parts(share: float) -> MemoryParts:
        of = workload(distillation=share)
        teacher = make_teacher(of.replace(distillation=1.0), CPU, 0, lambda: None)
        trainer = make_trainer(of, attention("naive"), CPU, 0, teacher if share else None)
        pieces = trainer.put(make_task(of, 0).batch(0))
        trainer.step(pieces)
        return anatomy.memory_parts(trainer, pieces)[0]

    alone, taught = parts(0.0), parts(0.5)
    assert taught.parameters_bytes == alone.parameters_bytes
    assert taught.peak_bytes > alone.peak_bytes + 3 * alone.parameters_bytes, "twice as wide"
    assert taught.method.endswith("the teacher's weights")


def test_activations_grow_with_the_batch_and_shrink_with_its_parts() -> None:
    def activations(**fields: Any) -> int:
        return anatomy.memory_parts(*stepped(**fields))[0].activations_bytes

    one = activations(batch=8)
    assert activations(batch=16) == pytest.approx(2 * one, rel=0.1)
    assert activations(batch=16, accumulation=2) == pytest.approx(one, rel=0.1)


def test_time_spent_in_attention_is_its_share_and_time_spent_beside_it_is_not() -> None:
    inside = anatomy.break_down(*stepped(pause_s=0.25))
    assert inside.forward_s > 0.5
    assert inside.backward_s > 0
    assert inside.attention_share is not None
    assert 0.5 < inside.attention_share <= 1
    trainer, pieces = stepped()
    trainer.model.register_forward_hook(lambda *words: time.sleep(0.5))
    beside = anatomy.break_down(trainer, pieces)
    assert beside.attention_share is not None
    assert 0 < beside.attention_share < 0.5


def test_looking_leaves_no_hook_behind() -> None:
    trainer, pieces = stepped()
    anatomy.break_down(trainer, pieces)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


def test_the_largest_batch_is_the_last_doubling_that_has_memory() -> None:
    tried, released = [], []

    def attempt(batch: int) -> None:
        tried.append(batch)
        if batch > 40:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    assert largest_batch(attempt, lambda: released.append(1), 1) == Largest(32, "memory")
    assert tried == [1, 2, 4, 8, 16, 32, 64]
    assert len(released) == len(tried)
    assert largest_batch(attempt, lambda: None, 3) == Largest(24, "memory")


def test_patience_ends_before_a_step_takes_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("attnbench.train.sizes.time.monotonic", lambda: clock[0])

    def attempt(batch: int) -> None:
        clock[0] += 0.9 * batch

    assert largest_batch(attempt, lambda: None, 1) == Largest(32, "time")


def test_no_batch_that_fits_is_out_of_memory_and_another_error_is_itself() -> None:
    def no_memory(batch: int) -> None:
        raise MemoryError

    def wrong(batch: int) -> None:
        raise ArithmeticError("not memory")

    with pytest.raises(MemoryError, match="not even a batch of 2"):
        largest_batch(no_memory, lambda: None, 2)
    with pytest.raises(ArithmeticError, match="not memory"):
        largest_batch(wrong, lambda: None, 1)
    assert largest_batch(lambda batch: None, lambda: None, 1) == Largest(MOST, "most")
