"""Model FLOPs are those that torch counts, and by the field's formulas."""

from __future__ import annotations

import pytest
import torch
from tiny import attention, workload
from torch.utils.flop_counter import FlopCounterMode

from attnbench.problem import Problem
from attnbench.train import attentions, flops
from attnbench.train.data import make_task
from attnbench.train.figures import ModelFlops
from attnbench.train.setup import make_trainer
from attnbench.train.step import Trainer
from attnbench.train.workload import Workload

CPU = torch.device("cpu")


def counted(of: Workload, name: str = "naive") -> tuple[ModelFlops, Trainer, list[Problem]]:
    calls: list[Problem] = []

    def note(problem, run):  # type: ignore[no-untyped-def]
        calls.append(problem)
        return run()

    trainer = make_trainer(of, attentions.around(attention(name), note), CPU, 0)
    pieces = trainer.put(make_task(of, 0).batch(0))
    with flops.counted(trainer.model) as products:
        trainer.forward(pieces[0])
    counts = flops.model_flops(products.flops, calls, attention(name), parts=of.accumulation)
    return counts, trainer, calls


def test_dense_and_full_attention_are_what_torch_counts_of_a_whole_step() -> None:
    of = workload()
    counts, _, _ = counted(of)
    trainer = make_trainer(of, attention("naive"), CPU, 0)
    (piece,) = trainer.put(make_task(of, 0).batch(0))
    with FlopCounterMode(display=False) as counter:  # the textbook computes every pair
        trainer.backward(trainer.forward(piece))
    assert counts.full == counter.get_total_flops()


def test_dense_is_six_a_token_and_parameter_that_multiplies() -> None:
    of = workload()
    counts, trainer, _ = counted(of)
    matrices = [m.weight.numel() for m in trainer.model.modules() if isinstance(m, torch.nn.Linear)]
    assert counts.dense == 6 * sum(matrices) * of.batch * of.seqlen


def test_attention_is_twelve_l_h_q_t_a_token_and_its_causal_half() -> None:
    of = workload()
    counts, _, calls = counted(of)
    layers, width, tokens = 2, 32, of.batch * of.seqlen
    assert len(calls) == layers
    assert counts.attention_full == 12 * layers * width * of.seqlen * tokens
    pairs = of.seqlen * (of.seqlen + 1) // 2
    assert counts.attention_causal == 12 * layers * width * pairs * of.batch
    assert counts.attention_own is None


def test_an_approximate_method_has_its_own_count_beside_the_others() -> None:
    counts, _, calls = counted(workload(seqlen=64), "window")
    exact = counted(workload(seqlen=64))[0]
    own = sum(attention("window").flops(p.replace(direction="forward")) for p in calls)
    assert counts.attention_own == 3 * own
    assert (counts.full, counts.causal) == (exact.full, exact.causal)
    assert counts.attention_least == counts.attention_own


def test_parts_of_an_accumulated_batch_add_up_to_the_same() -> None:
    assert counted(workload(accumulation=2))[0] == counted(workload())[0]


@pytest.mark.parametrize("frozen", ["blocks", "all but head"])
def test_what_does_not_learn_costs_no_gradient_of_its_weights(frozen: str) -> None:
    of = workload()
    trainer = make_trainer(of, attention("naive"), CPU, 0)
    model = trainer.model
    for name, parameter in model.named_parameters():
        keep = name.startswith("head") or (frozen == "blocks" and "blocks" not in name)
        parameter.requires_grad_(keep)
    (piece,) = trainer.put(make_task(of, 0).batch(0))
    with flops.counted(model) as products, FlopCounterMode(display=False) as counter:
        trainer.forward(piece).backward()
    if frozen == "blocks":  # gradients flow through, to the embeddings
        linear = [m.weight.numel() for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
        tokens = of.batch * of.seqlen
        assert products.flops == (4 * sum(linear) + 6 * model.head.weight.numel()) * tokens
    else:
        forward = counted(of)[0].attention_full // 3
        assert products.flops == counter.get_total_flops() - forward


def test_parameters_are_told_apart() -> None:
    trainer = make_trainer(workload(), attention("naive"), CPU, 0)
    told = flops.parameters_of(trainer.model)
    tables = [m for m in trainer.model.modules() if isinstance(m, torch.nn.Embedding)]
    assert told.embedding == sum(m.weight.numel() for m in tables)
    assert told.total == told.trainable == sum(p.numel() for p in trainer.model.parameters())
