"""How a method is held to its definition, which each test writes out for itself in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from shelf import CPU, implementation, solve
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnbench import Attention, Inputs, Problem, make_inputs
from attnbench.layouts import to_layout

Definition = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}


def expanded(x_BGND: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Keys or values of each query head."""
    return x_BGND.repeat_interleave(problem.heads_q // problem.heads_kv, dim=1)


def defined(definition: Definition, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Output and gradients of a definition of ``(q, k, v)``, in float64."""
    q, k, v = (x.double().requires_grad_() for x in inputs.qkv())
    out = definition(q, k, v)
    gradients = torch.autograd.grad(out, (q, k, v), inputs.grad_out_BHME.double())
    return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True))


def errors(results: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative L2 of each tensor."""
    return {
        name: float((results[name].double() - x).norm() / x.norm().clamp_min(1e-30))
        for name, x in truth.items()
    }


def assert_as_defined(
    name: str, problem: Problem, definition: Callable[[Any], Definition], **options: Any
) -> None:
    """``definition`` is given what was built, for its matrices."""
    execution, inputs = solve(name, problem.replace(direction="both"), **options)
    found = errors(execution.results(), defined(definition(execution.built), inputs))
    assert max(found.values()) < TOLERANCE[problem.dtype], found


def counted(name: str, problem: Problem, **options: Any) -> tuple[int, int]:
    """FLOPs of the matrix products that really run: forward, and both.

    SDPA is taken apart, for FlopCounterMode does not see inside the CPU's fused kernel.
    """
    method = implementation(name, **options)
    built, inputs = method.build(problem, CPU), make_inputs(problem, 0)
    *given, grad = (to_layout(x, method.layout) for x in (*inputs.qkv(), inputs.grad_out_BHME))
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            built(*given)
        # Of clones, which are no leaves: the counter refuses autograd.grad() to leaves.
        qkv = [x.requires_grad_().clone() for x in given]
        with FlopCounterMode(display=False) as both:
            torch.autograd.grad(built(*qkv), qkv, grad)
    return forward.get_total_flops(), both.get_total_flops()


def said(method: Attention, problem: Problem) -> tuple[int, int]:
    """FLOPs by the method's formula: forward, and both; the backward is the difference."""
    forward, backward, both = (
        method.flops(problem.replace(direction=d)) for d in ("forward", "backward", "both")
    )
    assert both == forward + backward
    return forward, both


def mutant(module: ModuleType, before: str, after: str) -> SimpleNamespace:
    """The module's names as they would be with another line in its source."""
    source = inspect.getsource(module)
    assert source.count(before) == 1, f"{before!r} is {source.count(before)} times in {module}"
    names: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(source.replace(before, after), module.__file__ or "?", "exec"), names)
    return SimpleNamespace(**names)
