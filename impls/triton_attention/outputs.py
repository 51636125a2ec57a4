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
) -> None:
    """The kernels take sizes from the problem: other tensors would be read past their ends.

    Raises:
        ValueError: a tensor is not of the problem's shape and dtype, or not on the device.
    """
    p = problem
    dtype = p.torch_dtype
    for name, x, shape in (
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


def dense_like(x_BHSD: torch.Tensor, dim: int) -> torch.Tensor:
    """Memory for ``(B, H, S, dim)`` without gaps, its axes in the order that ``x`` has them.

    ``torch.empty_like`` would do for ``dim`` = D, but not always agree with its own fake.
    """
    shape = (*x_BHSD.shape[:3], dim)
    steps = x_BHSD.stride()
    strides, size = [0, 0, 0, 0], 1
    # From the innermost axis outwards. An expanded axis has no place in memory: outermost.
    for axis in sorted((3, 2, 1, 0), key=lambda axis: (steps[axis] == 0, steps[axis])):
        strides[axis] = size
        size *= shape[axis]
    return x_BHSD.new_empty_strided(shape, strides)
