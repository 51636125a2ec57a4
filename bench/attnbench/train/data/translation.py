"""Task ``translation``: Japanese verses into English ones, character by character.

Into English, because the tools that judge a translation take words apart at blanks: BLEU, TER
and ROUGE-L fit English as they are, and would need a Japanese tokenizer the other way round.

Letters: B = batch, T = tokens of a sequence, P = pairs of verses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from attnbench.errors import UserError
from attnbench.train.data import scripture
from attnbench.train.data.base import Arrays, Said, SeededTask
from attnbench.train.data.metrics import Totals, with_bits
from attnbench.train.data.vocabulary import END, PAD, START, Characters, Ids
from attnbench.train.data.written import translation_figures
from attnbench.train.roles import IGNORED, Batch, Split

_JAPANESE = 1024  # most frequent characters that have a token: 97 % of the text
_FEWEST = 500  # pairs that are worth learning from

Generate = Callable[[torch.Tensor], torch.Tensor]
"""From ``input_ids`` (B, T) to generated tokens (B, any length), without START."""


class Translation(SeededTask):
    """Pairs of verses that both fit into seqlen with the token that ends them.

    Encoder and decoder have the same fixed length. Padding is an ordinary token that nothing
    masks, so that every implementation of attention can take part; the decoder's targets are
    IGNORED after the end. Verses of either side that training has seen are left out of
    validation.
    """

    metric = "bits_per_character"
    maximize = False

    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """Choose and encode the verses that fit.

        Raises:
            UserError: too few fit.
        """
        source, target = _alphabets()
        self._target, self._shift = target, len(source)
        # One vocabulary: the Japanese characters first, the English ones behind them.
        self.vocab_size = self._shift + len(target)
        fit = [v for v in _pairs() if max(len(v.japanese), len(v.english)) < seqlen]
        if len(fit) < _FEWEST:
            raise UserError(
                f"task translation has {len(fit)} pairs of verses that fit into seqlen {seqlen}, "
                f"and needs {_FEWEST}: try 64 or more"
            )
        self._rows: dict[Split, tuple[Ids, Ids]] = {}
        splits: tuple[Split, ...] = ("train", "validation")
        for split in splits:
            chosen = [v for v in fit if v.split == split]
            self._rows[split] = (
                _padded((source.encode(v.japanese) for v in chosen), seqlen),
                _padded((self._english(v.english) for v in chosen), seqlen),
            )

    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Any verses of the split."""
        source_PT, target_PT = self._rows[split]
        chosen_B = rng.integers(0, len(source_PT), rows)
        target_BT = target_PT[chosen_B]
        decoder_BT = np.hstack([np.full((rows, 1), START), target_BT[:, :-1]])
        decoder_BT[decoder_BT == END] = PAD
        inputs = {"input_ids": source_PT[chosen_B], "decoder_input_ids": decoder_BT}
        return inputs, {"tokens": np.where(target_BT == PAD, IGNORED, target_BT)}

    def score(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> Totals:
        """Also ``bits_per_character``."""
        return with_bits(super().score(outputs, batch))

    def texts(self, tokens_BT: torch.Tensor) -> list[str]:
        """English texts of target tokens or generated ones, up to their end."""
        ids_BT = tokens_BT.cpu().numpy()
        # What is no English character, and not the end, has no letter: it becomes a mark.
        shifted_BT = np.where(ids_BT == END, END, np.maximum(ids_BT - self._shift, 0))
        return [self._target.decode(row) for row in shifted_BT]

    def judge(
        self, generate: Generate, steps: Iterable[int], split: Split = "validation"
    ) -> dict[str, float]:
        """Translate the batches of some steps and hold the texts against the true ones.

        Returns:
            ``translation_figures`` of all of them.
        """
        said: list[str] = []
        true: list[str] = []
        for step in steps:
            batch = self.batch(step, split)
            said += self.texts(generate(batch.inputs["input_ids"]))
            true += self.texts(batch.targets["tokens"])
        return translation_figures(said, true)

    def written(self, said: Said) -> dict[str, float]:
        """BLEU, chrF, TER and ROUGE-L of one validation batch, translated greedily.

        The decoder is asked with its whole length for each token, filled up with PAD: nobody
        needs a cache, and implementations see the one shape that they were built for.
        """

        def generate(ids_BT: torch.Tensor) -> torch.Tensor:
            decoder_BT = torch.full_like(ids_BT, PAD)
            decoder_BT[:, 0] = START
            said_BT = torch.full_like(ids_BT, END)
            for place in range(ids_BT.shape[1]):
                asked = {"input_ids": ids_BT, "decoder_input_ids": decoder_BT}
                next_B = said(asked)["tokens"][:, place].argmax(-1).to(ids_BT.device)
                said_BT[:, place] = next_B
                if place + 1 < ids_BT.shape[1]:
                    decoder_BT[:, place + 1] = next_B.where(next_B != END, PAD)
            return said_BT

        return self.judge(generate, range(1))

    def _english(self, text: str) -> Ids:
        return self._target.encode(text) + self._shift


def _padded(rows: Iterable[Ids], length: int) -> Ids:
    """Rows (P, T), each with its END, then PAD."""
    table = []
    for row in rows:
        padded = np.full(length, PAD)
        padded[: len(row)] = row
        padded[len(row)] = END
        table.append(padded)
    return np.array(table)


@functools.cache
def _pairs() -> tuple[scripture.Verse, ...]:
    """Verses in both languages, without what validation would share with training."""
    both = [v for v in scripture.verses() if v.japanese]
    trained = [v for v in both if v.split == "train"]
    seen = {v.japanese for v in trained} | {v.english for v in trained}
    return tuple(v for v in both if v.split == "train" or not {v.japanese, v.english} & seen)


@functools.cache
def _alphabets() -> tuple[Characters, Characters]:
    """Of the training verses: the Japanese and the English characters."""
    trained = [v for v in _pairs() if v.split == "train"]
    source = Characters("".join(v.japanese for v in trained), _JAPANESE)
    return source, Characters("".join(v.english for v in trained))
