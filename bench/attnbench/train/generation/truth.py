"""The truth about a cache: logits of the same tokens, all read at once, in float64.

Tokens are given (drawn from a seed), not chosen: a greedy choice between two logits that are
nearly alike is decided by rounding, and everything after it would differ. The truth is
transformers' own attention (``eager``; attnbench's reference in the model of our own) with the
model's weights in float64, no cache, every token seeing all before it; norms, softmax and RoPE's
tables are in float32 there, as transformers computes them.

How far a contender may be off is found as for learning curves (``train.bound``): the reference
reads the same tokens :data:`RERUNS` times in the model's precision, without a cache, with every
element of q, k, v and out of each attention moved by one unit in the last place, up or down at
random. Let ``e_i`` be the largest error of a logit of rerun i at one place (a sequence's new
token), and ``s`` the root of their mean square. A contender is within the bound while at every
place

    max |logits − truth| ≤ MARGIN · q · s + floor.

``q`` is the two-sided quantile of Student's t with RERUNS degrees of freedom at
``FALSE_ALARM / places``. If a contender's rounding is MARGIN times that of a rerun or less, and
one direction of the logits carried all of an error, each place alone would raise a false alarm
with a probability of at most FALSE_ALARM / places, and by Bonferroni's inequality all of them
with at most FALSE_ALARM. The largest of many errors scatters less than a single one, so that
the true rate is lower. ``floor`` is two units in the last place of the largest logit: the
rounding of the logits themselves, where the reruns are exact by luck.

Tokens that were chosen while the clock ran are held against the same, with ``d`` the largest
that is allowed at any place: the last logits are within ``d`` of the truth about those tokens,
and each token is at most ``2 d`` below the truth's best.

Letters: B = batch, S = tokens read, T = tokens of the prompt, n = new tokens, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from attnbench.attention import Kind
from attnbench.distributions import t_quantile
from attnbench.train.attentions import REFERENCE, reference, shaken
from attnbench.train.bound import FALSE_ALARM, MARGIN
from attnbench.train.generation.figures import Agreement
from attnbench.train.models.bridge import Builds
from attnbench.train.models.readers import Reader

RERUNS = 8


class Truth:
    """What a model says to given tokens without a cache, and how far rounding may lead from it.

    Args:
        reader: the model, in which nobody attends yet; it stays as it is.
        ids_BS: the tokens.
        new: how many of the last places are looked at.
        precision: that the model computes in: fp32, tf32, bf16 or fp16.
        alive: called before each rerun.
    """

    def __init__(
        self,
        reader: Reader,
        ids_BS: torch.Tensor,
        new: int,
        precision: str,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.ids_BS = ids_BS
        self._reader, self._new, self._precision = reader, new, precision
        self.logits_BnV = self.without_cache(ids_BS)
        self.allowed_Bn = self._find_allowed(alive)

    @torch.inference_mode()
    def without_cache(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, n, V)`` float64 of the last places, all tokens read at once."""
        return self._reader.exact().whole(ids_BS, self._new)

    def agreement(self, logits_BnV: torch.Tensor, kind: Kind) -> Agreement:
        """How far logits are from the truth; judged where they should be the same."""
        error_Bn = (logits_BnV.double() - self.logits_BnV).abs().amax(dim=-1)
        told = {
            "reference": f"{REFERENCE}, without a cache",
            "places": error_Bn.numel(),
            "reruns": RERUNS,
            "rule": self._rule(),
        }
        finite_Bn = error_Bn.isfinite()
        if not bool(finite_Bn.all()):
            sequence, token = (int(i) for i in (~finite_Bn).nonzero()[0])
            ok = False if kind == "exact" else None
            return Agreement(ok=ok, sequence=sequence, token=token, **told)
        ratio_Bn = error_Bn / self.allowed_Bn
        sequence, token = divmod(int(ratio_Bn.argmax()), error_Bn.shape[1])
        ratio = float(ratio_Bn[sequence, token])
        return Agreement(
            ok=ratio <= 1 if kind == "exact" else None,
            max_error=float(error_Bn.max()),
            ratio=ratio,
            sequence=sequence,
            token=token,
            error=float(error_Bn[sequence, token]),
            allowed=float(self.allowed_Bn[sequence, token]),
            **told,
        )

    def missed(
        self, truth_BnV: torch.Tensor, said_Bn: torch.Tensor, last_B1V: torch.Tensor
    ) -> str | None:
        """What is wrong with tokens that were chosen, in words; None if nothing is.

        Args:
            truth_BnV: logits of the new tokens, where what was said is given.
            said_Bn: the tokens, int64.
            last_B1V: the logits that the last of them was chosen by. Whatever was wrong in an
                earlier step is in the cache, and so in these.
        """
        allowed, truth_BnV = float(self.allowed_Bn.max()), truth_BnV.double()
        off = float((last_B1V.double() - truth_BnV[:, -1:]).abs().max())
        if not off <= allowed:
            return f"in the timed calls the last logits are off by {off:.3g}, allowed {allowed:.3g}"
        chosen_Bn = truth_BnV.gather(-1, said_Bn[..., None])[..., 0]
        below_Bn = truth_BnV.amax(dim=-1) - chosen_Bn
        if not bool((below_Bn <= 2 * allowed).all()):
            sequence, token = divmod(int(below_Bn.argmax()), below_Bn.shape[1])
            return (
                f"in the timed calls new token {token} of sequence {sequence} is not the best one: "
                f"{float(below_Bn.max()):.3g} below, rounding explains {2 * allowed:.3g}"
            )
        return None

    def _find_allowed(self, alive: Callable[[], None]) -> torch.Tensor:
        largest_Bn = self.logits_BnV.abs().amax(dim=-1)
        if not bool(largest_Bn.isfinite().all()):
            raise ValueError("the reference's own logits are not finite")
        square_Bn = torch.zeros_like(largest_Bn)
        for rerun in range(RERUNS):
            alive()
            error_Bn = (self._rerun(rerun).double() - self.logits_BnV).abs().amax(dim=-1)
            square_Bn += error_Bn**2 / RERUNS
        if not bool(square_Bn.isfinite().all()):
            raise ValueError(f"the reference's logits are not finite in {self._precision}")
        quantile = t_quantile(1 - FALSE_ALARM / square_Bn.numel(), RERUNS)
        eps = torch.finfo(self._dtype).eps
        return MARGIN * quantile * square_Bn.sqrt() + 2 * eps * largest_Bn

    @torch.inference_mode()
    def _rerun(self, rerun: int) -> torch.Tensor:
        attention = shaken(reference(), self._precision, rerun)
        reader = self._reader.sharing()
        with reader.attended(Builds(attention, self.ids_BS.device, direction="forward")):
            return reader.whole(self.ids_BS, self._new)

    @property
    def _dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._precision, torch.float32)

    def _rule(self) -> str:
        return (
            f"largest error of a logit against float64 ≤ {MARGIN:g} × Student's t ({RERUNS} reruns "
            f"without a cache, false alarm {FALSE_ALARM:g} a generation) × that of the reruns; q, "
            f"k, v and out of each attention moved by one unit in the last place of "
            f"{self._precision}"
        )
