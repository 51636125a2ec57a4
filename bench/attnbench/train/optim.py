"""How parameters learn: the optimizer, the learning rate of each step, and clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from attnbench.errors import UserError
from attnbench.train.workload import Workload

_FLOOR = 0.1
"""Share of the rate at which cosine and exponential end, before a cool-down; as in Hoffmann et
al. 2022 (arXiv:2203.15556)."""

_CUTS = (0.5, 0.75)
"""Where ``step`` divides the rate by ten: the CIFAR schedule of He et al. 2015
(arXiv:1512.03385), 32k and 48k of 64k iterations."""


def make_optimizer(workload: Workload, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW, or SGD with ``beta1`` as its momentum, for the parameters that learn.

    Matrices (embeddings among them) decay; vectors, which are biases and scales of norms, do
    not. The update is fused into few kernels where torch can do so: on CUDA and on CPU.

    Raises:
        UserError: nothing learns.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise UserError(f"finetune {workload.finetune!r} leaves no parameter that learns")
    decays = {True: workload.weight_decay, False: 0.0}
    groups = [
        {"params": [p for p in learning if (p.ndim >= 2) == matrix], "weight_decay": decay}
        for matrix, decay in decays.items()
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cuda", "cpu") for p in learning) or None
    if workload.optimizer == "adamw":
        betas = (workload.beta1, workload.beta2)
        return torch.optim.AdamW(groups, lr=lr_at(workload, 0), betas=betas, fused=fused)
    if any(hasattr(p, "to_local") for p in learning):  # DTensors: up to torch 2.13 they have no
        fused = None  # rule for the fused update of SGD, but for that of AdamW
    return torch.optim.SGD(groups, lr=lr_at(workload, 0), momentum=workload.beta1, fused=fused)


def lr_at(workload: Workload, step: int) -> float:
    """The learning rate of a step, 0 ≤ step < steps.

    In the first ``warmup`` steps it rises linearly, and in the last ``cooldown`` steps it falls
    linearly from where the schedule has then come; neither ramp includes its ends, so that no
    step is spent on a rate of 0: of three steps they are 1/4, 2/4 and 3/4. Between the two,
    ``constant``; ``cosine`` and ``exponential`` fall to a tenth; ``step`` divides by ten at
    half and again at three quarters.
    """
    warm, cool, steps = workload.warmup, workload.cooldown, workload.steps
    if step < warm:
        return workload.lr * (step + 1) / (warm + 1)
    between = steps - warm - cool
    progress = min(1.0, (step - warm) / between) if between else 0.0
    rate = workload.lr * _share(workload, progress)
    return rate * (steps - step) / (cool + 1) if step >= steps - cool else rate


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step use this rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(
    workload: Workload, parameters: Iterable[torch.nn.Parameter]
) -> torch.Tensor | None:
    """Scale gradients so that their common norm is at most ``clip``; gradients must be unscaled.

    Returns:
        The norm before, a scalar on their device; None where ``clip`` is 0 and nothing is done.
    """
    if not workload.clip:
        return None
    return torch.nn.utils.clip_grad_norm_(parameters, workload.clip)


def _share(workload: Workload, progress: float) -> float:
    """What the schedule leaves of the rate at a progress of 0 to 1."""
    if workload.schedule == "cosine":
        return float(_FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
    if workload.schedule == "exponential":
        return float(_FLOOR**progress)
    if workload.schedule == "step":
        return float(0.1 ** sum(progress >= cut for cut in _CUTS))
    return 1.0
