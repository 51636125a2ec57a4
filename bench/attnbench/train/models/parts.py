"""The parts of a model that fine-tuning tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


@dataclass(frozen=True)
class Parts:
    """Some modules of a model.

    Attributes:
        stacks: of layers, each an ``nn.ModuleList``; the last one ends at the head.
        norms: after the last layer.
        heads: what makes the outputs; the rest is the body.
    """

    stacks: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    heads: tuple[nn.Module, ...]


def find(model: nn.Module, paths: Iterable[str]) -> tuple[nn.Module, ...]:
    """Submodules by their dotted names."""
    return tuple(model.get_submodule(path) for path in paths)
