"""The largest batch that fits: doubled until memory is out, or a step takes too long to wait for.

On a CPU the worker's limit on memory (nine tenths of what is free) makes an allocation fail,
as a GPU's does by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from attnbench.failure import classify
from attnbench.train.figures import BatchLimit

MOST = 2**16  # sequences; beyond that a step says nothing about attention any more
MOST_S = 20.0  # of one try: on a CPU patience ends before memory does


@dataclass(frozen=True)
class Largest:
    """A batch in sequences, and why twice as many were not taken."""

    batch: int
    limit: BatchLimit


def largest_batch(
    try_batch: Callable[[int], None], release: Callable[[], None], unit: int
) -> Largest:
    """The largest ``unit · 2^k`` for which ``try_batch`` has memory enough, within patience.

    Args:
        try_batch: does all that a step of so many sequences does, once.
        release: gives back the memory of a try.
        unit: sequences of the smallest try: as many as there are accumulated parts.

    Raises:
        MemoryError: the smallest does not fit.
        Exception: whatever else a try raises.
    """
    fits, batch = 0, unit
    while batch <= MOST:
        begin = time.monotonic()
        does_fit = _fits(try_batch, batch)
        release()
        if not does_fit:
            break
        fits, batch = batch, 2 * batch
        if time.monotonic() - begin > MOST_S:
            return Largest(fits, "time")
    if not fits:
        raise MemoryError(f"not even a batch of {unit} fits")
    return Largest(fits, "memory" if batch <= MOST else "most")


def _fits(try_batch: Callable[[int], None], batch: int) -> bool:
    try:
        try_batch(batch)
    except BaseException as error:
        if classify(error).status != "oom":
            raise
        return False
    return True
