"""ALiBi: a linear penalty on distance instead of position embeddings.

Press et al. 2021, "Train Short, Test Long", arXiv 2108.12409. Here in its symmetric form,
``−slope·|q_pos − k_pos|``, as FlashAttention has it: under a causal mask it is the paper's.
Query positions are in key coordinates, aligned bottom-right, as everywhere in attnbench.

Letters: H = heads_q, M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from attnbench.problem import Problem


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The slope of each head, all positive: the paper's geometric sequence.

    ``2^(−8·i/heads)`` for i = 1…heads when heads is a power of two. Otherwise the slopes of
    the next lower power of two, filled up with every other slope of the next higher one
    (the authors' code, github.com/ofirpress/attention_with_linear_biases).
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return tuple(slopes + between[: heads - power])


def alibi_bias(
    problem: Problem, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The bias on the logits: ``(H, M, N)``.

    Computed in float32 and then rounded to ``dtype``, by default the problem's; for
    float64 computed in float64.
    """
    import torch

    dtype = problem.torch_dtype if dtype is None else dtype
    work = torch.promote_types(dtype, torch.float32)
    offset = problem.seqlen_k - problem.seqlen_q
    q_pos_M = torch.arange(problem.seqlen_q, device=device) + offset
    k_pos_N = torch.arange(problem.seqlen_k, device=device)
    distance_MN = (q_pos_M[:, None] - k_pos_N).abs().to(work)
    slopes_H = torch.tensor(alibi_slopes(problem.heads_q), dtype=work, device=device)
    return (-slopes_H[:, None, None] * distance_MN).to(dtype)
