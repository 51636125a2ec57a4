"""The launches of one problem's forward and backward.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton

from attnbench import Unsupported

from .backward import delta_kernel
from .config import Config, padded
from .dbias import dbias_kernel
from .decode import decode_kernel, merge_kernel
from .dkdv import dkdv_kernel
from .dq import dq_kernel
from .dropout import keep_kernel
from .forward import forward_kernel
from .interpret import launch_interpreted
from .outputs import check_inputs, dense_like, new_results
from .prepared import Prepared
from .schedules import takes_descriptors
from .specialized import specialized_kernel

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


class FusedAttention(Prepared):
    """The forward and the backward of one problem; ``operator`` binds them to torch."""

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
        self,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        bias_HMN: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output, and the log-sum-exp in base 2: float32 ``(B, H, M)``.

        The LSE is that of the logits times log2(e), and −inf where a row sees nothing.

        Raises:
            ValueError: a tensor is not of the problem's shape and dtype, or elsewhere; or a
                learned bias is missing or superfluous.
        """
        p, config = self.problem, self.configs.forward
        check_inputs(p, self.device, q_BHMD, k_BGND, v_BGNE, bias_HMN)
        if config.schedule == "specialized" and not takes_descriptors(q_BHMD, k_BGND, v_BGNE):
            config = self.strided
        if self.decode is not None:
            return self._forward_split(self.decode, q_BHMD, k_BGND, v_BGNE, bias_HMN)
        out_BHME, lse_BHM = new_results(p, q_BHMD)
        if p.dropout_p > 0:
            self.seed = torch.randint(2**62, (1,), device=q_BHMD.device)
        units = triton.cdiv(p.seqlen_q, config.block_m) * p.batch * p.heads_q
        arguments = {
            **_with_strides("bhmd", q=q_BHMD, out=out_BHME),
            **_with_strides("bhnd", k=k_BGND, v=v_BGNE), **_with_strides("hmn", bias=bias_HMN),
            "lse_ptr": lse_BHM, "seed_ptr": self.seed,
            **self.constants, **self.walk.arguments(), "units": units, "together": self.together,
            "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        }  # fmt: skip
        if config.schedule == "specialized":
            self._launch(specialized_kernel, units, config, **arguments)
        elif config.schedule == "persistent":
            programs = min(units, self._programs_at_once(config, arguments))
            self._launch(forward_kernel, programs, config, PERSISTENT=True, **arguments)
        else:
            self._launch(forward_kernel, units, config, PERSISTENT=False, **arguments)
        return out_BHME, lse_BHM

    def _forward_split(
        self,
        config: Config,
        q_BHMD: torch.Tensor,
        k_BGND: torch.Tensor,
        v_BGNE: torch.Tensor,
        bias_HMN: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The forward of a decode step: keys are split among programs."""
        p = self.problem
        rows_BHM = (p.batch, p.heads_q, p.seqlen_q)
        shares = self.shares
        parts_SBHME = q_BHMD.new_empty((shares, *rows_BHM, p.head_dim_v), dtype=torch.float32)
        part_lse_SBHM = q_BHMD.new_empty((shares, *rows_BHM), dtype=torch.float32)
        self._launch(
            decode_kernel, shares * p.batch * p.heads_kv, config,
            **_with_strides("bhmd", q=q_BHMD), **_with_strides("bhnd", k=k_BGND, v=v_BGNE),
            **_with_strides("hmn", bias=bias_HMN),
            parts_ptr=parts_SBHME, lse_ptr=part_lse_SBHM, seed_ptr=None, batch=p.batch,
            shares=shares, **self.constants, **self.walk.arguments(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        out_BHME, lse_BHM = new_results(p, q_BHMD)
        self._launch(
            merge_kernel, lse_BHM.numel(), Config(1, 0, 8, 1),
            parts_ptr=parts_SBHME, part_lse_ptr=part_lse_SBHM, lse_ptr=lse_BHM,
            **_with_strides("bhmd", out=out_BHME), heads_q=p.heads_q, seqlen_q=p.seqlen_q,
            rows=lse_BHM.numel(), shares=shares, HEAD_DIM_V=p.head_dim_v,
            DIM_V=padded(p.head_dim_v), SHARES=triton.next_power_of_2(shares),
        )  # fmt: skip
        return out_BHME, lse_BHM

    def backward(
        self,
        inputs: Inputs,
        out_BHME: torch.Tensor,
        lse_BHM: torch.Tensor,
        seed: torch.Tensor | None,
        grad_BHME: torch.Tensor,
        bias_HMN: torch.Tensor | None = None,
        *,
        wants_dbias: bool = True,
    ) -> Gradients:
        """dq, dk, dv for what ``forward`` returned, and the seed it drew; dbias if there is one.

        Args:
            inputs: q, k and v, as the forward had them.
            out_BHME, lse_BHM: what it returned.
            seed: that of its dropout.
            grad_BHME: gradient of the output.
            bias_HMN: the learned bias, as the forward had it.
            wants_dbias: whether its gradient is wanted, which costs a kernel.

        Raises:
            Unsupported: the tensors are of 8 bits.
        """
        p = self.problem
        if p.element_bytes == 1:
            raise Unsupported(f"{p.dtype}: forward only, as 8 bits hold no gradients")
        keys, queries = self.backward_walks
        q_BHMD, k_BGND, v_BGNE = inputs
        dq_BHMD, dk_BGND, dv_BGNE = (dense_like(x, x.shape[3]) for x in inputs)
        delta_BHM = torch.empty_like(lse_BHM)
        config = Config(32, 0, 4, 1)  # at head_dim 256 both of its tiles fit the registers
        self._launch(
            delta_kernel, triton.cdiv(p.seqlen_q, config.block_m) * p.batch * p.heads_q, config,
            **_with_strides("bhmd", out=out_BHME, grad=grad_BHME), delta_ptr=delta_BHM,
            heads_q=p.heads_q, seqlen_q=p.seqlen_q, HEAD_DIM_V=p.head_dim_v,
            DIM_V=padded(p.head_dim_v), BLOCK_M=config.block_m,
        )  # fmt: skip
        shared = {
            **_with_strides("bhmd", q=q_BHMD, grad=grad_BHME),
            **_with_strides("bhnd", k=k_BGND, v=v_BGNE), **_with_strides("hmn", bias=bias_HMN),
            "lse_ptr": lse_BHM, "delta_ptr": delta_BHM, "seed_ptr": seed, **self.constants,
        }  # fmt: skip
        config = self.configs.dkdv
        self._launch(
            dkdv_kernel, triton.cdiv(p.seqlen_k, config.block_n) * p.batch * p.heads_kv, config,
            **shared, **keys.arguments(),
            **_with_strides("bhnd", dk=dk_BGND, dv=dv_BGNE),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        config = self.configs.dq
        self._launch(
            dq_kernel, triton.cdiv(p.seqlen_q, config.block_m) * p.batch * p.heads_q, config,
            **shared, **_with_strides("bhmd", dq=dq_BHMD), **queries.arguments(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        )  # fmt: skip
        dbias_HMN = None
        if bias_HMN is not None and wants_dbias:
            dbias_HMN = dense_like(bias_HMN, p.seqlen_k)
            config = self.dbias
            tiles_m = triton.cdiv(p.seqlen_q, config.block_m)
            self._launch(
                dbias_kernel, tiles_m * triton.cdiv(p.seqlen_k, config.block_n) * p.heads_q, config,
                **shared, **_with_strides("hmn", dbias=dbias_HMN), **self.plane.of_tile(),
                batch=p.batch, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            )  # fmt: skip
        return dq_BHMD, dk_BGND, dv_BGNE, dbias_HMN

    def _programs_at_once(self, config: Config, arguments: Mapping[str, Any]) -> int:
        """As many persistent programs as the processors hold; compiles to know what one takes."""
        if config not in self._resident:
            if self.interpret:
                self._resident[config] = 1
            else:
                compiled = forward_kernel.warmup(
                    **arguments, PERSISTENT=True, grid=(1,),
                    num_warps=config.num_warps, num_stages=config.num_stages,
                )  # fmt: skip
                self._resident[config] = self.machine.resident(compiled)
        return self.machine.processors * self._resident[config]

    def _launch(self, kernel: Any, programs: int, config: Config, **arguments: Any) -> None:
        if self.interpret:
            launch_interpreted(kernel, (programs,), arguments)
            return

        def launch() -> None:
            kernel[(programs,)](
                **arguments, num_warps=config.num_warps, num_stages=config.num_stages
            )

        # Triton launches on the current device, on its current stream.
        with torch.cuda.device(self.device):
            if config.schedule == "specialized":
                _with_room_for_descriptors(launch, self.device)
            else:
                launch()


def _with_room_for_descriptors(launch: Callable[[], None], device: torch.device) -> None:
    """Launch with memory for the descriptors that programs make.

    Triton asks an allocator for it that is the context's: set in a copy of the context, it
    leaves a user's own where it is.
    """

    def allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)  # aligned to 512 bytes

    def run() -> None:
        triton.set_allocator(allocate)
        launch()

    contextvars.copy_context().run(run)


def _with_strides(axes: str, **tensors: torch.Tensor | None) -> dict[str, Any]:
    """Pointer and strides of each tensor, by the names that the kernels use: q_ptr, q_b, …

    A tensor that is not there has None for all of them, of which Triton makes constants.
    """
    arguments: dict[str, Any] = {}
    for name, x in tensors.items():
        strides = [None] * len(axes) if x is None else x.stride()
        arguments[f"{name}_ptr"] = x
        arguments |= dict(zip((f"{name}_{axis}" for axis in axes), strides, strict=True))
    return arguments
