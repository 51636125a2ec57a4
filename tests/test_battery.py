"""The battery against implementations that are each broken in one way.

Each broken one passes the cases it should pass and fails those made to catch it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from attnbench import Attention, ForwardBackward, Problem, Unsupported, alibi_bias
from attnbench.battery import CASES, CaseResult, run_case
from attnbench.masks import MASKS
from attnbench.problem import Position

CPU = torch.device("cpu")
BY_NAME = {case.name: case for case in CASES}
Call = Callable[..., torch.Tensor]


def run(implementation: Attention, name: str) -> CaseResult:
    return run_case(implementation, BY_NAME[name], CPU)


def weights(q: torch.Tensor, k: torch.Tensor, p: Problem) -> torch.Tensor:
    """The textbook's attention weights, in float32."""
    logits = q.float() @ k.float().repeat_interleave(p.heads_q // p.heads_kv, 1).mT
    logits = logits * p.softmax_scale
    if p.softcap is not None:
        logits = p.softcap * torch.tanh(logits / p.softcap)
    if p.alibi:
        logits = logits + alibi_bias(p, dtype=torch.float32)
    allowed = p.mask.dense(p.seqlen_q, p.seqlen_k)
    rows = allowed.any(dim=-1, keepdim=True)
    return logits.masked_fill(~allowed, float("-inf")).softmax(-1).masked_fill(~rows, 0.0)


def values(v: torch.Tensor, p: Problem) -> torch.Tensor:
    return v.float().repeat_interleave(p.heads_q // p.heads_kv, 1)


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, p: Problem) -> torch.Tensor:
    return (weights(q, k, p) @ values(v, p)).to(q.dtype)


def made(call: Call, **attributes: Any) -> Attention:
    """An implementation whose call is ``call(q, k, v, problem)``."""

    def build(self: Attention, problem: Problem, device: torch.device) -> Any:
        return lambda q, k, v: call(q, k, v, problem)

    features = Attention.features | {"alibi", "softcap"}
    body = {"name": "broken", "features": features, "build": build, **attributes}
    return type("Broken", (Attention,), body)()


# ---- ways to be broken -------------------------------------------------------------------


def wrong_by_a_factor(q: Any, k: Any, v: Any, p: Problem) -> Any:
    return plain(q, k, v, p) * 1.02


class WrongGradient(torch.autograd.Function):
    """The identity whose gradient is a little off."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 1.05


def wrong_only_in_dk(q: Any, k: Any, v: Any, p: Problem) -> Any:
    return plain(q, WrongGradient.apply(k), v, p)


def wrong_at_odd_lengths(q: Any, k: Any, v: Any, p: Problem) -> Any:
    if p.seqlen_k % 2 and p.seqlen_k > 1:
        k = k.clone()
        k[:, :, -1] = 0
    return plain(q, k, v, p)


def drops_the_last_partial_block(q: Any, k: Any, v: Any, p: Problem) -> Any:
    out = plain(q, k, v, p)
    tail = p.seqlen_q % 64 if p.seqlen_q > 64 else 0
    return out * (torch.arange(p.seqlen_q) < p.seqlen_q - tail)[:, None] if tail else out


def causal_is_top_left(q: Any, k: Any, v: Any, p: Problem) -> Any:
    if p.mask.kind != "causal":
        return plain(q, k, v, p)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=p.softmax_scale, enable_gqa=True
    )


def pairs_heads_wrongly(q: Any, k: Any, v: Any, p: Problem) -> Any:
    repeats = (1, p.heads_q // p.heads_kv, 1, 1)
    flat = p.replace(heads_kv=p.heads_q)
    return plain(q, k.repeat(repeats), v.repeat(repeats), flat)


def nan_in_masked_rows(q: Any, k: Any, v: Any, p: Problem) -> Any:
    out = plain(q, k, v, p)
    empty = ~p.mask.dense(p.seqlen_q, p.seqlen_k).any(dim=-1)
    return out.masked_fill(empty[:, None], float("nan"))


def mean_in_masked_rows(q: Any, k: Any, v: Any, p: Problem) -> Any:
    """What a mask of large negative numbers instead of −inf gives."""
    out = plain(q, k, v, p)
    empty = ~p.mask.dense(p.seqlen_q, p.seqlen_k).any(dim=-1)
    return torch.where(empty[:, None], values(v, p).mean(2, keepdim=True).to(out), out)


def no_max_subtraction(q: Any, k: Any, v: Any, p: Problem) -> Any:
    if p.mask.kind != "full":
        return plain(q, k, v, p)
    e = (q.float() @ k.float().repeat_interleave(p.heads_q // p.heads_kv, 1).mT).mul(
        p.softmax_scale
    )
    e = e.exp()
    return ((e / e.sum(-1, keepdim=True)) @ values(v, p)).to(q.dtype)


def swallows_nan(q: Any, k: Any, v: Any, p: Problem) -> Any:
    return plain(q, k, v, p).nan_to_num()


def changes_its_input(q: Any, k: Any, v: Any, p: Problem) -> Any:
    out = plain(q, k, v, p)
    with torch.no_grad():
        q.mul_(0.5)
    return out


def remembers_by_address() -> Call:
    seen: dict[tuple[int, Problem], torch.Tensor] = {}

    def call(q: Any, k: Any, v: Any, p: Problem) -> Any:
        key = (q.data_ptr(), p)
        if key not in seen:
            seen[key] = plain(q, k, v, p)
        return seen[key]

    return call


def leaks_over_the_batch(q: Any, k: Any, v: Any, p: Problem) -> Any:
    out = plain(q, k, v, p)
    return out + 0.0 * out.flip(0) + (out - out.roll(1, 0)).detach() * 1e-2 * (p.batch > 1)


def leaks_nan_over_the_batch(q: Any, k: Any, v: Any, p: Problem) -> Any:
    return plain(q, k, v, p) + 0.0 * q.sum().detach()


def varies_from_run_to_run(q: Any, k: Any, v: Any, p: Problem) -> Any:
    return plain(q, k, v, p) + 1e-3 * torch.randn(())


def ignores_strides(q: Any, k: Any, v: Any, p: Problem) -> Any:
    def dense(x: torch.Tensor) -> torch.Tensor:
        size, stride = x.shape, torch.empty(x.shape, device="meta").stride()
        return x if x.is_contiguous() else x.as_strided(size, stride)

    return plain(dense(q), dense(k), dense(v), p)


def ignores_stride_zero(q: Any, k: Any, v: Any, p: Problem) -> Any:
    return plain(q, k, torch.cat([v[:1], -v[1:]]) if 0 in v.stride() else v, p)


def reads_past_the_cache(q: Any, k: Any, v: Any, p: Problem) -> Any:
    past = v.as_strided((1,), (1,), v.stride(1) - 1)  # the last slot of the first head
    return plain(q, k, v, p) + (0.0 * past if p.decode else 0.0)


def ignores(field: str, value: Any) -> Call:
    def call(q: Any, k: Any, v: Any, p: Problem) -> Any:
        return plain(q, k, v, p.replace(**{field: value}))

    return call


def caps_before_scaling(q: Any, k: Any, v: Any, p: Problem) -> Any:
    if p.softcap is None:
        return plain(q, k, v, p)
    logits = q @ k.mT
    logits = p.softcap * torch.tanh(logits / p.softcap) * p.softmax_scale
    allowed = p.mask.dense(p.seqlen_q, p.seqlen_k)
    return logits.masked_fill(~allowed, float("-inf")).softmax(-1) @ v


def window_off_by_one(q: Any, k: Any, v: Any, p: Problem) -> Any:
    if p.mask.kind != "window":
        return plain(q, k, v, p)
    return plain(q, k, v, p.replace(mask=f"window:window={p.mask.window + 1}"))  # type: ignore[attr-defined]


def products_in_16_bits(q: Any, k: Any, v: Any, p: Problem) -> Any:
    return plain(q.half(), k.half(), v.half(), p).to(q.dtype)


def sums_in_16_bits(q: Any, k: Any, v: Any, p: Problem) -> Any:
    """Adds up weights times values, a few keys at a time, in the problem's dtype."""
    w = weights(q, k, p).to(q.dtype)
    v_BHNE = v.repeat_interleave(p.heads_q // p.heads_kv, 1)
    out = torch.zeros(*w.shape[:-1], v.shape[-1], dtype=q.dtype)
    for n in range(0, p.seqlen_k, 4):
        out = out + w[..., n : n + 4] @ v_BHNE[:, :, n : n + 4]
    return out


BROKEN: dict[str, tuple[Call, str, str]] = {
    # what is wrong: (how, a case that must catch it, a case that cannot)
    "a factor": (wrong_by_a_factor, "seqlen-64", "nan-in-q"),
    "only dk": (wrong_only_in_dk, "gqa-gradients", "gqa"),
    "odd lengths": (wrong_at_odd_lengths, "seqlen-61", "seqlen-64"),
    "the last partial block": (drops_the_last_partial_block, "seqlen-65", "seqlen-63"),
    "causal top-left": (causal_is_top_left, "cross-causal-33x96", "mask-causal"),
    "the pairing of heads": (pairs_heads_wrongly, "gqa", "mqa"),
    "NaN in masked rows": (nan_in_masked_rows, "masked-rows", "mask-causal"),
    "the mean in masked rows": (mean_in_masked_rows, "cross-causal-96x33", "mask-causal"),
    "no max subtraction": (no_max_subtraction, "inputs-large", "seqlen-64"),
    "swallows NaN of q": (swallows_nan, "nan-in-q", "seqlen-64"),
    "swallows NaN of k": (swallows_nan, "nan-in-k-causal", "seqlen-64"),
    "swallows NaN of v": (swallows_nan, "nan-in-v", "seqlen-64"),
    "changes its input": (changes_its_input, "seqlen-64", "nan-in-q"),
    "remembers by address": (remembers_by_address(), "new-contents", "seqlen-64"),
    "leaks over the batch": (leaks_over_the_batch, "batch-apart", "batch-1"),
    "leaks NaN over the batch": (leaks_nan_over_the_batch, "batch-apart-nan", "batch-apart"),
    "run to run": (varies_from_run_to_run, "repeats", "nan-in-q"),
    "strides": (ignores_strides, "strides-qkv", "seqlen-64"),
    "stride zero": (ignores_stride_zero, "strides-expanded", "strides-qkv"),
    "past the cache": (reads_past_the_cache, "decode", "seqlen-64"),
    "no scale": (ignores("scale", None), "scale", "seqlen-64"),
    "no softcap": (ignores("softcap", None), "softcap", "scale"),
    "softcap before the scale": (caps_before_scaling, "softcap", "softcap-causal"),
    "no alibi": (ignores("alibi", False), "alibi", "seqlen-64"),
    "no mask": (ignores("mask", "full"), "mask-strided-stride=8", "seqlen-64"),
    "window off by one": (window_off_by_one, "mask-window-window=9", "mask-causal"),
    "float16 for float32": (products_in_16_bits, "seqlen-64", "dtype-float16"),
    "sums in 16 bits": (sums_in_16_bits, "dtype-bfloat16-long", "seqlen-1"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_implementation_is_caught_by_the_case_made_for_it(fault: str) -> None:
    call, catching, passing = BROKEN[fault]
    caught = run(made(call), catching)
    assert caught.status == "incorrect", caught
    assert caught.reason
    healthy = run(made(call), passing)
    assert healthy.status == "ok", healthy.reason


def test_the_healthy_implementation_passes_every_case_it_does() -> None:
    results = [run_case(made(plain), case, CPU) for case in CASES]
    wrong = [(r.case.name, r.status, r.reason) for r in results if r.status not in ("ok",)]
    assert {name.removesuffix("-gradients") for name, *_ in wrong} == {
        "dropout", "dropout-causal-gqa", "layer-relative", "layer-relative-gqa",
        "layer-padding-relative",
    }  # fmt: skip
    assert {(status, reason) for _, status, reason in wrong} == {
        ("unsupported", "does not do dropout"),
        ("unsupported", "does not do a learned bias on the logits"),
    }
    assert all(r.accuracy for r in results if r.status == "ok" and r.case.check.__name__ == "right")


class PairsBiasesWrongly(Attention):
    """Gives each query head the bias of another that has its place beside another key head."""

    name = "broken"
    features = Attention.features | {"bias"}

    def build(self, problem: Problem, device: torch.device) -> Call:
        p = problem
        hidden_MN = ~p.mask.dense(p.seqlen_q, p.seqlen_k)

        def attend(q: Any, k: Any, v: Any, bias_HMN: torch.Tensor) -> torch.Tensor:
            bias = torch.unflatten(bias_HMN, 0, (p.heads_kv, -1)).transpose(0, 1).flatten(0, 1)
            logits = q @ values(k, p).mT * p.softmax_scale + bias
            return logits.masked_fill(hidden_MN, float("-inf")).softmax(-1) @ values(v, p)

        return attend


def test_a_bias_of_another_head_is_caught_where_heads_share_keys() -> None:
    assert run(PairsBiasesWrongly(), "layer-relative-gqa").status == "incorrect"
    assert run(PairsBiasesWrongly(), "layer-relative-gradients").status == "ok"


# ---- states, own backwards, dropout ------------------------------------------------------


class OwnBackward(Attention):
    """The textbook with a backward of its own, which may pile up from call to call."""

    name = "own"
    piles_up = False

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        piles: list[torch.Tensor] = []

        def forward(q: Any, k: Any, v: Any) -> Any:
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
            with torch.enable_grad():
                out = plain(q, k, v, problem)
            return out.detach(), (out, q, k, v)

        def backward(saved: Any, grad: torch.Tensor) -> Any:
            out, *inputs = saved
            dq, dk, dv = torch.autograd.grad(out, inputs, grad, retain_graph=True)
            piles.append(dv)
            return dq, dk, sum(piles) if self.piles_up else dv

        return ForwardBackward(forward, backward)


class PilesUp(OwnBackward):
    piles_up = True


def test_a_gradient_that_piles_up_over_calls_is_caught() -> None:
    assert run(OwnBackward(), "backward-alone").status == "ok"
    assert run(PilesUp(), "seqlen-64-gradients").status == "ok"
    assert "dv not normal" in str(run(PilesUp(), "backward-alone").reason)


class Dropping:
    """Dropout that reveals a mask: the one it used, another, or none."""

    def __init__(self, problem: Problem, reveals: str) -> None:
        self.problem, self.reveals = problem, reveals
        self.keep: torch.Tensor | None = None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        w, p = weights(q, k, self.problem), self.problem
        used = torch.rand(w.shape) >= p.dropout_p
        self.keep = {
            "used": used,
            "another": torch.rand(w.shape) >= p.dropout_p,
            "all": torch.ones(w.shape, dtype=torch.bool),
            "none": None,
        }[self.reveals]
        return (w * used / (1 - p.dropout_p)) @ values(v, p)

    def keep_mask(self) -> torch.Tensor | None:
        return self.keep


@pytest.mark.parametrize(
    ("reveals", "status", "reason"),
    [
        ("used", "ok", None),
        ("another", "incorrect", "not normal"),
        ("all", "incorrect", "dropout kept 100.00% of the weights, expected 80.00%"),
        ("none", "unsupported", "reveals no dropout mask"),
    ],
)
def test_dropout_is_believed_only_with_the_mask_it_used(
    reveals: str, status: str, reason: str | None
) -> None:
    features = Attention.features | {"dropout"}
    implementation = made(
        plain, features=features, build=lambda self, problem, device: Dropping(problem, reveals)
    )
    result = run(implementation, "dropout-gradients")
    assert result.status == status
    assert (result.reason is None) if reason is None else (reason in str(result.reason))


# ---- what else can happen ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda out: out.double(), "out has dtype torch.float64, expected torch.float32"),
        (lambda out: out[:, :, 1:], "out has shape"),
        (lambda out: out.numpy(), "not a torch.Tensor"),
    ],
)
def test_an_output_that_cannot_be_the_answer_is_incorrect(spoil: Any, told: str) -> None:
    result = run(made(lambda q, k, v, p: spoil(plain(q, k, v, p))), "seqlen-64")
    assert result.status == "incorrect"
    assert told in str(result.reason)


def test_a_refusal_is_unsupported_with_its_reason() -> None:
    result = run(made(plain, masks=("full",)), "mask-causal")
    assert (result.status, result.reason) == ("unsupported", "does not do mask causal (does: full)")


def test_a_refusal_from_the_call_is_unsupported_too() -> None:
    def refuses(q: Any, k: Any, v: Any, p: Problem) -> Any:
        raise Unsupported("not today")

    assert run(made(refuses), "seqlen-64") == CaseResult(
        BY_NAME["seqlen-64"], "unsupported", "not today"
    )


def test_an_exception_is_an_error_in_one_line() -> None:
    def raises(q: Any, k: Any, v: Any, p: Problem) -> Any:
        raise IndexError("first line\nsecond line")

    result = run(made(raises), "seqlen-64")
    assert (result.status, result.reason) == ("error", "IndexError: first line")


def test_rounding_that_differs_from_run_to_run_is_told_and_not_failed() -> None:
    def dusty(q: Any, k: Any, v: Any, p: Problem) -> Any:
        return plain(q, k, v, p) * (1 + 1e-7 * torch.randn(()))

    result = run(made(dusty), "repeats")
    assert result.status == "ok"
    assert "run to run: not to the bit" in str(result.reason)


# ---- approximate implementations ---------------------------------------------------------


class Linear(Attention):
    """Looks only at the first ``share`` of the keys."""

    name = "linear"
    kind = "approximate"
    options = {"share": 0.5}
    exact_share = 1.0
    finite = True

    def exact_options(self, problem: Problem) -> dict[str, Any]:
        return {"share": self.exact_share}

    def build(self, problem: Problem, device: torch.device) -> Call:
        share = float(self.options["share"])
        keys = max(1, int(problem.seqlen_k * share))

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if share == 1:
                return plain(q, k, v, problem)
            if not self.finite:
                return plain(q, k, v, problem) * float("inf")
            short = problem.replace(seqlen_k=keys, mask="full")
            return plain(q, k[:, :, :keys], v[:, :, :keys], short)

        return call


class NeverExact(Linear):
    exact_share = 0.9


class Overflows(Linear):
    finite = False


def test_an_approximate_method_needs_manners_and_an_exact_knob() -> None:
    result = run(Linear(), "seqlen-64-gradients")
    assert result.status == "ok", result.reason
    assert result.accuracy["out"].verdict.startswith("an approximation: ")
    for name in ("repeats", "batch-apart", "batch-apart-nan", "new-contents", "nan-in-q"):
        assert run(Linear(), name).status == "ok", name


def test_an_exact_knob_that_is_not_exact_is_caught() -> None:
    result = run(NeverExact(), "seqlen-64")
    assert result.status == "incorrect"
    assert str(result.reason).startswith("with share=0.9 it should be exact: out not normal")


def test_an_approximation_that_is_not_finite_is_caught() -> None:
    assert run(Overflows(), "seqlen-64").status == "incorrect"


def test_an_approximate_method_need_not_look_at_every_key() -> None:
    assert run(Linear(), "nan-in-k").status == "unsupported"


# ---- the cases themselves ----------------------------------------------------------------


def test_case_names_are_unique_and_usable_as_globs() -> None:
    assert len(BY_NAME) == len(CASES)
    assert all(not set(case.name) & set("*?[] ") for case in CASES)


def test_every_case_says_what_it_expects() -> None:
    assert all(case.about.endswith(".") for case in CASES)


def test_the_cases_cover_what_a_problem_can_ask_for() -> None:
    problems = [case.problem for case in CASES]
    lengths = {p.seqlen_q for p in problems}
    assert {1, 2, 7, 61} <= lengths
    assert all({b - 1, b, b + 1} <= lengths for b in (16, 32, 64, 128))
    assert {p.mask.kind for p in problems} == set(MASKS)
    assert {p.dtype for p in problems} == {"float32", "bfloat16", "float16", "float8_e4m3fn"}
    assert {p.inputs for p in problems} == {"normal", "large", "peaky", "correlated"}
    assert {p.direction for p in problems} == {"forward", "both", "backward"}
    assert {min(p.head_dim for p in problems), max(p.head_dim for p in problems)} == {32, 256}
    wanted = {"backward", "gqa", "cross", "head_dim_v", "scale", "decode"}
    wanted |= {"dropout", "softcap", "alibi", "bias"}
    assert {p.position for p in problems} == set(get_args(Position))
    assert set().union(*(p.features for p in problems)) == wanted


def test_cases_are_small() -> None:
    for case in CASES:
        p = case.problem
        assert p.batch * p.heads_q * p.seqlen_q * p.seqlen_k < 1 << 20, case.name
