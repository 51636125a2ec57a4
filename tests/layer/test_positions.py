"""Each position encoding against its definition, written out one element at a time."""

from __future__ import annotations

import math

import pytest
import torch

from attnbench.alibi import alibi_slopes
from attnbench.errors import UserError
from attnbench.layer.positions import (
    LearnedPositions,
    RelativeBias,
    query_positions,
    relative_buckets,
    rotary_tables,
    rotate,
    sinusoidal,
)

F64 = torch.float64


def test_queries_stand_bottom_right() -> None:
    assert query_positions(2, 5).tolist() == [3, 4]


def test_sinusoidal_is_the_papers_formula() -> None:
    table_SC = sinusoidal(torch.tensor([0, 1, 7, 500]), 6, F64)
    for row, position in enumerate((0, 1, 7, 500)):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert float(table_SC[row, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-12)
            assert float(table_SC[row, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-12)


def test_an_odd_width_has_no_pairs() -> None:
    with pytest.raises(UserError, match="head_dim must be even, got 5"):
        rotary_tables(torch.arange(3), 5, F64)
    with pytest.raises(UserError, match="d_model must be even, got 7"):
        sinusoidal(torch.arange(3), 7, F64)


def test_learned_positions_are_looked_up_and_learned() -> None:
    learned = LearnedPositions(5, 4)
    got_SC = learned(torch.tensor([4, 4, 0]))
    assert torch.equal(got_SC[0], learned.table_TC[4])
    assert torch.equal(got_SC[1], learned.table_TC[4])
    got_SC.sum().backward()
    assert learned.table_TC.grad is not None
    assert learned.table_TC.grad[:, 0].tolist() == [1, 0, 0, 0, 2]


def turned(x_D: torch.Tensor, position: int) -> torch.Tensor:
    """RoPE's definition: each pair, as a complex number, times ``e^(i · position · rate)``."""
    dim = len(x_D)
    out_D = torch.empty_like(x_D)
    for i in range(dim // 2):
        pair = complex(float(x_D[i]), float(x_D[i + dim // 2]))
        angle = position * 10000 ** (-2 * i / dim)
        pair *= complex(math.cos(angle), math.sin(angle))
        out_D[i], out_D[i + dim // 2] = pair.real, pair.imag
    return out_D


def test_rope_turns_each_pair_by_its_angle() -> None:
    x_BHSD = torch.randn(2, 3, 4, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    positions_S = torch.tensor([0, 1, 5, 300])
    got_BHSD = rotate(x_BHSD, *rotary_tables(positions_S, 8, F64))
    for s, position in enumerate(positions_S.tolist()):
        want_D = turned(x_BHSD[1, 2, s], position)
        torch.testing.assert_close(got_BHSD[1, 2, s], want_D, rtol=0, atol=1e-12)


def test_rope_broadcasts_over_heads_behind_the_sequence_too() -> None:
    x_BSHD = torch.randn(2, 4, 3, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
    cos_SP, sin_SP = rotary_tables(torch.arange(4), 8, F64)
    got_BSHD = rotate(x_BSHD, cos_SP[:, None], sin_SP[:, None])
    want_BHSD = rotate(x_BSHD.transpose(1, 2), cos_SP, sin_SP)
    assert torch.equal(got_BSHD.transpose(1, 2), want_BHSD)


def test_products_of_turned_vectors_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    q_D, k_D = torch.randn(2, 16, dtype=F64, generator=generator)

    def product(q_position: int, k_position: int) -> float:
        cos_SP, sin_SP = rotary_tables(torch.tensor([q_position, k_position]), 16, F64)
        q, k = rotate(torch.stack([q_D, k_D]), cos_SP, sin_SP)
        return float(q @ k)

    assert product(9, 4) == pytest.approx(product(1005, 1000), abs=1e-10)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)
    assert product(3, 3) == pytest.approx(float(q_D @ k_D), abs=1e-12)


def bucket(ahead: int, causal: bool, buckets: int, max_distance: int) -> int:
    """T5's buckets in words: one distance each, then equal factors, then the rest."""
    first = 0
    if not causal:
        buckets //= 2
        first = buckets if ahead > 0 else 0
    distance = max(-ahead, 0) if causal else abs(ahead)
    single = buckets // 2
    if distance < single:
        return first + distance
    share = math.log(distance / single) / math.log(max_distance / single)
    return first + min(single + math.floor(share * (buckets - single) + 1e-6), buckets - 1)


@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets_are_those_of_the_definition(causal: bool) -> None:
    positions = torch.tensor([0, 1, 7, 8, 9, 15, 16, 17, 31, 90, 128, 200, 399])
    got_MN = relative_buckets(positions, positions, causal=causal)
    for m, q in enumerate(positions.tolist()):
        for n, k in enumerate(positions.tolist()):
            assert int(got_MN[m, n]) == bucket(k - q, causal, 32, 128), (q, k)


@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets_are_those_of_transformers(causal: bool) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    q_M, k_N = query_positions(300, 500), torch.arange(500)
    want_MN = t5.T5Attention._relative_position_bucket(
        k_N - q_M[:, None], bidirectional=not causal, num_buckets=32, max_distance=128
    )
    assert torch.equal(relative_buckets(q_M, k_N, causal=causal), want_MN)


def test_the_relative_bias_is_one_number_for_each_head_and_bucket() -> None:
    bias = RelativeBias(3, causal=True)
    q_M, k_N = query_positions(2, 4), torch.arange(4)
    bias_HMN = bias(q_M, k_N)
    assert bias_HMN.shape == (3, 2, 4)
    assert bias_HMN.is_contiguous(), "as q, k and v are"
    assert torch.equal(bias_HMN[:, 0, 0], bias.table_RH[2])  # a query at 2, a key at 0
    assert torch.equal(bias_HMN[:, 0, 3], bias.table_RH[0])  # ahead
    bias_HMN.sum().backward()
    assert bias.table_RH.grad is not None
    assert int(bias.table_RH.grad[0].sum()) == 3 * 3


def test_alibi_slopes_are_the_papers() -> None:
    assert alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
