"""What a worker does for a picture: find the weights of the reference, and of one method.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v; h = the heads shown.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnbench import registry
from attnbench.distance import LINEAR, missed, shown_weights
from attnbench.execution import Execution
from attnbench.failure import Failed, classify
from attnbench.guard import Guard
from attnbench.inputs import Inputs, make_inputs
from attnbench.oracle import softmax_weights
from attnbench.pictures.tensors import layer_inputs, read_tensors
from attnbench.problem import Problem

Send = Callable[..., None]

SEED = 0
"""Of the inputs that are drawn, and of what a method draws for itself."""


def reference_weights(task: dict[str, Any], send: Send) -> None:
    """Write the float64 softmax weights of the task's heads, and which pairs are forbidden.

    ``reference.npy`` is float64 (h, M, N), ``forbidden.npy`` bool (M, N).
    """
    send("step", phase="reference")
    problem, inputs = _asked(task)
    weights_HMN = softmax_weights(problem, inputs, torch.arange(problem.seqlen_q))
    folder = Path(task["folder"])
    np.save(folder / "reference.npy", weights_HMN[task["heads"]].cpu().numpy())
    allowed_MN = problem.mask.dense(problem.seqlen_q, problem.seqlen_k)
    np.save(folder / "forbidden.npy", (~allowed_MN).numpy())
    epsilon = torch.finfo(problem.torch_dtype).eps
    send("shown", epsilon=epsilon)


def method_weights(task: dict[str, Any], send: Send) -> None:
    """Write the weights that the task's one contender really uses, ``method.npy``, or say why not.

    float64 (h, M, N).
    """
    (told,) = task["contenders"]
    guard = Guard()
    try:
        send("step", phase="building")
        problem, inputs = _asked(task)
        execution = Execution(registry.make(told), problem, torch.device(task["device"]), SEED)
        send("step", phase="weights")
        shown_hMN = _shown(execution, inputs)[task["heads"]]
        guard.check()
        np.save(Path(task["folder"]) / "method.npy", shown_hMN.cpu().numpy())
        send("shown")
    except BaseException as error:  # a plugin may raise anything; the parent tells it
        guard.restore()
        failed = classify(error)
        send("failed", status=failed.status, reason=failed.reason)


def _asked(task: dict[str, Any]) -> tuple[Problem, Inputs]:
    """The problem, and its inputs: drawn, or those of the layer's file."""
    problem, device = Problem.from_json(task["problem"]), torch.device(task["device"])
    if task["tensors"] is None:
        return problem, make_inputs(problem, SEED, device)
    return problem, layer_inputs(problem, read_tensors(Path(task["tensors"])), SEED, device)


def _shown(execution: Execution, inputs: Inputs) -> torch.Tensor:
    """The weights of every head, float64 (H, M, N).

    Raises:
        Failed: it has none that could be shown.
    """
    rows_M = torch.arange(execution.problem.seqlen_q)
    shown_HMN = shown_weights(execution, inputs, rows_M)
    if holes := int((~shown_HMN.isfinite()).sum()):
        raise Failed("incorrect", f"NaN or infinite weights: {holes} of {shown_HMN.numel()} pairs")
    off = missed(execution, inputs, rows_M, shown_HMN)
    if not off <= LINEAR:
        raise Failed(
            "incorrect",
            "has no weights to show: its output is not the weights that it shows times v "
            f"(off by {off:.0%}), so that they change with v or from call to call",
        )
    return shown_HMN
