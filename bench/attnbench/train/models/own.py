"""Our own Transformer, to read: encoder, decoder or both, with its positions as an option.

Pre-norm blocks (attention, attention to the encoder, MLP), each added to the residual
stream. Position encodings are those of ``attnbench.layer.positions``; ALiBi and the relative
bias are the attention's own business, and an implementation without them refuses. A decoder can
read on from a cache of keys and values, a :class:`~attnbench.train.models.cache.Filled` a layer.

Letters: B = batch, T = tokens of a sequence, S = those attended to, V = vocabulary,
C = d_model, H = heads, G = heads_kv, D = head_dim, P = D / 2, n = places that speak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnbench.errors import UserError
from attnbench.layer.positions import (
    LearnedPositions,
    RelativeBias,
    rotary_tables,
    rotate,
    sinusoidal,
)
from attnbench.train.models.bridge import Attends, Builds
from attnbench.train.models.cache import Filled
from attnbench.train.models.hugging import Outputs, Wanted
from attnbench.train.models.parts import Parts
from attnbench.train.models.presets import Preset
from attnbench.train.roles import ImageShape
from attnbench.train.workload import Activation

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


class Heads(nn.Module):
    """Multi-head attention around a plugin: self-attention, or to what an encoder says."""

    def __init__(self, preset: Preset, builds: Builds, dropout: float, *, causal: bool) -> None:
        super().__init__()
        dim = preset.d_model // preset.heads
        self.counts = (preset.heads, preset.heads_kv)
        self.wq = nn.Linear(preset.d_model, preset.heads * dim, bias=False)
        self.wk = nn.Linear(preset.d_model, preset.heads_kv * dim, bias=False)
        self.wv = nn.Linear(preset.d_model, preset.heads_kv * dim, bias=False)
        self.wo = nn.Linear(preset.heads * dim, preset.d_model, bias=False)
        self.attends = Attends(builds)
        self.mask = "causal" if causal else "full"
        self.dropout = dropout

    def forward(
        self,
        x_BTC: torch.Tensor,
        memory_BSC: torch.Tensor | None = None,
        turns: tuple[torch.Tensor, torch.Tensor] | None = None,
        bias_HTS: torch.Tensor | None = None,
        *,
        alibi: bool = False,
        cache: Filled | None = None,
    ) -> torch.Tensor:
        """``(B, T, C)``; ``turns`` are RoPE's tables ``(T, 1, P)``.

        Keys and values go into a cache and come back with all that are there.
        """
        source_BSC = x_BTC if memory_BSC is None else memory_BSC
        heads, heads_kv = self.counts
        q_BTHD = self.wq(x_BTC).unflatten(-1, (heads, -1))
        k_BSGD = self.wk(source_BSC).unflatten(-1, (heads_kv, -1))
        v_BSGD = self.wv(source_BSC).unflatten(-1, (heads_kv, -1))
        if turns is not None:
            q_BTHD, k_BSGD = rotate(q_BTHD, *turns), rotate(k_BSGD, *turns)
        q_BHTD, k_BGSD, v_BGSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
        if cache is not None:
            k_BGSD, v_BGSD = cache.update(k_BGSD, v_BGSD)
        is_step = cache is not None and q_BHTD.shape[2] == 1
        out_BHTD = self.attends(
            q_BHTD, k_BGSD, v_BGSD, alibi=alibi, bias_HMN=bias_HTS,
            mask=self.attends.builds.step_mask if is_step else self.mask,
            decode=is_step and k_BGSD.shape[2] > 1,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self.wo(out_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention, attention to the encoder where there is one, MLP."""

    def __init__(
        self, preset: Preset, builds: Builds, dropout: float, *, causal: bool, crossed: bool
    ) -> None:
        super().__init__()
        norm = nn.LayerNorm if preset.norm == "layernorm" else nn.RMSNorm
        self.norm_1 = norm(preset.d_model)
        self.heads = Heads(preset, builds, dropout, causal=causal)
        self.cross: Heads | None = None
        if crossed:
            self.norm_cross = norm(preset.d_model)
            self.cross = Heads(preset, builds, dropout, causal=False)
        self.norm_2 = norm(preset.d_model)
        self.up = nn.Linear(preset.d_model, preset.d_ff, bias=False)
        self.down = nn.Linear(preset.d_ff, preset.d_model, bias=False)
        self.act = _ACTIVATIONS[preset.activation]
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTC: torch.Tensor,
        memory_BSC: torch.Tensor | None,
        turns: tuple[torch.Tensor, torch.Tensor] | None,
        bias_HTS: torch.Tensor | None,
        alibi: bool,
        cache: Filled | None = None,
    ) -> torch.Tensor:
        """``(B, T, C)``."""
        heads_BTC = self.heads(self.norm_1(x_BTC), None, turns, bias_HTS, alibi=alibi, cache=cache)
        x_BTC = x_BTC + self.dropout(heads_BTC)
        if self.cross is not None:
            # Positions of two sequences have no distance: no RoPE, bias or ALiBi here.
            x_BTC = x_BTC + self.dropout(self.cross(self.norm_cross(x_BTC), memory_BSC))
        mlp_BTC = self.down(self.act(self.up(self.norm_2(x_BTC))))
        return x_BTC + cast(torch.Tensor, self.dropout(mlp_BTC))


class Stack(nn.Module):
    """Position encoding, layers and the last norm."""

    def __init__(
        self, preset: Preset, builds: Builds, wanted: Wanted, length: int,
        *, causal: bool, crossed: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.preset = preset
        self.head_dim = preset.d_model // preset.heads
        dropout = wanted.dropout
        self.position: LearnedPositions | RelativeBias | None = None
        if preset.position == "learned":
            self.position = LearnedPositions(length, preset.d_model)
        elif preset.position == "relative":
            self.position = RelativeBias(preset.heads, causal=causal)
        blocks = (
            Block(preset, builds, dropout, causal=causal, crossed=crossed)
            for _ in range(preset.layers)
        )
        self.layers = nn.ModuleList(blocks)
        self.norm = (nn.LayerNorm if preset.norm == "layernorm" else nn.RMSNorm)(preset.d_model)
        self.dropout = nn.Dropout(dropout)
        self.is_checkpointed = False

    def forward(
        self,
        x_BTC: torch.Tensor,
        memory_BSC: torch.Tensor | None = None,
        caches: Sequence[Filled] | None = None,
    ) -> torch.Tensor:
        """``(B, T, C)``; tokens stand behind those that are in the caches, one a layer."""
        before = 0 if caches is None else caches[0].get_seq_length()
        place_S = torch.arange(before + x_BTC.shape[1], device=x_BTC.device)
        place_T = place_S[before:]
        kind, turns, bias_HTS = self.preset.position, None, None
        if kind == "sinusoidal":
            x_BTC = x_BTC + sinusoidal(place_T, self.preset.d_model, x_BTC.dtype)
        elif kind == "rope":
            cos_TP, sin_TP = rotary_tables(place_T, self.head_dim, x_BTC.dtype)
            turns = (cos_TP[:, None], sin_TP[:, None])
        elif isinstance(self.position, LearnedPositions):
            x_BTC = x_BTC + self.position(place_T)
        elif isinstance(self.position, RelativeBias):
            bias_HTS = self.position(place_T, place_S)
        x_BTC = self.dropout(x_BTC)
        for number, layer in enumerate(self.layers):
            cache = None if caches is None else caches[number]
            given = (x_BTC, memory_BSC, turns, bias_HTS, kind == "alibi", cache)
            if self.is_checkpointed and self.training:
                x_BTC = cast(torch.Tensor, checkpoint(layer, *given, use_reentrant=False))
            else:
                x_BTC = layer(*given)
        return cast(torch.Tensor, self.norm(x_BTC))


def _std(width: int) -> float:
    """Of tables of tokens: GPT-2's 0.02 is too quiet for a narrow model, which then does not
    find multi-query recall in any number of steps that is worth waiting for."""
    return float(width**-0.5)


class Patches(nn.Module):
    """A picture as a sequence: a class token, then each patch projected (ViT, 2010.11929)."""

    def __init__(self, image: ImageShape, d_model: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(image.channels, d_model, image.patch, stride=image.patch)
        self.first_11C = nn.Parameter(0.02 * torch.randn(1, 1, d_model))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(B, T, C)`` of pixels ``(B, channels, height, width)``."""
        patches_BTC = self.cut(pixels).flatten(2).mT
        first_B1C = self.first_11C.to(patches_BTC.dtype).expand(len(patches_BTC), -1, -1)
        return torch.cat([first_B1C, patches_BTC], dim=1)


class Own(nn.Module):
    """Our own model, in the shape that its objective needs.

    A decoder for ``causal-lm``, an encoder for ``masked-lm`` and ``classification`` (of tokens
    or pictures, by the mean over places), both for ``seq2seq``; two encoders, of pictures and
    of tokens, for ``matching``.
    """

    def __init__(self, preset: Preset, wanted: Wanted, builds: Builds) -> None:
        super().__init__()
        self.objective = wanted.objective
        width, image = preset.d_model, wanted.image
        is_matching, is_translating = (wanted.objective == x for x in ("matching", "seq2seq"))
        if is_matching and image is None:
            raise UserError("objective matching needs a task with pictures (pixel_values)")
        self.tokens: nn.Embedding | None = None
        if is_matching or image is None:
            self.tokens = nn.Embedding(wanted.vocab, width)
            nn.init.normal_(self.tokens.weight, std=_std(width))
        self.kinds = nn.Embedding(2, width) if wanted.sentences else None
        self.patches = None if image is None else Patches(image, width)
        stacks = {}
        if is_translating or is_matching:
            length = image.positions if is_matching and image is not None else wanted.length
            stacks["first"] = Stack(preset, builds, wanted, length, causal=False, crossed=False)
        length = wanted.length if image is None or is_matching else image.positions
        stacks["last"] = Stack(
            preset, builds, wanted, length,
            causal=is_translating or wanted.objective == "causal-lm", crossed=is_translating,
        )  # fmt: skip
        self.stacks = nn.ModuleDict(stacks)
        self.heads = nn.ModuleDict()
        if wanted.objective in ("causal-lm", "masked-lm", "seq2seq"):
            head = self.heads["tokens"] = nn.Linear(width, wanted.vocab, bias=False)
            nn.init.normal_(head.weight, std=_std(width))
            if preset.tied and self.tokens is not None:
                head.weight = self.tokens.weight
        if wanted.classes:
            self.heads["label"] = nn.Linear(width, wanted.classes)
        if is_matching:
            self.heads["left"] = nn.Linear(width, width, bias=False)
            self.heads["right"] = nn.Linear(width, width, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> Outputs:
        """By name of the target; see :class:`attnbench.train.roles.Model`."""
        last = self.stacks["last"]
        if self.objective == "matching":
            left_BTC = self.stacks["first"](self._seen(pixel_values))
            right_BTC = last(self._read(input_ids))
            return {
                "left": self.heads["left"](left_BTC.mean(dim=1)),
                "right": self.heads["right"](right_BTC.mean(dim=1)),
            }
        if self.objective == "seq2seq":
            memory_BSC = self.stacks["first"](self._read(input_ids))
            said_BTC = last(self._read(decoder_input_ids), memory_BSC)
        elif pixel_values is not None:
            said_BTC = last(self._seen(pixel_values))
        else:
            said_BTC = last(self._read(input_ids, token_type_ids))
        outputs = {}
        if "tokens" in self.heads:
            outputs["tokens"] = self.heads["tokens"](said_BTC)
        if "label" in self.heads:
            outputs["label"] = self.heads["label"](said_BTC.mean(dim=1))
        return outputs

    def read(
        self, ids_BT: torch.Tensor, speaking: int, caches: Sequence[Filled] | None = None
    ) -> torch.Tensor:
        """Logits ``(B, n, V)`` of a decoder's last ``speaking`` places.

        Args:
            ids_BT: int64.
            speaking: places whose next token is wanted.
            caches: of the tokens before these, one a layer; these are added.
        """
        said_BTC = self.decoder(self._read(ids_BT), None, caches)
        return cast(torch.Tensor, self.heads["tokens"](said_BTC[:, -speaking:]))

    @property
    def decoder(self) -> Stack:
        """The last stack."""
        return cast(Stack, self.stacks["last"])

    def attend_by(self, builds: Builds) -> None:
        """Have another implementation attend, everywhere."""
        for module in self.modules():
            if isinstance(module, Heads):
                module.attends = Attends(builds)

    def _read(self, ids: torch.Tensor | None, kinds: torch.Tensor | None = None) -> torch.Tensor:
        assert self.tokens is not None, "the model reads no tokens"
        x_BTC: torch.Tensor = self.tokens(ids)
        if self.kinds is None:
            return x_BTC
        kind_BTC: torch.Tensor = self.kinds(kinds)
        return x_BTC + kind_BTC

    def _seen(self, pixels: torch.Tensor | None) -> torch.Tensor:
        assert self.patches is not None, "the model sees no pictures"
        x_BTC: torch.Tensor = self.patches(pixels)
        return x_BTC

    @property
    def parts(self) -> Parts:
        """Stacks of layers, last norms and heads."""
        stacks = [cast(Stack, stack) for stack in self.stacks.values()]
        layers = tuple(stack.layers for stack in stacks)
        return Parts(layers, (stacks[-1].norm,), tuple(self.heads.values()))

    def checkpoint(self) -> None:
        """Recompute the activations of each layer in the backward."""
        for stack in self.stacks.values():
            cast(Stack, stack).is_checkpointed = True
