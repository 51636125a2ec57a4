"""The plugin ``triton-gluon`` with its launches on the machine of ``gluon_machine``."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gluon_machine import Machine
from gluon_values import Descriptor, Dtype, Fault, Pointer
from shelf import implementation, module_of

import attnbench
from attnbench import Problem

HALF = Problem.of(batch=2, heads_q=2, seqlen=65, head_dim=64, dtype="bfloat16")
SMALL = {"block_m": 32, "block_n": 16}  # many tiles, many blocks


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{module_of('triton-gluon').__name__}.{name}")


def simulated(
    problem: Problem,
    seed: int = 0,
    programs: int = 3,
    edits: list[tuple[str, str]] | None = None,
    **config: int,
) -> Callable[..., torch.Tensor]:
    """What ``build`` returns, but the launch goes to the machine of Python."""
    launch, forward = part("launch"), part("forward")
    attention = launch.GluonForward(problem, processors=programs, l2_bytes=1 << 16)
    attention.config = dataclasses.replace(attention.config, **config)
    if config:
        tiles = -(-problem.seqlen_q // attention.config.block_m)
        attention.sizes["tiles_of_head"] = tiles
        attention.programs = min(programs, tiles * attention.sizes["heads"])

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty((*q.shape[:3], v.shape[3]))
        arguments = attention.arguments(q, k, v, out)
        written = np.zeros(out.numel(), dtype=int)
        data = np.full(out.numel(), np.nan, dtype=np.float32)
        for name in ("q_desc", "k_desc", "v_desc"):
            told = arguments[name]
            view = told.base.as_strided(told.shape, told.strides).float().numpy()
            arguments[name] = Descriptor(view, told.block_shape, Dtype(problem.dtype))
        arguments["out_ptr"] = Pointer(data, written, Dtype(problem.dtype))
        machine = Machine(forward.forward_kernel, seed, edits or [])
        machine.launch(attention.programs, **arguments)
        if not (written == 1).all():
            raise Fault(f"{(written != 1).sum()} elements of the output are not written once")
        return torch.from_numpy(data).to(out.dtype).reshape(out.shape)

    return call


def simulation(**how: Any) -> attnbench.Attention:
    """The plugin, on the machine of Python, for the battery."""
    plugin = type(implementation("triton-gluon"))

    class Simulated(plugin):  # type: ignore[valid-type,misc]
        devices = ("cpu",)

        def supports(self, problem: Problem, device: torch.device) -> None:
            attnbench.Attention.supports(self, problem, device)

        def build(self, problem: Problem, device: torch.device) -> Callable[..., Any]:
            return simulated(problem, **how)

    return Simulated()
