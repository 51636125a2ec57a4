"""``fla``: causal linear attention of flash-linear-attention, ``chunk_linear_attn``.

Instead of the softmax, a feature map φ(x) = elu(x) + 1 on q and k (Katharopoulos et al. 2020,
arXiv 2006.16236), applied here and timed with the call, since the library's function begins
after it. The result is divided by the sum of its weights, so that a scale would cancel.

Letters: B = batch, H = heads, N = seqlen, D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnbench import Problem, register

from .adapter import Built, Library
from .package import Package

PACKAGE = Package(
    "flash-linear-attention", "fla", (0, 2), "pip install flash-linear-attention"
)  # fmt: skip
_CHUNK = 64  # tokens, the library's chunk length


@register("fla")
class Fla(Library):
    """Causal linear attention (elu + 1) by chunks, from flash-linear-attention."""

    kind = "approximate"
    package = PACKAGE
    features = frozenset({"backward", "head_dim_v"})
    masks = ("causal",)
    dtypes = ("float32", "bfloat16", "float16")
    version = PACKAGE.version()
    source = "Yang & Zhang 2024, github.com/fla-org/flash-linear-attention"

    def prepare(self, problem: Problem, device: torch.device) -> Built:
        keywords = {"scale": 1.0, "normalize": True}
        chunked = PACKAGE.function("chunk_linear_attn", *keywords, module="fla.ops.linear_attn")

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = chunked(F.elu(q) + 1, F.elu(k) + 1, v, **keywords)[0]
            return out.to(v.dtype)

        return attend

    def flops(self, problem: Problem) -> int:
        """4·N·D·E for the states, 2·N·C·(D + E) inside the chunks of C; backward twice that."""
        p = problem
        chunk = min(_CHUNK, p.seqlen_q)
        inside = 2 * chunk * (p.head_dim + p.head_dim_v)
        forward = p.batch * p.heads_q * p.seqlen_q * (4 * p.head_dim * p.head_dim_v + inside)
        return forward * {"forward": 1, "backward": 2, "both": 3}[p.direction]
