"""``flex``: torch's FlexAttention, compiled for each problem.

The mask goes in as a block mask made from its ``mask_mod``, softcap and ALiBi as a
``score_mod``; torch.compile turns both into one fused kernel. It compiles in ``build()``.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attnbench import Attention, Problem, Unsupported, alibi_slopes, make_inputs, register

Call = Callable[..., torch.Tensor]
ScoreMod = Callable[..., Any]

# One process compiles many problems. Past the limit dynamo would quietly run FlexAttention
# unfused, that is, fill the whole matrix; 8 is the default.
_RECOMPILE_LIMIT = 64


@register("flex")
class Flex(Attention):
    """FlexAttention, compiled with the mask and the extras of each problem."""

    features = Attention.features | {"alibi", "bias", "softcap"}
    dtypes = ("float32", "bfloat16", "float16")
    version = torch.__version__
    source = "Dong et al. 2024, Flex Attention, arXiv 2412.05496"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if problem.direction != "forward" and device.type == "cpu":
            raise Unsupported("torch's FlexAttention has no backward on CPU")

    def build(self, problem: Problem, device: torch.device) -> Call:
        score_mod, keywords = _score_mod(problem, device), _keywords(problem, device)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = flex_attention(q, k, v, score_mod, **keywords)
            return out

        def attend_biased(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias_HMN: torch.Tensor
        ) -> torch.Tensor:
            def biased(score: Any, b: Any, h: Any, q_index: Any, k_index: Any) -> Any:
                if score_mod is not None:
                    score = score_mod(score, b, h, q_index, k_index)
                return score + bias_HMN[h, q_index, k_index]

            out: torch.Tensor = flex_attention(q, k, v, biased, **keywords)
            return out

        if not problem.bias:
            return _compile(attend, problem, device)
        return _compile(attend_biased, problem, device, _zeros(problem, device))


def _zeros(problem: Problem, device: torch.device) -> torch.Tensor:
    """A bias that does nothing, to compile with."""
    shape = (problem.heads_q, problem.seqlen_q, problem.seqlen_k)
    return torch.zeros(shape, dtype=problem.torch_dtype, device=device)


def _keywords(problem: Problem, device: torch.device) -> dict[str, Any]:
    """What flex_attention is told beside the tensors and the score_mod."""
    block_mask = None
    if problem.mask.kind != "full":
        lengths = (problem.seqlen_q, problem.seqlen_k)
        mask_mod = problem.mask.mask_mod(*lengths, device)
        block_mask = create_block_mask(mask_mod, None, None, *lengths, device=device)
    return {
        "block_mask": block_mask,
        "scale": problem.softmax_scale,
        "enable_gqa": problem.heads_q != problem.heads_kv,
    }


def _compile(attend: Call, problem: Problem, device: torch.device, *more: torch.Tensor) -> Call:
    """Compile now, not while timed; where torch cannot, raise Unsupported with its reason."""
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    # The harness times the backward alone, so a graph is walked more than once.
    torch._functorch.config.donated_buffer = False
    compiled: Call = torch.compile(attend, fullgraph=True, dynamic=False)
    inputs = make_inputs(problem, seed=0, device=device)
    wants_grad = problem.direction != "forward"
    given = [x.requires_grad_(wants_grad) for x in (*inputs.qkv(), *more)]
    try:
        with torch.set_grad_enabled(wants_grad):
            out = compiled(*given)
        if wants_grad:
            torch.autograd.grad(out, given, inputs.grad_out_BHME)
    except torch._dynamo.exc.TorchDynamoException as error:
        # Inductor names the operation's exception in its first lines, dynamo in the cause.
        reason = " ".join(str(error.__cause__ or error).split("\n\n")[0].split())[:300]
        raise Unsupported(f"FlexAttention does not compile: {reason}") from error
    return compiled


def _score_mod(problem: Problem, device: torch.device) -> ScoreMod | None:
    """Softcap, then ALiBi, on logits that are already scaled; None if there is neither."""
    slopes_H = torch.tensor(alibi_slopes(problem.heads_q), device=device)
    cap = problem.softcap or 1.0
    offset = problem.seqlen_k - problem.seqlen_q

    def capped(score: Any, b: Any, h: Any, q_index: Any, k_index: Any) -> Any:
        return cap * torch.tanh(score / cap)

    def biased(score: Any, b: Any, h: Any, q_index: Any, k_index: Any) -> Any:
        return score - slopes_H[h] * (q_index + offset - k_index).abs()

    def both(score: Any, b: Any, h: Any, q_index: Any, k_index: Any) -> Any:
        return biased(capped(score, b, h, q_index, k_index), b, h, q_index, k_index)

    if problem.softcap is None:
        return biased if problem.alibi else None
    return both if problem.alibi else capped
