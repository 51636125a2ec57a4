"""One problem's forward: descriptors, the order of its tiles, the launch.

Descriptors of the TMA are made on the host, a handful of microseconds a call: they travel as
parameters of the kernel, so it needs no memory of its own to build them in, no allocator for
it, and no fence before their first use. They have all four axes of a tensor, so that any
strides will do, and so that what a tile has past the end of its head arrives as zeros
rather than as the next head's rows.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from attnbench import Problem, Unsupported

from .config import config_of, padded
from .forward import forward_kernel

WARPS = 4  # of the first consumer; the kernel adds the others
_ALIGNED = 8  # elements of 2 bytes: the 16 bytes that the TMA counts strides and addresses in
_L2_SHARE = 0.6  # of the cache, for keys and values of the heads that are worked on together
_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


class GluonForward:
    """A callable ``(q, k, v) → out``.

    Args:
        problem: what to solve.
        processors: streaming multiprocessors of the device.
        l2_bytes: its L2 cache.
    """

    def __init__(self, problem: Problem, processors: int, l2_bytes: int) -> None:
        self.problem = problem
        self.config = config_of(problem.head_dim, problem.head_dim_v)
        tiles_of_head = -(-problem.seqlen_q // self.config.block_m)
        heads = problem.batch * problem.heads_q
        self.programs = min(processors, heads * tiles_of_head)
        self.sizes = {
            "heads": heads,
            "heads_q": problem.heads_q,
            "group": problem.heads_q // problem.heads_kv,
            "seqlen_q": problem.seqlen_q,
            "seqlen_k": problem.seqlen_k,
            "tiles_of_head": tiles_of_head,
            "heads_together": heads_together(problem, l2_bytes),
        }

    def __call__(
        self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> torch.Tensor:
        p = self.problem
        out_BHME = q_BHMD.new_empty((p.batch, p.heads_q, p.seqlen_q, p.head_dim_v))
        arguments = self.arguments(q_BHMD, k_BGND, v_BGNE, out_BHME)
        forward_kernel[(self.programs,)](**arguments, num_warps=WARPS)
        return out_BHME

    def arguments(
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        out_BHME: torch.Tensor,
    ) -> dict[str, Any]:
        """Of the kernel, by name.

        Raises:
            Unsupported: strides or an address that a descriptor cannot have.
        """
        p, config = self.problem, self.config
        # A factor of 0 would make 0 · −inf of what is masked; this one makes 0 of all the rest.
        scale = max(abs(float(p.softmax_scale)), 1e-30)
        dim, dim_v = padded(p.head_dim), padded(p.head_dim_v)
        return {
            "q_desc": describe("q", q_BHMD, config.block_m // 2, dim),
            "k_desc": describe("k", k_BGND, config.block_n, dim),
            "v_desc": describe("v", v_BGNE, config.block_n, dim_v),
            "out_ptr": out_BHME,
            "scale": scale,
            "softcap": None if p.softcap is None else float(p.softcap),
            **self.sizes,
            "HEAD_DIM_V": p.head_dim_v,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "DIM": dim,
            "DIM_V": dim_v,
            "STAGES": config.stages,
            "CAUSAL": p.mask.kind == "causal",
            "SOFTCAP": p.softcap is not None,
            "NEGATIVE": p.softmax_scale < 0,
            "CONSUMER_REGISTERS": config.consumer_registers,
            "PRODUCER_REGISTERS": config.producer_registers,
        }


def heads_together(problem: Problem, l2_bytes: int) -> int:
    """Of how many query heads the tiles are taken together, heaviest first.

    Under a full mask all tiles weigh the same, and one head after another reads keys and
    values from memory once. Under a causal one the more heads the better the balance, as long
    as what they read stays in the L2 cache.
    """
    if problem.mask.kind != "causal":
        return 1
    p = problem
    head_bytes = p.seqlen_k * (p.head_dim + p.head_dim_v) * p.element_bytes
    heads_kv = max(1, int(l2_bytes * _L2_SHARE) // head_bytes)
    return int(min(heads_kv * (p.heads_q // p.heads_kv), p.batch * p.heads_q))


def describe(name: str, x_BHSD: torch.Tensor, rows: int, width: int) -> TensorDescriptor:
    """What the TMA needs to load ``rows`` × ``width`` of a head: (B, heads, seqlen, dim).

    Raises:
        Unsupported: strides or an address that a descriptor cannot have.
    """
    strides = [
        stride if size > 1 else _ALIGNED  # torch gives an axis of one element any stride
        for size, stride in zip(x_BHSD.shape[:-1], x_BHSD.stride()[:-1], strict=True)
    ]
    if (
        x_BHSD.stride(-1) != 1
        or x_BHSD.data_ptr() % 16
        or any(stride % _ALIGNED or stride == 0 for stride in strides)
    ):
        raise Unsupported(
            f"the TMA cannot load {name} with strides {tuple(x_BHSD.stride())}: the last must be "
            f"1, the others and the address multiples of 16 bytes, and none 0; make it contiguous"
        )
    block = [1, 1, rows, width]
    layout = gl.NVMMASharedLayout.get_default_for(block, _TYPES[x_BHSD.dtype])
    return TensorDescriptor(x_BHSD, list(x_BHSD.shape), [*strides, 1], block, layout)
