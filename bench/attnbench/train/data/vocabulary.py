"""Tokens: the special ones that all tasks share, and characters as the others.

Special tokens have the same numbers in every task, so that a model can be told them once.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

PAD, CLS, SEP, MASK, START, END, UNKNOWN = range(7)
SPECIAL = 7
"""How many special tokens there are, and the number of the first ordinary one."""

Ids = npt.NDArray[np.int64]


class Characters:
    """Characters numbered from :data:`SPECIAL`, in the order of how often they occur."""

    def __init__(self, text: str, limit: int | None = None) -> None:
        """Number the characters of ``text``, or only the ``limit`` most frequent ones."""
        frequent = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))[:limit]
        self._letters = [letter for letter, _ in frequent]
        codes = [ord(letter) for letter in self._letters]
        # One slot more than the largest code: where all that are larger end up, unknown.
        self._ids = np.full(max(codes, default=0) + 2, UNKNOWN, dtype=np.int64)
        self._ids[codes] = np.arange(SPECIAL, SPECIAL + len(codes))

    def __len__(self) -> int:
        """All tokens, special ones included."""
        return SPECIAL + len(self._letters)

    def encode(self, text: str) -> Ids:
        """One number a character; :data:`UNKNOWN` for those that have none."""
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        return self._ids[np.minimum(codes, len(self._ids) - 1)]

    def decode(self, ids: Ids) -> str:
        """The text up to the first :data:`END`; other special tokens become ``�``."""
        known = ids.tolist()
        known = known[: known.index(END)] if END in known else known
        return "".join(self._letters[i - SPECIAL] if i >= SPECIAL else "�" for i in known)
