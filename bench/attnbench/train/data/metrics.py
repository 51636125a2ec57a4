"""How well something was learned: sums and weights that add up over batches, then figures.

Most metrics are means. F1 of a class, 2·TP / (2·TP + FP + FN), adds up in the same way: above
and below the line. What is left, macro F1 and perplexity, is made of the added totals by
:func:`figures`; BLEU and its kin look at whole texts and have their own module.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, K = classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F

from attnbench.train.roles import IGNORED

Totals = dict[str, tuple[float, float]]
_F1 = "f1."  # of a class: f1.3
_LARGEST_EXPONENT = math.log(sys.float_info.max)


def token_totals(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> Totals:
    """``cross_entropy`` in nats a token and ``token_accuracy``, over what is not IGNORED."""
    targets_BT = targets_BT.to(logits_BTV.device)
    said_BT = targets_BT != IGNORED
    count = float(said_BT.sum())
    nats_BT = F.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none"
    )
    hits_BT = (logits_BTV.argmax(-1) == targets_BT) & said_BT
    return {
        "cross_entropy": (float(nats_BT.double().sum()), count),
        "token_accuracy": (float(hits_BT.sum()), count),
    }


def label_totals(logits_BK: torch.Tensor, label_B: torch.Tensor) -> Totals:
    """``accuracy``, and F1 of each class as ``f1.0``, ``f1.1``, …"""
    classes = logits_BK.shape[-1]
    label_B = label_B.to(logits_BK.device)
    guess_B = logits_BK.argmax(-1)
    right_K = torch.bincount(label_B[guess_B == label_B], minlength=classes)
    shares_K = torch.bincount(label_B, minlength=classes)
    shares_K += torch.bincount(guess_B, minlength=classes)  # = 2·TP + FP + FN
    totals: Totals = {"accuracy": (float(right_K.sum()), float(len(label_B)))}
    for number, (right, share) in enumerate(zip(right_K.tolist(), shares_K.tolist(), strict=True)):
        totals[f"{_F1}{number}"] = (2.0 * right, float(share))
    return totals


def add(parts: Iterable[Mapping[str, tuple[float, float]]]) -> Totals:
    """The totals of several batches as those of one."""
    totals: Totals = {}
    for part in parts:
        for name, (value, weight) in part.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + value, before[1] + weight)
    return totals


def figures(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Means by name, and ``perplexity`` (exp of the mean cross-entropy) and ``f1_macro``.

    Macro F1 is the mean over the classes that occur as a label or as a guess. A metric
    without weight has no figure. A perplexity that no float64 holds is infinite.
    """
    means = {name: value / weight for name, (value, weight) in totals.items() if weight}
    by_class = [mean for name, mean in means.items() if name.startswith(_F1)]
    told = {name: mean for name, mean in means.items() if not name.startswith(_F1)}
    if by_class:
        told["f1_macro"] = sum(by_class) / len(by_class)
    if "cross_entropy" in means:
        nats = means["cross_entropy"]
        told["perplexity"] = math.inf if nats > _LARGEST_EXPONENT else math.exp(nats)
    return told


def with_bits(totals: Totals) -> Totals:
    """Adds ``bits_per_character``: cross-entropy in bits, where each token is a character."""
    nats, count = totals["cross_entropy"]
    return {**totals, "bits_per_character": (nats / math.log(2), count)}
