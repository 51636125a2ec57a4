"""The sequences of a padded batch one after another: for who cannot keep packed ones apart.

Tokens that are no padding are packed into one sequence, which a document mask divides. An
implementation that does not take such a mask, but does take each sequence alone, is called
once for each, with what it built for that length. How many calls there are is no longer its
own choice then, and so it is told with what it chose (``choices``).

Letters: T = tokens of all sequences, S = those of one, H = heads_q, D = head_dim or head_dim_v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnbench.attention import Attention, ForwardBackward, Unsupported
from attnbench.building import check_built, choices_of
from attnbench.layer.core import as_core
from attnbench.layer.inside import sequences
from attnbench.problem import Problem
from attnbench.spec import Value
from attnbench.verify import check_keep

Built = Callable[..., Any] | ForwardBackward


class OneByOne:
    """A core of packed tokens that attends within one sequence after another.

    Args:
        problems: of each sequence.
        built: what attends within each; those of equal length may share one.
        implementation: that built them.
        why: why it was not handed all at once.
    """

    def __init__(
        self, problems: Sequence[Problem], built: Sequence[Built], implementation: Attention,
        why: str,
    ) -> None:  # fmt: skip
        self._problems, self._built, self._why = problems, built, why
        self._lengths = [p.seqlen_q for p in problems]
        self._cores = [as_core(one, implementation.layout) for one in built]

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *bias_HTT: torch.Tensor
    ) -> torch.Tensor:
        """``(1, T, H, D)`` from tensors of that layout; of a bias its blocks on the diagonal."""
        pieces = zip(*(_cut(x, self._lengths) for x in (q, k, v)), strict=True)
        biases = [_diagonal(x, self._lengths) for x in bias_HTT]
        out = [
            core(*qkv, *(blocks[i] for blocks in biases))
            for i, (core, qkv) in enumerate(zip(self._cores, pieces, strict=True))
        ]
        return torch.cat(out, dim=1)

    @property
    def choices(self) -> dict[str, Value]:
        """That it is called so, why, and what was chosen for each length."""
        count = len(self._problems)
        told: dict[str, Value] = {
            "padding": f"{count} sequences, one call each and not one for all: {self._why}"
        }
        for built, length in zip(self._built, self._lengths, strict=True):
            told |= {f"{name} ({length} tokens)": x for name, x in choices_of(built).items()}
        return told

    def keep_mask(self) -> torch.Tensor | None:
        """What the last call's dropout kept, ``(1, H, T, T)``; None if that is not revealed.

        Pairs of different sequences are in no call: what is said of them is drawn here.

        Raises:
            WrongOutput: that of one sequence cannot come from the problem's dropout.
        """
        revealed: list[torch.Tensor] = []
        for built in self._built:
            reveal = getattr(built, "keep_mask", None)
            if reveal is None or (keep_1HSS := reveal()) is None:
                return None
            revealed.append(keep_1HSS)
        p, tokens, device = self._problems[0], sum(self._lengths), revealed[0].device
        generator = torch.Generator(device).manual_seed(0)
        shape = (1, p.heads_q, tokens, tokens)
        keep_1HTT = torch.rand(shape, generator=generator, device=device) >= p.dropout_p
        start = 0
        for problem, keep_1HSS in zip(self._problems, revealed, strict=True):
            check_keep(problem, keep_1HSS)
            end = start + problem.seqlen_q
            keep_1HTT[:, :, start:end, start:end] = keep_1HSS
            start = end
        return keep_1HTT


def one_by_one(
    implementation: Attention, problem: Problem, device: torch.device, seed: int, why: Unsupported
) -> OneByOne:
    """Build for each sequence of a layer with padding.

    Args:
        implementation: of level ``op``.
        problem: of level ``layer``, with padding.
        device, seed: as for ``Execution``.
        why: why it does not do all of them at once.

    Raises:
        Unsupported: it does not do one of them by itself either.
        TypeError: what it builds cannot be called.
    """
    each = sequences(problem)
    # With dropout each call has a mask to reveal, and what is called again forgets the last.
    asked = list(each) if problem.dropout_p > 0 else list(dict.fromkeys(each))
    for one in asked:
        try:
            implementation.supports(one, device)
        except Unsupported as refusal:
            if one == each[0]:
                raise
            raise Unsupported(f"{refusal} (the sequence of {one.seqlen_q} tokens)") from refusal
    torch.manual_seed(seed)
    built = list(implementation.build_sequences(asked, device))
    if len(built) != len(asked):
        raise TypeError(f"build_sequences() returned {len(built)} for {len(asked)} sequences")
    for made in built:
        check_built(made)
    if len(asked) < len(each):
        of = dict(zip(asked, built, strict=True))
        built = [of[one] for one in each]
    return OneByOne(each, built, implementation, str(why))


def _diagonal(bias_HTT: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """The bias of each sequence, ``(H, S, S)``."""
    rows = _cut(bias_HTT, lengths)
    return [_cut(row_HST.mT, lengths)[i].mT.contiguous() for i, row_HST in enumerate(rows)]


def _cut(x: torch.Tensor, lengths: Sequence[int]) -> Sequence[torch.Tensor]:
    """Along the second axis; the backward of one cut joins the pieces in one go."""
    pieces: Sequence[torch.Tensor] = torch.split_with_sizes(x, list(lengths), dim=1)
    return pieces
