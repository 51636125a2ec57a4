"""What an implementation claims about its result, and so what it is held to.

An exact implementation claims the problem's answer. A sparse method claims the exact answer
under a mask of its own, and is held to that as strictly; how far it is from the problem's
answer is recorded beside it. Any other approximate method claims nothing but its error.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.attention import Attention, Unsupported
from attnbench.masks import Mask
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


def claim_of(implementation: Attention, problem: Problem) -> Claim:
    """The claim of an implementation.

    Raises:
        TypeError: its ``own_mask()`` gives something else than a mask or None.
        Unsupported: a layer with padding, whose sequences its mask would not keep apart.
    """
    if implementation.kind == "exact":
        return Claim(problem, is_exact=True, is_problems_own=True)
    asked = problem.core
    mask = implementation.own_mask(asked)
    if mask is None:
        return Claim(problem, is_exact=False, is_problems_own=True)
    if not isinstance(mask, Mask):
        raise TypeError(f"own_mask() must return a mask or None, got {type(mask).__name__}")
    if mask == asked.mask:
        return Claim(problem, is_exact=True, is_problems_own=True)
    if problem.padding:
        raise Unsupported("does not do padding: its own mask is for one sequence, not for several")
    return Claim(problem.replace(mask=mask), is_exact=True, is_problems_own=False)
