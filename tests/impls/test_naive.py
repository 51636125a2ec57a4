from __future__ import annotations

import pytest
import torch
from shelf import assert_right, solve

from attnbench import Problem


@pytest.mark.parametrize("direction", ["forward", "both", "backward"])
def test_everything_at_once_is_right(direction: str) -> None:
    problem = Problem.of(
        batch=2, heads=4, heads_kv=2, seqlen_q=33, seqlen_k=50, head_dim=16, head_dim_v=24,
        mask="causal", dropout_p=0.2, softcap=3.0, alibi=True, scale=0.4, direction=direction,
    )  # fmt: skip
    assert_right("naive", problem)


def test_dropout_draws_a_new_mask_each_call_and_reveals_it() -> None:
    problem = Problem.of(heads=2, seqlen=64, head_dim=16, dropout_p=0.5)
    execution, _ = solve("naive", problem)
    first = execution.keep_mask()
    execution.step()
    second = execution.keep_mask()
    assert first is not None
    assert second is not None
    assert first.dtype == torch.bool
    assert first.shape == (1, 2, 64, 64)
    assert not torch.equal(first, second)
    assert float(first.float().mean()) == pytest.approx(0.5, abs=0.05)


def test_a_row_that_sees_nothing_has_zeros_and_no_gradient() -> None:
    problem = Problem.of(
        heads=1, seqlen_q=9, seqlen_k=4, head_dim=8, mask="causal", direction="both"
    )
    results = solve("naive", problem)[0].results()
    assert not results["out"][:, :, :5].any()
    assert not results["dq"][:, :, :5].any()
    assert all(bool(x.isfinite().all()) for x in results.values())
