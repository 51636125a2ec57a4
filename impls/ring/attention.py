"""``ring``: exact attention over a sequence that lies in several processes, and torch's own.

The processes hold no shard between calls: each call sends theirs and brings the results back
to the one process where q, k and v are whole, because that is where they are verified. The time
of a call is therefore mostly that of sending, and no timing of a ring: it is labelled, and shown
nowhere. ``attnbench verify ring:world=2`` is what it is for.

Letters: B = batch, H = heads_q, G = heads_kv, S = seqlen, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

from typing import Any

import torch

from attnbench import Attention, ForwardBackward, Problem, Unsupported, register

from .rank import chunks_of
from .ranks import ranks

Tensors = list[torch.Tensor]

_LABEL = "with its shards sent to other processes and back in each call"


@register("ring")
class RingAttention(Attention):
    """Ring attention: keys and values go around ranks point to point, merged row by row."""

    features = Attention.features - {"decode"}
    masks = ("full", "causal")
    dtypes = ("float64", "float32", "bfloat16", "float16")
    options = {"world": 0}
    simulators = {"world": _LABEL}
    version = torch.__version__
    source = "Liu et al. 2023, Ring Attention with Blockwise Transformers, arXiv 2310.01889"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        world = int(self.options["world"])
        if world < 2:
            raise Unsupported(f"shares a sequence among two processes or more: {self.name}:world=2")
        if device.type == "cuda" and world > torch.cuda.device_count():
            have = torch.cuda.device_count()
            raise Unsupported(f"{world} ranks need a GPU each; torch sees {have}")
        least = min(problem.seqlen_q, problem.seqlen_k)
        if least < 2 * world:
            raise Unsupported(f"cuts a sequence into {2 * world} chunks, not {least} tokens")

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        ring = Scattered(problem, device, int(self.options["world"]))
        return ForwardBackward(ring.forward, ring.backward)


class Scattered:
    """One problem, cut into the chunks of a ring.

    Args:
        problem, device: what is asked for, and where.
        world: how many ranks.
    """

    def __init__(self, problem: Problem, device: torch.device, world: int) -> None:
        self.world, self.device = world, device
        ranks(world, device)  # started here, for it is slow
        self.told: dict[str, Any] = {
            "lengths_q": _lengths(problem.seqlen_q, 2 * world),
            "lengths_k": _lengths(problem.seqlen_k, 2 * world),
            "is_causal": problem.mask.kind == "causal",
            "scale": problem.softmax_scale,
        }

    def forward(
        self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> tuple[torch.Tensor, Tensors]:
        """The output, and what the backward begins with."""
        given = [q_BHMD, k_BGND, v_BGNE]
        out_BHME, *rows_BGRM1 = self._call("forward", given, "qqq")
        return out_BHME, [*given, out_BHME, *rows_BGRM1]

    def backward(self, saved: Tensors, grad_BHME: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of q, k and v."""
        return tuple(self._call("backward", [*saved, grad_BHME], "qkk"))

    def _call(self, name: str, given: Tensors, sides: str) -> Tensors:
        """Cut, have all ranks work, and join what they answer along queries or keys."""
        shards = [[self._shard(x, rank) for x in given] for rank in range(self.world)]
        found = ranks(self.world, self.device).call(name, self.told, shards)
        return [self._joined([answer[i] for answer in found], side) for i, side in enumerate(sides)]

    def _shard(self, x_BHSD: torch.Tensor, rank: int) -> torch.Tensor:
        pieces = x_BHSD.tensor_split(2 * self.world, dim=-2)
        return torch.cat([pieces[i] for i in chunks_of(rank, self.world)], dim=-2)

    def _joined(self, shards: Tensors, side: str) -> torch.Tensor:
        """The whole of what ranks hold in parts, on the device."""
        lengths, pieces = self.told[f"lengths_{side}"], {}
        for rank, shard in enumerate(shards):
            first, last = chunks_of(rank, self.world)
            sizes = (lengths[first], lengths[last])
            pieces[first], pieces[last] = torch.split_with_sizes(shard, sizes, dim=-2)
        return torch.cat([pieces[i] for i in sorted(pieces)], dim=-2).to(self.device)


def _lengths(seqlen: int, parts: int) -> list[int]:
    """Of the parts that ``tensor_split`` makes."""
    return [seqlen // parts + (i < seqlen % parts) for i in range(parts)]


_TORCH_ON_CPU = (
    "context_parallel of torch 2.13 does not work on a CPU: causal, it has no sharding strategy "
    "for aten._scaled_dot_product_flash_attention_for_cpu; without a mask its answer is wrong"
)
_TORCH_ON_GPU = "context_parallel was never verified here, for want of several GPUs: take ring"


@register("ring-torch")
class TorchRing(Attention):
    """torch's own context parallelism, ``context_parallel``: what keeps it from taking part."""

    version = torch.__version__
    source = "https://docs.pytorch.org/tutorials/unstable/context_parallel.html"

    def supports(self, problem: Problem, device: torch.device) -> None:
        raise Unsupported(_TORCH_ON_CPU if device.type == "cpu" else _TORCH_ON_GPU)

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        raise Unsupported(_TORCH_ON_CPU if device.type == "cpu" else _TORCH_ON_GPU)
