"""A layer made by hand for the tests: a core of a few lines, and problems that are small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attnbench import Attention, Problem, alibi_bias
from attnbench.layer.execution import LayerExecution
from attnbench.layer.inputs import LayerInputs, make_layer_inputs
from attnbench.layer.verify import make_layer_yardstick
from attnbench.record import TensorAccuracy
from attnbench.verify import judge

CPU = torch.device("cpu")


def of(**fields: Any) -> Problem:
    """A layer of 32 channels in 4 heads, both directions, unless told otherwise."""
    told = {"batch": 3, "heads_q": 4, "head_dim": 8, "seqlen_q": 13, "direction": "both"}
    return Problem.of(**{**told, "level": "layer", **fields})


class Plain(Attention):
    """The textbook, in one expression."""

    name = "plain"
    features = Attention.features | {"alibi", "bias"}

    def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
        p = problem
        allowed_MN = p.mask.dense(p.seqlen_q, p.seqlen_k, device)

        def attend(q: Any, k: Any, v: Any, bias: Any = 0.0) -> torch.Tensor:
            k, v = (x.repeat_interleave(p.heads_q // p.heads_kv, dim=1) for x in (k, v))
            logits = q @ k.mT * p.softmax_scale + bias
            if p.alibi:
                logits = logits + alibi_bias(p, device)
            out: torch.Tensor = logits.masked_fill(~allowed_MN, float("-inf")).softmax(-1) @ v
            return out

        return attend


def judged(execution: LayerExecution, seed: int = 1) -> dict[str, TensorAccuracy]:
    """Run once on drawn inputs, and compare with the oracle."""
    inputs: LayerInputs = make_layer_inputs(execution.problem, seed)
    execution.load(inputs)
    execution.step()
    return judge(make_layer_yardstick(execution.problem, inputs), execution.results())


def wrong(accuracy: dict[str, TensorAccuracy]) -> set[str]:
    """The tensors that are not right."""
    return {name for name, a in accuracy.items() if not a.ok}
