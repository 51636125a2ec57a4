"""Losses against their definitions, in float64 and one element at a time.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, K = choices, C = d_model.
"""

from __future__ import annotations

import math

import pytest
import torch

from attnbench.train.loss import (
    MATCHING_TEMPERATURE,
    TEMPERATURE,
    loss_of,
    similarity,
    target_counts,
)
from attnbench.train.roles import IGNORED, Batch
from attnbench.train.workload import Workload

V, K = 7, 3


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


def naive(rows, right, smoothing=0.0, teacher=None, share=0.0) -> list[float]:
    """The loss of each row that has a right answer, from the definitions."""
    losses = []
    for number, (row, answer) in enumerate(zip(rows, right, strict=True)):
        if answer == IGNORED:
            continue
        logp = log_softmax(row)
        wanted = [(1 - smoothing) * (k == answer) + smoothing / len(row) for k in range(len(row))]
        loss = -sum(w * p for w, p in zip(wanted, logp, strict=True))
        if teacher is not None:
            said = log_softmax([x / TEMPERATURE for x in row])
            true = log_softmax([x / TEMPERATURE for x in teacher[number]])
            apart = sum(math.exp(t) * (t - s) for t, s in zip(true, said, strict=True))
            loss = (1 - share) * loss + share * TEMPERATURE**2 * apart
        losses.append(loss)
    return losses


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture
def batch() -> Batch:
    tokens_BT = torch.tensor([[1, IGNORED, 6, 0], [IGNORED, IGNORED, IGNORED, 2]])
    return Batch({}, {"tokens": tokens_BT, "label": torch.tensor([2, 0])}, 8)


@pytest.fixture
def outputs() -> dict[str, torch.Tensor]:
    return {"tokens": draw(2, 4, V), "label": draw(2, K, seed=1)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_tokens_and_label_add_their_means(batch, outputs, smoothing, share):
    workload = Workload(label_smoothing=smoothing, distillation=share)
    teacher = {"tokens": draw(2, 4, V, seed=2), "label": draw(2, K, seed=3)} if share else None
    expected = 0.0
    for name, target in batch.targets.items():
        rows = outputs[name].double().flatten(0, -2).tolist()
        truth = teacher[name].double().flatten(0, -2).tolist() if teacher else None
        expected += mean(naive(rows, target.flatten().tolist(), smoothing, truth, share))
    loss = loss_of(workload, outputs, batch, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_what_is_ignored_gets_no_gradient(batch, outputs):
    logits_BTV = outputs["tokens"].requires_grad_()
    teacher = {"tokens": draw(2, 4, V, seed=2), "label": draw(2, K, seed=3)}
    loss_of(Workload(label_smoothing=0.1, distillation=0.5), outputs, batch, teacher).backward()
    touched_BT = logits_BTV.grad.abs().sum(-1) > 0
    assert torch.equal(touched_BT, batch.targets["tokens"] != IGNORED)


def test_a_teacher_is_followed_and_not_taught(batch, outputs):
    teacher = {name: logits.clone().requires_grad_() for name, logits in outputs.items()}
    student = {name: logits.clone().requires_grad_() for name, logits in outputs.items()}
    loss = loss_of(Workload(distillation=1.0), student, batch, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)  # it already says the same
    assert all(logits.grad is None for logits in teacher.values())


def test_a_teacher_must_be_there_exactly_if_wanted(batch, outputs):
    with pytest.raises(ValueError, match=r"distillation 0\.5"):
        loss_of(Workload(distillation=0.5), outputs, batch)
    with pytest.raises(ValueError, match=r"distillation 0\.0"):
        loss_of(Workload(), outputs, batch, teacher=outputs)


def test_parts_of_a_step_add_up_to_its_loss(batch, outputs):
    """With unequal numbers of targets the mean over parts would be another number."""
    whole = loss_of(Workload(), outputs, batch).item()
    counts = target_counts(batch)
    assert counts == {"tokens": 4.0, "label": 2.0}
    parts = []
    for row in range(2):
        part = Batch({}, {name: t[row : row + 1] for name, t in batch.targets.items()}, 4)
        said = {name: logits[row : row + 1] for name, logits in outputs.items()}
        parts.append((said, part))
    added = sum(loss_of(Workload(), said, part, counts=counts).item() for said, part in parts)
    assert added == pytest.approx(whole, rel=1e-6)
    averaged = mean([loss_of(Workload(), said, part).item() for said, part in parts])
    assert abs(averaged - whole) > 1e-3


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_contrastive_loss_looks_both_ways(smoothing):
    left_BC, right_BC = draw(5, 8), draw(5, 8, seed=1)
    workload = Workload(objective="matching", loss="contrastive", label_smoothing=smoothing)
    batch = Batch({"input_ids": torch.zeros(5, 1)}, {}, 5)
    a, b = left_BC.double().tolist(), right_BC.double().tolist()
    table = [[cosine(x, y) / MATCHING_TEMPERATURE for y in b] for x in a]
    turned = [list(column) for column in zip(*table, strict=True)]
    expected = mean([mean(naive(rows, range(5), smoothing)) for rows in (table, turned)])
    outputs = {"left": left_BC, "right": right_BC}
    assert loss_of(workload, outputs, batch).item() == pytest.approx(expected, rel=1e-5)
    whole = loss_of(workload, outputs, batch, counts=target_counts(batch))
    assert whole.item() == pytest.approx(expected, rel=1e-5)
    swapped = {"left": right_BC, "right": left_BC}
    assert loss_of(workload, swapped, batch).item() == pytest.approx(expected, rel=1e-5)


def test_embeddings_are_compared_by_direction_alone():
    left_BC, right_BC = draw(3, 4), draw(3, 4, seed=1)
    torch.testing.assert_close(similarity(left_BC, right_BC), similarity(9 * left_BC, right_BC / 5))


def test_matching_by_cross_entropy_asks_whether_a_row_belongs_together():
    left_BC, right_BC = draw(4, 8), draw(4, 8, seed=1)
    batch = Batch({}, {"label": torch.tensor([1, 0, 0, 1])}, 4)
    expected = []
    for a, b, label in zip(
        left_BC.double().tolist(), right_BC.double().tolist(), (1, 0, 0, 1), strict=True
    ):
        score = cosine(a, b) / MATCHING_TEMPERATURE
        expected.append(math.log1p(math.exp(-score if label else score)))
    loss = loss_of(Workload(objective="matching"), {"left": left_BC, "right": right_BC}, batch)
    assert loss.item() == pytest.approx(mean(expected), rel=1e-5)


def test_half_precision_logits_are_reduced_in_float32():
    logits_BTV = draw(4, 64, 50)
    batch = Batch({}, {"tokens": torch.randint(0, 50, (4, 64))}, 256)
    rounded = logits_BTV.bfloat16()
    exact = loss_of(Workload(), {"tokens": rounded.double().float()}, batch)
    assert loss_of(Workload(), {"tokens": rounded}, batch).item() == exact.item()
