"""What all adapters have in common: say what is missing, build, and call once.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch

from attnbench import Attention, ForwardBackward, Problem, Unsupported, make_inputs

from .package import Package

Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Built = Call | ForwardBackward


class Library(Attention):
    """Attention of a library: subclass it, and say which package and what to call.

    Attributes:
        package: where the library comes from.
        capability: least compute capability of the GPU.
    """

    package: ClassVar[Package]
    capability: ClassVar[tuple[int, int]] = (8, 0)
    layout: ClassVar[Literal["BHSD", "BSHD", "packed"]] = "BSHD"
    dtypes: ClassVar[tuple[str, ...] | None] = ("bfloat16", "float16")
    devices = ("cuda",)

    def supports(self, problem: Problem, device: torch.device) -> None:
        """Package and GPU first, all that is missing at once; then the problem itself."""
        missing = [*filter(None, (self.package.lacking(), self._gpu_lacking(device)))]
        if missing:
            raise Unsupported(f"needs {'; and '.join(missing)}")
        if problem.dropout_p > 0:
            raise Unsupported(
                f"dropout cannot be verified: {self.package.distribution} reveals no dropout mask"
            )
        super().supports(problem, device)

    def build(self, problem: Problem, device: torch.device) -> Built:
        """What ``prepare()`` makes, called once: kernels are compiled now, not while timed."""
        built = self.prepare(problem, device)
        self._try(built, problem, device)
        return built

    @abstractmethod
    def prepare(self, problem: Problem, device: torch.device) -> Built:
        """The library's call for one problem, as ``build()`` is to return it."""

    def _gpu_lacking(self, device: torch.device) -> str | None:
        least = ".".join(map(str, self.capability))
        wanted = f"an NVIDIA GPU of compute capability {least} or more"
        if device.type not in self.devices:
            return f"{wanted}, this is a {device.type}"
        if device.type == "cuda":
            if torch.version.hip is not None:
                return f"{wanted}, this is one of AMD"
            found = torch.cuda.get_device_capability(device)
            if found < self.capability:
                return f"{wanted}, this has {'.'.join(map(str, found))}"
        return None

    def _try(self, built: Built, problem: Problem, device: torch.device) -> None:
        """Call it once; where the library refuses, raise Unsupported in its own words."""
        inputs = make_inputs(problem, seed=0, device=device)
        tensors: tuple[torch.Tensor, ...] = (*inputs.qkv(), inputs.grad_out_BHME)
        if self.layout == "BSHD":
            # A cache stays the view that it is; everything else arrives contiguous.
            tensors = tuple(
                x.transpose(1, 2) if problem.decode and x is not tensors[0]
                else x.transpose(1, 2).contiguous()
                for x in tensors
            )  # fmt: skip
        *qkv, grad_out = tensors
        wants_grad = problem.direction != "forward"
        try:
            if isinstance(built, ForwardBackward):
                _, saved = built.forward(*qkv)
                if wants_grad:
                    built.backward(saved, grad_out)
                return
            q, k, v = (x.requires_grad_(wants_grad) for x in qkv)
            with torch.set_grad_enabled(wants_grad):
                out = built(q, k, v)
            if wants_grad:
                torch.autograd.grad(out, (q, k, v), grad_out)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # what the GPU says is no refusal
        except (RuntimeError, ValueError, AssertionError) as error:
            # NotImplementedError is a RuntimeError. Anything else is a fault of this code.
            text = " ".join(str(error).split()) or type(error).__name__
            raise Unsupported(f"{self.package.distribution} refuses: {text[:2000]}") from error
