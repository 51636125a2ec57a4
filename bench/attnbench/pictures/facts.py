"""What a picture shows, in figures and words: distance, sums of rows, signs, forbidden keys.

Letters: M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

_LEAST_SLACK = 1e-3  # of the sum of a row, whatever the dtype

Weights = NDArray[np.float64]


class Facts(BaseModel):
    """Of the weights of one head.

    Attributes:
        tv: mean total variation from the reference, over the rows that see a key: half the
            sum of ``|weight − reference|``. 0 is the same, 1 is on other keys altogether.
        least: the smallest weight.
        sum_low, sum_high: of the rows that see a key, the smallest and the largest sum.
        forbidden: the largest sum, over one row, of what is put on keys that the mask hides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tv: float
    least: float
    sum_low: float
    sum_high: float
    forbidden: float


def facts_of(weights_MN: Weights, reference_MN: Weights, forbidden_MN: NDArray[np.bool_]) -> Facts:
    """The facts of one head's weights, all finite."""
    sees_M = ~forbidden_MN.all(axis=1)
    sums_M, off_M = weights_MN.sum(axis=1), np.abs(weights_MN - reference_MN).sum(axis=1) / 2
    hidden_M = np.where(forbidden_MN, np.abs(weights_MN), 0.0).sum(axis=1)
    seen, off = sums_M[sees_M], off_M[sees_M]
    has_any = bool(sees_M.any())
    return Facts(
        tv=float(off.mean()) if has_any else 0.0,
        least=float(weights_MN.min()),
        sum_low=float(seen.min()) if has_any else 1.0,
        sum_high=float(seen.max()) if has_any else 1.0,
        forbidden=float(hidden_M.max()),
    )


def is_signed(facts: Sequence[Facts], epsilon: float) -> bool:
    """Whether weights are negative by more than rounding: then they are no distribution."""
    return any(f.least < -slack(epsilon) for f in facts)


def notes(facts: Facts, epsilon: float) -> list[str]:
    """What is not as softmax has it, in words; nothing for a method that is right.

    Args:
        facts: of one head.
        epsilon: of the dtype that the method computes in.
    """
    allowed, said = slack(epsilon), []
    if facts.least < -allowed:
        said.append(f"negative weights, to {facts.least:.2g}: no distribution")
    if max(1 - facts.sum_low, facts.sum_high - 1) > allowed:
        low, high = f"{facts.sum_low:.4g}", f"{facts.sum_high:.4g}"
        sums = f"to {low}" if low == high else f"from {low} to {high}"
        said.append(f"rows do not sum to 1, but {sums}")
    if facts.forbidden > allowed:
        said.append(f"up to {facts.forbidden:.2g} of a row on keys that the mask forbids")
    return said


def slack(epsilon: float) -> float:
    """How far the sum of a row may be from 1, of weights rounded to a dtype of this epsilon."""
    return max(_LEAST_SLACK, 4 * epsilon)
