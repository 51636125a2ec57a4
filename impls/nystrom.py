"""``nystrom``: the matrix of weights, restored from a few of its rows and columns.

Landmarks are the means of equal segments of the queries and of the keys. With A the weights
between landmarks, ``out = softmax(q k̃ᵀ) A⁺ softmax(q̃ kᵀ) v``: two attentions with as many keys,
or queries, as there are landmarks, and between them a pseudo-inverse of that size. With a
landmark for every token all three matrices are the same, and A A⁺ A is A: dense attention.

A⁺ is iterated, 6 times as in the paper (which does not converge where A is ill-conditioned),
or exact (``inverse=exact``), by a singular value decomposition: then all is in float64,
because A's smallest singular values say how much is lost. The first iterate is scaled for
each matrix alone; one scale for the whole batch would let one sequence change another.

Landmarks mix tokens, so no mask on single ones is defined; nor are lengths that differ.

Letters: B = batch, H = heads_q, G = heads_kv, N = seqlen, L = landmarks, D = head_dim,
E = head_dim_v.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from attnbench import Attention, Problem, Unsupported, register

_INVERSES = ("iterated", "exact")
_ITERATIONS = 6  # the paper's
_RCOND = 1e-10  # singular values below this share of the largest are none


@register("nystrom")
class Nystrom(Attention):
    """Nyströmformer: weights by way of segment means, and a pseudo-inverse between them."""

    kind = "approximate"
    features = frozenset({"backward", "gqa", "head_dim_v", "scale"})
    masks = ("full",)
    dtypes = ("float64", "float32", "bfloat16", "float16")
    options = {"landmarks": 64, "inverse": "iterated", "iterations": _ITERATIONS}
    version = torch.__version__
    source = "Xiong et al. 2021, Nyströmformer, arXiv 2102.03902"

    def supports(self, problem: Problem, device: torch.device) -> None:
        if problem.mask.kind != "full":
            raise Unsupported(
                f"mask {problem.mask.kind} has no definition: each landmark is a mean of many "
                "tokens, which cannot be hidden one by one"
            )
        if problem.seqlen_q != problem.seqlen_k:
            raise Unsupported("seqlen_q ≠ seqlen_k has no definition: it restores a square matrix")
        super().supports(problem, device)
        landmarks, inverse = int(self.options["landmarks"]), self.options["inverse"]
        if not 1 <= landmarks <= problem.seqlen_k:
            raise Unsupported(f"landmarks must be 1 to seqlen {problem.seqlen_k}, got {landmarks}")
        if inverse not in _INVERSES:
            raise Unsupported(f"inverse is {' or '.join(_INVERSES)}, got {inverse!r}")
        if int(self.options["iterations"]) < 1:
            raise Unsupported(f"iterations must be at least 1, got {self.options['iterations']}")
        if inverse == "exact" and self.options["iterations"] != _ITERATIONS:
            raise Unsupported(
                f"inverse exact does not iterate: leave iterations at {_ITERATIONS}, "
                f"got {self.options['iterations']}"
            )

    def build(self, problem: Problem, device: torch.device) -> Restored:
        iterations = int(self.options["iterations"])
        exact = self.options["inverse"] == "exact"
        return Restored(problem, int(self.options["landmarks"]), None if exact else iterations)

    def exact_options(self, problem: Problem) -> Mapping[str, int | str]:
        """Each token its own landmark."""
        return {"landmarks": problem.seqlen_k, "inverse": "exact", "iterations": _ITERATIONS}

    def flops(self, problem: Problem) -> int:
        """``4·N·L·(D + E) + 2·L²·(D + E) + 8·L³`` an iteration, for each query head.

        That is two attentions, A and its use, and the inverse; the exact one is taken as 6
        iterations, which its decomposition costs at least. The backward is twice that, and
        the attentions' logits again, as ``Problem.flops``.
        """
        p, count = problem, int(self.options["landmarks"])
        iterations = int(self.options["iterations"]) if self._iterates else 6
        attentions = 4 * p.seqlen_k * count * (p.head_dim + p.head_dim_v)
        between = 2 * count**2 * (p.head_dim + p.head_dim_v) + 8 * iterations * count**3
        again = 4 * p.seqlen_k * count * p.head_dim
        heads = p.batch * p.heads_q
        forward = heads * (attentions + between)
        backward = 2 * forward + heads * again
        return {"forward": forward, "backward": backward, "both": forward + backward}[p.direction]

    @property
    def _iterates(self) -> bool:
        return self.options["inverse"] == "iterated"


class Restored:
    """One problem's Nyströmformer.

    Args:
        landmarks: how many.
        iterations: of the pseudo-inverse, or None for the exact one.
    """

    def __init__(self, problem: Problem, landmarks: int, iterations: int | None) -> None:
        self.landmarks = landmarks
        self.iterations = iterations
        self.scale = problem.softmax_scale
        self.group = problem.heads_q // problem.heads_kv
        wide = torch.float32 if iterations is not None else torch.float64
        self.dtype = torch.promote_types(problem.torch_dtype, wide)

    def __call__(
        self, q_BHND: torch.Tensor, k_BGND: torch.Tensor, v_BGNE: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (x.to(self.dtype) for x in (q_BHND, k_BGND, v_BGNE))
        q_BHLD, k_BGLD = segment_means(q, self.landmarks), segment_means(k, self.landmarks)
        k_BHLD = k_BGLD.repeat_interleave(self.group, dim=1) if self.group > 1 else k_BGLD
        a_BHLL = (q_BHLD @ k_BHLD.mT * self.scale).softmax(dim=-1)
        read_BHLE = self._attend(q_BHLD, k, v)
        # From the right: the product of N × L and L × L never exists.
        values_BHLE = self._restore(a_BHLL, read_BHLE)
        return self._attend(q, k_BHLD, values_BHLE).to(q_BHND.dtype)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale, enable_gqa=grouped)

    def _restore(self, a_BHLL: torch.Tensor, read_BHLE: torch.Tensor) -> torch.Tensor:
        if self.iterations is None:
            return solved(a_BHLL, read_BHLE)
        return iterated_inverse(a_BHLL, self.iterations) @ read_BHLE


def segment_means(x_BHND: torch.Tensor, count: int) -> torch.Tensor:
    """``(B, H, count, D)``: means of segments whose lengths differ by one at most."""
    length, longer = divmod(x_BHND.shape[2], count)
    cut = longer * (length + 1)  # the longer segments come first
    parts = [torch.unflatten(x_BHND[:, :, cut:], 2, (count - longer, length)).mean(dim=3)]
    if longer:
        parts.insert(0, torch.unflatten(x_BHND[:, :, :cut], 2, (longer, length + 1)).mean(dim=3))
    return torch.cat(parts, dim=2) if longer else parts[0]


def solved(a_LL: torch.Tensor, read_LE: torch.Tensor) -> torch.Tensor:
    """``A⁺ · read``, with the derivative of a solution: ``−A⁺ᵀ · grad`` times the solution.

    Differentiating A⁺ itself would multiply by it twice, and with it the rounding errors.
    Written as one step of refinement, which autograd then differentiates into just that.
    What the pseudo-inverse leaves out as singular is constant to it.
    """
    with torch.no_grad():
        z_LL: torch.Tensor = torch.linalg.pinv(a_LL, rtol=_RCOND)
        solution_LE = z_LL @ read_LE
    return solution_LE + z_LL @ (read_LE - a_LL @ solution_LE)


def iterated_inverse(a_LL: torch.Tensor, iterations: int) -> torch.Tensor:
    """Pseudo-inverses by the paper's third-order iteration, each matrix by itself (its §3.3)."""
    columns, rows = a_LL.sum(dim=-2), a_LL.sum(dim=-1)  # of weights, which are not negative
    size = (columns.amax(dim=-1) * rows.amax(dim=-1))[..., None, None]
    z_LL: torch.Tensor = a_LL.mT / size
    one_LL = torch.eye(a_LL.shape[-1], dtype=a_LL.dtype, device=a_LL.device)
    for _ in range(iterations):
        az_LL = a_LL @ z_LL
        inner_LL = 15 * one_LL - az_LL @ (7 * one_LL - az_LL)
        z_LL = 0.25 * z_LL @ (13 * one_LL - az_LL @ inner_LL)
    return z_LL
