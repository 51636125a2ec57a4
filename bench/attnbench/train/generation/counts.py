"""What a generation takes by its sizes: bytes of the cache and weights, parameters, FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnbench.attention import Attention
from attnbench.train.generation.spec import Generation
from attnbench.train.models.bridge import Attends
from attnbench.train.models.int8 import Int8Linear
from attnbench.train.models.interface import places
from attnbench.train.models.readers import Reader


@dataclass(frozen=True)
class Flops:
    """Products, two FLOPs a multiply-add: until the first token is there, and from then on."""

    prefill: int
    decode: int


def cache_bytes(generation: Generation, element_bytes: int) -> int:
    """Keys and values of every token that is kept, in all layers; of an encoder's tokens, too."""
    preset = generation.preset
    head_dim = preset.d_model // preset.heads
    tokens = generation.batch * generation.cached
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


def flops_of(generation: Generation, reader: Reader, attention: Attention) -> Flops:
    """Products of a generation, by what each matrix and each place of attention has to do.

    Keys and values of an encoder's tokens are projected once; causal masks count their pairs.

    Args:
        generation: its lengths.
        reader: the model, after a generation.
        attention: who attends there; an approximate method counts by its own formula.
    """
    prefill, step, decode = 0, 0, 0
    for name, linear in _linear(reader.body):
        is_head = linear is reader.head  # only the place that speaks goes through it
        rows = (1, 1) if is_head else reader.rows(name, generation.prompt)
        prefill += 2 * generation.batch * _weights(linear) * rows[0]
        step += 2 * generation.batch * _weights(linear) * rows[1]
    steps = generation.new - 1
    is_exact = attention.kind == "exact"
    for name, place in places(reader.body).items():
        # As met: the prefill's, then one a step, but that attention to an encoder stays the same.
        first, *later = (p.flops() if is_exact else attention.flops(p) for p in place.problems)
        prefill += first
        decode += steps * first if reader.crosses(name) else sum(later)
    return Flops(prefill, steps * step + decode)


def _linear(body: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Matrices of the model; what an implementation has learned is attention's affair."""
    for name, module in body.named_children():
        if isinstance(module, Attends):
            continue
        if isinstance(module, (nn.Linear, Int8Linear)) or type(module).__name__ == "Conv1D":
            yield name, module
        yield from ((f"{name}.{inner}", matrix) for inner, matrix in _linear(module))


def _weights(linear: nn.Module) -> int:
    weight = linear.weight_OI if isinstance(linear, Int8Linear) else linear.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel()
