"""Weights in int8 for inference: a quarter of the bytes that a generated token must read.

Letters: I = inputs, O = outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.train.models.bridge import Attends

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer whose weights are whole numbers, with one scale for each output.

    Weights alone: ``y = (x Wᵀ) · scale + bias`` with W rounded to [−127, 127] and computed
    with in the dtype of x. Inference only.

    Args:
        linear: ``nn.Linear``, or transformers' ``Conv1D``.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        given: Any = linear
        weight_OI = given.weight.detach()
        weight_OI = weight_OI if isinstance(linear, nn.Linear) else weight_OI.T
        largest_O1 = weight_OI.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
        rounded_OI = (weight_OI / largest_O1 * _LARGEST).round().to(torch.int8)
        self.register_buffer("weight_OI", rounded_OI.contiguous())
        self.register_buffer("scale_O", (largest_O1[:, 0] / _LARGEST).to(weight_OI.dtype))
        self.register_buffer("bias_O", None if given.bias is None else given.bias.detach().clone())

    @property
    def weight(self) -> torch.Tensor:
        """The whole numbers: T5 asks for their dtype."""
        weight_OI: Any = self.weight_OI
        return weight_OI  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(…, O)`` of ``(…, I)``, in the dtype of x."""
        buffers: Any = self
        y: torch.Tensor = F.linear(x, buffers.weight_OI.to(x.dtype)) * buffers.scale_O
        return y if buffers.bias_O is None else y.add_(buffers.bias_O)


def to_int8(module: nn.Module) -> int:
    """Replace every linear layer of a model, in place; how many there were.

    An embedding stays as it is, also where the last projection was tied to it.
    """
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, Attends):
            continue  # what an implementation learned is no projection of the model
        if isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D":
            setattr(module, name, Int8Linear(child))
            count += 1
        else:
            count += to_int8(child)
    return count
