"""What is prepared once for a problem: how its kernels are cut, their walks, what they are told.

Letters: H = heads_q.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch

from attnbench import Problem, alibi_slopes

from .config import (
    Config,
    Configs,
    Kernel,
    configs,
    dbias_config,
    decode_config,
    padded,
    shares_of,
)
from .masks import Side, Walk, plane_of, walk_of
from .schedules import Machine, heads_together, offered


class Prepared:
    """One problem before its calls; what these launch is in ``launch``.

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
        self.configs = chosen or configs(dim, p.element_bytes, self.machine.target, p.bias)
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
        self.dbias = dbias_config(dim, p.element_bytes, self.machine.target)
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
            "BIAS": p.bias,
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

    @functools.cached_property
    def plane(self) -> Walk:
        """What tiles of the learned bias see; made by the first backward."""
        return plane_of(self.problem, self.dbias, self.device)

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
            if self.problem.bias:
                told["dbias"] = f"{self.dbias} (default)"
        return told

    def _told(self, kernel: Kernel) -> str:
        return f"{getattr(self.configs, kernel)} ({self.origins.get(kernel, 'default')})"
