"""What attention to some of the keys has found, and how two such are one.

Letters: X = batch · heads_kv, R = query heads that share a key head, M = seqlen_q,
E = head_dim_v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Found(NamedTuple):
    """Attention to some of the keys; for a query that sees none of them 0, −inf and 0."""

    out_XRME: torch.Tensor
    top_XRM1: torch.Tensor  # the largest logit
    sum_XRM1: torch.Tensor  # of exp(logit − top)


def merged(one: Found, other: Found) -> Found:
    """One softmax over the keys of both."""
    top_XRM1 = torch.maximum(one.top_XRM1, other.top_XRM1)
    shift_XRM1 = top_XRM1.masked_fill(top_XRM1 == float("-inf"), 0.0)  # neither sees anything
    sums = [(x.top_XRM1 - shift_XRM1).exp() * x.sum_XRM1 for x in (one, other)]
    sum_XRM1 = sums[0] + sums[1]
    out_XRME = one.out_XRME * sums[0] + other.out_XRME * sums[1]
    return Found(out_XRME / sum_XRM1.masked_fill(sum_XRM1 == 0, 1.0), top_XRM1, sum_XRM1)
