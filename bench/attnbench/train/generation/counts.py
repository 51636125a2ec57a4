"""What a generation takes by its sizes: bytes of the cache and weights, parameters, FLOPs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from attnbench.attention import Attention
from attnbench.problem import Problem
from attnbench.train.generation.spec import Generation
from attnbench.train.models.int8 import Int8Linear


def cache_bytes(generation: Generation, element_bytes: int) -> int:
    """Keys and values of every token that is read, in all layers."""
    preset = generation.preset
    head_dim = preset.d_model // preset.heads
    tokens = generation.batch * generation.read
    return 2 * preset.layers * tokens * preset.heads_kv * head_dim * element_bytes


def bytes_of(body: nn.Module) -> int:
    """Weights and buffers, shared ones once."""
    held = {id(x): x for x in (*body.parameters(), *body.buffers())}
    return sum(x.numel() * x.element_size() for x in held.values())


def parameters_of(body: nn.Module) -> int:
    """How many numbers the model holds, those in int8 among them; tied ones count once."""
    whole: list[Any] = [m.weight_OI for m in body.modules() if isinstance(m, Int8Linear)]
    whole += [
        m.bias_O for m in body.modules() if isinstance(m, Int8Linear) and m.bias_O is not None
    ]
    return sum(x.numel() for x in (*body.parameters(), *whole))


def flops_of(
    generation: Generation, body: Any, attention: Attention, problems: Sequence[Problem]
) -> int:
    """Products of a whole generation, two FLOPs a multiply-add.

    Args:
        generation: its lengths.
        body: the model, in which nobody attends.
        attention: an approximate method counts by its own formula.
        problems: of one layer, each length once.
    """
    head = body.get_output_embeddings()
    inside = sum(_weights(m) for m in _linear(body) if m is not head)
    dense = 2 * generation.batch * (inside * generation.read + _weights(head) * generation.new)
    is_exact = attention.kind == "exact"
    pairs = sum(p.flops() if is_exact else attention.flops(p) for p in problems)
    return dense + generation.preset.layers * pairs


def _linear(body: nn.Module) -> Iterator[nn.Module]:
    for module in body.modules():
        if isinstance(module, (nn.Linear, Int8Linear)) or type(module).__name__ == "Conv1D":
            yield module


def _weights(linear: nn.Module) -> int:
    weight = linear.weight_OI if isinstance(linear, Int8Linear) else linear.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel()
