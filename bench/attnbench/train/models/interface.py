"""Plugins inside Hugging Face models: the function and the mask that transformers calls.

All are registered under one name, ``attnbench``, as attention and as mask: without a mask of
that name transformers would hand none on, and padding would be ignored. Which implementation
it is, the place knows (:class:`~attnbench.train.models.bridge.Attends`); its name never comes
near transformers, which takes one with "flash" in it for a kernel of its own and one with "/"
for a kernel on its hub.

The mask is None where a model attends fully or causally, else SDPA's boolean tensor, which is
read back as full, causal or a window, or refused: no plugin takes any other. A caller who
knows that there is neither padding nor packing gives :func:`no_mask`.

Models that bypass the interface (BigBird, Longformer, LED, Reformer, Nystromformer) cannot
be had this way; :func:`attach` refuses them, for nothing of theirs would ever be called.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from attnbench.attention import Unsupported
from attnbench.errors import UserError
from attnbench.masks import Causal, Full, Window
from attnbench.train.models.bridge import Attends, Builds, prepare

NAME = "attnbench"
_PLACE = "attends"  # submodule of a transformers attention module
_REFUSED = {
    "s_aux": "attention sinks",
    "head_mask": "a mask of heads",
    "cu_seq_lens_q": "packed sequences",
    "cu_seq_lens_k": "packed sequences",
    "cache": "a paged cache",
    "output_attentions": "the attention weights (those of transformers' 'eager' can be had)",
}  # fmt: skip

_attaching: ContextVar[Builds | None] = ContextVar("attaching", default=None)


def register() -> str:
    """Make plugins known to transformers; what to give as attn_implementation."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask_of)
    return NAME


def attach(
    model: nn.Module,
    builds: Builds,
    part: Mapping[str, torch.Tensor],
    whole: Mapping[str, torch.Tensor],
    autocast: torch.dtype | None = None,
) -> None:
    """Give each attention module of a model a place of its own, and build what it needs.

    Before the optimizer is made: it must know what the implementation learns. Arguments as
    of :func:`~attnbench.train.models.bridge.prepare`.

    Raises:
        UserError: nothing in the model calls the attention interface.
        Unsupported: the implementation cannot do what the model needs.
    """
    with making_places(builds):
        prepare(model, builds, part, whole, autocast)
    if not places(model):
        raise UserError(f"{type(model).__name__} bypasses the attention interface of transformers")


@contextmanager
def making_places(builds: Builds) -> Iterator[None]:
    """Inside, attention modules that are called get a place."""
    token = _attaching.set(builds)
    try:
        yield
    finally:
        _attaching.reset(token)


def places(model: nn.Module) -> dict[str, Attends]:
    """Every place of a model where a plugin attends, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Attends)}


def no_mask(device: torch.device) -> torch.Tensor:
    """What to give a decoder as ``attention_mask`` if nothing hides but what comes later.

    Without one transformers looks in every call whether positions tell of packed sequences:
    in eager mode it waits for the device, and while torch.compile traces it takes them for
    packed. A mask of four dimensions it hands on as it is; this one has no elements.
    """
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def mask_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **more: Any,
) -> torch.Tensor | None:
    """None where a model attends fully or causally to tokens without padding; else SDPA's mask.

    transformers' ``sdpa_mask`` says the same, but while torch.compile traces the model: up to
    torch 2.13 it gives a tensor then, whatever the mask. Arguments are transformers' own.
    """
    skips = attention_mask is None and (local_size is None or kv_length < local_size)
    if skips and allow_is_bidirectional_skip:
        return None
    is_end = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    if skips and allow_is_causal_skip and is_end and (q_length in (1, kv_length)):
        return None
    mask: torch.Tensor | None = sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask=attention_mask,
        local_size=local_size, allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip, **more,
    )  # fmt: skip
    return mask


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for each attention module.

    Args:
        module: the attention module; says whether it is causal if ``is_causal`` does not.
        query: ``(B, H, M, D)``.
        key: ``(B, G, N, D)``; transformers leaves G < H to the implementation.
        value: ``(B, G, N, E)``.
        attention_mask: None, or :func:`no_mask`, or bool ``(B, 1, M, N)``, True where a query
            may look.
        scaling: of the logits; T5 says 1.
        dropout: of the weights; transformers says 0 outside training.
        position_bias: T5's learned bias ``(1, H, M, N)``.
        softcap, sliding_window: of models that have them.
        more: what else models hand on; what would change the result is refused.

    Returns:
        The output ``(B, M, H, E)``, and no weights.

    Raises:
        Unsupported: the implementation, or any plugin, cannot do what the model asks for.
    """
    for name, words in _REFUSED.items():
        if more.get(name) is not None and more[name] is not False:
            raise Unsupported(f"plugins do not give or take {words}")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    place = getattr(module, _PLACE, None) or _make_place(module, position_bias)
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is not None and attention_mask.numel():
        mask = _read(attention_mask, queries, keys, sliding_window)
    elif not is_causal:
        mask = "full"
    elif queries == 1:  # a step on a cache
        mask = place.builds.step_mask
    else:
        mask = "causal"
        if keys > queries:  # an empty static cache: keys lie at its beginning
            key, value = key[:, :, :queries], value[:, :, :queries]
            position_bias = None if position_bias is None else position_bias[..., :queries]
    out_BHME = place(
        query, key, value, mask=mask, scale=scaling, dropout_p=dropout, softcap=softcap,
        decode=queries < key.shape[2] and place.builds.direction == "forward",
        bias_HMN=None if _adds_nothing(module) else _shared_by_batch(position_bias),
    )  # fmt: skip
    return out_BHME.transpose(1, 2), None


def _make_place(module: nn.Module, position_bias: torch.Tensor | None) -> Attends:
    builds = _attaching.get()
    if builds is None:
        raise RuntimeError(f"{type(module).__name__} was never attached to an implementation")
    if _adds_nothing(module) and position_bias is not None and bool(position_bias.any()):
        raise RuntimeError(f"{type(module).__name__} adds a bias that is taken to be zero")
    place = Attends(builds)
    module.add_module(_PLACE, place)
    return place


def _adds_nothing(module: nn.Module) -> bool:
    """Whether this is T5's attention to the encoder, whose position bias is all zeros."""
    if getattr(module, "has_relative_attention_bias", True):
        return False
    return bool(module.is_decoder) and not module.is_causal


def _shared_by_batch(bias_1HMN: torch.Tensor | None) -> torch.Tensor | None:
    if bias_1HMN is None:
        return None
    if bias_1HMN.shape[0] != 1:
        raise Unsupported("plugins take no bias that differs within the batch")
    return bias_1HMN[0]


def _read(seen: torch.Tensor, queries: int, keys: int, window: int | None) -> str:
    """The name of a mask that was given as a tensor.

    Reads the tensor, which waits for the device: models whose masks are full or causal give
    none, and never come here.

    Raises:
        Unsupported: it is no full, causal or window mask (padding is not).
    """
    if torch.compiler.is_compiling():
        raise Unsupported("a mask given as a tensor cannot be read while compiling")
    visible = seen if seen.dtype == torch.bool else seen == 0
    kinds = [Full(), Causal()] + ([Window(window=window)] if window is not None else [])
    for kind in kinds:
        same_MN = kind.dense(queries, keys, seen.device)
        if bool((visible == same_MN).all()):
            return str(kind)
    hidden = 100 * float((~visible).float().mean())
    raise Unsupported(
        f"the attention mask of shape {tuple(seen.shape)} hides {hidden:.0f} % of all pairs and is "
        "neither full, causal nor a window (padding?): plugins take no such mask"
    )
