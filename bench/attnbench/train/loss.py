"""The loss of a batch: cross-entropy, smoothed or distilled or both, and contrastive.

Every loss here holds logits against the number of the right one, so that label smoothing and
distillation mean the same everywhere: of tokens, of a label, and of the matching row.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, K = choices, C = d_model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from attnbench.train.roles import IGNORED, Batch
from attnbench.train.workload import Workload

TEMPERATURE = 2.0
"""Of distillation: logits are divided by it (Hinton et al. 2015, arXiv:1503.02531)."""

MATCHING_TEMPERATURE = 0.07
"""Cosines are divided by it: where CLIP starts (Radford et al. 2021, arXiv:2103.00020)."""

Outputs = Mapping[str, torch.Tensor]


def loss_of(
    workload: Workload,
    outputs: Outputs,
    batch: Batch,
    teacher: Outputs | None = None,
    counts: Mapping[str, float] | None = None,
) -> torch.Tensor:
    """The loss, a float32 scalar in nats; where a batch has several targets, their sum.

    Args:
        workload: its ``loss``, ``label_smoothing`` and ``distillation``.
        outputs: of the model, on the device of the batch.
        batch: targets, on the same device.
        teacher: outputs of the teacher for the same inputs; needed if workload.distillation > 0.
        counts: :func:`target_counts` of a whole step of which this batch is a part: the losses of
            the parts then add up to the loss of the step. Without it, the mean over the batch.

    Raises:
        ValueError: a teacher is missing, or there is one that nothing is to be learned from.
    """
    if (workload.distillation > 0) != (teacher is not None):
        raise ValueError(f"distillation {workload.distillation} does not fit teacher {teacher}")
    total = torch.zeros((), device=next(iter(outputs.values())).device)
    truths = _choices(workload, teacher, batch) if teacher else {}
    for name, (logits, target, weight) in _choices(workload, outputs, batch).items():
        one = F.cross_entropy(
            logits,
            target,
            ignore_index=IGNORED,
            label_smoothing=workload.label_smoothing,
            reduction="sum",
        )
        if name in truths:
            followed = _distilled(logits, truths[name][0], target)
            one = (1 - workload.distillation) * one + workload.distillation * followed
        key = name.partition(".")[0]
        count = counts[key] if counts is not None else (target != IGNORED).sum()
        total = total + weight * one / count
    return total


def target_counts(batch: Batch) -> dict[str, float]:
    """By target, over how many the mean goes; ``rows`` where rows are matched. Adds up."""
    counts = {name: float((t != IGNORED).sum()) for name, t in batch.targets.items()}
    return counts or {"rows": float(len(next(iter(batch.inputs.values()))))}


def similarity(left_BC: torch.Tensor, right_BC: torch.Tensor) -> torch.Tensor:
    """Logits (B, B) float32 of row i of the left belonging to row j of the right."""
    left_BC, right_BC = (F.normalize(x.float(), dim=-1) for x in (left_BC, right_BC))
    return left_BC @ right_BC.T / MATCHING_TEMPERATURE


def match_logits(left_BC: torch.Tensor, right_BC: torch.Tensor) -> torch.Tensor:
    """Logits (B, 2) float32 of the two sides of each row not belonging, and belonging, together."""
    cosine_B = F.cosine_similarity(left_BC.float(), right_BC.float(), dim=-1)
    score_B = cosine_B / MATCHING_TEMPERATURE
    return torch.stack([torch.zeros_like(score_B), score_B], dim=-1)


def _choices(
    workload: Workload, outputs: Outputs, batch: Batch
) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """By name: logits (n, K) float32, the right ones (n,), and the weight of their loss.

    A name's part before the dot is that of its count.
    """
    if workload.loss == "contrastive":  # both ways, as in CLIP
        scores_BB = similarity(outputs["left"], outputs["right"])
        own_B = torch.arange(len(scores_BB), device=scores_BB.device)
        return {"rows.left": (scores_BB, own_B, 0.5), "rows.right": (scores_BB.T, own_B, 0.5)}
    chosen = {}
    for name, target in batch.targets.items():
        if name == "label" and "left" in outputs:
            logits = match_logits(outputs["left"], outputs["right"])
        else:
            logits = outputs[name].float()
        chosen[name] = (logits.flatten(0, -2), target.flatten(), 1.0)
    return chosen


def _distilled(
    logits_nK: torch.Tensor, truth_nK: torch.Tensor, target_n: torch.Tensor
) -> torch.Tensor:
    """Sum over rows of KL(teacher ‖ student) at TEMPERATURE, times its square.

    The square keeps gradients as large as those of the hard targets (Hinton et al. 2015).
    """
    said_nK = F.log_softmax(logits_nK / TEMPERATURE, dim=-1)
    true_nK = F.log_softmax(truth_nK.detach() / TEMPERATURE, dim=-1)
    apart_n = F.kl_div(said_nK, true_nK, reduction="none", log_target=True).sum(-1)
    return (apart_n * (target_n != IGNORED)).sum() * TEMPERATURE**2
