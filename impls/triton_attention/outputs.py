"""What a call is given and returns: the check of its inputs, and memory for its results.

A result has the memory order of the input that it belongs to (the output that of q, dk that
of k), so that BSHD goes in and out as a view and the reshape that follows in a model moves
nothing. It is dense, also where the input is expanded or part of something larger. Launches
and what torch.compile plans with both come here, so they cannot disagree.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

import torch

from attnbench import Problem


def check_inputs(
    problem: Problem,
    device: torch.device,
    q_BHMD: torch.Tensor,
    k_BGND: torch.Tensor,
    v_BGNE: torch.Tensor,
    bias_HMN: torch.Tensor | None,
) -> None:
    """The kernels take sizes from the problem: other tensors would be read past their ends.

    Raises:
        ValueError: a tensor is not of the problem's shape and dtype, or not on the device; a
            learned bias that the problem has is not given, or one that it has not is.
    """
    p = problem
    dtype = p.torch_dtype
    if (bias_HMN is not None) != p.bias:
        given, has = ("no bias", "one") if p.bias else ("a bias", "none")
        raise ValueError(f"{given} is given; this attention was built for a problem with {has}")
    for name, x, shape in (
        *([] if bias_HMN is None else [("bias", bias_HMN, (p.heads_q, p.seqlen_q, p.seqlen_k))]),
        ("q", q_BHMD, (p.batch, p.heads_q, p.seqlen_q, p.head_dim)),
        ("k", k_BGND, (p.batch, p.heads_kv, p.seqlen_k, p.head_dim)),
        ("v", v_BGNE, (p.batch, p.heads_kv, p.seqlen_k, p.head_dim_v)),
    ):
        if x.shape != shape or x.dtype != dtype or x.device != device:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; "
                f"this attention was built for {dtype} {shape} on {device}"
            )


def new_results(problem: Problem, q_BHMD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the output, in the order of q, and for the LSE: float32 ``(B, H, M)``."""
    p = problem
    lse_BHM = q_BHMD.new_empty((p.batch, p.heads_q, p.seqlen_q), dtype=torch.float32)
    return dense_like(q_BHMD, p.head_dim_v), lse_BHM


def dense_like(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Memory for ``(…, dim)`` without gaps, its axes in the order that ``x`` (…, D) has them.

    ``torch.empty_like`` would do for ``dim`` = D, but not always agree with its own fake.
    """
    shape = (*x.shape[:-1], dim)
    steps = x.stride()
    strides, size = [0] * len(steps), 1
    # From the innermost axis outwards. An expanded axis has no place in memory: outermost.
    for axis in sorted(range(len(steps)), key=lambda axis: (steps[axis] == 0, steps[axis], -axis)):
        strides[axis] = size
        size *= shape[axis]
    return x.new_empty_strided(shape, strides)
