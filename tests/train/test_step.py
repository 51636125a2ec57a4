"""A step is the step that was asked for: parts add up, clipping and schedule take place."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import attention, workload

from attnbench.attention import Unsupported
from attnbench.train.data import make_task
from attnbench.train.learning import learn
from attnbench.train.optim import lr_at
from attnbench.train.roles import IGNORED
from attnbench.train.setup import make_teacher, make_trainer
from attnbench.train.step import Trainer, products_of
from attnbench.train.workload import Workload

CPU = torch.device("cpu")


def trainer_of(of: Workload) -> Trainer:
    return make_trainer(of, attention("fair"), CPU, 0)


def gradients(of: Workload) -> dict[str, torch.Tensor]:
    """After forward and backward of every part of the first batch."""
    trainer, batch = trainer_of(of), make_task(of, 0).batch(0)
    targets = batch.targets["tokens"].clone()
    targets[0, 3:] = IGNORED  # so that parts predict different numbers of tokens
    for piece in trainer.put(dataclasses.replace(batch, targets={"tokens": targets})):
        trainer.backward(trainer.forward(piece))
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(
    parts: int, smoothing: float
) -> None:
    whole = gradients(workload(label_smoothing=smoothing))
    cut = gradients(workload(label_smoothing=smoothing, accumulation=parts))
    for name, gradient in cut.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


def test_a_contrastive_loss_is_not_cut_into_parts() -> None:
    of = workload(accumulation=2)
    trainer = trainer_of(of)
    batch = make_task(of, 0).batch(0)
    with pytest.raises(Unsupported, match="accumulation must be 1, got 2"):
        trainer.put(type(batch)(batch.inputs, {}, batch.tokens))


def test_each_step_uses_the_rate_of_the_schedule_and_then_the_last_one() -> None:
    of = workload(steps=6, warmup=2, cooldown=2)
    trainer, task = trainer_of(of), make_task(of, 0)
    seen = []
    for step in range(8):
        trainer.step(trainer.put(task.batch(step)))
        seen.append(trainer.optimizer.param_groups[0]["lr"])
    assert seen == [lr_at(of, min(step, 5)) for step in range(8)]


def test_gradients_are_clipped_where_asked_and_cleared_after() -> None:
    norms = []
    for clip in (0.0, 1e-3):
        of = workload(clip=clip, optimizer="sgd", beta1=0.0, weight_decay=0.0, warmup=0)
        trainer = trainer_of(of)
        before = [p.detach().clone() for p in trainer.parameters]
        trainer.step(trainer.put(make_task(of, 0).batch(0)))
        moved = [(p.detach() - b) / of.lr for p, b in zip(trainer.parameters, before, strict=True)]
        norms.append(float(torch.stack([m.norm() for m in moved]).norm()))
        assert all(p.grad is None for p in trainer.parameters)
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_with_float32_weights(precision: str) -> None:
    of = workload(precision=precision, steps=20)
    trainer, task = trainer_of(of), make_task(of, 0)
    losses = learn(trainer, task, 0).losses
    plain = of.replace(precision="fp32")
    assert losses == pytest.approx(learn(trainer_of(plain), task, 0).losses, rel=0.02)
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    assert trainer.outputs(task.batch(0))["tokens"].dtype == getattr(
        torch, {"bf16": "bfloat16", "fp16": "float16"}[precision]
    )


def test_tf32_is_refused_on_a_cpu_with_the_reason() -> None:
    with pytest.raises(Unsupported, match="a CPU has none; use fp32"):
        trainer_of(workload(precision="tf32"))


def test_the_precision_of_products_is_put_back() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with products_of(workload(precision="tf32")):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_a_student_follows_a_teacher_of_twice_the_width_that_does_not_learn() -> None:
    of = workload(distillation=0.5)
    teacher = make_teacher(of, CPU, 0, lambda: None)
    assert teacher is not None
    trainer = make_trainer(of, attention("fair"), CPU, 0, teacher)
    words = [m.embedding_dim for m in teacher.modules() if isinstance(m, torch.nn.Embedding)]
    assert max(words) == 2 * 32
    before = [p.clone() for p in teacher.parameters()]
    learn(trainer, make_task(of, 0), 0, evaluate=False)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert make_teacher(workload(), CPU, 0, lambda: None) is None


def test_learning_ends_when_the_target_is_reached_or_patience_is_over() -> None:
    easy = workload(steps=20, target=1e-6)
    curve = learn(trainer_of(easy), make_task(easy, 0), 0)
    assert curve.stopped is not None
    assert "reached the target" in curve.stopped
    assert len(curve.losses) < 20
    stuck = workload(steps=20, patience=2, lr=1e-12)
    curve = learn(trainer_of(stuck), make_task(stuck, 0), 0)
    assert curve.stopped is not None
    assert "has not improved in 2 evaluations" in curve.stopped


def test_the_same_seed_gives_the_same_curve() -> None:
    of = workload(dropout=0.0)
    one, other = (learn(trainer_of(of), make_task(of, 0), 0).losses for _ in range(2))
    assert one == other
