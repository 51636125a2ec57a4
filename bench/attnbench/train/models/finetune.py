"""Fine-tuning: which parameters learn.

``full``: all. ``last``: the last layer, what normalises after it, and the heads. ``frozen``:
the heads alone, on a body that stays as it is. ``lora``: none of the model's own, but a
low-rank addition to every projection and every linear layer of the MLPs (Hu et al. 2021,
LoRA, arXiv 2106.09685).

Letters: I = inputs, O = outputs, r = rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.errors import UserError
from attnbench.train.models.bridge import Attends
from attnbench.train.models.parts import Parts
from attnbench.train.workload import Finetune


@dataclass(frozen=True)
class Counts:
    """Parameters of a model: all of them, and those that learn."""

    total: int
    trainable: int


class LowRank(nn.Module):
    """A linear layer that stays as it is, and an addition of low rank that learns.

    ``y = base(x) + B A x``. B begins at zero: the first output is the base's own.

    Args:
        base: ``nn.Linear``, or transformers' ``Conv1D``, which is the same with its weight
            transposed.
        rank: of the addition.
    """

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        inputs, outputs = _sizes(base)
        if rank > min(inputs, outputs):
            raise UserError(
                f"lora_rank {rank} is more than the rank of a layer of {inputs} × {outputs}"
            )
        self.base = base
        weight: Any = base.weight
        self.down_rI = nn.Parameter(weight.new_empty(rank, inputs))
        nn.init.kaiming_uniform_(self.down_rI, a=math.sqrt(5))
        self.up_Or = nn.Parameter(weight.new_zeros(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(…, O)`` of ``(…, I)``."""
        added = F.linear(F.linear(x, self.down_rI), self.up_Or)
        return self.base(x) + added  # type: ignore[no-any-return]


def finetune(model: nn.Module, parts: Parts, mode: Finetune, rank: int) -> Counts:
    """Choose what learns, in place, before the optimizer is made.

    Learned state of an implementation belongs to its layer.

    Raises:
        UserError: the rank of LoRA is more than a layer's own.
    """
    if mode == "full":
        return count(model)
    model.requires_grad_(False)
    if mode == "lora":
        for stack in parts.stacks:
            _add_low_rank(stack, rank)
        return count(model)
    learning = list(parts.heads)
    if mode == "last":
        *_, last = parts.stacks[-1].children()
        learning += [last, *parts.norms]
    for module in learning:
        module.requires_grad_(True)
    return count(model)


def count(model: nn.Module) -> Counts:
    """Parameters, those that several modules share once."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return Counts(sum(p.numel() for p in parameters), trainable)


def _add_low_rank(module: nn.Module, rank: int) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, Attends):
            continue  # what an implementation learns is no projection of the model
        if _is_linear(child):
            setattr(module, name, LowRank(child, rank))
        else:
            _add_low_rank(child, rank)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Inputs and outputs."""
    weight: Any = linear.weight
    rows, columns = weight.shape
    return (columns, rows) if isinstance(linear, nn.Linear) else (rows, columns)
