"""Fine-tuning: exactly what is asked learns.

Letters: I = inputs, O = outputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modelling import built, learned, task_of, workload
from torch import nn

from attnbench import UserError
from attnbench.train.models.finetune import LowRank, count

MODELS = ["own-tiny", "gpt2-tiny", "llama-tiny", "bert-tiny", "t5-tiny", "bart-tiny", "vit-tiny"]


def changed(model: Any, w: Any) -> set[str]:
    """Names of the parameters that differ after some steps of an optimizer."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        learned(model, w, step)
        optimizer.step()
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("model", MODELS)
def test_the_last_layer_its_norm_and_the_head_learn_and_nothing_else(model: str) -> None:
    """Broken: a head that shares its weight with the embedding, and moves the frozen body."""
    w = workload(model, finetune="last")
    found = built(w, "naive")
    moved = changed(found, w)
    parts: Any = found.inside.parts
    allowed = [parts.stacks[-1][-1], *parts.norms, *parts.heads]
    ids = {id(p) for module in allowed for p in module.parameters()}
    names = {n for n, p in found.named_parameters() if id(p) in ids}
    assert moved <= names
    last = {id(p) for p in parts.stacks[-1][-1].parameters()}
    assert any(n in moved for n, p in found.named_parameters() if id(p) in last)


@pytest.mark.parametrize("model", MODELS)
def test_on_a_frozen_body_the_head_alone_learns(model: str) -> None:
    w = workload(model, finetune="frozen")
    found = built(w, "naive")
    ids = {id(p) for module in found.inside.parts.heads for p in module.parameters()}
    moved = changed(found, w)
    assert moved
    assert moved <= {n for n, p in found.named_parameters() if id(p) in ids}
    assert 0 < found.counts.trainable < found.counts.total / 2


@pytest.mark.parametrize("model", MODELS)
def test_lora_trains_its_own_and_begins_where_the_model_is(model: str) -> None:
    w = workload(model)
    plain, added = built(w, "naive"), built(w.replace(finetune="lora", lora_rank=2), "naive")
    inputs = task_of(w).batch(0).inputs
    for name, out in plain.eval()(**inputs).items():
        assert torch.equal(out, added.eval()(**inputs)[name])
    moved = changed(added, w)
    own = {n for n, _ in added.named_parameters() if n.endswith(("down_rI", "up_Or"))}
    assert moved <= own
    assert {n for n in own if n.endswith("up_Or")} <= moved  # the other begins behind zeros
    wrapped = [m for m in added.modules() if isinstance(m, LowRank)]
    sizes = sum(m.down_rI.numel() + m.up_Or.numel() for m in wrapped)
    assert added.counts.trainable == sizes
    assert added.counts.total == plain.counts.total + sizes


@pytest.mark.parametrize(("model", "layers"), [("gpt2-tiny", 4), ("llama-tiny", 7),
                                               ("t5-tiny", 10), ("own-tiny", 6)])  # fmt: skip
def test_lora_adds_to_every_projection_and_to_the_mlp(model: str, layers: int) -> None:
    """GPT-2's are of transformers' own class: broken, only nn.Linear is looked for."""
    found = built(workload(model, finetune="lora"), "naive")
    stack: Any = found.inside.parts.stacks[-1][-1]
    assert sum(isinstance(m, LowRank) for m in stack.modules()) == layers


def test_low_rank_is_the_products_of_its_two_matrices() -> None:
    torch.manual_seed(0)
    layer = LowRank(nn.Linear(6, 4), 2)
    nn.init.normal_(layer.up_Or)
    x = torch.randn(3, 6)
    whole_OI = layer.base.weight + layer.up_Or @ layer.down_rI  # type: ignore[operator]
    torch.testing.assert_close(layer(x), x @ whole_OI.T + layer.base.bias)


def test_lora_of_a_rank_that_is_no_low_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"lora_rank 65 is more than the rank of a layer of 64"):
        built(workload("own-tiny", finetune="lora", lora_rank=65), "naive")


def test_what_an_implementation_learns_is_frozen_with_its_layer() -> None:
    found = built(workload("bert-tiny", finetune="last"), "linformer")
    learning = [n for n, p in found.named_parameters() if "mix_k_Nr" in n and p.requires_grad]
    assert len(learning) == 1
    assert ".layer.1." in learning[0]


def test_a_frozen_body_stays_out_of_the_backward_with_checkpointing_too() -> None:
    """Broken: transformers makes embeddings ask for gradients, and the body runs backward."""
    w = workload("gpt2-tiny", finetune="frozen", checkpointing=True)
    model = built(w, "naive").train()
    seen = []
    model.inside.parts.stacks[0][0].register_forward_hook(  # type: ignore[index]
        lambda module, given, out: seen.append(out)
    )
    learned(model, w)
    outs = [out[0] if isinstance(out, tuple) else out for out in seen]
    assert outs
    assert not any(out.requires_grad for out in outs)


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    counts = count(nn.Sequential(first, second))
    assert (counts.total, counts.trainable) == (9, 9)
