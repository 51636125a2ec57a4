"""Is it right? Measures errors against the float64 oracle and says whether they are normal.

The rule, for ``out``, ``dq``, ``dk`` and ``dv`` separately, each in max-abs and in L2:

    error ≤ 2 × error of the textbook in the problem's dtype + floor

It is the rule of FlashAttention's own tests (Dao-AILab/flash-attention,
``tests/test_flash_attn.py`` and ``hopper/test_flash_attn.py``: ``(out - out_ref).abs().max()
<= 2 * (out_pt - out_ref).abs().max() + atol``), with two changes. The reference is float64
and not rounded. The floor follows the reference's own scale: at seqlen 16k the output of
N(0, 1) inputs has a standard deviation of 0.013, where a fixed tolerance passes anything.

For gradients the textbook's error is the larger of two: of what autograd computes, and of
what a fused kernel can compute that keeps no weights (see ``oracle.textbook``). Where that
is a tenth of the tensor or more, as for 16-bit dq and dk of a nearly one-hot softmax, the
dtype does not resolve the tensor, a few elements decide, and 4 × is allowed.

The floor is there for shapes at which the textbook is exact by luck, and for what every
fused kernel has to do. It is the sum of

- rounding: two units in the last place of the reference's largest element (max-abs, about
  what ``atol`` is in those tests); a quarter of one, relative (L2: the typical error of
  rounding to nearest), and more where few rows make chance large: × (1 + 4/√rows);
- exponentials: 20 · eps32, relative, which is what fast ones cost (``exp_u20`` of torch's
  CPU flash is off by up to 20 units in the last place, and one weight can be most of a row);
- for gradients, eps32 · max|LSE|, relative: the backward makes the weights again from an
  LSE kept in float32 (Dao et al. 2022, arXiv 2205.14135, algorithm 4);
- for dq and dk, eps32 times the terms that cancel in ``dP − rowsum(grad_out ∘ out)``:
  with one key the truth is zero, and float32 sums of the same terms in another order are not.
  For dk, times the 2-norm of the weights that a key gets, where that is more than 1: noise of
  many rows meets in a key that they all look at;
- for dq and dk in max-abs, what one unit in the last place of ``out`` changes in that row
  sum: where a softmax is nearly one-hot, little else is left of the gradient.

Under a causal mask the rows differ in scale by √seqlen, so that a wrong late row drowns in
the tolerance of the first. Hence a third measure, the largest relative L2 error of a row
(one token of one head), with a wide limit: 8 × the textbook's + 8 units in the last place.
It is not applied where the textbook itself loses rows, so that the limit would reach 1.

Letters: B = batch, H = heads_q, M = seqlen_q, S = seqlen_q or seqlen_k.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import torch

from attnbench.execution import WrongOutput
from attnbench.inputs import Inputs
from attnbench.mismatch import ROW_FLOOR, Mismatch, not_finite, row_errors
from attnbench.oracle import Reference, reference, textbook
from attnbench.plugin import Unsupported
from attnbench.problem import Problem
from attnbench.record import TensorAccuracy, finite

_TIMES_TEXTBOOK = 2.0
_TIMES_LOST = 4.0  # where the textbook itself is off by a tenth, a few elements decide
_LOST = 0.1
_TIMES_ROW = 8.0  # finds rows that are wrong, not rows that are imprecise
_EXP_ULPS = 20
_ZERO = 1e4 * torch.finfo(torch.float64).eps  # smaller than this share of its terms is zero
_QUANTILES = (0.5, 0.9, 0.99, 0.999)
_SAMPLE = 1 << 20  # elements that quantiles are taken from
_KEEP_SIGMAS = 6.0  # where there are many weights; see _surprise


@dataclass(frozen=True)
class Errors:
    """The three measures of one tensor's error."""

    max_abs: float
    rel_l2: float | None
    row_rel: float | None

    def larger(self, other: Errors) -> Errors:
        """The larger of each measure."""
        if self.rel_l2 is None or other.rel_l2 is None:
            return Errors(max(self.max_abs, other.max_abs), None, None)
        return Errors(*map(max, astuple(self), astuple(other)))

    def within(self, allowed: Errors) -> bool:
        """True if no measure exceeds its limit."""
        mine, limits = (astuple(self), astuple(allowed))
        pairs = [(m, x) for m, x in zip(mine, limits, strict=True) if x is not None]
        return all(m is not None and m <= x for m, x in pairs)


@dataclass(frozen=True)
class Standard:
    """The truth of one tensor, the textbook's error, and the error that is allowed."""

    truth: torch.Tensor  # float64, (batch, heads, seqlen, dim)
    is_zero: bool  # the truth is zero but for float64's own rounding: nothing is relative to it
    textbook: Errors
    allowed: Errors


@dataclass(frozen=True)
class Yardstick:
    """Truth and allowance for every tensor of one problem on one set of inputs."""

    problem: Problem
    standards: Mapping[str, Standard]  # by tensor: out, dq, dk, dv


def make_yardstick(
    problem: Problem, inputs: Inputs, keep_BHMN: torch.Tensor | None = None
) -> Yardstick:
    """Compute the truth and the textbook's error once, for all implementations.

    Args:
        problem: gradients are included unless its direction is ``forward``.
        inputs: on the device where the work is to be done.
        keep_BHMN: bool, which weights the implementation's dropout kept.

    Raises:
        Unsupported: the problem has dropout and there is no keep mask to verify it with.
        WrongOutput: the keep mask cannot come from dropout with the problem's dropout_p.
        ValueError: the inputs are not finite, so that there is no error to measure.
    """
    if problem.dropout_p > 0:
        check_keep(problem, keep_BHMN)
    gradients = problem.direction != "forward"
    truth = reference(problem, inputs, gradients=gradients, keep_BHMN=keep_BHMN)
    if not all(bool(x.isfinite().all()) for x in truth.tensors().values()):
        raise ValueError("the reference is not finite: the inputs hold NaN or infinity")
    plain = _textbooks(problem, inputs, gradients, keep_BHMN)
    cancels = cancelling(problem, inputs, truth)
    standards = {
        name: standard(problem, name, x, [p[name] for p in plain], truth.lse_BHM, cancels[name])
        for name, x in truth.tensors().items()
    }
    return Yardstick(problem, standards)


def judge(
    yardstick: Yardstick, results: Mapping[str, torch.Tensor], *, approximate: bool = False
) -> dict[str, TensorAccuracy]:
    """Measure an implementation's results (in BHSD) against the truth.

    A value that is not finite fails and leaves no numbers. An approximate implementation
    only has to be finite: its errors are recorded, no limit is set.

    Raises:
        ValueError: the results are not the tensors the problem asks for.
    """
    if set(results) != set(yardstick.standards):
        raise ValueError(f"results are {sorted(results)}, not {sorted(yardstick.standards)}")
    dtype = yardstick.problem.dtype
    return {
        name: _judge_one(standard, results[name], dtype, approximate)
        for name, standard in yardstick.standards.items()
    }


def passed(accuracy: Mapping[str, TensorAccuracy]) -> bool:
    """True if every tensor is as good as it has to be."""
    return bool(accuracy) and all(a.ok for a in accuracy.values())


def explain(accuracy: Mapping[str, TensorAccuracy]) -> str:
    """One line: the first tensor that failed and why, and which others failed."""
    failed = [name for name, a in accuracy.items() if not a.ok]
    if not failed:
        return "; ".join(f"{name} {a.verdict}" for name, a in accuracy.items())
    others = f" (also wrong: {', '.join(failed[1:])})" if failed[1:] else ""
    return f"{failed[0]} {accuracy[failed[0]].verdict}{others}"


# ---- what is allowed ---------------------------------------------------------------------


def standard(
    problem: Problem,
    name: str,
    truth: torch.Tensor,
    plain: Sequence[torch.Tensor],
    lse_BHM: torch.Tensor,
    cancelling: Cancelling,
) -> Standard:
    """The module's rule, for one tensor."""
    eps = torch.finfo(problem.torch_dtype).eps
    eps_sum = min(eps, torch.finfo(torch.float32).eps)  # sums and the LSE are float32, or better
    lse_BHM = lse_BHM.abs().masked_fill(lse_BHM.isinf(), 0.0)
    weights = eps_sum * (_EXP_ULPS + (0.0 if name == "out" else float(lse_BHM.max())))
    largest, norm = float(truth.abs().max()), float(truth.norm())
    noise, root = eps_sum * cancelling.terms, math.sqrt(truth.numel())
    is_zero = norm <= _ZERO * cancelling.terms * root
    each = [_errors(truth, (x.double() - truth).abs(), is_zero) for x in plain]
    own = functools.reduce(Errors.larger, each)
    floor = (2 * eps + weights) * largest + noise + eps * cancelling.rounding
    times = _TIMES_LOST if (own.rel_l2 or 0.0) > _LOST else _TIMES_TEXTBOOK
    allowed = Errors(times * own.max_abs + floor, None, None)
    if own.rel_l2 is not None and own.row_rel is not None:
        few = 1 + 4 / math.sqrt(truth.numel() / truth.shape[-1])
        rel_l2 = times * own.rel_l2 + few * eps / 4 + weights + noise * root / norm
        row_rel = _TIMES_ROW * (own.row_rel + eps + weights) + noise / (ROW_FLOOR * largest)
        allowed = Errors(allowed.max_abs, rel_l2, row_rel if row_rel < 1 else None)
    return Standard(truth, is_zero, own, allowed)


def _textbooks(
    problem: Problem, inputs: Inputs, gradients: bool, keep_BHMN: torch.Tensor | None
) -> list[Mapping[str, torch.Tensor]]:
    """The textbook's results, both ways; where float16 overflows, bfloat16's stand in."""
    ways = (False, True) if gradients else (False,)
    plain: list[Mapping[str, torch.Tensor]] = [
        textbook(problem, inputs, gradients=gradients, keep_BHMN=keep_BHMN, fused=fused).tensors()
        for fused in ways
    ]
    if problem.dtype == "float16" and not all(
        bool(x.isfinite().all()) for named in plain for x in named.values()
    ):
        wide = problem.replace(dtype="bfloat16")
        return _textbooks(wide, inputs, gradients, keep_BHMN)
    return plain


class Cancelling(NamedTuple):
    """What is behind an element of dq or dk, whose terms cancel; zero for out and dv."""

    terms: float  # the size of the terms
    rounding: float  # the change if each element of ``out`` changes by its own size, at random


def cancelling(problem: Problem, inputs: Inputs, truth: Reference) -> dict[str, Cancelling]:
    """By tensor: how large the terms of ``scale · (dP − rowsum(grad_out ∘ out)) · k`` are."""
    scale = abs(problem.softmax_scale)
    terms_BHME = (inputs.grad_out_BHME.double() * truth.out_BHME).abs()
    terms = scale * float(terms_BHME.sum(dim=-1).max())
    rounding = scale * float(terms_BHME.norm(dim=-1).max())
    sizes = dict.fromkeys(("out", "dv"), Cancelling(0.0, 0.0))
    # A key that many rows look at gathers the noise of each.
    gathered = 1.0 if truth.gathered_BGN is None else max(1.0, float(truth.gathered_BGN.max()))
    others = ("dq", inputs.k_BGND.double(), 1.0), ("dk", inputs.q_BHMD.double(), gathered)
    for name, other, rows in others:
        rms = float(other.square().mean().sqrt())
        sizes[name] = Cancelling(rows * terms * float(other.abs().max()), rows * rounding * rms)
    return sizes


def check_keep(problem: Problem, keep_BHMN: torch.Tensor | None) -> None:
    """Raise for a dropout mask that is not there, or cannot come from the problem's dropout."""
    p = problem
    if keep_BHMN is None:
        raise Unsupported("dropout cannot be verified: it reveals no dropout mask")
    shape = (p.batch, p.heads_q, p.seqlen_q, p.seqlen_k)
    if tuple(keep_BHMN.shape) != shape or keep_BHMN.dtype != torch.bool:
        raise WrongOutput(
            f"the dropout mask is {keep_BHMN.dtype} {tuple(keep_BHMN.shape)}, expected bool {shape}"
        )
    share = float(keep_BHMN.double().mean())
    if keep_BHMN.numel() * _surprise(share, 1 - p.dropout_p) > _KEEP_SIGMAS**2 / 2:
        raise WrongOutput(
            f"dropout kept {share:.2%} of the weights, expected {1 - p.dropout_p:.2%}"
        )


def _surprise(share: float, expected: float) -> float:
    """Nats a draw by which a share tells against what was expected (Chernoff's bound).

    ``n`` draws show it, or more, with a probability of at most exp(−n · this), however few
    they are; where they are many it is half the square of the sigmas, over n.
    """
    pairs = ((share, expected), (1 - share, 1 - expected))
    return sum(a * math.log(a / b) for a, b in pairs if a > 0)


# ---- what was measured -------------------------------------------------------------------


def _judge_one(
    standard: Standard, result: torch.Tensor, dtype: str, approximate: bool
) -> TensorAccuracy:
    truth, own = standard.truth, standard.textbook
    limits = Errors(math.inf, None, None) if approximate else standard.allowed
    told = {
        "naive_max_abs": finite(own.max_abs),
        "naive_rel_l2": finite(own.rel_l2),
        "max_abs_allowed": finite(limits.max_abs),
        "rel_l2_allowed": finite(limits.rel_l2),
        "row_rel_allowed": finite(limits.row_rel),
    }
    if result.shape != truth.shape:
        shapes = f"shape {tuple(result.shape)}, expected {tuple(truth.shape)}"
        return TensorAccuracy(ok=False, verdict=f"not normal: {shapes}", **told)
    got = result.detach().to(truth.device, torch.float64)
    if not bool(got.isfinite().all()):
        return TensorAccuracy(ok=False, verdict=not_finite(got, truth), **told)
    error = (got - truth).abs()
    errors = _errors(truth, error, standard.is_zero)
    is_close = errors.within(standard.allowed)
    words = Mismatch(standard, got, error, errors, dtype)
    abnormal = words.approximate if approximate else words.abnormal
    return TensorAccuracy(
        ok=is_close or approximate,
        max_abs=errors.max_abs,
        rel_l2=errors.rel_l2,
        row_rel=errors.row_rel,
        quantiles=_quantiles(error),
        verdict=words.normal() if is_close else abnormal(),
        **told,
    )


def _errors(truth: torch.Tensor, error: torch.Tensor, is_zero: bool) -> Errors:
    """Measure ``error = |x − truth|``."""
    max_abs = float(error.max())
    if is_zero:
        return Errors(max_abs, None, None)
    row_rel = float(row_errors(truth, error).max())
    return Errors(max_abs, float(error.norm() / truth.norm()), row_rel)


def _quantiles(error: torch.Tensor) -> dict[str, float]:
    """Quantiles of a bounded, evenly spaced sample.

    By numpy: torch.quantile sorts everything, which was half the time of a verification.
    """
    flat = error.flatten()
    sample = flat[:: -(-flat.numel() // _SAMPLE)].cpu().numpy()
    values = np.quantile(sample, _QUANTILES).tolist()
    return {str(q): value for q, value in zip(_QUANTILES, values, strict=True)}
