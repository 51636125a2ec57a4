"""Puts a mismatch in words: is it normal, where is it worst, what does it look like?

Letters: B = batch, H = heads, S = seqlen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from attnbench.verify import Errors, Standard

ROW_FLOOR = 1e-2  # of the largest row; rows smaller than that are measured against it
_TF32 = (1e-4, 3e-3)  # relative L2 errors that TF32 products (10 bits) leave in float32


@dataclass(frozen=True)
class Mismatch:
    """One tensor beside its truth, both finite."""

    standard: Standard
    got: torch.Tensor  # float64, (batch, heads, seqlen, dim)
    error: torch.Tensor  # |got − truth|
    errors: Errors
    dtype: str  # of the problem

    def normal(self) -> str:
        """For an error within the limits."""
        return f"normal: {self._relation()}"

    def approximate(self) -> str:
        """For an error that is the method's own."""
        return f"an approximation: {self._relation()}"

    def abnormal(self) -> str:
        """For an error that is too large: by which measure, where, and a guess why."""
        return f"not normal: {self._relation()}; {'; '.join(self._excesses())}{self._guess()}"

    def _relation(self) -> str:
        mine, textbook = self.errors, self.standard.textbook
        if mine.max_abs == 0:
            return "exact"
        if textbook.max_abs == 0:
            return f"off by {mine.max_abs:.2g} where the textbook in {self.dtype} is exact"
        ratio = mine.max_abs / textbook.max_abs
        if mine.rel_l2 is not None and textbook.rel_l2:
            ratio = mine.rel_l2 / textbook.rel_l2
        return f"{ratio:.2g} × the error of the textbook in {self.dtype}"

    def _excesses(self) -> list[str]:
        """Each measure that exceeds its limit, with the worst element or row."""
        mine, allowed, truth = self.errors, self.standard.allowed, self.standard.truth
        told = []
        if mine.rel_l2 is not None and allowed.rel_l2 is not None and mine.rel_l2 > allowed.rel_l2:
            told.append(
                f"relative L2 error {mine.rel_l2:.2g} where {allowed.rel_l2:.2g} is allowed"
            )
        if mine.max_abs > allowed.max_abs:
            worst = _index(self.error.argmax(), self.error)
            wrong_BHS = self.error.amax(dim=-1) > allowed.max_abs
            told.append(
                f"worst at {list(worst)}: got {float(self.got[worst]):.6g}, expected "
                f"{float(truth[worst]):.6g}, off by {float(self.error[worst]):.2g} where "
                f"{allowed.max_abs:.2g} is allowed, in {int(wrong_BHS.sum())} of "
                f"{wrong_BHS.numel()} rows"
            )
        elif mine.row_rel is not None and allowed.row_rel and mine.row_rel > allowed.row_rel:
            rows_BHS = row_errors(truth, self.error)
            worst = _index(rows_BHS.argmax(), rows_BHS)
            told.append(
                f"worst row {list(worst)}: relative error {mine.row_rel:.2g} where "
                f"{allowed.row_rel:.2g} is allowed"
            )
        return told

    def _guess(self) -> str:
        """What the error looks like, if it looks like one of the usual mistakes."""
        truth, allowed = self.standard.truth, self.standard.allowed
        if self.errors.rel_l2 is None or allowed.rel_l2 is None:
            return ""
        if not bool(self.got.any()):
            return "; it is all zeros"
        norm = float(truth.norm())
        factor = float((self.got * truth).sum()) / norm**2
        rest = float((self.got - factor * truth).norm()) / norm
        if abs(factor) > 0.01 and rest <= allowed.rel_l2 < abs(factor - 1):
            return f"; it is the truth times {factor:.4g}"
        for name in ("bfloat16", "float16"):  # small bfloat16 numbers are float16 numbers, too
            lower = getattr(torch, name)
            is_lower = torch.finfo(lower).bits < torch.finfo(getattr(torch, self.dtype)).bits
            if is_lower and bool((self.got == self.got.to(lower)).all()):
                return f"; lower precision than asked: every element is a {name} number"
        if self.dtype == "float32" and _TF32[0] < self.errors.rel_l2 < _TF32[1]:
            return (
                "; TF32 products, or other arithmetic of 8 to 11 bits, leave an error of this size"
            )
        return ""


def row_errors(truth: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """The relative L2 error of each row, ``(B, H, S)``; tiny rows against the largest."""
    norms_BHS = truth.norm(dim=-1)
    floor = ROW_FLOOR * float(norms_BHS.max())
    relative_BHS: torch.Tensor = error.norm(dim=-1) / norms_BHS.clamp(min=floor)
    return relative_BHS


def not_finite(got: torch.Tensor, truth: torch.Tensor) -> str:
    """For a tensor with NaN or infinity, where the truth has neither."""
    strange = ~got.isfinite()
    first = _index(strange.to(torch.uint8).argmax(), strange)
    return (
        f"not normal: {int(strange.sum())} of {strange.numel()} elements are not finite, first at "
        f"{list(first)}: got {float(got[first])}, expected {float(truth[first]):.6g}"
    )


def _index(flat: torch.Tensor, like: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(flat, like.shape))
