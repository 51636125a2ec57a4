"""What an implementation claims about its result, and so what it is held to.

An exact implementation claims the problem's answer. A sparse method claims the exact answer
under a mask of its own, and is held to that as strictly; how far it is from the problem's
answer is recorded beside it. Any other approximate method claims nothing but its error.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.attention import Attention
from attnbench.layer.inside import asked
from attnbench.masks import Mask, Packed
from attnbench.problem import Problem


@dataclass(frozen=True)
class Claim:
    """One implementation's, on one problem.

    Attributes:
        problem: whose answer the result is compared with.
        is_exact: whether it must be within the tolerance.
        is_problems_own: whether that answer is the one that was asked for.
    """

    problem: Problem
    is_exact: bool
    is_problems_own: bool


def claim_of(implementation: Attention, problem: Problem, *, is_apart: bool = False) -> Claim:
    """The claim of an implementation.

    Args:
        implementation: with its options.
        problem: what is asked for.
        is_apart: whether it solves the sequences of a padded layer one after another, as its
            ``Execution`` tells: its own mask is then that of each.

    Raises:
        TypeError: its ``own_mask()`` gives something else than a mask or None.
    """
    if implementation.kind == "exact":
        return Claim(problem, is_exact=True, is_problems_own=True)
    cores = asked(problem, is_apart=is_apart)
    masks = [mask for core in cores if (mask := _own_mask(implementation, core)) is not None]
    if len(masks) < len(cores):
        return Claim(problem, is_exact=False, is_problems_own=True)
    if masks == [core.mask for core in cores]:
        return Claim(problem, is_exact=True, is_problems_own=True)
    own = Packed(problem.lengths, tuple(masks)) if is_apart else masks[0]
    return Claim(problem.replace(mask=own), is_exact=True, is_problems_own=False)


def _own_mask(implementation: Attention, problem: Problem) -> Mask | None:
    mask = implementation.own_mask(problem)
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"own_mask() must return a mask or None, got {type(mask).__name__}")
    return mask
