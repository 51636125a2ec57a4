"""The oracle against autograd, finite differences and values known from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench import Inputs, Problem, alibi_bias, alibi_slopes, make_inputs, oracle
from attnbench.oracle import Reference, reference, textbook

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"heads_kv": 4},
    "gqa": {},
    "mqa": {"heads_kv": 1},
    "cross, more keys": {"seqlen_k": 29},
    "cross, more queries": {"seqlen_k": 5},
    "causal": {"mask": "causal"},
    "causal, more keys": {"mask": "causal", "seqlen_k": 29},
    "causal, rows that see nothing": {"mask": "causal", "seqlen_k": 5},
    "window": {"mask": "window:window=3"},
    "window both ways": {"mask": "window:window=3,causal=false"},
    "prefix": {"mask": "prefix:prefix=4"},
    "document": {"mask": "document:count=3"},
    "strided": {"mask": "strided:stride=4"},
    "bigbird": {"mask": "bigbird:block=4,random_blocks=1"},
    "blocks, rows that see nothing": {
        "mask": {"kind": "block_sparse", "block": 4, "blocks_kept": [[0, 0], [3, 1]]}
    },
    "head_dim_v": {"head_dim_v": 3},
    "scale": {"scale": 0.7},
    "negative scale": {"scale": -0.3},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi": True, "seqlen_k": 29},
    "alibi, six heads": {"alibi": True, "heads_q": 6, "mask": "causal"},
    "dropout": {"dropout_p": 0.3},
    "everything": {
        "dropout_p": 0.3, "softcap": 1.5, "alibi": True, "scale": 0.9, "mask": "causal",
        "seqlen_k": 29, "head_dim_v": 3,
    },
    "large logits": {"inputs": "large"},
    "bfloat16 inputs": {"dtype": "bfloat16"},
}  # fmt: skip
BASE = {"batch": 2, "heads_q": 4, "heads_kv": 2, "seqlen_q": 17, "head_dim": 8}


def of(**changes: Any) -> Problem:
    return Problem.of(**{**BASE, **changes})


def keep_mask(problem: Problem) -> torch.Tensor | None:
    if not problem.dropout_p:
        return None
    p = problem
    generator = torch.Generator().manual_seed(1)
    shape = (p.batch, p.heads_q, p.seqlen_q, p.seqlen_k)
    return torch.rand(shape, generator=generator) >= p.dropout_p


def by_autograd(problem: Problem, inputs: Inputs, keep: torch.Tensor | None) -> Reference:
    """Attention from its definition on the whole matrix, written independently."""
    p = problem
    q, k, v = (x.double().requires_grad_() for x in inputs.qkv())
    out, lse = definition(p, q, k, v, keep)
    gradients = torch.autograd.grad(out, (q, k, v), inputs.grad_out_BHME.double())
    return Reference(out.detach(), lse.detach(), *gradients)


def definition(
    p: Problem, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    head_of = [h * p.heads_kv // p.heads_q for h in range(p.heads_q)]
    logits = torch.einsum("bhmd,bhnd->bhmn", q, k[:, head_of]) * p.softmax_scale
    if p.softcap is not None:
        logits = p.softcap * torch.tanh(logits / p.softcap)
    for h in range(p.heads_q if p.alibi else 0):
        for m in range(p.seqlen_q):
            distance = (torch.arange(p.seqlen_k) - (m + p.seqlen_k - p.seqlen_q)).abs()
            logits[:, h, m] -= alibi_slopes(p.heads_q)[h] * distance.double()
    allowed = p.mask.dense(p.seqlen_q, p.seqlen_k)
    logits = logits.masked_fill(~allowed, float("-inf"))
    weights = logits.softmax(dim=-1).masked_fill(~allowed.any(dim=1)[:, None], 0.0)
    if keep is not None:
        weights = weights * keep / (1 - p.dropout_p)
    return weights @ v[:, head_of], logits.logsumexp(dim=-1)


@pytest.mark.parametrize("tile", [1, 100, 1 << 22])
@pytest.mark.parametrize("feature", FEATURES)
def test_reference_equals_autograd_in_float64(
    feature: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "_TILE_ELEMENTS", tile)
    problem = of(**FEATURES[feature])
    inputs, keep = make_inputs(problem, seed=3), keep_mask(problem)
    expected = by_autograd(problem, inputs, keep)
    got = reference(problem, inputs, gradients=True, keep_BHMN=keep)
    for name, x in expected.tensors().items():
        torch.testing.assert_close(got.tensors()[name], x, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(got.lse_BHM, expected.lse_BHM, rtol=1e-12, atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    problem = of(**FEATURES["everything"], batch=1, seqlen_q=3)
    inputs, keep = make_inputs(problem, seed=0), keep_mask(problem)
    got = reference(problem, inputs, gradients=True, keep_BHMN=keep)
    assert got.dq_BHMD is not None
    assert got.dk_BGND is not None
    assert got.dv_BGNE is not None
    double = [x.double() for x in inputs.qkv()]
    generator = torch.Generator().manual_seed(2)
    for which, gradient in enumerate((got.dq_BHMD, got.dk_BGND, got.dv_BGNE)):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)

        def loss(step: float, which: int = which, direction: torch.Tensor = direction) -> float:
            moved = [x + step * direction if i == which else x for i, x in enumerate(double)]
            at = Inputs(*moved, inputs.grad_out_BHME.double())
            out = reference(problem, at, gradients=False, keep_BHMN=keep).out_BHME
            return float((out * at.grad_out_BHME).sum())

        step = 1e-5
        slope = (loss(step) - loss(-step)) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-7)


def test_a_row_that_sees_nothing_gives_zeros_and_minus_infinity() -> None:
    problem = of(mask="causal", seqlen_k=5)
    got = reference(problem, make_inputs(problem, seed=0), gradients=True)
    assert got.dq_BHMD is not None
    assert not got.out_BHME[:, :, :12].any()
    assert not got.dq_BHMD[:, :, :12].any()
    assert bool((got.lse_BHM[:, :, :12] == float("-inf")).all())
    assert bool(got.lse_BHM[:, :, 12:].isfinite().all())


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("function", [reference, textbook])
def test_no_tensor_is_larger_than_a_tile(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "_TILE_ELEMENTS", 1 << 16)
    problem = Problem.of(heads=4, heads_kv=2, seqlen=1024, head_dim=8, alibi=True, softcap=5.0)
    inputs = make_inputs(problem, seed=0)
    with LargestTensor() as largest:
        function(problem, inputs, gradients=True)
    assert largest.numel <= 1 << 16


def test_a_nan_reaches_every_row_that_sees_it() -> None:
    problem = of(mask="causal", heads_kv=4)
    inputs = make_inputs(problem, seed=0)
    inputs.k_BGND[0, 1, 9, 2] = float("nan")
    out = reference(problem, inputs, gradients=False).out_BHME
    assert bool(out[0, 1, 9:].isnan().all())
    assert bool(out[0, 0].isfinite().all())
    assert bool(out[1].isfinite().all())


@pytest.mark.parametrize(
    ("changes", "keep_shape"),
    [({"dropout_p": 0.1}, None), ({}, (2, 4, 17, 17)), ({"dropout_p": 0.1}, (2, 4, 17, 1))],
)
def test_a_keep_mask_that_does_not_fit_is_refused(changes: Any, keep_shape: Any) -> None:
    problem = of(**changes)
    keep = None if keep_shape is None else torch.ones(keep_shape, dtype=torch.bool)
    with pytest.raises(ValueError, match="keep mask"):
        reference(problem, make_inputs(problem, seed=0), gradients=False, keep_BHMN=keep)


def test_the_layer_level_is_refused() -> None:
    problem = of(level="layer", heads_kv=4)
    with pytest.raises(ValueError, match="layer"):
        reference(problem, make_inputs(problem, seed=0), gradients=False)


# ---- the textbook ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_textbook_returns_values_of_the_dtype(dtype: str, fused: bool) -> None:
    problem = of(dtype=dtype, mask="causal")
    got = textbook(problem, make_inputs(problem, seed=0), gradients=True, fused=fused)
    for name, x in got.tensors().items():
        assert bool((x.to(problem.torch_dtype).to(x.dtype) == x).all()), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("feature", ["plain", "causal", "softcap", "alibi", "dropout"])
def test_the_textbook_errs_as_autograd_in_the_dtype_does(dtype: str, feature: str) -> None:
    """Its error must be the real one: too small fails good kernels, too large passes bad."""
    problem = of(**{**FEATURES[feature], "dtype": dtype, "seqlen_q": 64, "seqlen_k": 64})
    inputs, keep = make_inputs(problem, seed=0), keep_mask(problem)
    truth = reference(problem, inputs, gradients=True, keep_BHMN=keep).tensors()
    ours = textbook(problem, inputs, gradients=True, keep_BHMN=keep).tensors()
    theirs = low_precision(problem, inputs, keep).tensors()
    for name, x in truth.items():
        ratio = float((ours[name].double() - x).norm() / (theirs[name].double() - x).norm())
        assert 0.6 < ratio < 1.6, name


def low_precision(problem: Problem, inputs: Inputs, keep: torch.Tensor | None) -> Reference:
    p = problem
    q, k, v = (x.clone().requires_grad_() for x in inputs.qkv())
    group = p.heads_q // p.heads_kv
    logits = q @ k.repeat_interleave(group, 1).mT * p.softmax_scale
    if p.softcap is not None:
        logits = p.softcap * torch.tanh(logits / p.softcap)
    if p.alibi:
        logits = logits + alibi_bias(p)
    weights = (logits + p.mask.additive(p.seqlen_q, p.seqlen_k, q.dtype)).softmax(-1)
    if keep is not None:
        weights = weights * keep / (1 - p.dropout_p)
    out = weights @ v.repeat_interleave(group, 1)
    gradients = torch.autograd.grad(out, (q, k, v), inputs.grad_out_BHME)
    return Reference(out.detach(), out.detach(), *gradients)


def test_both_backwards_of_the_textbook_err_but_differently() -> None:
    problem = of(dtype="bfloat16")
    inputs = make_inputs(problem, seed=0)
    truth = reference(problem, inputs, gradients=True)
    plain, fused = (
        textbook(problem, inputs, gradients=True, fused=fused) for fused in (False, True)
    )
    assert truth.dq_BHMD is not None
    assert plain.dq_BHMD is not None
    assert fused.dq_BHMD is not None
    assert torch.equal(plain.out_BHME, fused.out_BHME)
    assert not torch.equal(plain.dq_BHMD, fused.dq_BHMD)
    for dq in (plain.dq_BHMD, fused.dq_BHMD):
        assert 1e-4 < float((dq - truth.dq_BHMD).norm() / truth.dq_BHMD.norm()) < 2e-2


def test_the_textbook_leaves_the_process_as_it_was() -> None:
    problem = of()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        textbook(problem, make_inputs(problem, seed=0), gradients=False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


# ---- ALiBi -------------------------------------------------------------------------------


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    assert alibi_slopes(1) == (2.0**-8,)
    twelve = alibi_slopes(12)
    assert twelve[:8] == alibi_slopes(8)
    assert twelve[8:] == tuple(2.0 ** -(i + 0.5) for i in range(4))


def test_alibi_bias_counts_distance_from_the_last_query_at_the_last_key() -> None:
    problem = Problem.of(heads=8, seqlen_q=2, seqlen_k=4, alibi=True)
    bias = alibi_bias(problem)
    assert bias.shape == (8, 2, 4)
    assert bias[0].tolist() == [[-1.0, -0.5, 0.0, -0.5], [-1.5, -1.0, -0.5, 0.0]]
    assert alibi_bias(problem.replace(dtype="bfloat16")).dtype == torch.bfloat16
