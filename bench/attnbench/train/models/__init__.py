"""Models that learn: Hugging Face architectures and our own, with anybody's attention inside.

``presets`` names them, without torch; ``build`` makes one of a workload, from ``hugging`` or
``own``; ``bridge`` makes a plugin a module of what ``calls`` makes differentiable, ``interface``
brings it into transformers; ``finetune`` says what learns; ``generate`` makes tokens, which
``readers`` read with a ``cache``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnbench.train.models.build import build_model

__all__ = ["build_model"]


def __getattr__(name: str) -> Any:
    if name != "build_model":
        raise AttributeError(f"module 'attnbench.train.models' has no attribute {name!r}")
    from attnbench.train.models.build import build_model

    return build_model
