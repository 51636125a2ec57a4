"""Learning curves tell what learns wrongly from what merely rounds otherwise."""

from __future__ import annotations

import functools

import pytest
import torch
from tiny import attention, workload

from attnbench.train.figures import Parity
from attnbench.train.learning import learn
from attnbench.train.setup import make_trainer
from attnbench.train.truth import Truth
from attnbench.train.workload import Workload

CPU = torch.device("cpu")


@functools.cache
def truth_of(of: Workload, seed: int = 0) -> Truth:
    truth = Truth(of, CPU, seed, lambda: None)
    truth.find()
    return truth


def parity(of: Workload, name: str, seed: int = 0) -> Parity:
    truth, contender = truth_of(of, seed), attention(name)
    curve = learn(make_trainer(of, contender, CPU, seed), truth.task, seed, evaluate=False)
    return truth.parity(curve.losses, contender.kind)


@pytest.mark.parametrize("name", ["leaks", "off-scale", "keyless"])
def test_attention_that_learns_wrongly_is_found_by_its_curve(name: str) -> None:
    found = parity(workload(task="text", seqlen=32, steps=30, lr=3e-3), name)
    assert found.ok is False
    assert found.ratio is not None
    assert found.ratio > 1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["fair", "blockwise", "own-backward"])
def test_another_order_of_summation_in_bf16_is_no_fault(name: str, seed: int) -> None:
    found = parity(workload(precision="bf16", steps=10), name, seed)
    assert found.ok is True
    assert found.max_deviation is not None
    assert found.max_deviation > 0, "it did round otherwise"


def test_the_reference_against_itself_does_not_differ_at_all() -> None:
    assert parity(workload(), "naive").max_deviation == 0


def test_with_dropout_other_masks_are_no_fault() -> None:
    assert parity(workload(dropout=0.2), "naive", 0).ok is True
    of = workload(dropout=0.2)
    truth = truth_of(of)
    drawn = learn(make_trainer(of, attention("naive"), CPU, 0), truth.task, 99, evaluate=False)
    found = truth.parity(drawn.losses, "exact")
    assert found.ok is True
    assert found.max_deviation is not None
    assert found.max_deviation > 1e-4, "it drew other masks"


def test_an_approximate_method_is_told_its_distance_and_not_judged() -> None:
    found = parity(workload(), "window")
    assert found.ok is None
    assert found.max_deviation is not None


def test_a_reference_that_does_not_fit_learns_with_half_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attnbench.train.truth.reference", lambda: attention("greedy"))
    truth = Truth(workload(batch=32, steps=2), CPU, 0, lambda: None)
    truth.find()
    assert truth.workload.batch == 8


def test_only_the_steps_that_reruns_made_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.train.bound.STEPS", 4)
    of = workload(steps=9)
    truth = Truth(of, CPU, 0, lambda: None)
    truth.find()
    curve = learn(make_trainer(of, attention("blockwise"), CPU, 0), truth.task, 0)
    late = [*curve.losses[:4], *(loss + 9 for loss in curve.losses[4:])]  # parted by then
    assert len(curve.losses) == 9
    for losses, ok in ((late, True), ([*curve.losses[:3], 9.0, *curve.losses[4:]], False)):
        found = truth.parity(losses, "exact")
        assert (found.ok, found.steps) == (ok, 4)
