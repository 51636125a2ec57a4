"""attnbench: which attention should run on this machine, at these shapes, and is it right?

The names below are the public API for plugins. They are loaded on first use, so that
``attnbench --help`` answers without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from attnbench.alibi import alibi_bias, alibi_slopes
    from attnbench.errors import UserError
    from attnbench.inputs import Inputs, make_inputs
    from attnbench.layer.inputs import real_tokens
    from attnbench.layer.positions import LearnedPositions, query_positions, sinusoidal
    from attnbench.lookup import implementation
    from attnbench.masks import Mask, parse_mask
    from attnbench.offline import Case
    from attnbench.plugin import Attention, ForwardBackward, Unsupported, register
    from attnbench.problem import Problem

__all__ = [
    "Attention",
    "Case",
    "ForwardBackward",
    "Inputs",
    "LearnedPositions",
    "Mask",
    "Problem",
    "Unsupported",
    "UserError",
    "__version__",
    "alibi_bias",
    "alibi_slopes",
    "implementation",
    "make_inputs",
    "parse_mask",
    "query_positions",
    "real_tokens",
    "register",
    "sinusoidal",
]

_HOMES = {
    "Attention": "plugin",
    "ForwardBackward": "plugin",
    "Unsupported": "plugin",
    "register": "plugin",
    "UserError": "errors",
    "implementation": "lookup",
    "Problem": "problem",
    "Mask": "masks",
    "parse_mask": "masks",
    "Inputs": "inputs",
    "make_inputs": "inputs",
    "alibi_bias": "alibi",
    "alibi_slopes": "alibi",
    "Case": "offline",
    "LearnedPositions": "layer.positions",
    "query_positions": "layer.positions",
    "sinusoidal": "layer.positions",
    "real_tokens": "layer.inputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attnbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"attnbench.{_HOMES[name]}"), name)
