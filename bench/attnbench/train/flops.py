"""Model FLOPs of one training step: what has to be computed, by the conventions of the field.

Products count two a multiply-add; softmax, norms and activations are not counted. The sum
has two parts, which MFU puts together in two ways:

* outside attention, each product with a weight: forward, gradient of the weight, gradient of
  the input, each where it is needed. Where everything learns that is ``6N`` a token, N being
  the parameters that take part in products (a table that is only looked up does not; one that
  is tied to the head does);
* attention: three times the forward's 2·pairs·(D + E) a head. ``full`` counts all pairs, as
  nanoGPT, torchtitan and PaLM do (12·L·H·Q·T a token, arXiv 2204.02311, appendix B);
  ``causal`` exactly the pairs that the mask keeps, as llm.c and Megatron do. The backward
  counts twice the forward: recomputation is the implementation's own affair, and so is that
  of checkpointing.

An approximate method is told by its own formula, too. Its share of a peak by the others'
count is an *effective* one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from attnbench.attention import Attention
from attnbench.problem import Problem
from attnbench.train.figures import ModelFlops, Parameters


class Products:
    """Counts the products with weights of what a model runs; see :func:`counted`."""

    def __init__(self) -> None:
        self.flops = 0

    def add(self, module: torch.nn.Module, inputs: Sequence[object], output: object) -> None:
        """A forward hook of a module with a matrix for a weight."""
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        assert isinstance(output, torch.Tensor)
        wide = _outputs_of(module, weight)
        forward = 2 * weight.numel() * (output.numel() // wide)
        first = inputs[0]
        needs = isinstance(first, torch.Tensor) and first.requires_grad
        self.flops += forward * (1 + weight.requires_grad + needs)


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[Products]:
    """Within, products of modules with weights are counted, backward included."""
    products = Products()
    hooks = [
        module.register_forward_hook(products.add)
        for module in model.modules()
        if _multiplies(module)
    ]
    try:
        yield products
    finally:
        for hook in hooks:
            hook.remove()


def model_flops(
    dense: int, calls: Sequence[Problem], attention: Attention, *, parts: int
) -> ModelFlops:
    """The FLOPs of a step.

    Args:
        dense: outside attention, of one part.
        calls: the problem of every attention call of one part's forward.
        attention: who does it.
        parts: of the batch, each of which does the same.
    """
    forward = [p.replace(direction="forward") for p in calls]
    full = sum(p.replace(mask="full").flops() for p in forward)
    causal = sum(p.flops() for p in forward)
    own = None
    if attention.kind == "approximate":
        own = 3 * parts * sum(attention.flops(p) for p in forward)
    return ModelFlops(
        dense=dense * parts,
        attention_full=3 * parts * full,
        attention_causal=3 * parts * causal,
        attention_own=own,
    )


def parameters_of(model: torch.nn.Module) -> Parameters:
    """How many numbers a model holds; ``parameters()`` names tied ones once."""
    tables = {
        id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)
    }
    return Parameters(
        total=sum(p.numel() for p in model.parameters()),
        embedding=sum(tables.values()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _multiplies(module: torch.nn.Module) -> bool:
    """Whether a module multiplies by a weight: Linear, convolutions, GPT-2's Conv1D."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, torch.nn.Parameter) and weight.dim() >= 2
    return is_matrix and not isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))


def _outputs_of(module: torch.nn.Module, weight: torch.Tensor) -> int:
    """How many outputs share one pass over the weight."""
    if isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
        return weight.shape[0]
    return weight.shape[-1]  # transformers' Conv1D: its weight is (inputs, outputs)
