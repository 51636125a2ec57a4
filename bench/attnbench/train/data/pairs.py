"""Task ``pairs``: which caption belongs to which generated picture.

Letters: B = batch, T = tokens of a caption, C = d_model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from attnbench.errors import UserError
from attnbench.train.data.base import Arrays, SeededTask, belongs
from attnbench.train.data.drawing import COLOURS, SHAPES, Things, ground, image_shape, paint
from attnbench.train.data.metrics import Totals, label_totals
from attnbench.train.data.vocabulary import CLS, SPECIAL, Ids
from attnbench.train.loss import match_logits, similarity
from attnbench.train.roles import Batch, Split

_SIZES = ("small", "large")
_RELATIONS = ("above", "below", "left-of", "right-of")
_THING = (len(_SIZES), len(COLOURS), len(SHAPES))
_LIMITS = (*_THING, len(_RELATIONS), *_THING)  # of the seven words, in their order
WORDS = (*_SIZES, *COLOURS, *SHAPES, *_RELATIONS)
"""The ordinary tokens, in their order."""

_CAPTIONS = int(np.prod(_LIMITS))


class Pairs(SeededTask):
    """Pictures of two things, and captions such as "small red cross left-of large blue circle".

    With the contrastive loss, row i of the captions belongs to row i of the pictures, and all
    captions of a batch differ. With cross-entropy, about half of the rows have another row's
    caption instead, and ``label`` is 1 where the two belong together.

    Inputs are ``pixel_values``, whose patches and class token make seqlen, and ``input_ids``
    (B, 8): CLS and seven words. A caption belongs to one split.
    """

    metric = "accuracy"
    vocab_size = SPECIAL + len(WORDS)

    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """The image's shape, and which captions belong to which split."""
        self.image = image_shape("pairs", seqlen)
        self._size = self.image.size
        every = np.arange(_CAPTIONS)
        splits: tuple[Split, ...] = ("train", "validation")
        self._captions = {s: every[belongs(every[:, None], s)] for s in splits}
        most = min(map(len, self._captions.values()))
        if not self.workload.batch <= most or self.workload.batch == 1:
            raise UserError(
                f"task pairs needs a batch of 2 to {most}, whose captions differ, "
                f"got {self.workload.batch}"
            )

    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Captions and their pictures."""
        chosen_B = rng.choice(self._captions[split], rows, replace=False)
        pixels = self._pictures(rng, chosen_B)
        told_B, targets = chosen_B, {}
        if self.workload.loss == "cross-entropy":
            label_B = rng.integers(0, 2, rows)
            told_B = np.where(label_B == 1, chosen_B, np.roll(chosen_B, 1))
            targets = {"label": label_B}
        return {"pixel_values": pixels, "input_ids": caption_ids(told_B)}, targets

    def score(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> Totals:
        """Accuracy: of matched or not, or of finding the other half among the batch's."""
        left_BC, right_BC = outputs["left"], outputs["right"]
        if "label" in batch.targets:
            return label_totals(match_logits(left_BC, right_BC), batch.targets["label"])
        scores_BB = similarity(left_BC, right_BC)
        own_B = torch.arange(len(scores_BB), device=scores_BB.device)
        hits = sum(float((s.argmax(-1) == own_B).sum()) for s in (scores_BB, scores_BB.T))
        return {"accuracy": (hits, 2.0 * len(own_B))}

    def _pictures(self, rng: np.random.Generator, captions_B: Ids) -> np.ndarray:
        size_1, colour_1, shape_1, relation, size_2, colour_2, shape_2 = np.unravel_index(
            captions_B, _LIMITS
        )
        pixels = ground(rng, len(captions_B), self._size)
        # The two centres lie a quarter from the middle, so that the things never overlap.
        rows = np.array([-1, 1, 0, 0])[relation] / 4
        columns = np.array([0, 0, -1, 1])[relation] / 4
        things = ((size_1, colour_1, shape_1, 1), (size_2, colour_2, shape_2, -1))
        for size, colour, shape, side in things:
            y, x = 0.5 + side * rows, 0.5 + side * columns
            jitter = rng.uniform(-0.02, 0.02, (2, len(captions_B)))
            radius = np.array([0.12, 0.22])[size]
            paint(pixels, Things(shape, colour, y + jitter[0], x + jitter[1], radius))
        return pixels


def caption_ids(captions_B: Ids) -> Ids:
    """Tokens (B, 8) of captions by their number."""
    starts = {_SIZES: 0, COLOURS: 2, SHAPES: 6, _RELATIONS: 10}
    kinds = (_SIZES, COLOURS, SHAPES, _RELATIONS, _SIZES, COLOURS, SHAPES)
    words = np.unravel_index(captions_B, _LIMITS)
    shifted = [SPECIAL + starts[kind] + word for kind, word in zip(kinds, words, strict=True)]
    return np.stack([np.full(len(captions_B), CLS), *shifted], axis=1)
