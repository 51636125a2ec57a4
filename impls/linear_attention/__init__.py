"""``linear``, ``cosformer``, ``performer``, ``rfa``: weights that are products of features.

They differ in their features (``features``) and share the sums (``products``), which take
time and memory in proportion to seqlen. Each computes in float32, or float64 for such inputs.

Only ``performer`` tends to softmax attention, with the number of its features; it has no
setting at which it is exact, and where q and k are long it needs very many. ``linear`` and
``cosformer`` are other functions of q and k, and ``rfa`` approximates the softmax of cosines:
no setting of theirs leads to dense attention. None has a use for a KV cache: a decode step
keeps the sums instead.

Letters: B = batch, H = heads_q, G = heads_kv, R = H / G, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import torch
from torch import nn

from attnbench import Attention, Problem, Unsupported, register

from .features import Elu, Features, Positive, ReluByPosition, Trigonometric, orthogonal_gaussian
from .products import attend, attend_causally

_ELEMENTS = 1 << 19  # of features at a time: 2 MiB, in a cache
_LEAST_ROWS = 256  # for what a piece computes to outweigh that its sums, F × E, are added


class OfFeatures(Attention):
    """What the four have in common; each says how many features it has, and makes them."""

    kind = "approximate"
    features = frozenset({"backward", "cross", "gqa", "head_dim_v"})
    masks = ("full", "causal")
    dtypes = ("float64", "float32", "bfloat16", "float16")
    options = {"chunk": 64}
    version = torch.__version__

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        for name in sorted({"chunk", "features"} & set(self.options)):
            if int(self.options[name]) < 1:
                raise Unsupported(f"{name} must be at least 1, got {self.options[name]}")

    def build(self, problem: Problem, device: torch.device) -> nn.Module:
        work = torch.promote_types(problem.torch_dtype, torch.float32)
        features = self.make_features(problem, work, device)
        return Summed(problem, features, self.width(problem), int(self.options["chunk"]))

    def make_features(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> Features:
        """A module that takes queries and keys to their features."""
        raise Unsupported(f"{self.name} has no features")

    def width(self, problem: Problem) -> int:
        """Features of one query or key."""
        return problem.head_dim

    def drawn(self, problem: Problem) -> int:
        """How many of the features' inputs are products with random vectors."""
        return 0

    def flops(self, problem: Problem) -> int:
        """``2·F·(D + E + 1)`` a query and a key; causal, ``2·C·(F + E + 1)`` more a query.

        F = features, C = chunk, D only where features are products with random vectors; the
        1 is the normaliser. Products inside a chunk count in full, as they are computed. The
        backward is twice the forward, but once where a factor is no input.
        """
        p, width, values = problem, self.width(problem), problem.head_dim_v + 1
        queries, keys = p.batch * p.heads_q * p.seqlen_q, p.batch * p.heads_kv * p.seqlen_k
        features = 2 * self.drawn(p) * p.head_dim * (queries + keys)
        sums = 2 * width * values * (queries + keys)
        if p.mask.kind == "causal":
            sums += 2 * min(int(self.options["chunk"]), p.seqlen_q) * (width + values) * queries
        forward, backward = features + sums, features + 2 * sums
        return {"forward": forward, "backward": backward, "both": forward + backward}[p.direction]

    def ideal_bytes(self, problem: Problem) -> int:
        """Inputs and outputs once, the normaliser of each row as dense attention's LSE, and w."""
        times = 2 if problem.direction == "both" else 1
        work = max(problem.element_bytes, 4)
        return problem.ideal_bytes() + times * work * self.drawn(problem) * problem.head_dim


class Summed(nn.Module):
    """One problem's attention by sums over features."""

    def __init__(self, problem: Problem, features: Features, width: int, chunk: int) -> None:
        super().__init__()
        self.features = features
        self.width = width
        self.chunk = chunk if problem.mask.kind == "causal" else None
        self.dtype = torch.promote_types(problem.torch_dtype, torch.float32)

    def forward(
        self, q_BHMD: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> torch.Tensor:
        """``(B, H, M, E)``, in the dtype of q."""
        q_BGRMD = torch.unflatten(q_BHMD.to(self.dtype), 1, (k_BGND.shape[1], -1))
        k_BGND, v_BGNE = k_BGND.to(self.dtype), v_BGNE.to(self.dtype)
        if self.chunk is None:
            out_BGRME = attend(
                self.features, q_BGRMD, k_BGND, v_BGNE, self._rows(q_BGRMD, k_BGND, v_BGNE)
            )
        else:
            phi_k_BGNF, top = self.features.keys(k_BGND)
            phi_q_BGRMF = self.features.queries(q_BGRMD, top)
            out_BGRME = attend_causally(phi_q_BGRMF, phi_k_BGNF, v_BGNE, self.chunk)
        return out_BGRME.flatten(1, 2).to(q_BHMD.dtype)

    def _rows(self, *qkv: torch.Tensor) -> int | None:
        """How many rows' features are made at a time: on a CPU as many as its cache holds.

        But not so few, of many heads, that adding up the pieces is most of the work; and all
        where a gradient is wanted, because the backward begins with all features.
        """
        wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in qkv)
        if wants_gradient or qkv[0].device.type != "cpu":
            return None
        batch, keys, group = qkv[0].shape[:3]
        return max(_LEAST_ROWS, _ELEMENTS // (batch * keys * group * self.width))


@register("linear")
class Linear(OfFeatures):
    """Linear attention: elu + 1 of queries and keys in place of the softmax's exponential."""

    source = "Katharopoulos et al. 2020, Transformers are RNNs, arXiv 2006.16236"

    def make_features(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> Features:
        return Elu()


@register("cosformer")
class Cosformer(OfFeatures):
    """cosFormer: relu features, weighted by the cosine of the distance."""

    features = OfFeatures.features - {"cross"}
    source = "Qin et al. 2022, cosFormer, arXiv 2202.08791"

    def make_features(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> Features:
        return ReluByPosition(problem, dtype, device)

    def width(self, problem: Problem) -> int:
        return 2 * problem.head_dim


@register("performer")
class Performer(OfFeatures):
    """Performer (FAVOR+): positive orthogonal random features, drawn from a seed."""

    features = OfFeatures.features | {"scale"}
    options = {"features": 256, "seed": 0, "chunk": 128}
    source = "Choromanski et al. 2021, Rethinking Attention with Performers, arXiv 2009.14794"

    def make_features(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> Features:
        rows, seed = self.width(problem), int(self.options["seed"])
        projection_FD = orthogonal_gaussian(rows, problem.head_dim, seed, dtype, device)
        return Positive(projection_FD, problem.softmax_scale, causal=problem.mask.kind == "causal")

    def width(self, problem: Problem) -> int:
        return int(self.options["features"])

    def drawn(self, problem: Problem) -> int:
        return int(self.options["features"])


@register("rfa")
class RandomFeatures(OfFeatures):
    """Random feature attention: cosines and sines of random projections of unit vectors."""

    options = {"features": 256, "seed": 0, "chunk": 128}
    source = "Peng et al. 2021, Random Feature Attention, arXiv 2103.02143"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if int(self.options["features"]) % 2:
            count = self.options["features"]
            raise Unsupported(f"features come in pairs of a cosine and a sine, got {count}")

    def make_features(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> Features:
        rows, seed = self.drawn(problem), int(self.options["seed"])
        return Trigonometric(orthogonal_gaussian(rows, problem.head_dim, seed, dtype, device))

    def width(self, problem: Problem) -> int:
        return int(self.options["features"])

    def drawn(self, problem: Problem) -> int:
        return int(self.options["features"]) // 2
