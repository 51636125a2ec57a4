"""One problem's fused attention: what is prepared once, and the launches of a call.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton

from attnbench import Problem, Unsupported, alibi_slopes

from .backward import delta_kernel, dkdv_kernel, dq_kernel
from .config import Config, Configs, Kernel, configs, decode_config, padded, shares_of
from .decode import decode_kernel, merge_kernel
from .dropout import keep_kernel
from .forward import forward_kernel
from .interpret import launch_interpreted
from .masks import Side, Walk, walk_of
from .outputs import check_inputs, dense_like, new_results
from .schedules import Machine, heads_together, offered, takes_descriptors
from .specialized import specialized_kernel

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FusedAttention:
    """The forward and the backward of one problem; ``operator`` binds them to torch.

    Args:
        problem: what to solve.
        device: where, with its index.
        precision: of float32 products, ``ieee`` or ``tf32``.
        interpret: run the kernels in Triton's interpreter.
        schedule: of the forward, one of ``config.SCHEDULES``; ``auto`` is the default one until
            ``use`` says another. A problem that ``decode`` takes has no tiles to schedule.
        chosen: configurations other than the device's first candidates.
        machine: to take configurations for; None is the device's own.

    Attributes:
        strided: configuration of the forward where strides are such that no descriptor can
            have them, so that the specialised kernel cannot read the tensors of this call.

    Raises:
        Unsupported: the schedule cannot do the problem, or is none of this device's.
    """

    def __init__(
        self,
        problem: Problem,
        device: torch.device,
        precision: str,
        interpret: bool,
        schedule: str = "auto",
        chosen: Configs | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.problem = problem
        self.interpret = interpret
        p = problem
        dim = max(p.head_dim, p.head_dim_v)
        self.machine = Machine.of(device) if machine is None else machine
        self.configs = chosen or configs(dim, p.element_bytes, self.machine.target)
        self.strided = self.configs.forward
        self.device = device
        self.origins: dict[Kernel, str] = {}  # of configurations that are not the default
        self._walks: dict[tuple[Side, int, int], Walk] = {}
        self._resident: dict[Config, int] = {}
        self.decode: Config | None = None  # how keys are split, where queries are few
        if p.dropout_p == 0 and self.walk.form != "blocks":
            group = p.heads_q // p.heads_kv
            self.decode = decode_config(p.seqlen_q, group, dim, p.element_bytes)
        if self.decode is not None:
            heads, block_n = p.batch * p.heads_kv, self.decode.block_n
            self.shares = shares_of(p.seqlen_k, block_n, heads, self.machine.processors)
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
            "DIM": padded(p.head_dim, p.element_bytes),
            "DIM_V": padded(p.head_dim_v),
            "SOFTCAP": p.softcap is not None,
            "ALIBI": p.alibi,
            "DROPOUT": p.dropout_p > 0,
            "PRECISION": precision,
        }
        self.together = heads_together(p, self.machine.l2_bytes)
        if schedule != "auto":
            self.use("forward", self.offered("forward", schedule)[0], "as asked")

    @property
    def walk(self) -> Walk:
        """That of the forward. One that depends on the tiles has none but two-loop schedules."""
        return self._walk("queries", self.configs.forward)

    @property
    def backward_walks(self) -> tuple[Walk, Walk]:
        """Those of dK/dV and of dQ; made by the first backward, which ``build()`` calls."""
        return self._walk("keys", self.configs.dkdv), self._walk("queries", self.configs.dq)

    def _walk(self, own: Side, config: Config) -> Walk:
        key = (own, config.block_m, config.block_n)
        if key not in self._walks:
            self._walks[key] = walk_of(self.problem, own, config, self.device)
        return self._walks[key]

    # ---- which configuration -------------------------------------------------------------

    def offered(self, kernel: Kernel, schedule: str = "auto") -> tuple[Config, ...]:
        """The configurations that a kernel of this problem may run in, the default first.

        Raises:
            Unsupported: there is none of this schedule.
        """
        return offered(self.problem, kernel, schedule, self.machine.target, self.walk.form)

    def use(self, kernel: Kernel, config: Config, origin: str) -> None:
        """Run a kernel in another configuration from now on; ``origin`` says who chose it."""
        self.configs = dataclasses.replace(self.configs, **{kernel: config})
        self.origins[kernel] = origin
        if kernel == "forward" and config.schedule != "specialized":
            self.strided = config

    @property
    def choices(self) -> Mapping[str, str]:
        """What each kernel runs in, and who chose it."""
        if self.decode is not None:
            told = {"forward": f"{self.decode} of {self.shares} shares of the keys (default)"}
        else:
            told = {"forward": self._told("forward")}
            if self.configs.forward.schedule == "specialized":
                told["forward, strides that no descriptor can have"] = str(self.strided)
        if self.problem.direction != "forward":
            told |= {"dkdv": self._told("dkdv"), "dq": self._told("dq")}
        return told

    def _told(self, kernel: Kernel) -> str:
        return f"{getattr(self.configs, kernel)} ({self.origins.get(kernel, 'default')})"

    # ---- calls ---------------------------------------------------------------------------

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

        Raises:
            ValueError: a tensor is not of the problem's shape and dtype, or elsewhere.
        """
        p, config = self.problem, self.configs.forward
        check_inputs(p, self.device, q_BHMD, k_BGND, v_BGNE)
        if config.schedule == "specialized" and not takes_descriptors(q_BHMD, k_BGND, v_BGNE):
            config = self.strided
        if self.decode is not None:
            return self._forward_split(self.decode, q_BHMD, k_BGND, v_BGNE)
        out_BHME, lse_BHM = new_results(p, q_BHMD)
        if p.dropout_p > 0:
            self.seed = torch.randint(2**62, (1,), device=q_BHMD.device)
        units = triton.cdiv(p.seqlen_q, config.block_m) * p.batch * p.heads_q
        arguments = {
            **_with_strides(q=q_BHMD, out=out_BHME), **_with_strides("n", k=k_BGND, v=v_BGNE),
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
        out_BHME, lse_BHM = new_results(p, q_BHMD)
        self._launch(
            merge_kernel, lse_BHM.numel(), Config(1, 0, 8, 1),
            parts_ptr=parts_SBHME, part_lse_ptr=part_lse_SBHM, lse_ptr=lse_BHM,
            **_with_strides(out=out_BHME), heads_q=p.heads_q, seqlen_q=p.seqlen_q,
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
        """dq, dk, dv for what ``forward`` returned, and the seed it drew.

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


def _with_strides(row: str = "m", **tensors: torch.Tensor) -> dict[str, Any]:
    """Pointer and strides of each tensor, by the names that the kernels use: q_ptr, q_b, …"""
    arguments: dict[str, Any] = {}
    for name, x in tensors.items():
        arguments[f"{name}_ptr"] = x
        arguments |= dict(
            zip((f"{name}_{axis}" for axis in ("b", "h", row, "d")), x.stride(), strict=True)
        )
    return arguments
