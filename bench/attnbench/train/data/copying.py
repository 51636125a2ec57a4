"""Task ``copy``: say again what was shown; the cheapest test of attention that looks far back.

Letters: B = batch, T = tokens of a sequence, S = symbols to be copied.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attnbench.errors import UserError
from attnbench.train.data.base import Arrays, SeededTask, at_least, draw_rows
from attnbench.train.data.vocabulary import MASK, SEP, SPECIAL, START
from attnbench.train.roles import IGNORED, Split


class Copying(SeededTask):
    """Random symbols, to be repeated in their order.

    causal-lm: S = T/2 symbols, a separator, and the symbols again, which alone are targets.
    masked-lm: S = T/2 symbols, and as many masks in whose places they are to be found.
    seq2seq: the decoder repeats the T symbols of the encoder.
    Option ``vocab``: how many symbols there are.
    """

    OPTIONS = {"vocab": 32}

    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """Check the length."""
        at_least("copy", seqlen, 8)
        if options["vocab"] < 2:
            raise UserError(f"vocab of task copy must be ≥ 2, got {options['vocab']}")
        if seqlen % 2 and self.objective != "seq2seq":
            raise UserError(f"task copy needs an even seqlen, half to be copied, got {seqlen}")
        self.vocab_size = SPECIAL + options["vocab"]

    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Symbols, all equally likely."""
        seqlen = self.workload.seqlen
        count = seqlen if self.objective == "seq2seq" else seqlen // 2
        symbols_BS = draw_rows(
            lambda n: rng.integers(SPECIAL, self.vocab_size, (n, count)), split, rows
        )
        nothing_BS = np.full_like(symbols_BS, IGNORED)
        if self.objective == "masked-lm":
            inputs_BT = np.hstack([symbols_BS, np.full_like(symbols_BS, MASK)])
            return {"input_ids": inputs_BT}, {"tokens": np.hstack([nothing_BS, symbols_BS])}
        said_BS = symbols_BS[:, :-1]
        if self.objective == "seq2seq":
            decoder_BT = np.hstack([np.full((rows, 1), START), said_BS])
            inputs = {"input_ids": symbols_BS, "decoder_input_ids": decoder_BT}
            return inputs, {"tokens": symbols_BS}
        inputs_BT = np.hstack([symbols_BS, np.full((rows, 1), SEP), said_BS])
        return {"input_ids": inputs_BT}, {"tokens": np.hstack([nothing_BS, symbols_BS])}
