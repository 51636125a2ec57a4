"""``triton-gluon``: a forward for Hopper in Gluon, the level of Triton below tiles.

What plain Triton leaves to its compiler is written out here: which warps load and which
compute, when a product is asked for and when it is waited for. So the softmax of a block can
run beside the products of another, which plain Triton cannot express. ``forward`` holds the
kernel and explains it, ``softmax`` what is between its two products, ``schedule`` its integer
arithmetic, ``launch`` the descriptors and the order of tiles, ``config`` the sizes, ``needs``
what it takes of Gluon, whose names still change from one Triton to the next.

It has been compiled for Hopper and inspected, and its source has been run in a simulation of
barriers, loads and products on CPUs. It has never run on a GPU.

Triton is imported when a problem is built: it takes a second that others need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from attnbench import Attention, Case, Problem, Unsupported, make_inputs, register

from .config import LARGEST_DIM
from .needs import lacking

_HOPPER = (9, 0)


def _version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


@register("triton-gluon")
class TritonGluon(Attention):
    """Forward for Hopper in Gluon: a producer, two consumers, softmax beside products."""

    features = frozenset({"gqa", "cross", "head_dim_v", "scale", "decode", "softcap"})
    masks = ("full", "causal")
    dtypes = ("bfloat16", "float16")
    devices = ("cuda",)
    version = _version()
    source = "Shah et al. 2024, FlashAttention-3, arXiv 2407.08608; kernel written here"

    def supports(self, problem: Problem, device: torch.device) -> None:
        if device.type != "cuda":
            raise Unsupported(
                "needs a Hopper GPU: Gluon has neither a CPU backend nor an interpreter; "
                "triton:interpret=true runs on a CPU"
            )
        super().supports(problem, device)
        for name in ("head_dim", "head_dim_v"):
            dim = getattr(problem, name)
            if dim > LARGEST_DIM:
                raise Unsupported(f"does {name} up to {LARGEST_DIM}")
            if dim % 8:
                raise Unsupported(f"{name} must be a multiple of 8: the TMA counts in 16 bytes")
        if torch.version.hip is not None:
            raise Unsupported("needs a Hopper GPU, this is one of AMD; triton runs here")
        capability = torch.cuda.get_device_capability(device)
        if capability != _HOPPER:
            found = ".".join(map(str, capability))
            raise Unsupported(
                f"needs a Hopper GPU (compute capability 9.0), this is {found}; triton runs here"
            )
        _check_gluon()

    def build(self, problem: Problem, device: torch.device) -> Callable[..., Any]:
        _check_gluon()
        from .launch import GluonForward

        about = torch.cuda.get_device_properties(device)
        attention = GluonForward(problem, about.multi_processor_count, about.L2_cache_size)
        # Called once, so that the kernel is compiled now and not while timed.
        attention(*make_inputs(problem, seed=0, device=device).qkv())
        return attention

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        _check_gluon()
        from .cases import cases

        return cases()


def _check_gluon() -> None:
    if (reason := lacking()) is not None:
        raise Unsupported(reason)
