"""q, k and v of a model's layer while it runs, saved for ``attnbench picture --tensors``.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from attnbench.errors import UserError


@dataclass(frozen=True)
class Captured:
    """What one call of attention was given.

    Attributes:
        q_BHMD, k_BGND, v_BGNE: copies, with rotations and norms applied, as the call had them.
        is_causal: whether it was asked for a causal mask.
        scale: on the logits; None is 1/√head_dim.
        has_mask: whether it was given a mask of its own.
    """

    q_BHMD: torch.Tensor
    k_BGND: torch.Tensor
    v_BGNE: torch.Tensor
    is_causal: bool
    scale: float | None
    has_mask: bool

    def save(self, path: Path) -> None:
        """Write q, k and v as a ``.pt`` file.

        Raises:
            UserError: the call had a mask tensor, which a picture would leave out.
        """
        if self.has_mask:
            raise UserError(
                "this call of attention was given a mask tensor, which a picture does not have: "
                "run the model on a sequence without padding"
            )
        torch.save({"q": self.q_BHMD, "k": self.k_BGND, "v": self.v_BGNE}, path)


@contextlib.contextmanager
def capture(layer: torch.nn.Module) -> Iterator[list[Captured]]:
    """Collect every call of ``scaled_dot_product_attention`` that a module makes.

    ::

        with capture(model.model.layers[3].self_attn) as calls:
            model(tokens)
        calls[0].save(Path("layer3.pt"))

    Seen is what calls it as ``torch.nn.functional.scaled_dot_product_attention``, as the
    models of transformers do with ``attn_implementation="sdpa"``.

    Raises:
        UserError: at the end, if the module made no such call.
    """
    calls: list[Captured] = []
    depth = 0
    original = F.scaled_dot_product_attention

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        if depth:
            calls.append(_captured(*args, **kwargs))
        return original(*args, **kwargs)

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    hooks = [
        layer.register_forward_pre_hook(enter),
        layer.register_forward_hook(leave, always_call=True),
    ]
    F.scaled_dot_product_attention = watched
    try:
        yield calls
    finally:
        F.scaled_dot_product_attention = original
        for hook in hooks:
            hook.remove()
    if not calls:
        raise UserError(
            f"{type(layer).__name__} made no call of scaled_dot_product_attention; load the model "
            'with attn_implementation="sdpa"'
        )


def _captured(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Captured:
    """The arguments of torch's function, under its own names."""
    q_BHMD, k_BGND, v_BGNE = (x.detach().to("cpu", copy=True) for x in (query, key, value))
    return Captured(q_BHMD, k_BGND, v_BGNE, bool(is_causal), scale, attn_mask is not None)
