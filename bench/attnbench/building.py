"""What an implementation builds for a problem, and what it says that it chose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from attnbench.attention import Attention, ForwardBackward
from attnbench.problem import Problem
from attnbench.spec import Value


def build(
    implementation: Attention, problem: Problem, device: torch.device, seed: int
) -> Callable[..., Any] | ForwardBackward:
    """What an implementation builds for a problem that it supports.

    Raises:
        Unsupported: by the implementation, from ``supports()`` or ``build()``.
        TypeError: it builds nothing that can be called.
    """
    implementation.supports(problem, device)
    torch.manual_seed(seed)  # learned or random state of a method is part of the point
    built = implementation.build(problem, device)
    check_built(built)
    return built


def check_built(built: Any) -> None:
    """Raise ``TypeError`` for what cannot be called."""
    if not isinstance(built, ForwardBackward) and not callable(built):
        raise TypeError(
            f"build() must return a callable or a ForwardBackward, got {type(built).__name__}"
        )


def choices_of(built: Any) -> dict[str, Value]:
    """``choices`` of what ``build()`` returned, as a record can hold them; none if it has none."""
    told = getattr(built, "choices", {})
    if not isinstance(told, Mapping):
        raise TypeError(f"choices must be a mapping, got {type(told).__name__}")
    for name, value in told.items():
        is_value = type(value) in (bool, int, str)
        is_value = is_value or (type(value) is float and math.isfinite(value))
        if type(name) is not str or not is_value:
            raise TypeError(
                f"choices maps text to text, booleans and finite numbers, got {name!r}: {value!r}"
            )
    return dict(told)
