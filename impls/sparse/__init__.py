"""Sparse attention: ``gathered`` for any mask, and methods that choose a mask themselves.

``plan`` cuts a mask into ``tiles``, ``gather`` computes them in ``steps``, whose ``logits`` it
makes of what ``views`` and ``pairs`` show; ``exact`` is that for the mask that is asked for.
``methods`` are those whose mask is known beforehand; ``top_k`` chooses by the logits.
"""

from .exact import AnyMask
from .methods import (
    BigBirdPattern,
    DilatedWindow,
    FixedPattern,
    RandomBlocks,
    SlidingWindow,
    StridedPattern,
)
from .top_k import TopK

__all__ = [
    "AnyMask",
    "BigBirdPattern",
    "DilatedWindow",
    "FixedPattern",
    "RandomBlocks",
    "SlidingWindow",
    "StridedPattern",
    "TopK",
]
