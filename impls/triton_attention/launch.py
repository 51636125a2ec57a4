"""One problem's fused attention: what is prepared once, and the launches of a call.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from attnbench import Problem, alibi_slopes

from .backward import delta_kernel, dkdv_kernel, dq_kernel
from .config import Config, Configs, configs, decode_config, padded, shares_of, target_of
from .decode import decode_kernel, merge_kernel
from .dropout import keep_kernel
from .forward import forward_kernel
from .interpret import launch_interpreted
from .masks import Walk, walk_of

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FusedAttention:
    """A callable ``(q, k, v) → out`` that autograd can differentiate.

    Args:
        problem: what to solve.
        device: where.
        precision: of float32 products, ``ieee`` or ``tf32``.
        interpret: run the kernels in Triton's interpreter.
        chosen: configurations other than the device's first candidates.
    """

    def __init__(
        self,
        problem: Problem,
        device: torch.device,
        precision: str,
        interpret: bool,
        chosen: Configs | None = None,
    ) -> None:
        self.problem = problem
        self.interpret = interpret
        p = problem
        dim = max(p.head_dim, p.head_dim_v)
        self.configs = chosen or configs(dim, p.element_bytes, target_of(device))
        self.walk = walk_of(p, "queries", self.configs.forward, device)
        self.device = device
        self.decode: Config | None = None  # how keys are split, where queries are few
        if p.dropout_p == 0 and self.walk.form != "blocks":
            group = p.heads_q // p.heads_kv
            self.decode = decode_config(p.seqlen_q, group, dim, p.element_bytes)
        if self.decode is not None:
            heads, block_n = p.batch * p.heads_kv, self.decode.block_n
            self.shares = shares_of(p.seqlen_k, block_n, heads, _processors(device))
        self.slopes_H = torch.tensor(alibi_slopes(p.heads_q), device=device) if p.alibi else None
        self.seed: torch.Tensor | None = None  # of the last call's dropout
        self.constants = {
            "slopes_ptr": self.slopes_H,
            "heads_q": p.heads_q,
            "group": p.heads_q // p.heads_kv,
            "seqlen_q": p.seqlen_q,
            "seqlen_k": p.seqlen_k,
            "scale": p.softmax_scale,
            "softcap": p.softcap,
            "dropout_p": p.dropout_p,
            "HEAD_DIM": p.head_dim,
            "HEAD_DIM_V": p.head_dim_v,
            "DIM": padded(p.head_dim),
            "DIM_V": padded(p.head_dim_v),
            "SOFTCAP": p.softcap is not None,
            "ALIBI": p.alibi,
            "DROPOUT": p.dropout_p > 0,
            "PRECISION": precision,
        }

    def __call__(
        self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> torch.Tensor:
        out_BHME: torch.Tensor = _Attend.apply(q_BHMD, k_BGND, v_BGNE, self)  # type: ignore[no-untyped-call]
        return out_BHME

    @functools.cached_property
    def backward_walks(self) -> tuple[Walk, Walk]:
        """Those of dK/dV and of dQ; made by the first backward, which ``build()`` calls."""
        keys = walk_of(self.problem, "keys", self.configs.dkdv, self.device)
        return keys, walk_of(self.problem, "queries", self.configs.dq, self.device)

    def keep_mask(self) -> torch.Tensor | None:
        """Which weights the last call's dropout kept: bool ``(B, H, M, N)``."""
        p = self.problem
        if self.seed is None:
            return None
        keep_BHMN = torch.empty(
            (p.batch, p.heads_q, p.seqlen_q, p.seqlen_k), dtype=torch.uint8, device=self.seed.device
        )
        config = Config(64, 64, 4, 1)
        tiles = triton.cdiv(p.seqlen_q, config.block_m) * triton.cdiv(p.seqlen_k, config.block_n)
        self._launch(
            keep_kernel, tiles * p.batch * p.heads_q, config,
            keep_ptr=keep_BHMN, seed_ptr=self.seed, seqlen_q=p.seqlen_q, seqlen_k=p.seqlen_k,
            dropout_p=p.dropout_p, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        return keep_BHMN.view(torch.bool)

    def forward(
        self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output, and the log-sum-exp in base 2: float32 ``(B, H, M)``.

        The LSE is that of the logits times log2(e), and −inf where a row sees nothing.
        """
        p, config = self.problem, self.configs.forward
        if self.decode is not None:
            return self._forward_split(self.decode, q_BHMD, k_BGND, v_BGNE)
        out_BHME = q_BHMD.new_empty((p.batch, p.heads_q, p.seqlen_q, p.head_dim_v))
        lse_BHM = q_BHMD.new_empty((p.batch, p.heads_q, p.seqlen_q), dtype=torch.float32)
        if p.dropout_p > 0:
            self.seed = torch.randint(2**62, (1,), device=q_BHMD.device)
        self._launch(
            forward_kernel, triton.cdiv(p.seqlen_q, config.block_m) * p.batch * p.heads_q, config,
            **_with_strides(q=q_BHMD, out=out_BHME), **_with_strides("n", k=k_BGND, v=v_BGNE),
            lse_ptr=lse_BHM, seed_ptr=self.seed,
            **self.constants, **self.walk.arguments(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        return out_BHME, lse_BHM

    def _forward_split(
        self, config: Config, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The forward of a decode step: keys are split among programs."""
        p = self.problem
        rows_BHM = (p.batch, p.heads_q, p.seqlen_q)
        shares = self.shares
        parts_SBHME = q_BHMD.new_empty((shares, *rows_BHM, p.head_dim_v), dtype=torch.float32)
        part_lse_SBHM = q_BHMD.new_empty((shares, *rows_BHM), dtype=torch.float32)
        self._launch(
            decode_kernel, shares * p.batch * p.heads_kv, config,
            **_with_strides(q=q_BHMD), **_with_strides("n", k=k_BGND, v=v_BGNE),
            parts_ptr=parts_SBHME, lse_ptr=part_lse_SBHM, seed_ptr=None, batch=p.batch,
            shares=shares, **self.constants, **self.walk.arguments(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        out_BHME = q_BHMD.new_empty((*rows_BHM, p.head_dim_v))
        lse_BHM = q_BHMD.new_empty(rows_BHM, dtype=torch.float32)
        self._launch(
            merge_kernel, lse_BHM.numel(), Config(1, 0, 8, 1),
            parts_ptr=parts_SBHME, part_lse_ptr=part_lse_SBHM, out_ptr=out_BHME, lse_ptr=lse_BHM,
            rows=lse_BHM.numel(), shares=shares, HEAD_DIM_V=p.head_dim_v,
            DIM_V=padded(p.head_dim_v), SHARES=triton.next_power_of_2(shares),
        )  # fmt: skip
        return out_BHME, lse_BHM

    def backward(
        self,
        inputs: Gradients,
        out_BHME: torch.Tensor,
        lse_BHM: torch.Tensor,
        seed: torch.Tensor | None,
        grad_BHME: torch.Tensor,
    ) -> Gradients:
        """dq, dk, dv for what ``forward`` returned, and the seed it drew."""
        p = self.problem
        keys, queries = self.backward_walks
        q_BHMD, k_BGND, v_BGNE = inputs
        dq_BHMD, dk_BGND, dv_BGNE = (torch.empty_like(x) for x in inputs)
        delta_BHM = torch.empty_like(lse_BHM)
        config = Config(32, 0, 4, 1)  # at head_dim 256 both of its tiles fit the registers
        self._launch(
            delta_kernel, triton.cdiv(p.seqlen_q, config.block_m) * p.batch * p.heads_q, config,
            **_with_strides(out=out_BHME, grad=grad_BHME), delta_ptr=delta_BHM,
            heads_q=p.heads_q, seqlen_q=p.seqlen_q, HEAD_DIM_V=p.head_dim_v,
            DIM_V=padded(p.head_dim_v), BLOCK_M=config.block_m,
        )  # fmt: skip
        shared = {
            **_with_strides(q=q_BHMD, grad=grad_BHME), **_with_strides("n", k=k_BGND, v=v_BGNE),
            "lse_ptr": lse_BHM, "delta_ptr": delta_BHM, "seed_ptr": seed, **self.constants,
        }  # fmt: skip
        config = self.configs.dkdv
        self._launch(
            dkdv_kernel, triton.cdiv(p.seqlen_k, config.block_n) * p.batch * p.heads_kv, config,
            **shared, **keys.arguments(),
            **_with_strides("n", dk=dk_BGND, dv=dv_BGNE),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        config = self.configs.dq
        self._launch(
            dq_kernel, triton.cdiv(p.seqlen_q, config.block_m) * p.batch * p.heads_q, config,
            **shared, **_with_strides(dq=dq_BHMD), **queries.arguments(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        return dq_BHMD, dk_BGND, dv_BGNE

    def _launch(self, kernel: Any, programs: int, config: Config, **arguments: Any) -> None:
        if self.interpret:
            launch_interpreted(kernel, (programs,), arguments)
            return
        kernel[(programs,)](**arguments, num_warps=config.num_warps, num_stages=config.num_stages)


class _Attend(torch.autograd.Function):
    """Binds a :class:`FusedAttention` to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        attention: FusedAttention,
    ) -> torch.Tensor:
        out_BHME, lse_BHM = attention.forward(q_BHMD, k_BGND, v_BGNE)
        ctx.save_for_backward(q_BHMD, k_BGND, v_BGNE, out_BHME, lse_BHM)
        ctx.attention, ctx.seed = attention, attention.seed
        return out_BHME

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_BHME: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        *inputs, out_BHME, lse_BHM = ctx.saved_tensors
        return (*ctx.attention.backward(inputs, out_BHME, lse_BHM, ctx.seed, grad_BHME), None)


def _processors(device: torch.device) -> int:
    """Streaming multiprocessors; for the interpreter a few, so that small problems are split."""
    if device.type in ("cpu", "meta"):
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


def _with_strides(row: str = "m", **tensors: torch.Tensor) -> dict[str, Any]:
    """Pointer and strides of each tensor, by the names that the kernels use: q_ptr, q_b, …"""
    arguments: dict[str, Any] = {}
    for name, x in tensors.items():
        arguments[f"{name}_ptr"] = x
        arguments |= dict(
            zip((f"{name}_{axis}" for axis in ("b", "h", row, "d")), x.stride(), strict=True)
        )
    return arguments
