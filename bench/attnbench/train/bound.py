"""How far two learning curves of exact attention may be apart: a bound from reruns.

Two exact implementations round differently, and training amplifies that: the curves part,
slowly at first and then faster. How fast depends on model, data, precision and learning
rate, so no fixed tolerance can be right. Instead the reference is trained again
:data:`RERUNS` times, for the first :data:`STEPS` steps, with every element of q, k, v and of
the output of each attention moved by one unit in the last place of the precision, up or down
at random (``attentions.shaken``). That is the size of what another order of summation does.

The rule. Let ``x_i(t)`` be the difference of rerun i from the reference in the loss of step
t, and ``s(t)`` the root of their mean square, carried along as a running maximum, because a
crossing of two curves is no agreement. A contender is within the bound while

    |loss(t) − reference(t)| ≤ MARGIN · q · s(t) + floor(t)    for every step t.

``q`` is the two-sided quantile of Student's t with RERUNS degrees of freedom at
``FALSE_ALARM / steps``. If a contender's rounding is MARGIN times that of a rerun or less,
and deviations are normal about zero (they are linear in many small roundings until the
curves have parted altogether), each step alone raises a false alarm with a probability of at
most FALSE_ALARM / steps, and by Bonferroni's inequality a whole curve with at most
FALSE_ALARM: one in a thousand. Steps depend on each other and the running maximum only
widens the bound, so that the true rate is lower. ``floor`` is the rounding of the loss
itself, which is summed in float32.

With dropout each implementation draws masks of its own, and reruns draw others too: the
bound then says what different draws do, and is much wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnbench.distributions import t_quantile

RERUNS = 5
STEPS = 100
"""Steps of a curve that are compared: rounding has parted longer ones, and reruns are dear."""
FALSE_ALARM = 1e-3  # of one contender's whole curve
MARGIN = 2.0  # a contender may round this many times as coarsely as a rerun
_LOSS_ROUNDING = 16 * float(np.finfo(np.float32).eps)  # relative, of a mean over many tokens


@dataclass(frozen=True)
class Gap:
    """How far a curve is from the reference.

    Attributes:
        ok: whether every step is within the bound.
        max_deviation: the largest difference of a step; None if a loss is not finite.
        step: where deviation ÷ allowed is largest; the first loss that is not finite, if any.
        deviation, allowed, ratio: there; the former and the latter None if not finite.
        steps: that were compared.
    """

    ok: bool
    max_deviation: float | None
    step: int
    deviation: float | None
    allowed: float
    ratio: float | None
    steps: int


def allowed(reference: Sequence[float], reruns: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """What a curve may differ from the reference by, at each step.

    Args:
        reference: losses of the reference by step.
        reruns: of its perturbed reruns; cut to the shortest of all.

    Raises:
        ValueError: there is no rerun, or a loss of the reference or a rerun is not finite.
    """
    steps = min(len(reference), *(len(rerun) for rerun in reruns)) if reruns else 0
    if not steps:
        raise ValueError("a bound needs at least one rerun of at least one step")
    truth = np.asarray(reference[:steps], dtype=np.float64)
    apart = np.asarray([rerun[:steps] for rerun in reruns], dtype=np.float64) - truth
    if not np.isfinite(apart).all():
        raise ValueError("the reference's own loss is not finite")
    scatter = np.maximum.accumulate(np.sqrt((apart**2).mean(axis=0)))
    quantile = t_quantile(1 - FALSE_ALARM / steps, len(reruns))
    floor = _LOSS_ROUNDING * np.maximum(1.0, np.abs(truth))
    bound: NDArray[np.float64] = MARGIN * quantile * scatter + floor
    return bound


def gap(curve: Sequence[float], reference: Sequence[float], bound: NDArray[np.float64]) -> Gap:
    """Hold a curve against the reference, over the steps that both have.

    Raises:
        ValueError: a curve has no step.
    """
    steps = min(len(curve), len(reference), len(bound))
    if not steps:
        raise ValueError("there is no step to compare")
    apart = np.abs(np.asarray(curve[:steps]) - np.asarray(reference[:steps]))
    if not np.isfinite(apart).all():
        first = int(np.argmin(np.isfinite(apart)))
        return Gap(False, None, first, None, float(bound[first]), None, steps)
    ratios = apart / bound[:steps]
    at = int(np.argmax(ratios))
    return Gap(
        ok=bool(ratios[at] <= 1),
        max_deviation=float(apart.max()),
        step=at,
        deviation=float(apart[at]),
        allowed=float(bound[at]),
        ratio=float(ratios[at]),
        steps=steps,
    )


def rule(precision: str, *, dropout: bool) -> str:
    """How the bound was found, in words, for a record."""
    how = "other dropout masks and " if dropout else ""
    return (
        f"{MARGIN:g} × Student's t ({RERUNS} reruns, false alarm {FALSE_ALARM:g} a curve) × "
        f"their scatter about the reference; reruns with {how}q, k, v and out of each "
        f"attention moved by one unit in the last place of {precision}"
    )


def is_finite(losses: Sequence[float]) -> bool:
    """Whether every loss is a number."""
    return all(math.isfinite(loss) for loss in losses)
