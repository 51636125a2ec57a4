"""The fused Triton attention in the interpreter: the battery, and properties of its numbers."""

from __future__ import annotations

import math

import pytest
import torch
from fused import BY_NAME, interpreted, part, run
from shelf import CPU, assert_right, solve

from attnbench import Problem, make_inputs
from attnbench.oracle import reference

# One case a feature, gradients included.
QUICK = (
    "seqlen-1-gradients", "seqlen-65-gradients", "cross-1x65", "cross-causal-33x96-gradients",
    "cross-causal-96x33-gradients", "gqa-causal-gradients", "head_dim-40-gradients",
    "head_dim_v-64-32-gradients", "head_dim-256", "mask-window-window=9-gradients",
    "mask-window-window=9,causal=false-gradients", "mask-prefix-prefix=20-gradients",
    "mask-document-count=3-gradients", "mask-strided-stride=8-gradients",
    "mask-block_sparse-block=16-gradients", "mask-bigbird-block=8-gradients",
    "masked-rows-gradients", "masked-rows-bfloat16-gradients", "dtype-bfloat16-causal-gradients",
    "dtype-float16-causal-gradients", "inputs-large-gradients", "inputs-peaky-bfloat16-gradients",
    "scale-negative-gradients", "softcap-causal-gradients", "alibi-causal-cross-gradients",
    "dropout-causal-gqa-gradients", "layer-relative-gradients", "layer-padding-relative-gradients",
    "decode", "decode-4", "decode-gqa", "backward-alone",
    "strides-qkv-gradients", "strides-expanded-gradients",
    "new-contents-gradients", "batch-apart-nan-gradients",
    "nan-in-q-causal", "nan-in-k-causal", "nan-in-v-causal",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_the_battery_finds_nothing_wrong(name: str) -> None:
    result = run(name)
    assert (result.status, result.reason) == ("ok", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in QUICK])
def test_the_rest_of_the_battery_finds_nothing_wrong(name: str) -> None:
    assert run(name).status == "ok"


def test_results_repeat_to_the_bit() -> None:
    assert run("repeats-gradients").reason is None


# ---- properties --------------------------------------------------------------------------


def test_the_order_of_keys_does_not_matter() -> None:
    problem = Problem.of(heads=2, seqlen_q=40, seqlen_k=75, head_dim=24)
    attend = interpreted().build(problem, CPU)
    q, k, v = make_inputs(problem, seed=3).qkv()
    order = torch.randperm(75, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        attend(q, k, v), attend(q, k[:, :, order], v[:, :, order]), atol=1e-6, rtol=1e-5
    )


def test_a_shift_of_all_logits_changes_the_lse_alone() -> None:
    """A key direction that all queries share adds the same to every logit of a row."""
    problem = Problem.of(heads=1, seqlen=70, head_dim=16, mask="causal", scale=1.0)
    attend = interpreted().build(problem, CPU)
    q, k, v = make_inputs(problem, seed=4).qkv()
    q[..., 0] = 1.0
    out, lse = attend.forward(q, k, v)
    k[..., 0] += 8.0
    out_shifted, lse_shifted = attend.forward(q, k, v)
    torch.testing.assert_close(out_shifted, out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse_shifted - lse, torch.full_like(lse, 8 / math.log(2)))


@pytest.mark.parametrize("mask", ["causal", "strided:stride=8"])
def test_the_lse_is_that_of_float64(mask: str) -> None:
    problem = Problem.of(
        heads=4, heads_kv=2, seqlen_q=40, seqlen_k=40 if mask != "causal" else 30, head_dim=16,
        mask=mask, softcap=3.0, alibi=True,
    )  # fmt: skip
    inputs = make_inputs(problem, seed=5)
    truth = reference(problem, inputs, gradients=False).lse_BHM
    _, lse = interpreted().build(problem, CPU).forward(*inputs.qkv())
    torch.testing.assert_close(lse.double() * math.log(2), truth, atol=1e-5, rtol=1e-6)


def test_everything_at_once_is_right() -> None:
    problem = Problem.of(
        batch=2, heads=4, heads_kv=2, seqlen_q=33, seqlen_k=50, head_dim=16, head_dim_v=24,
        mask="causal", softcap=3.0, alibi=True, scale=0.4, dropout_p=0.2, direction="both",
    )  # fmt: skip
    assert_right("triton", problem, interpret=True)


@pytest.mark.parametrize("blocks", [(16, 16), (32, 64), (128, 16)])
def test_dropout_does_not_depend_on_the_tiles(
    blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = part("config").Config(*blocks, 1, 1)
    monkeypatch.setattr(
        part("prepared"), "configs", lambda *a: part("config").Configs(config, config, config)
    )
    problem = Problem.of(heads=1, seqlen=70, head_dim=16, dropout_p=0.3, direction="both")
    assert_right("triton", problem, interpret=True)


def test_dropout_draws_a_new_mask_each_call_and_reveals_it() -> None:
    execution, _ = solve(
        "triton", Problem.of(heads=2, seqlen=64, head_dim=16, dropout_p=0.5), interpret=True
    )
    first = execution.keep_mask()
    execution.step()
    second = execution.keep_mask()
    assert first is not None
    assert second is not None
    assert first.shape == (1, 2, 64, 64)
    assert not torch.equal(first, second)
    assert float(first.float().mean()) == pytest.approx(0.5, abs=0.05)
