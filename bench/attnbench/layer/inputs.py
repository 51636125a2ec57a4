"""The tensors of a layer: hidden states, projection weights, the gradient that comes back.

Drawn from a seed as in :mod:`attnbench.inputs`: in float32 on the CPU, then rounded.
Weights are N(0, 1 / fan-in), so that queries, keys, values and the output have about unit
variance, and a softmax is as peaked as that of an op with N(0, 1) inputs.

Letters: B = batch, M = seqlen_q, N = seqlen_k, C = d_model, Q = heads_q·head_dim,
K = heads_kv·head_dim, V = heads_kv·head_dim_v, O = heads_q·head_dim_v, R = buckets,
H = heads_q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.inputs import LARGE, walk
from attnbench.layer.answers import LEARNED
from attnbench.layer.positions import BUCKETS
from attnbench.problem import Problem


@dataclass(frozen=True)
class LayerInputs:
    """Hidden states of the queries and, for cross-attention, of the keys; weights; gradient.

    ``wq (Q, C)``, ``wk (K, C)``, ``wv (V, C)``, ``wo (C, O)`` are laid out as torch's Linear
    has them; ``table`` is that of learned positions ``(N, C)`` or of the relative bias
    ``(R, H)``. Where there is padding, ``x`` holds numbers there as anywhere, which nobody
    may look at, and ``grad_out`` holds zeros.
    """

    x_BMC: torch.Tensor
    memory_BNC: torch.Tensor | None
    wq_QC: torch.Tensor
    wk_KC: torch.Tensor
    wv_VC: torch.Tensor
    wo_CO: torch.Tensor
    table: torch.Tensor | None
    grad_out_BMC: torch.Tensor

    def named(self) -> dict[str, torch.Tensor]:
        """Those there are: hidden states first, ``grad_out`` last."""
        named = {
            "x": self.x_BMC, "memory": self.memory_BNC, "wq": self.wq_QC, "wk": self.wk_KC,
            "wv": self.wv_VC, "wo": self.wo_CO, "table": self.table, "grad_out": self.grad_out_BMC,
        }  # fmt: skip
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def make_layer_inputs(
    problem: Problem, seed: int, device: torch.device | str = "cpu"
) -> LayerInputs:
    """Draw the inputs of a problem at level ``layer``; the same values on every device.

    ``large`` has logits of a hundred and more (by Wq and Wk), ``correlated`` hidden states
    that walk slowly along the sequence.
    """
    generator = torch.Generator().manual_seed(seed)
    p = problem

    def draw(*shape: int, std: float = 1.0) -> torch.Tensor:
        return std * torch.randn(shape, generator=generator, dtype=torch.float32)

    def weight(fan_out: int, fan_in: int, times: float = 1.0) -> torch.Tensor:
        return draw(fan_out, fan_in, std=times * fan_in**-0.5)

    x_BMC = draw(p.batch, p.seqlen_q, p.d_model)
    memory_BNC = None
    if p.seqlen_q != p.seqlen_k:
        memory_BNC = draw(p.batch, p.seqlen_k, p.d_model)
    if p.inputs == "correlated":
        x_BMC = _walked(x_BMC)
        memory_BNC = None if memory_BNC is None else _walked(memory_BNC)
    times = LARGE if p.inputs == "large" else 1.0
    weights = (
        weight(p.heads_q * p.head_dim, p.d_model, times),
        weight(p.heads_kv * p.head_dim, p.d_model, times),
        weight(p.heads_kv * p.head_dim_v, p.d_model),
        weight(p.d_model, p.heads_q * p.head_dim_v),
    )
    table = None
    if p.position in LEARNED:
        rows, columns = _table_shape(p)
        table = draw(rows, columns)
    grad_out_BMC = draw(p.batch, p.seqlen_q, p.d_model)
    if p.padding:
        grad_out_BMC = grad_out_BMC * real_tokens(p)[..., None]

    def there(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else x.to(p.torch_dtype).to(device)

    return LayerInputs(*map(there, (x_BMC, memory_BNC, *weights, table, grad_out_BMC)))  # type: ignore[arg-type]


def real_tokens(problem: Problem, device: torch.device | str = "cpu") -> torch.Tensor:
    """Which tokens are no padding: bool ``(B, M)``."""
    lengths_B = torch.tensor(problem.lengths, device=device)
    return torch.arange(problem.seqlen_q, device=device) < lengths_B[:, None]


def _table_shape(p: Problem) -> tuple[int, int]:
    return (p.seqlen_k, p.d_model) if p.position == "learned" else (BUCKETS, p.heads_q)


def _walked(x_BSC: torch.Tensor) -> torch.Tensor:
    return walk(x_BSC[:, None])[:, 0]
