"""The Triton decode step: keys split among programs, and their shares merged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from fused import DECODE, is_right, part, run
from shelf import solve

from attnbench import Problem
from attnbench.oracle import reference


@pytest.mark.parametrize("name", DECODE)
def test_a_decode_step_with_each_feature_is_right(name: str) -> None:
    assert is_right(name)


MANY_KEYS = Problem.of(
    batch=2, heads=6, heads_kv=2, seqlen_q=4, seqlen_k=300, head_dim=16, head_dim_v=24
)


@pytest.mark.parametrize(
    ("shares", "changes"),
    [
        (1, {"mask": "causal"}),
        (3, {"mask": "causal"}),
        (7, {"mask": "causal"}),  # more than there are blocks
        (3, {"mask": "window:window=100"}),
        (3, {"mask": "prefix:prefix=20"}),
        (2, {"softcap": 2.0, "alibi": True}),
        (2, {"mask": "causal", "seqlen_q": 8, "seqlen_k": 5}),
    ],
    ids=str,
)
def test_splitting_keys_gives_the_same(
    shares: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("prepared"), "shares_of", lambda *a: shares)
    problem = Problem.of(**{**MANY_KEYS.to_json(), **changes})
    execution, inputs = solve("triton", problem, interpret=True)
    truth = reference(problem, inputs, gradients=False)
    torch.testing.assert_close(
        execution.results()["out"].double(), truth.out_BHME, atol=2e-6, rtol=1e-5
    )
    _, lse = execution.built.forward(*inputs.qkv())
    torch.testing.assert_close(lse.double() * math.log(2), truth.lse_BHM, atol=1e-5, rtol=1e-6)


@triton.jit
def mean_of_shares(
    parts_ptr, part_lse_ptr, out_ptr, lse_ptr, rows, shares,
    HEAD_DIM_V: tl.constexpr, DIM_V: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    share, dim = tl.arange(0, SHARES)[:, None], tl.arange(0, DIM_V)[None, :]
    places = parts_ptr + (share * rows + row) * HEAD_DIM_V + dim
    parts = tl.load(places, mask=(share < shares) & (dim < HEAD_DIM_V), other=0.0)
    mean = tl.sum(parts, 0) / shares
    index = tl.arange(0, DIM_V)
    tl.store(out_ptr + row * HEAD_DIM_V + index, mean, mask=index < HEAD_DIM_V)


def test_shares_merged_without_their_lse_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part("launch"), "merge_kernel", mean_of_shares)
    assert run("decode").status == "incorrect"


def test_every_processor_has_a_share_and_no_share_is_without_keys() -> None:
    shares_of = part("config").shares_of
    assert shares_of(seqlen_k=100_000, block_n=64, heads=8, processors=132) == 33
    assert shares_of(seqlen_k=100_000, block_n=64, heads=1, processors=132) == 128
    assert shares_of(seqlen_k=130, block_n=64, heads=1, processors=132) == 3
    assert shares_of(seqlen_k=10, block_n=64, heads=4096, processors=132) == 1
