"""New contents of a layer whose truth is known already: :mod:`attnbench.watch.contents`.

A sign for each channel of the hidden states, on them and on the columns of Wq, Wk and Wv;
for each column of queries and keys, on the rows of Wq and Wk; for each of values, on the
rows of Wv and the columns of Wo; for each channel of the output, on the rows of Wo and on
grad_out. Each meets itself in a product and goes, so that logits stay, and the output and
the gradients change signs. Where sines are added, the channels of the hidden states keep
theirs; RoPE's pairs share one.

Letters: C = d_model, G = heads_kv, D = head_dim, Q, K, V, O = heads times dims of queries,
keys, values and the output of all heads.
"""

from __future__ import annotations

import torch

from attnbench.layer.answers import LEARNED
from attnbench.problem import Problem
from attnbench.watch.contents import Signs


def draw_layer_signs(problem: Problem, device: torch.device, generator: torch.Generator) -> Signs:
    """±1 for everything that is loaded and for every result of a layer, in its dtype."""
    p = problem

    def draw(*shape: int) -> torch.Tensor:
        bits = torch.randint(0, 2, shape, generator=generator)
        bits.view(-1)[0] = 0  # never all +1, which would be the contents of before
        return (2 * bits - 1).to(p.torch_dtype).to(device)

    def for_queries(x_GD: torch.Tensor) -> torch.Tensor:
        return x_GD.repeat_interleave(p.heads_q // p.heads_kv, dim=0).flatten()

    qk_GD = draw(p.heads_kv, p.head_dim)
    if p.position == "rope":
        qk_GD = qk_GD[:, : p.head_dim // 2].repeat(1, 2)
    v_GE, in_C, out_C = draw(p.heads_kv, p.head_dim_v), draw(p.d_model), draw(p.d_model)
    back = 2 * int(torch.randint(0, 2, (), generator=generator)) - 1  # of the gradients alone
    if p.position == "sinusoidal":
        in_C = torch.ones_like(in_C)
    loaded = {
        "x": in_C, "wq": for_queries(qk_GD)[:, None] * in_C,
        "wk": qk_GD.flatten()[:, None] * in_C, "wv": v_GE.flatten()[:, None] * in_C,
        "wo": out_C[:, None] * for_queries(v_GE),
    }  # fmt: skip
    if p.seqlen_q != p.seqlen_k:
        loaded["memory"] = in_C
    if p.position in LEARNED:
        loaded["table"] = in_C if p.position == "learned" else torch.ones_like(in_C[:1])
    gradients = {f"d{name}": back * x for name, x in loaded.items()}
    return Signs({**loaded, "grad_out": back * out_C, "out": out_C, **gradients})
