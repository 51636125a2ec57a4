"""The proof against the libraries tells which of ours is slower, in both directions.

That ours and the libraries compute the same is tested beside each method (``tests/impls``).
"""

from __future__ import annotations

import pytest
import rivals


@pytest.mark.parametrize(("ours_s", "is_kept"), [(1.02, False), (0.98, True)])
def test_ours_must_not_be_slower_than_the_library(ours_s: float, is_kept: bool) -> None:
    drift = (1.0, 3.0, 2.0)  # of the machine, in both
    row = rivals.as_row(rivals.MATCHES[0], [ours_s * x for x in drift], drift)
    assert row.is_kept is is_kept
    assert row.figure.startswith(f"{ours_s:.3f}")


@pytest.mark.slow
def test_every_library_is_timed_in_both_directions() -> None:
    forward, backward = rivals.prove(256)
    assert len(forward.rows) == len(backward.rows) == len(rivals.MATCHES)
    assert [row.what for row in forward.rows] == [row.what for row in backward.rows]
