"""Task ``text``: characters of English prose, as language model, as BERT's, or by genre.

Letters: B = batch, T = tokens of a sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from attnbench.errors import UserError
from attnbench.train.data import scripture
from attnbench.train.data.base import Arrays, SeededTask, at_least
from attnbench.train.data.metrics import Totals, with_bits
from attnbench.train.data.vocabulary import CLS, MASK, SEP, SPECIAL, Characters, Ids
from attnbench.train.roles import IGNORED, Batch, Split

_MASKED = 0.15  # of the characters are predicted (Devlin et al. 2018, arXiv:1810.04805)
_AS_MASK, _AS_RANDOM = 0.8, 0.1  # of these; the rest stays as it is
_SEGMENTS = 3  # special tokens around two segments: [CLS] A [SEP] B [SEP]


class Text(SeededTask):
    """Passages of the World English Bible, by characters.

    causal-lm: predict the next character. masked-lm: two segments as in BERT, 15 % of whose
    characters are to be found again (80 % masked, 10 % random, 10 % as they are); ``label`` is
    0 where the second continues the first, and 1 where it comes from elsewhere.
    classification: the passage's genre, all genres equally often.
    """

    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """The streams of both splits, encoded once a process."""
        self.vocab_size = len(_characters())
        by_genre = self.objective == "classification"
        if by_genre:
            self.classes, self.metric = len(scripture.GENRES), "accuracy"
        else:
            self.classes = 2 if self.objective == "masked-lm" else 0
            self.metric, self.maximize = "bits_per_character", False
        at_least("text", seqlen, {"masked-lm": _SEGMENTS + 4, "classification": 2}.get(
            self.objective, 1
        ))  # fmt: skip
        genres = range(self.classes) if by_genre else [None]
        splits: tuple[Split, ...] = ("train", "validation")
        self._streams = {s: [_stream(s, genre) for genre in genres] for s in splits}
        shortest = min(len(ids) for ids in self._streams["validation"])
        if seqlen >= shortest // 2:
            raise UserError(f"task text has passages of at most {shortest // 2 - 1}, got {seqlen}")

    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Passages from anywhere in the split."""
        if self.objective == "classification":
            return self._passages(rng, split, rows)
        if self.objective == "masked-lm":
            return self._two_segments(rng, self._streams[split][0], rows)
        ids_BT = _windows(rng, self._streams[split][0], rows, self.workload.seqlen + 1)
        return {"input_ids": ids_BT[:, :-1]}, {"tokens": ids_BT[:, 1:]}

    def score(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> Totals:
        """Of language models also ``bits_per_character``; of masked ones, of those predicted."""
        totals = super().score(outputs, batch)
        return with_bits(totals) if "tokens" in batch.targets else totals

    def _passages(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        genre_B = rng.integers(0, self.classes, rows)
        length = self.workload.seqlen - 1
        rest = [_windows(rng, self._streams[split][genre], 1, length) for genre in genre_B]
        first = np.full((rows, 1), CLS)
        return {"input_ids": np.hstack([first, np.concatenate(rest)])}, {"label": genre_B}

    def _two_segments(
        self, rng: np.random.Generator, stream: Ids, rows: int
    ) -> tuple[Arrays, Arrays]:
        room = self.workload.seqlen - _SEGMENTS
        a, b = room - room // 2, room // 2
        starts = len(stream) - b + 1  # of a second segment
        first_B1 = rng.integers(0, len(stream) - room + 1, (rows, 1))
        elsewhere_B = rng.integers(0, 2, rows)
        # At least b away, all round, so that the other segment shares nothing with the next one.
        away_B1 = rng.integers(b, starts - b, (rows, 1)) * elsewhere_B[:, None]
        second_B1 = (first_B1 + a + away_B1) % starts
        cls, sep = np.full((rows, 1), CLS), np.full((rows, 1), SEP)
        text_a, text_b = stream[first_B1 + np.arange(a)], stream[second_B1 + np.arange(b)]
        ids_BT = np.hstack([cls, text_a, sep, text_b, sep])
        types_BT = np.repeat([[0] * (a + 2) + [1] * (b + 1)], rows, axis=0)
        masked_BT, targets_BT = self._masked(rng, ids_BT)
        return (
            {"input_ids": masked_BT, "token_type_ids": types_BT},
            {"tokens": targets_BT, "label": elsewhere_B},
        )

    def _masked(self, rng: np.random.Generator, ids_BT: Ids) -> tuple[Ids, Ids]:
        """BERT's masking; each row has the same number of targets, at least one."""
        chance_BT = np.where(ids_BT >= SPECIAL, rng.random(ids_BT.shape), 2.0)
        count = max(1, round(_MASKED * (ids_BT.shape[1] - _SEGMENTS)))
        chosen_BT = chance_BT.argsort(axis=1).argsort(axis=1) < count
        how_BT = rng.random(ids_BT.shape)
        random_BT = rng.integers(SPECIAL, self.vocab_size, ids_BT.shape)
        shown_BT = np.where(how_BT < _AS_MASK + _AS_RANDOM, random_BT, ids_BT)
        shown_BT = np.where(how_BT < _AS_MASK, MASK, shown_BT)
        return np.where(chosen_BT, shown_BT, ids_BT), np.where(chosen_BT, ids_BT, IGNORED)


def _windows(rng: np.random.Generator, stream: Ids, rows: int, length: int) -> Ids:
    starts_B1 = rng.integers(0, len(stream) - length + 1, (rows, 1))
    windows: Ids = stream[starts_B1 + np.arange(length)]
    return windows


@functools.cache
def _characters() -> Characters:
    return Characters(scripture.english("train") + scripture.english("validation"))


@functools.cache
def _stream(split: Split, genre: int | None) -> Ids:
    return _characters().encode(scripture.english(split, genre))
