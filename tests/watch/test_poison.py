"""Poison is told from every other NaN, and never lands in an input."""

from __future__ import annotations

import pytest
import torch

from attnbench.watch import poison


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_poison_is_a_nan_that_is_told_from_a_computed_one(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6).to(dtype)
    assert poison.count(x) == 0
    part = x[:, ::2]
    poison.fill(part)
    assert bool(part.isnan().all())
    assert poison.count(x) == part.numel()
    computed = torch.full((3,), float("inf"), dtype=dtype)
    assert poison.count(computed - computed) == 0
    assert poison.unwritten({"out": x}) == (
        "left 12 of 24 elements of out unwritten: they hold what was in that memory before the call"
    )


def test_results_are_spoilt_but_not_where_they_are_an_inputs_memory() -> None:
    q, out, repeated = torch.randn(4), torch.randn(4), torch.randn(1).expand(4)
    poison.spoil([out, q[1:], repeated], [q])
    assert poison.count(out) == 4
    assert poison.count(q) == 0
