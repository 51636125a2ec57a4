"""The proof of growth finds a method whose cost grows faster than it claims."""

from __future__ import annotations

import growth
import pytest
from proof import Proof, Row

from attnbench.problem import Problem

LENGTHS = (1024, 2048, 4096)
SPARSE = "block-sparse:blocks=8"


def rounds(**powers: float) -> dict[tuple[str, int], list[float]]:
    """Three rounds of each method, whose time grows with that power of seqlen (else 1)."""
    return {
        (spec, n): [1e-6 * factor * n ** powers.get(spec.partition(":")[0], 1.0) for factor in
                    (1.0, 1.1, 1.3)]
        for spec in growth.CLAIMS
        for n in LENGTHS
    }  # fmt: skip


def row_of(proof: Proof, spec: str) -> Row:
    (row,) = [row for row in proof.rows if row.what.startswith(f"{spec},")]
    return row


def test_the_slope_is_the_power_by_which_time_grows_however_fast_a_round_was() -> None:
    found = growth.slope_of([[1.0, 5.0], [4.0, 20.0], [16.0, 80.0]], LENGTHS)
    assert (found.low, found.median, found.high) == pytest.approx((2, 2, 2))


def test_a_method_that_grows_faster_than_it_claims_is_told() -> None:
    proof = growth.as_proof("forward", rounds(nystrom=1.5, sdpa=2.0), LENGTHS)
    assert row_of(proof, "nystrom:landmarks=64").is_kept is False
    assert row_of(proof, "linear").is_kept is True
    assert row_of(proof, growth.DENSE).is_kept is None, "shown, not asked for"


@pytest.mark.parametrize(("seconds", "is_kept"), [(7.9, False), (8.1, True)])
def test_a_window_must_be_eight_times_as_fast_as_dense_attention(
    seconds: float, is_kept: bool
) -> None:
    made = rounds()
    made[growth.WINDOW, LENGTHS[-1]] = [1.0, 1.0, 1.0]
    made[growth.DENSE, LENGTHS[-1]] = [seconds] * 3
    last = growth.as_proof("forward", made, LENGTHS).rows[-1]
    assert (last.what.startswith("sdpa ÷ window"), last.is_kept) == (True, is_kept)


def test_memory_that_grows_with_the_square_is_told_as_is_more_than_the_kept_pairs() -> None:
    def peak_of(spec: str, problem: Problem) -> int:
        power = 2 if spec == SPARSE else 1
        return problem.seqlen_q**power * 64

    proof = growth.prove_memory(LENGTHS, peak_of)
    steep, pairs = [row for row in proof.rows if row.what.startswith(SPARSE)]
    assert (steep.is_kept, pairs.is_kept) == (False, False)
    assert all(row.is_kept for row in proof.rows if not row.what.startswith(SPARSE))


def test_the_pairs_that_a_window_keeps_are_counted() -> None:
    problem = Problem.of(heads=2, head_dim=4, seqlen=8, dtype="float32")
    pairs, results = 2 * (8 * 5 - 2 * (1 + 2)), 4 * 2 * 8 * 4
    assert growth.kept_bytes("window:window=3", problem) == 4 * (pairs + results)
    assert growth.kept_bytes("linear", problem) is None


@pytest.mark.slow
def test_real_methods_are_timed_at_every_length() -> None:
    forward, backward, memory = growth.prove((128, 256))
    assert len(forward.rows) == len(backward.rows) == len(growth.CLAIMS) + 1
    assert memory.rows
