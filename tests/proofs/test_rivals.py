"""The proof against the libraries tells which of ours is slower, in both directions.

That ours and the libraries compute the same is tested beside each method (``tests/impls``).
"""

from __future__ import annotations

import pytest
import rivals


@pytest.mark.parametrize(("ours", "is_kept"), [(1.02, False), (0.98, True)])
def test_ours_must_not_be_slower_than_the_library(ours: float, is_kept: bool) -> None:
    row = rivals.as_row(rivals.MATCHES[0], [[ours] * 9] * 3)
    assert row.is_kept is is_kept
    assert row.figure.startswith(f"{ours:.3f}")


def test_a_process_counts_once_however_many_rounds_it_had() -> None:
    """Broken: all rounds together, and the luck of the longest process decides."""
    lucky, others = [0.8] * 100, [[1.1] * 5, [1.2] * 5]
    assert rivals.as_row(rivals.MATCHES[0], [lucky, *others]).is_kept is False


@pytest.mark.slow
def test_every_library_is_timed_in_both_directions() -> None:
    forward, backward = rivals.prove(256, processes=2)
    assert len(forward.rows) == len(backward.rows) == len(rivals.MATCHES)
    assert [row.what for row in forward.rows] == [row.what for row in backward.rows]
