"""Copies do the same work on memory of their own, and tell when they did not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.attention import Attention
from attnbench.execution import Execution
from attnbench.inputs import make_inputs
from attnbench.measure.copies import ExecutionCopies
from attnbench.problem import Problem
from attnbench.watch.contents import draw_signs

CPU = torch.device("cpu")


class Watched(Attention):
    """The textbook; remembers the addresses that it read, and can be told to go wrong."""

    name = "watched"
    features = frozenset({"backward", "dropout"})

    def __init__(self) -> None:
        self.read: list[int] = []
        self.factor = 1.0
        self.is_idle = False

    def build(self, problem: Problem, device: torch.device) -> Any:
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.read.append(q.data_ptr())
            weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
            if problem.dropout_p:
                weights = torch.dropout(weights, problem.dropout_p, train=True)
            return self.factor * (weights @ v)

        return attend


def prepared(**changes: Any) -> tuple[Watched, Execution]:
    p = Problem.of(heads=2, seqlen=16, head_dim=8, **changes)
    watched = Watched()
    execution = Execution(watched, p, CPU)
    execution.load(make_inputs(p, 0))
    execution.step()
    return watched, execution


def run(copies: ExecutionCopies) -> None:
    for call in copies.calls:
        call()


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_copies_return_the_same_from_memory_of_their_own(direction: str) -> None:
    watched, execution = prepared(direction=direction)
    own = watched.read[0]
    watched.read.clear()
    copies = ExecutionCopies(execution, 3)
    run(copies)
    assert copies.fault() is None
    assert len(set(watched.read)) == 4, "three copies, and one more that tells what is right"
    assert own not in watched.read


def test_contents_that_change_between_rounds_leave_copies_alone() -> None:
    _, execution = prepared()
    copies = ExecutionCopies(execution, 1)
    signs = draw_signs(execution.problem, CPU, torch.Generator().manual_seed(0))
    execution.change_signs(signs.by_name)
    execution.step()
    run(copies)
    assert copies.fault() is None


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_what_is_not_written_after_poisoning_is_found(direction: str) -> None:
    copies = ExecutionCopies(prepared(direction=direction)[1], 2)
    run(copies)
    copies.poison()
    assert (copies.fault() or "").endswith("was not written")
    run(copies)
    assert copies.fault() is None, "poison reaches nothing that the work reads"


def test_one_copy_that_is_not_run_is_found() -> None:
    copies = ExecutionCopies(prepared()[1], 3)
    run(copies)
    copies.poison()
    for call in copies.calls[:2]:
        call()
    assert copies.fault() == "out was not written"


@pytest.mark.parametrize(("factor", "is_found"), [(1 + 1e-6, False), (1.01, True), (0.0, True)])
def test_another_result_is_found_and_another_order_of_sums_is_none(
    factor: float, is_found: bool
) -> None:
    watched, execution = prepared()
    copies = ExecutionCopies(execution, 1)
    watched.factor = factor
    run(copies)
    assert bool(copies.fault()) is is_found


def test_bfloat16_is_given_its_rounding_and_no_more() -> None:
    watched, execution = prepared(dtype="bfloat16")
    copies = ExecutionCopies(execution, 1)
    watched.factor = 1.004
    run(copies)
    assert copies.fault() is None
    watched.factor = 1.2
    run(copies)
    assert "out is off by" in (copies.fault() or "")


def test_dropout_draws_anew_and_only_what_is_unwritten_is_found() -> None:
    copies = ExecutionCopies(prepared(dropout_p=0.5)[1], 1)
    run(copies)
    assert copies.fault() is None
    copies.poison()
    assert copies.fault() == "out was not written"
