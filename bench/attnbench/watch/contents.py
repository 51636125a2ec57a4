"""New contents whose truth is known already, at the price of a few elementwise products.

A reference in float64 costs more than the calls that are timed, so new inputs for every
round cannot each have one. But attention is equivariant under signs, to the last bit and in
any order of summation: change the sign of column d of q and of k, and no logit changes; of
column e of v, and column e of the output changes sign; of grad_out, and the gradients do.
Signs drawn for each batch entry, key head and column make contents that nobody has seen,
and the truth of the old ones, with signs, is theirs.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from attnbench.inputs import Inputs
from attnbench.problem import Problem

_LOOKED_AT = 4096  # elements of each input that tell whether it is noise
_DISTINCT = 64  # that many different values there, if there are four times as many elements


@dataclass(frozen=True)
class Signs:
    """±1 for each input and each result of a problem, by name, shaped ``(B, heads, 1, dim)``."""

    by_name: Mapping[str, torch.Tensor]

    def apply(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors in BHSD with their signs; applied twice, everything is as it was."""
        return {name: x * self.by_name[name] for name, x in tensors.items()}


def draw_signs(problem: Problem, device: torch.device, generator: torch.Generator) -> Signs:
    """Draw signs for q, k, v, grad_out and for out, dq, dk, dv, in the problem's dtype.

    ``grad_out`` has a sign more for each key head, which only the gradients share: who knew
    q, k, v and the old grad_out before the backward began does not know the gradients.
    """
    p = problem
    group = p.heads_q // p.heads_kv

    def draw(dim: int) -> torch.Tensor:
        bits = torch.randint(0, 2, (p.batch, p.heads_kv, 1, dim), generator=generator)
        bits[0, 0, 0, 0] = 0  # never all +1, which would be the contents of before
        return (2 * bits - 1).to(p.torch_dtype).to(device)

    qk_BG1D, v_BG1E, back_BG11 = draw(p.head_dim), draw(p.head_dim_v), draw(1)

    def for_queries(x: torch.Tensor) -> torch.Tensor:
        return x if group == 1 else x.repeat_interleave(group, dim=1)

    q_BH1D, out_BH1E, back_BH11 = map(for_queries, (qk_BG1D, v_BG1E, back_BG11))
    return Signs({
        "q": q_BH1D, "k": qk_BG1D, "v": v_BG1E, "grad_out": out_BH1E * back_BH11,
        "out": out_BH1E, "dq": q_BH1D * back_BH11, "dk": qk_BG1D * back_BG11,
        "dv": v_BG1E * back_BG11,
    })  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One batch entry and one key head (with ALiBi, whose slopes differ, all heads).

    Attributes:
        problem: the part, as a problem of its own.
        batch, heads_kv: where it is.
    """

    whole: Problem
    problem: Problem
    batch: int
    heads_kv: slice

    def of_inputs(self, inputs: Inputs) -> Inputs:
        """The inputs of the part."""
        names = ("q", "k", "v", "grad_out")
        given = (*inputs.qkv(), inputs.grad_out_BHME)
        return Inputs(*self.of_tensors(dict(zip(names, given, strict=True))).values())

    def of_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The part of each tensor in BHSD, whether its heads are of queries or of keys."""
        return {name: x[self.batch :][:1, self._heads(x.shape[1])] for name, x in tensors.items()}

    def _heads(self, count: int) -> slice:
        group = count // self.whole.heads_kv
        return slice(self.heads_kv.start * group, self.heads_kv.stop * group)


def draw_part(problem: Problem, generator: torch.Generator) -> Part:
    """A part of the problem that stands for all of it, because nobody knows which it will be."""
    p = problem

    def pick(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    batch = pick(p.batch)
    if p.alibi:
        return Part(p, p.replace(batch=1), batch, slice(0, p.heads_kv))
    head = pick(p.heads_kv)
    small = p.replace(batch=1, heads_kv=1, heads_q=p.heads_q // p.heads_kv)
    return Part(p, small, batch, slice(head, head + 1))


def expect_noise(tensors: Mapping[str, torch.Tensor]) -> None:
    """Zeros and constants draw less power and can be short-cut: nothing is timed on them.

    Raises:
        ValueError: a tensor holds hardly any different values.
    """
    for name, x in tensors.items():
        flat = x.detach().flatten()
        seen = flat[:: -(-flat.numel() // _LOOKED_AT)]
        distinct = int(seen.float().unique().numel())  # type: ignore[no-untyped-call]
        if distinct < min(_DISTINCT, seen.numel() // 4 + 1):
            raise ValueError(
                f"{name} holds {distinct} different values among {seen.numel()}: "
                "on contents of such low entropy nothing is timed"
            )
