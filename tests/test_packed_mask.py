"""The mask that is made of others, against pairs looked at one by one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from attnbench import Problem, make_inputs
from attnbench.errors import UserError
from attnbench.masks import BigBird, BlockSparse, Causal, Full, Mask, Packed, Window, parse_mask
from attnbench.oracle import softmax_weights

TABLES = BlockSparse(block=2, blocks_per_row=2)  # drawn anew for each length
PACKED = [
    Packed((5, 1, 7), (Window(window=2), Full(), Causal())),
    Packed((3, 11, 3), (TABLES, TABLES, TABLES)),
    Packed((11, 3, 4), (TABLES, BigBird(block=2, causal=True), TABLES)),
    Packed((4, 4), (BlockSparse(block=2, blocks_kept=((0, 1),)), Window(window=3))),
    Packed((6,), (Causal(),)),
]


def blocks_of(packed: Packed) -> torch.Tensor:
    """The definition: each sequence's mask on the diagonal."""
    return torch.block_diag(
        *(m.dense(n, n).int() for m, n in zip(packed.masks, packed.lengths, strict=True))
    ).bool()


@pytest.mark.parametrize("mask", PACKED, ids=str)
def test_every_form_has_each_masks_pairs_on_the_diagonal(mask: Packed) -> None:
    tokens = sum(mask.lengths)
    want_TT = blocks_of(mask)
    assert torch.equal(mask.dense(tokens, tokens), want_TT)
    mask_mod, place_T = mask.mask_mod(tokens, tokens), torch.arange(tokens)
    assert torch.equal(mask_mod(0, 0, place_T[:, None], place_T[None, :]), want_TT)
    # One pair at a time, as a compiled kernel asks.
    assert all(
        bool(mask_mod(0, 0, torch.tensor(q), torch.tensor(k))) == bool(want_TT[q, k])
        for q in range(tokens)
        for k in range(tokens)
    )
    blocks = mask.blocks(tokens, tokens, 2, 3)
    visits = [want_TT[i : i + 2].any(0) for i in range(0, tokens, 2)]
    for row, seen_T in enumerate(visits):
        want = [c for c in range(-(-tokens // 3)) if seen_T[3 * c : 3 * c + 3].any()]
        assert blocks.indices[row, : blocks.counts[row]].tolist() == want


@pytest.mark.parametrize("mask", PACKED, ids=str)
def test_pairs_queries_and_keys_are_counted_exactly(mask: Packed) -> None:
    tokens, want_TT = sum(mask.lengths), blocks_of(mask).numpy()
    seen = mask.coverage(tokens, tokens)
    got = (seen.pairs, seen.queries, seen.keys)
    assert got == (want_TT.sum(), want_TT.any(1).sum(), want_TT.any(0).sum())
    assert all(type(number) is int for number in got)
    flops = Problem.of(heads=2, seqlen=tokens, head_dim=8, mask=mask).flops()
    assert flops == 2 * 2 * int(want_TT.sum()) * (8 + 8)


def test_the_oracle_looks_at_no_other_pair() -> None:
    mask = PACKED[0]
    p = Problem.of(heads=1, seqlen=13, head_dim=4, mask=mask)
    weights_1TT = softmax_weights(p, make_inputs(p, 0), torch.arange(13))
    assert torch.equal(weights_1TT[0] > 0, blocks_of(mask))


@pytest.mark.parametrize(
    ("masks", "is_causal"), [((Causal(), Window()), True), ((Causal(), Full()), False)]
)
def test_it_is_causal_where_all_are(masks: tuple[Mask, ...], is_causal: bool) -> None:
    assert Packed((3, 4), masks).is_causal is is_causal


def test_masks_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="2 lengths need as many masks, got 1"):
        Packed((3, 4), (Full(),))
    for lengths in ((6, 6), (7, 6), (6, 7)):
        with pytest.raises(UserError, match="lengths add up to 7"):
            Packed((3, 4), (Full(), Full())).check(*lengths)
    far = BlockSparse(block=2, blocks_kept=((0, 3),))
    with pytest.raises(UserError, match="lies outside"):
        Packed((8, 4), (far, far)).check(12, 12)


def test_a_layer_takes_it_only_for_its_own_sequences() -> None:
    """As a claim: a suite cannot ask for it, by name or otherwise."""
    layer = Problem.of(level="layer", batch=2, seqlen=10, padding=0.2)
    band = Window(window=2, causal=False)
    claimed = layer.replace(mask=Packed((10, 6), (band, band)))
    assert claimed.core.mask == claimed.mask
    assert claimed != layer
    with pytest.raises(UserError, match="padding goes with mask full or causal"):
        layer.replace(mask=Packed((10, 5), (band, band)))
    with pytest.raises(UserError, match="unknown mask 'packed'"):
        parse_mask({"kind": "packed"})


def test_it_says_what_it_is() -> None:
    told = Packed((3, 4), (Window(window=2), Causal()))
    assert str(told) == "packed(3 × window:window=2, 4 × causal)"
    assert told.to_json() == {
        "kind": "packed", "lengths": [3, 4],
        "masks": [{"kind": "window", "window": 2, "causal": True}, {"kind": "causal"}],
    }  # fmt: skip


def test_counting_it_does_not_import_torch() -> None:
    code = "import sys; from attnbench.masks import *; Packed((3,), (Causal(),)).coverage(3, 3)"
    code += "; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numpy_and_torch_tables_agree() -> None:
    mask, place_T = PACKED[2], np.arange(18)
    by_numpy = mask.predicate(18, 18)(place_T[:, None], place_T[None, :])
    by_torch = mask.predicate(18, 18, torch.as_tensor)(
        torch.arange(18)[:, None], torch.arange(18)[None, :]
    )
    np.testing.assert_array_equal(by_numpy, by_torch.numpy())
