"""An attention plugin with something around its calls: noted, shaken, marked or counted.

A model asks a plugin for what it needs through ``build(problem, device)``, whenever it likes.
To learn what it asks for, or to stand beside each call, what ``build`` returns is wrapped:
never in the model that is timed, but in one that is built for looking.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from attnbench import registry, shelves
from attnbench.attention import Attention, ForwardBackward
from attnbench.problem import Problem

REFERENCE = "naive"
"""The built-in implementation whose learning curve is the truth."""

_UNIT: Mapping[str, float] = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8, "fp16": 2.0**-11}
"""Largest relative error of rounding to a precision (half a unit in the last place of 1)."""

Around = Callable[[Problem, Callable[[], Any]], Any]


def reference() -> Attention:
    """The reference: always attnbench's own, whatever a project calls by the same name."""
    path = shelves.builtin("impls") / f"{REFERENCE}.py"
    found = registry.registered(registry.Source("built-in", path.stem, str(path)), REFERENCE)
    if found is None:
        raise RuntimeError(f"{path} does not register {REFERENCE!r}")
    return found()


def noted(attention: Attention) -> list[Problem]:
    """Every problem that ``attention`` will be built for from now on, as it comes."""
    problems: list[Problem] = []

    def wrap(problem: Problem, built: Any) -> Any:
        problems.append(problem)
        return built

    _on_build(attention, wrap)
    return problems


def around(attention: Attention, call: Around) -> Attention:
    """Have ``call(problem, run)`` run each forward of what ``attention`` builds; itself."""

    def wrap(problem: Problem, built: Any) -> Any:
        if isinstance(built, ForwardBackward):
            forward = built.forward
            return ForwardBackward(
                lambda *tensors: call(problem, lambda: forward(*tensors)), built.backward
            )
        return _wrapped(built, lambda *tensors: call(problem, lambda: built(*tensors)))

    _on_build(attention, wrap)
    return attention


def shaken(attention: Attention, precision: str, seed: int) -> Attention:
    """Move every element of q, k, v and out by one unit in the last place, at random; itself.

    The draws have a generator of their own: dropout and everything else stay as they are.
    """
    unit, generators = _UNIT[precision], dict[torch.device, torch.Generator]()

    def shake(x: torch.Tensor) -> torch.Tensor:
        if x.device not in generators:
            generators[x.device] = torch.Generator(x.device).manual_seed(seed)
        up = torch.rand(x.shape, generator=generators[x.device], device=x.device) < 0.5
        return (x.float() * torch.where(up, 1 + unit, 1 - unit)).to(x.dtype)

    def wrap(problem: Problem, built: Any) -> Any:
        return _wrapped(built, lambda *tensors: shake(built(*map(shake, tensors))))

    _on_build(attention, wrap)
    return attention


def _wrapped(built: Any, call: Callable[..., Any]) -> Any:
    """The call; a module where what was built is one, so that its parameters are still seen."""
    return _Wrapped(built, call) if isinstance(built, torch.nn.Module) else call


class _Wrapped(torch.nn.Module):
    def __init__(self, built: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = built
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self._call(*tensors)


def _on_build(attention: Attention, wrap: Callable[[Problem, Any], Any]) -> None:
    """Let building go through ``wrap``, for this instance."""
    build = attention.build
    attention.build = lambda problem, device: wrap(problem, build(problem, device))  # type: ignore[method-assign]
