"""Sequences packed one after another, each under a mask of its own.

It is what a method claims that puts its own mask in the place of each sequence's. A suite asks
for ``document``: there is no text form of masks within a mask, and so it is no kind of ``MASKS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from attnbench.errors import UserError
from attnbench.masks.base import Coverage, Mask, Predicate, Table


@dataclass(frozen=True)
class Packed(Mask):
    """Nobody looks outside their own sequence, and inside as its mask says at its length.

    Its predicate looks at the positions that it is asked about, and so cannot be compiled.
    """

    kind: ClassVar[str] = "packed"
    lengths: tuple[int, ...] = ()
    masks: tuple[Mask, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.masks) != len(self.lengths):
            raise UserError(
                f"mask packed: {len(self.lengths)} lengths need as many masks, "
                f"got {len(self.masks)}"
            )

    @property
    def is_causal(self) -> bool:
        return all(mask.is_causal for mask in self.masks)

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        if not seqlen_q == seqlen_k == sum(self.lengths):
            raise UserError(
                f"mask packed: lengths add up to {sum(self.lengths)}, seqlen_q is {seqlen_q} and "
                f"seqlen_k {seqlen_k}"
            )
        for mask, length in zip(self.masks, self.lengths, strict=True):
            mask.check(length, length)

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        lengths = np.asarray(self.lengths, dtype=np.int64)
        each = tuple(zip(self.masks, self.lengths, strict=True))
        distinct = list(dict.fromkeys(each))
        number_of = np.array([distinct.index(one) for one in each])
        sequence = table(np.repeat(np.arange(len(lengths)), lengths))
        number = table(np.repeat(number_of, lengths))
        place = table(np.arange(seqlen_k) - np.repeat(np.cumsum(lengths) - lengths, lengths))
        inner = [mask.predicate(length, length, table) for mask, length in distinct]

        def allows(q: Any, k: Any) -> Any:
            together = sequence[q] == sequence[k]
            allowed = together & False
            for index, (_, length) in enumerate(distinct):
                is_of = number[q] == index
                if not is_of.any():  # most are not, in a tile of a few queries
                    continue
                # Places in longer sequences are brought into range: nobody asks about those.
                seen = inner[index](place[q] % length, place[k] % length)
                allowed = allowed | (is_of & seen)
            return together & allowed

        return allows

    def tally(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        own = [m.coverage(n, n) for m, n in zip(self.masks, self.lengths, strict=True)]
        return Coverage(
            sum(c.pairs for c in own), sum(c.queries for c in own), sum(c.keys for c in own)
        )

    def to_json(self) -> dict[str, Any]:
        masks = [mask.to_json() for mask in self.masks]
        return {"kind": self.kind, "lengths": list(self.lengths), "masks": masks}

    def __str__(self) -> str:
        """For people: ``packed(3 × causal, 2 × causal)``."""
        each = zip(self.lengths, self.masks, strict=True)
        return f"packed({', '.join(f'{length} × {mask}' for length, mask in each)})"
