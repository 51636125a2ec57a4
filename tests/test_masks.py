"""Masks against definitions written out in plain Python, one pair at a time.

Letters: M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from attnbench.errors import UserError
from attnbench.masks import (
    MASKS,
    BigBird,
    BlockSparse,
    Causal,
    Dilated,
    Document,
    Fixed,
    Full,
    PrefixLM,
    Strided,
    Window,
    parse_mask,
)
from attnbench.masks import base as masks_base

BLOCKS = ((0, 0), (1, 0), (1, 1), (3, 2))

# (mask, "may query position q see key position k?") in words of the papers, not of the code.
DEFINITIONS = [
    (Full(), lambda q, k, N: True),
    (Causal(), lambda q, k, N: k <= q),
    (Window(window=1), lambda q, k, N: k == q),
    (Window(window=3), lambda q, k, N: k in (q, q - 1, q - 2)),
    (Window(window=3, causal=False), lambda q, k, N: k in (q - 2, q - 1, q, q + 1, q + 2)),
    (Window(window=99), lambda q, k, N: k <= q),
    (PrefixLM(prefix=2), lambda q, k, N: k <= q or k in (0, 1)),
    (Strided(stride=1), lambda q, k, N: k <= q),
    (Strided(stride=3), lambda q, k, N: k in (q, q - 1, q - 2, *range(q - 3, -1, -3))),
    (
        Strided(stride=4, causal=False),
        lambda q, k, N: k in range(q - 3, q + 4) or abs(q - k) in range(4, 99, 4),
    ),
    (
        Fixed(stride=4, summary=1),
        lambda q, k, N: k <= q and (k in range(q - q % 4, q + 1) or k in (3, 7, 11, 15)),
    ),
    (Fixed(stride=3, summary=3), lambda q, k, N: k <= q),
    (
        Fixed(stride=5, summary=2, causal=False),
        lambda q, k, N: k in range(q - q % 5, q - q % 5 + 5) or k in (3, 4, 8, 9, 13, 14),
    ),
    (Dilated(window=3, dilation=1), lambda q, k, N: k in (q, q - 1, q - 2)),
    (Dilated(window=3, dilation=2), lambda q, k, N: k in (q, q - 2, q - 4)),
    (
        Dilated(window=3, dilation=4, causal=False),
        lambda q, k, N: k in (q - 8, q - 4, q, q + 4, q + 8),
    ),
    (
        BlockSparse(block=2, blocks_per_row=2, causal=True),
        lambda q, k, N: (
            k <= q
            and BlockSparse(blocks_per_row=2, causal=True).block_table(-(-N // 2))[q // 2, k // 2]
        ),
    ),
    (BlockSparse(block=2, blocks_kept=BLOCKS), lambda q, k, N: (q // 2, k // 2) in BLOCKS),
    (
        BlockSparse(block=3, blocks_kept=BLOCKS, causal=True),
        lambda q, k, N: (q // 3, k // 3) in BLOCKS and k <= q,
    ),
    (
        BlockSparse(block=3, density=0.4, seed=5),
        lambda q, k, N: BlockSparse(block=3, density=0.4, seed=5).block_table(-(-N // 3))[
            q // 3, k // 3
        ],
    ),
    (
        BlockSparse(block=2, density=0.4, causal=True),
        lambda q, k, N: k <= q and BlockSparse(density=0.4).block_table(-(-N // 2))[q // 2, k // 2],
    ),
    (
        BigBird(block=2, random_blocks=1),
        lambda q, k, N: BigBird(random_blocks=1).block_table(-(-N // 2))[q // 2, k // 2],
    ),
    (
        BigBird(block=3, window_blocks=1, causal=True),
        lambda q, k, N: (
            k <= q and BigBird(window_blocks=1, causal=True).block_table(-(-N // 3))[q // 3, k // 3]
        ),
    ),
    (Document(lengths=(3, 1, 7)), lambda q, k, N: k <= q and _document(q) == _document(k)),
    (
        Document(lengths=(3, 1, 7), causal=False),
        lambda q, k, N: _document(q) == _document(k),
    ),
]
LENGTHS = [1, 2, 3, 7, 8, 11, 13]
SHAPES = list(itertools.product(LENGTHS, LENGTHS))


def _document(position):
    return "aaabccccccc"[position]


def fits(mask, M, N):
    try:
        mask.check(M, N)
    except UserError:
        return False
    return True


def brute(definition, M, N):
    """The dense mask, row i at position i + N − M (bottom-right aligned)."""
    return np.array([[bool(definition(i + N - M, k, N)) for k in range(N)] for i in range(M)])


CASES = [pytest.param(mask, definition, id=str(mask)) for mask, definition in DEFINITIONS]


@pytest.mark.parametrize(("mask", "definition"), CASES)
def test_every_form_agrees_with_the_definition(mask, definition):
    tried = 0
    for M, N in SHAPES:
        if not fits(mask, M, N):
            continue
        tried += 1
        want_MN = brute(definition, M, N)
        dense_MN = mask.dense(M, N)
        assert dense_MN.dtype == torch.bool
        np.testing.assert_array_equal(dense_MN.numpy(), want_MN, err_msg=f"{mask} {M}×{N}")

        additive_MN = mask.additive(M, N, torch.bfloat16)
        assert additive_MN.dtype == torch.bfloat16
        assert torch.equal(additive_MN == 0, dense_MN)
        assert torch.equal(additive_MN == float("-inf"), ~dense_MN)

        mask_mod = mask.mask_mod(M, N)
        i_M1, k_1N = torch.arange(M)[:, None], torch.arange(N)[None, :]
        assert torch.equal(mask_mod(0, 0, i_M1, k_1N).expand(M, N), dense_MN)
    assert tried


@pytest.mark.parametrize(("mask", "definition"), CASES)
def test_coverage_counts_pairs_queries_and_keys(mask, definition):
    for M, N in SHAPES:
        if fits(mask, M, N):
            want_MN = brute(definition, M, N)
            seen = mask.coverage(M, N)
            got = (seen.pairs, seen.queries, seen.keys)
            assert got == (want_MN.sum(), want_MN.any(1).sum(), want_MN.any(0).sum()), (M, N)
            assert all(type(number) is int for number in got)  # plain ints, fit for JSON


@pytest.mark.parametrize(("mask", "definition"), CASES)
@pytest.mark.parametrize(("block_m", "block_n"), [(1, 1), (2, 4), (4, 3), (16, 16)])
def test_block_lists_visit_what_is_allowed_and_call_full_what_is_full(
    mask, definition, block_m, block_n
):
    for M, N in SHAPES:
        if not fits(mask, M, N):
            continue
        want_MN = brute(definition, M, N)
        got = mask.blocks(M, N, block_m, block_n)
        assert (got.block_m, got.block_n) == (block_m, block_n)
        for r, i in enumerate(range(0, M, block_m)):
            squares = [want_MN[i : i + block_m, k : k + block_n] for k in range(0, N, block_n)]
            visit = [c for c, square in enumerate(squares) if square.any()]
            assert got.counts[r] == len(visit)
            assert got.indices[r, : len(visit)].tolist() == visit
            assert got.full[r, : len(visit)].tolist() == [squares[c].all() for c in visit]
            assert not got.indices[r, len(visit) :].any()
            assert not got.full[r, len(visit) :].any()


@pytest.mark.parametrize(("mask", "definition"), CASES)
def test_bounds_are_each_rows_allowed_keys(mask, definition):
    for M, N in SHAPES:
        if not fits(mask, M, N):
            continue
        bounds = mask.bounds(M, N)
        if bounds is None:
            assert not isinstance(mask, (Full, Causal, Window, PrefixLM, Document))
            continue
        for row, low, high in zip(brute(definition, M, N), *bounds, strict=True):
            assert np.flatnonzero(row).tolist() == list(range(low, high))
            assert 0 <= low <= high <= N


def test_dense_work_in_pieces_gives_the_same(monkeypatch):
    """Pieces of one row each: what long sequences go through."""
    masks = [m for m, _ in DEFINITIONS if fits(m, 11, 11)]
    whole = [(m.dense(11, 11), m.blocks(11, 11, 2, 3)) for m in masks]
    monkeypatch.setattr(masks_base, "_CHUNK_ELEMENTS", 5)
    for mask, (dense, blocks) in zip(masks, whole, strict=True):
        assert torch.equal(mask.dense(11, 11), dense)
        again = mask.blocks(11, 11, 2, 3)
        for field in ("counts", "indices", "full"):
            np.testing.assert_array_equal(getattr(again, field), getattr(blocks, field))


# ---- alignment -------------------------------------------------------------------------


def test_causal_is_aligned_bottom_right():
    """FlashAttention ≥ 2.1; top-left alignment (torch's is_causal) would differ here."""
    assert Causal().dense(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_more_queries_than_keys_leaves_the_first_rows_without_a_key():
    assert Causal().dense(4, 2).int().tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    seen = Causal().coverage(4, 2)
    assert (seen.pairs, seen.queries, seen.keys) == (3, 2, 2)


def test_a_single_query_is_the_last_position():
    assert Causal().dense(1, 5).all()
    assert Window(window=2).dense(1, 5).int().tolist() == [[0, 0, 0, 1, 1]]


@pytest.mark.parametrize(("mask", "definition"), CASES)
def test_is_causal_means_that_nobody_looks_ahead(mask, definition):
    ahead = [
        definition(q, k, 11) for q in range(11) for k in range(q + 1, 11) if fits(mask, 11, 11)
    ]
    assert not (mask.is_causal and any(ahead))
    if isinstance(mask, (Full, PrefixLM)):
        assert not mask.is_causal


# ---- drawn masks -----------------------------------------------------------------------


@pytest.mark.parametrize("seqlen", [1, 2, 5, 64, 1000])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_drawn_documents_fill_the_sequence(seqlen, count):
    if count > seqlen:
        return
    lengths = Document(count=count).document_lengths(seqlen)
    assert len(lengths) == count
    assert sum(lengths) == seqlen
    assert min(lengths) >= 1


def test_drawn_masks_never_change():
    """Published numbers hang on these draws: a change renames nothing but means another mask."""
    assert Document(count=4).document_lengths(64) == (2, 18, 20, 24)
    assert np.flatnonzero(BlockSparse().block_table(4)).tolist() == [0, 1, 5, 10, 12, 15]
    bigbird = BigBird(window_blocks=1, global_blocks=0, random_blocks=1)
    assert np.argwhere(bigbird.block_table(4) & ~np.eye(4, dtype=bool)).tolist() == [
        [0, 3], [1, 2], [2, 3], [3, 1],
    ]  # fmt: skip


def test_the_seed_changes_the_draw():
    assert Document(count=4).document_lengths(64) != Document(count=4, seed=1).document_lengths(64)
    assert (BlockSparse().block_table(9) != BlockSparse(seed=1).block_table(9)).any()
    assert (BigBird().block_table(30) != BigBird(seed=1).block_table(30)).any()


def test_block_sparse_keeps_the_diagonal_and_about_its_density():
    kept = BlockSparse(density=0.25).block_table(200)
    assert kept.diagonal().all()
    off_diagonal = (kept.sum() - 200) / (200 * 199)
    assert off_diagonal == pytest.approx(0.25, abs=0.01)  # six standard deviations
    assert BlockSparse(density=1.0).block_table(5).all()


@pytest.mark.parametrize("causal", [False, True])
def test_block_sparse_keeps_as_many_blocks_a_row_as_it_says(causal):
    kept = BlockSparse(blocks_per_row=3, causal=causal).block_table(20)
    assert kept.diagonal().all()
    assert kept.sum(axis=1).tolist() == ([1, 2] + 18 * [3] if causal else 20 * [3])
    if causal:
        assert not np.triu(kept, 1).any()  # a block ahead would be lost to causality
    assert BlockSparse(blocks_per_row=9).block_table(5).all()
    other = BlockSparse(blocks_per_row=3, causal=causal, seed=1).block_table(20)
    assert (kept != other).any()


def test_what_lies_outside_the_neighbourhood_is_a_multiple_of_the_period_away():
    far = {Strided(stride=3): 3, Dilated(window=5, dilation=2): 1}
    for mask, neighbourhood in far.items():
        q, k = np.nonzero(mask.dense(40, 40).numpy())
        assert mask.period > 1
        assert not ((q - k) % mask.period)[abs(q - k) >= neighbourhood].any()
    assert Causal().period == 1


@pytest.mark.parametrize("causal", [False, True])
def test_bigbird_has_its_window_its_globals_and_its_random_blocks(causal):
    mask = BigBird(window_blocks=3, global_blocks=2, random_blocks=2, causal=causal)
    kept = mask.block_table(20)
    assert kept[:2].all()
    assert kept[:, :2].all()
    for row in range(2, 20):
        window = {row - 1, row, row + 1} & set(range(20))
        rest = set(np.flatnonzero(kept[row])) - window - {0, 1}
        assert window <= set(np.flatnonzero(kept[row]))
        reachable = set(range(row + 1 if causal else 20)) - window - {0, 1}
        assert rest <= reachable  # a random block ahead would be lost to causality
        assert len(rest) == min(2, len(reachable))


# ---- text and JSON ---------------------------------------------------------------------


@pytest.mark.parametrize("mask", [mask for mask, _ in DEFINITIONS], ids=str)
def test_text_and_json_read_back(mask):
    assert parse_mask(str(mask)) == mask
    assert parse_mask(mask.to_json()) == mask
    assert hash(parse_mask(str(mask))) == hash(mask)
    assert parse_mask(mask) is mask


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (Full(), "full"),
        (Window(), "window"),
        (Window(window=64, causal=False), "window:causal=false,window=64"),
        (Document(lengths=(9,)), "document:lengths=9"),
        (Document(lengths=(3, 4)), "document:lengths=3+4"),
        (BlockSparse(density=0.5), "block_sparse:density=0.5"),
        (BlockSparse(blocks_kept=((1, 10),)), "block_sparse:blocks_kept=1-10"),
        (BlockSparse(blocks_kept=((0, 0), (1, 0))), "block_sparse:blocks_kept=0-0+1-0"),
    ],
)
def test_the_text_form(mask, text):
    assert str(mask) == text
    assert parse_mask(text) == mask


@pytest.mark.parametrize("kind", [k for k in MASKS if k != "document"])
def test_every_kind_reads_by_its_name_alone(kind):
    assert parse_mask(kind) == MASKS[kind]()
    assert parse_mask({"kind": kind}) == MASKS[kind]()


def test_json_holds_lists_and_every_field():
    assert BlockSparse(blocks_kept=((0, 1),)).to_json() == {
        "kind": "block_sparse",
        "block": 64,
        "causal": False,
        "seed": 0,
        "blocks_kept": [[0, 1]],
        "density": 0.25,
        "blocks_per_row": 0,
    }


def test_lists_from_toml_become_hashable():
    mask = Document(lengths=[3, 4])  # type: ignore[arg-type]
    assert hash(mask) == hash(Document(lengths=(3, 4)))
    assert BlockSparse(blocks_kept=[[0, 1]]) == BlockSparse(blocks_kept=((0, 1),))  # type: ignore[arg-type]


def test_a_whole_number_density_is_the_same_mask():
    assert parse_mask("block_sparse:density=1") == BlockSparse(density=1.0)
    assert str(parse_mask("block_sparse:density=1")) == "block_sparse:density=1.0"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("casual", "unknown mask 'casual'; allowed: full, causal"),
        ("casual", "did you mean 'causal'?"),
        ("", "unknown mask ''"),
        ({"window": 3}, "unknown mask ''"),
        (3, "mask must be a name or a table with 'kind', got 3"),
        ("window:size=3", "unknown field of mask window: 'size'; allowed: window, causal"),
        ("window:window=0", "window must be positive, got 0"),
        ("window:window=-4", "window must be positive, got -4"),
        ("window:window=2.5", "window must be of type int, got 2.5"),
        ({"kind": "window", "window": True}, "window must be of type int, got True"),
        ({"kind": "window", "causal": "yes"}, "causal must be of type bool, got 'yes'"),
        ("window:window=99999999999999999999", "window is too large: 99999999999999999999"),
        (f"block_sparse:density=1{'0' * 400}", "density is too large: 1000"),
        ("prefix:prefix=0", "prefix must be positive, got 0"),
        ("strided:stride=0", "stride must be positive, got 0"),
        ("document", "give either lengths or count, got lengths [] and count 0"),
        ("document:lengths=3,count=2", "give either lengths or count, got lengths [3] and count 2"),
        ("document:lengths=3+0", "lengths must be positive whole numbers, got 0"),
        ("document:lengths=3-4", "lengths must be positive whole numbers, got (3, 4)"),
        ("document:lengths=3+a", "lengths must be whole numbers joined by '+'"),
        ("document:lengths=", "lengths must be whole numbers joined by '+'"),
        ({"kind": "document", "lengths": ["3"]}, "lengths must be positive whole numbers, got '3'"),
        ({"kind": "document", "lengths": 3}, "lengths must be a list, got 3"),
        ("document:count=-1", "count must not be negative, got -1"),
        ("document:count=2,seed=-1", "seed must not be negative, got -1"),
        ("document:lengths=3+4,seed=1", "seed 1 has no effect when lengths are given"),
        ("block_sparse:density=0", "density must be in (0, 1], got 0.0"),
        ("block_sparse:density=1.5", "density must be in (0, 1], got 1.5"),
        ("block_sparse:block=0", "block must be positive, got 0"),
        ("block_sparse:seed=-1", "seed must not be negative, got -1"),
        ("block_sparse:blocks_kept=1", "blocks_kept must hold pairs (query block, key block)"),
        ({"kind": "block_sparse", "blocks_kept": [[0, "1"]]}, "pairs (query block, key block)"),
        ("block_sparse:blocks_kept=0-0,density=0.5", "density 0.5 has no effect"),
        ("block_sparse:blocks_kept=0-0,seed=3", "seed 3 has no effect"),
        ("block_sparse:blocks_kept=0-0,blocks_per_row=3", "blocks_per_row 3 has no effect"),
        ("block_sparse:blocks_per_row=3,density=0.5", "density 0.5 has no effect when blocks_per"),
        ("fixed:stride=4,summary=5", "summary 5 must not exceed stride 4"),
        ("fixed:stride=4,summary=0", "summary must be positive, got 0"),
        ("dilated:dilation=0", "dilation must be positive, got 0"),
        ("bigbird:window_blocks=2", "window_blocks must be odd, got 2"),
        ("bigbird:random_blocks=-1", "random_blocks must not be negative, got -1"),
    ],
)
def test_a_wrong_mask_is_told_in_one_line(given, says):
    with pytest.raises(UserError) as error:
        parse_mask(given)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mask", "M", "N", "says"),
    [
        (PrefixLM(prefix=9), 4, 8, "prefix 9 is longer than seqlen_k 8"),
        (Document(count=2), 4, 8, "seqlen_q 4 and seqlen_k 8 must be equal"),
        (Document(lengths=(3, 4)), 8, 8, "lengths add up to 7, seqlen is 8"),
        (Document(count=9), 8, 8, "count 9 is more than seqlen 8"),
        (BlockSparse(), 9, 8, "seqlen_q 9 must not exceed seqlen_k 8"),
        (BigBird(), 9, 8, "seqlen_q 9 must not exceed seqlen_k 8"),
        (BlockSparse(block=4, blocks_kept=((0, 2),)), 8, 8, "block (0, 2) lies outside 0…1"),
    ],
)
def test_a_mask_that_does_not_fit_the_lengths_is_refused_in_every_form(mask, M, N, says):
    for form in (
        lambda: mask.check(M, N),
        lambda: mask.dense(M, N),
        lambda: mask.additive(M, N, torch.float32),
        lambda: mask.mask_mod(M, N),
        lambda: mask.blocks(M, N, 4, 4),
        lambda: mask.coverage(M, N),
    ):
        with pytest.raises(UserError) as error:
            form()
        assert says in str(error.value)


def test_a_bias_in_a_dtype_without_infinity_is_refused():
    with pytest.raises(UserError, match="float8_e4m3fn has no infinity"):
        Causal().additive(4, 4, torch.float8_e4m3fn)


def test_reading_a_mask_does_not_import_torch():
    code = "import sys; from attnbench.masks import *; parse_mask('bigbird').coverage(99, 99)"
    code += "; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
