"""The inputs of a problem: reproducible, and really of the kind they claim to be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from attnbench.inputs import make_inputs
from attnbench.oracle import softmax_weights
from attnbench.problem import DTYPES, Problem

SMALL = Problem.of(batch=2, heads=4, heads_kv=2, seqlen_q=5, seqlen_k=9, head_dim=32, head_dim_v=16)


def tensors(problem, seed=0):
    inputs = make_inputs(problem, seed)
    return [*inputs.qkv(), inputs.grad_out_BHME]


def logits(problem, seed=0):
    """(B, H, M, N) in float64."""
    q_BHMD, k_BGND, _ = make_inputs(problem, seed).qkv()
    k_BHND = k_BGND.repeat_interleave(problem.heads_q // problem.heads_kv, dim=1)
    return q_BHMD.double() @ k_BHND.double().mT * problem.softmax_scale


def test_shapes_and_dtypes_are_the_problems():
    shapes = [tuple(x.shape) for x in tensors(SMALL)]
    assert shapes == [(2, 4, 5, 32), (2, 2, 9, 32), (2, 2, 9, 16), (2, 4, 5, 16)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "large", "peaky", "correlated", "local", "needle"])
def test_every_dtype_is_a_rounding_of_the_same_float32_draw(dtype, kind):
    """So the precisions of one sweep solve the same problem."""
    drawn = tensors(SMALL.replace(inputs=kind))
    for x, rounded in zip(drawn, tensors(SMALL.replace(inputs=kind, dtype=dtype)), strict=True):
        assert x.dtype == torch.float32
        assert rounded.dtype == getattr(torch, dtype)
        assert rounded.float().isfinite().all()
        assert torch.equal(rounded.float(), x.to(rounded.dtype).float())


@pytest.mark.parametrize("kind", ["normal", "large", "peaky", "correlated", "local", "needle"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(kind):
    p = SMALL.replace(inputs=kind)
    for x, again, other in zip(tensors(p), tensors(p), tensors(p, seed=1), strict=True):
        assert torch.equal(x, again)
        assert not torch.equal(x, other)


def test_the_global_generator_is_neither_used_nor_moved():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = tensors(SMALL)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(x, y) for x, y in zip(first, tensors(SMALL), strict=True))


def test_a_fresh_process_draws_the_same():
    code = (
        "from attnbench.inputs import make_inputs; from attnbench.problem import Problem\n"
        f"p = Problem.from_json({SMALL.to_json()!r})\n"
        "print(*(x.double().sum().item().hex() for x in make_inputs(p, 7).qkv()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sums = [x.double().sum().item().hex() for x in make_inputs(SMALL, 7).qkv()]
    assert run.stdout.split() == sums


def test_direction_mask_and_scale_do_not_change_the_inputs():
    """Forward and backward, causal and full, are compared on the same numbers."""
    square = Problem.of(heads=2, seqlen=8, head_dim=8)
    for change in ({"direction": "both"}, {"mask": "causal"}, {"scale": 2.0}, {"softcap": 5.0}):
        for x, y in zip(tensors(square), tensors(square.replace(**change)), strict=True):
            assert torch.equal(x, y)


def test_q_k_v_and_the_gradient_are_independent_draws():
    square = Problem.of(heads=4, seqlen=64, head_dim=64)
    flat = torch.stack([x.flatten() for x in tensors(square)])
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05


def test_normal_inputs_have_zero_mean_and_unit_variance():
    for x in tensors(Problem.of(heads=8, seqlen=256)):
        assert abs(x.mean().item()) < 0.02
        assert abs(x.std().item() - 1) < 0.02
        assert x.unique().numel() > 0.9 * x.numel()  # no constants, no zeros


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_large_logits_overflow_a_softmax_without_max_subtraction(head_dim):
    p = Problem.of(heads=2, seqlen=128, head_dim=head_dim, inputs="large")
    logits_BHMN = logits(p)
    assert logits_BHMN.max() > 100
    assert logits_BHMN.float().exp().isinf().any()
    assert not logits(p.replace(inputs="normal")).float().exp().isinf().any()
    assert make_inputs(p.replace(dtype="fp16"), 0).q_BHMD.isfinite().all()


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_peaky_weights_sit_on_one_key(mask, head_dim):
    p = Problem.of(heads=4, heads_kv=2, seqlen=512, head_dim=head_dim, inputs="peaky", mask=mask)
    hidden_MN = ~p.mask.dense(512, 512)
    weights_BHMN = logits(p).masked_fill(hidden_MN, float("-inf")).softmax(-1)
    top_BHM, key_BHM = weights_BHMN.max(-1)
    assert top_BHM.median() > 0.99
    assert key_BHM[0, 0].unique().numel() > 100  # not all at the same key
    normal = logits(p.replace(inputs="normal")).masked_fill(hidden_MN, float("-inf")).softmax(-1)
    assert normal.max(-1).values.median() < 0.5


def test_peaky_queries_before_the_first_key_point_at_it():
    p = Problem.of(heads=1, seqlen_q=40, seqlen_k=3, head_dim=64, inputs="peaky")
    assert logits(p)[0, 0, :37].argmax(-1).eq(0).all()


def test_correlated_neighbours_are_alike_and_the_variance_is_one():
    p = Problem.of(batch=4, heads=8, seqlen=256, inputs="correlated")
    for x in make_inputs(p, 0).qkv():
        near = (x[:, :, 1:] * x[:, :, :-1]).mean().item()
        far = (x[:, :, 200:] * x[:, :, :-200]).mean().item()
        assert abs(near - 0.95) < 0.02
        assert abs(far) < 0.05
        assert abs(x[:, :, -1].var().item() - 1) < 0.1  # the last position as well
    grad_out_BHME = make_inputs(p, 0).grad_out_BHME
    assert abs((grad_out_BHME[:, :, 1:] * grad_out_BHME[:, :, :-1]).mean().item()) < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decode_step_reads_views_of_a_longer_cache_with_nan_behind(dtype):
    p = Problem.of(
        batch=2, heads=4, heads_kv=2, seqlen_q=1, seqlen_k=9, head_dim=8, dtype=dtype, decode=True
    )
    decode, plain = make_inputs(p, 0), make_inputs(p.replace(decode=False), 0)
    for view, same in zip(decode.qkv(), plain.qkv(), strict=True):
        assert torch.equal(view.float(), same.float())  # the values of the plain problem
    assert decode.q_BHMD.is_contiguous()
    for view_BGND in decode.qkv()[1:]:
        assert not view_BGND.is_contiguous()
        cache_BGSD = view_BGND._base
        assert cache_BGSD.shape[2] > view_BGND.shape[2]
        assert cache_BGSD[:, :, 9:].float().isnan().all()


def weights_of(p: Problem) -> torch.Tensor:
    return softmax_weights(p, make_inputs(p, 0), torch.arange(p.seqlen_q))


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_local_weight_is_near(mask: str) -> None:
    p = Problem.of(heads=2, seqlen=512, head_dim=64, inputs="local", mask=mask)
    away_MN = (torch.arange(512)[:, None] - torch.arange(512)).abs()
    near = (weights_of(p) * (away_MN < 32)).sum(-1).mean()
    plain = (weights_of(p.replace(inputs="normal")) * (away_MN < 32)).sum(-1).mean()
    assert near > 0.8 > 0.3 > plain


def test_late_queries_find_the_needle_and_early_ones_do_not() -> None:
    p = Problem.of(heads=4, heads_kv=2, seqlen=300, head_dim=64, inputs="needle")
    on_needle_HM = weights_of(p)[:, :, 100]
    assert float(on_needle_HM[:, 150:].min()) > 0.9
    assert float(on_needle_HM[:, :150].mean()) < 0.05
