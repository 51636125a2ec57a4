"""Whether a tensor is what it says: plain, computed, with memory of its own for each element."""

from __future__ import annotations

import torch


def not_real(name: str, x: torch.Tensor, *, may_repeat: bool = False) -> str | None:
    """Why a tensor is not a real one, in words; None if it is.

    Torch has plain ``torch.Tensor`` objects whose numbers are made when they are read:
    functional and vmap wrappers, lazy clones and negations, zeros without memory.

    Args:
        name: of the tensor.
        x: of type ``torch.Tensor`` exactly, of known shape and device.
        may_repeat: elements may share memory (autograd expands gradients).
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or torch._is_functional_tensor(x):
        return f"{name} is a lazy tensor (a wrapper of functorch): its work is still to be done"
    if x.layout is not torch.strided:
        return f"{name} has layout {x.layout}, expected torch.strided"
    if x._is_zerotensor():
        return f"{name} is a lazy tensor of zeros, without memory"
    if x.is_neg() or x.is_conj():
        return f"{name} is a lazy tensor: its sign is still to be changed"
    if torch._C._is_cow_tensor(x):  # type: ignore[attr-defined]
        return f"{name} is a lazy tensor: a copy that is still to be made"
    if x.numel() == 0:
        return None
    last = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    has, needs = x.untyped_storage().nbytes(), (last + 1) * x.element_size()
    if has < needs:
        return f"{name} has {has} bytes of memory behind it, where {needs} are needed"
    if not may_repeat and overlaps(x):
        return f"{name} has strides {x.stride()}: elements share memory, it is not written out"
    return None


def overlaps(x: torch.Tensor) -> bool:
    """Whether elements share memory: some dimension steps into the extent of smaller ones."""
    extent = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent += (size - 1) * stride
    return False
