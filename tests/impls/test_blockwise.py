from __future__ import annotations

import pytest
import torch
from shelf import CPU, Operations, assert_right, implementation, module_of, solve

from attnbench import ForwardBackward, Problem, Unsupported

EVERYTHING = Problem.of(
    batch=2, heads=4, heads_kv=2, seqlen_q=33, seqlen_k=50, head_dim=16, head_dim_v=24,
    mask="causal", softcap=3.0, alibi=True, scale=0.4, direction="both",
)  # fmt: skip


@pytest.mark.parametrize("block", [1, 7, 16, 50, 1024])
def test_the_answer_does_not_depend_on_the_block(block: int) -> None:
    assert_right("blockwise", EVERYTHING, block=block)


@pytest.mark.parametrize("block", [0, -3])
def test_a_block_of_nothing_is_refused(block: int) -> None:
    with pytest.raises(Unsupported, match=f"block must be positive, not {block}"):
        implementation("blockwise", block=block).supports(EVERYTHING, CPU)


def test_the_backward_is_its_own() -> None:
    built = implementation("blockwise").build(EVERYTHING, CPU)
    assert isinstance(built, ForwardBackward)
    assert not solve("blockwise", EVERYTHING)[0].results()["dq"].requires_grad


def test_no_tensor_grows_with_seqlen_squared() -> None:
    problem = Problem.of(heads=2, seqlen=512, head_dim=16, mask="causal", direction="both")
    execution, _ = solve("blockwise", problem, block=32)
    with Operations() as ran:
        execution.step()
    assert max(made for _, made in ran.seen) == 2 * 512 * 16


@pytest.mark.parametrize(
    ("mask", "pairs"),
    [("full", 64), ("causal", 36), ("window:window=17", 15), ("document:lengths=128+128", 20)],
)
def test_blocks_that_the_mask_rules_out_are_not_visited(mask: str, pairs: int) -> None:
    problem = Problem.of(heads=1, seqlen=256, head_dim=8, mask=mask)
    visits = module_of("blockwise").Blocks(problem, CPU, 32).visits
    assert len(visits) == pairs
    if mask == "causal":
        assert sum(visit.hidden_mn is not None for visit in visits) == 8  # only the diagonal


def test_rows_without_keys_leave_no_nan() -> None:
    problem = Problem.of(
        heads=1, seqlen_q=40, seqlen_k=8, head_dim=8, mask="causal", direction="both"
    )
    results = solve("blockwise", problem, block=16)[0].results()
    assert all(bool(torch.isfinite(x).all()) for x in results.values())
    assert not results["out"][:, :, :32].any()
