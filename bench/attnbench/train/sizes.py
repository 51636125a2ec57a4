"""The largest batch that fits: doubled until memory is out.

On a CPU the worker's limit on memory (nine tenths of what is free) makes an allocation fail,
as a GPU's does by itself.
"""

from __future__ import annotations

from collections.abc import Callable

from attnbench.failure import classify

MOST = 2**16  # sequences; beyond that a step says nothing about attention any more


def largest_batch(try_batch: Callable[[int], None], release: Callable[[], None], unit: int) -> int:
    """The largest ``unit · 2^k`` for which ``try_batch`` has memory enough.

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
        if not _fits(try_batch, batch):
            release()
            break
        release()
        fits, batch = batch, 2 * batch
    if not fits:
        raise MemoryError(f"not even a batch of {unit} fits")
    return fits


def _fits(try_batch: Callable[[int], None], batch: int) -> bool:
    try:
        try_batch(batch)
    except BaseException as error:
        if classify(error).status != "oom":
            raise
        return False
    return True
