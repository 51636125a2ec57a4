"""Masks that dropout can have made pass, however few their weights; others do not."""

from __future__ import annotations

import contextlib

import pytest
import torch

from attnbench import Problem
from attnbench.execution import WrongOutput
from attnbench.verify import check_keep


@pytest.mark.parametrize(("heads", "seqlen", "dropout_p"), [(1, 1, 0.01), (4, 2, 0.001)])
def test_few_weights_may_be_dropped_by_chance(heads: int, seqlen: int, dropout_p: float) -> None:
    """Six sigmas of one weight are less than that weight: one mask in a hundred was refused."""
    problem = Problem.of(heads=heads, seqlen=seqlen, dropout_p=dropout_p)
    for drawn in torch.rand(
        2000, heads, seqlen, seqlen, generator=torch.Generator().manual_seed(0)
    ):
        check_keep(problem, drawn[None] >= dropout_p)


def test_many_weights_are_held_to_six_sigmas() -> None:
    problem, count = Problem.of(heads=4, seqlen=128, dropout_p=0.2), 4 * 128**2
    for sigmas, is_refused in ((5.7, False), (-5.7, False), (6.3, True), (-6.3, True)):
        dropped = int(0.2 * count + sigmas * (0.16 * count) ** 0.5)
        keep = (torch.arange(count) >= dropped).view(1, 4, 128, 128)
        with pytest.raises(WrongOutput) if is_refused else contextlib.nullcontext():
            check_keep(problem, keep)
