"""``triton``: fused attention in Triton, forward and backward, for every feature of a problem.

``forward`` and ``backward`` hold the kernels and are made to be read; ``tiles`` and
``dropout`` what they share, ``masks`` how a mask reaches them, ``config`` how they are cut,
``launch`` how they are called, ``cases`` what is compiled to check them. On a CPU they run
only when asked, in Triton's interpreter (``triton:interpret=true``): for correctness,
thousands of times slower than anything.

Triton is imported when a problem is built: it takes a second that others need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from attnbench import Attention, Case, Problem, Unsupported, make_inputs, register

_LARGEST_DIM = 256
_CAPABILITY = (8, 0)  # Ampere: bfloat16, asynchronous copies


def _version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


@register("triton")
class Triton(Attention):
    """Fused attention in Triton: online softmax, any mask, deterministic backward."""

    features = Attention.features | {"alibi", "softcap", "dropout"}
    dtypes = ("float32", "bfloat16", "float16")
    devices = ("cuda", "cpu")
    options = {"interpret": False, "fp32": "ieee"}
    version = _version()
    source = "Dao 2023, FlashAttention-2, arXiv 2307.08691; kernels written here"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if self.options["fp32"] not in ("ieee", "tf32"):
            raise Unsupported(f"option fp32 is ieee or tf32, not {self.options['fp32']}")
        for name in ("head_dim", "head_dim_v"):
            if getattr(problem, name) > _LARGEST_DIM:
                raise Unsupported(f"does {name} up to {_LARGEST_DIM}")
        if device.type == "cpu":
            self._supports_cpu()
        elif self.options["interpret"]:
            raise Unsupported("option interpret is for a CPU; this device runs the kernels")
        elif torch.version.hip is None:
            capability = torch.cuda.get_device_capability(device)
            if capability < _CAPABILITY:
                found = ".".join(map(str, capability))
                raise Unsupported(f"needs compute capability 8.0 or later, this is {found}")

    def _supports_cpu(self) -> None:
        if not self.options["interpret"]:
            raise Unsupported(
                "Triton has no CPU backend; interpret=true runs the kernels in its interpreter, "
                "to check them, not to time them"
            )
        if self.options["fp32"] == "tf32":
            raise Unsupported("the interpreter has no tf32; leave option fp32 out")

    def build(self, problem: Problem, device: torch.device) -> Callable[..., Any]:
        from .launch import FusedAttention

        interpret = bool(self.options["interpret"])
        attention = FusedAttention(problem, device, str(self.options["fp32"]), interpret)
        if not interpret:
            _compile(attention, problem, device)
        return attention

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        from .cases import cases

        return cases()


def _compile(call: Callable[..., Any], problem: Problem, device: torch.device) -> None:
    """Call it once, so that kernels are compiled now and not while timed."""
    inputs = make_inputs(problem, seed=0, device=device)
    wants_grad = problem.direction != "forward"
    q, k, v = (x.requires_grad_(wants_grad) for x in inputs.qkv())
    with torch.set_grad_enabled(wants_grad):
        out = call(q, k, v)
    if wants_grad:
        torch.autograd.grad(out, (q, k, v), inputs.grad_out_BHME)
