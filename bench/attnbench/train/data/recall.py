"""Task ``mqar``: multi-query associative recall (Arora et al. 2023, Zoology, arXiv:2312.04927).

Letters: B = batch, T = tokens of a sequence, P = pairs, S = slots of a question.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attnbench.errors import UserError
from attnbench.train.data.base import Arrays, SeededTask, at_least, draw_rows
from attnbench.train.data.vocabulary import SPECIAL, Ids
from attnbench.train.roles import IGNORED, Split

_POWER = 0.01  # of the law by which questions come soon rather than late; the paper's


class Recall(SeededTask):
    """Pairs of key and value; each key comes again later, and its value is to be told there.

    The sequence opens with the pairs; behind them each key comes once more, at an even
    distance drawn from the paper's power law, with random tokens between. Keys are the first
    half of the vocabulary and values the second. The same sequences serve causal-lm and
    masked-lm (where attention may look both ways): the value itself is never shown again.
    Options: ``vocab`` (V) and ``pairs`` (K) in the paper's terms, whose L is seqlen.
    """

    OPTIONS = {"vocab": 64, "pairs": 4}

    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """Check that pairs and questions have room."""
        self._pairs, self._half = options["pairs"], options["vocab"] // 2
        at_least(f"mqar with {self._pairs} pairs", seqlen, 4 * self._pairs)
        if self._half < self._pairs:
            raise UserError(
                f"vocab of task mqar must be ≥ {2 * self._pairs} for {self._pairs} pairs, "
                f"got {options['vocab']}"
            )
        self.vocab_size = SPECIAL + 2 * self._half
        slots = (seqlen - 2 * self._pairs) // 2
        self._log_p_S = (_POWER - 1) * np.log(np.arange(1, slots + 1))

    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Inputs, and behind them the targets."""
        seqlen = self.workload.seqlen
        both = draw_rows(lambda n: self._sequences(rng, n), split, rows, shown=seqlen)
        inputs_BT, targets_BT = np.split(both, 2, axis=1)
        return {"input_ids": inputs_BT}, {"tokens": targets_BT}

    def _sequences(self, rng: np.random.Generator, rows: int) -> Ids:
        seqlen, pairs, half = self.workload.seqlen, self._pairs, self._half
        key_BP = SPECIAL + rng.random((rows, half)).argsort(axis=1)[:, :pairs]
        value_BP = SPECIAL + half + rng.random((rows, half)).argsort(axis=1)[:, :pairs]
        inputs_BT = rng.integers(SPECIAL, self.vocab_size, (rows, seqlen))
        inputs_BT[:, 0 : 2 * pairs : 2] = key_BP
        inputs_BT[:, 1 : 2 * pairs : 2] = value_BP
        # The largest of log p + Gumbel noise are a draw without replacement (Gumbel top-k).
        noisy_BS = self._log_p_S + rng.gumbel(size=(rows, len(self._log_p_S)))
        place_BP = 2 * pairs + 2 * (-noisy_BS).argsort(axis=1)[:, :pairs]
        targets_BT = np.full((rows, seqlen), IGNORED)
        np.put_along_axis(inputs_BT, place_BP, key_BP, axis=1)
        np.put_along_axis(targets_BT, place_BP, value_BP, axis=1)
        return np.hstack([inputs_BT, targets_BT])
