"""Task ``images``: which shape of which colour is somewhere in a generated picture.

Letters: B = batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attnbench.errors import UserError
from attnbench.train.data.base import Arrays, SeededTask, draw_rows
from attnbench.train.data.drawing import COLOURS, SHAPES, Things, ground, image_shape, paint
from attnbench.train.data.vocabulary import Ids
from attnbench.train.roles import Split

_GRID = 64  # places of a centre along each side
_SIZES = 8


class Images(SeededTask):
    """One thing at a random place and size in noise; sixteen classes: shape and colour.

    ``seqlen`` counts the patches and a class token. A combination of class, place and size
    belongs to one split.
    """

    classes = len(SHAPES) * len(COLOURS)
    metric = "accuracy"

    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """The image's shape.

        Raises:
            UserError: token noise, of which images have none.
        """
        if self.workload.token_noise:
            raise UserError("task images has no tokens: token_noise must be 0")
        self.image = image_shape("images", seqlen)
        self._size = self.image.size

    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Pictures, all classes equally likely."""

        def plans(count: int) -> Ids:
            limits = (self.classes, _GRID, _GRID, _SIZES)
            return np.stack([rng.integers(0, limit, count) for limit in limits], axis=1)

        label, row, column, size = draw_rows(plans, split, rows).T
        radius = 0.12 + 0.13 * size / (_SIZES - 1)
        y, x = (radius + (1 - 2 * radius) * given / (_GRID - 1) for given in (row, column))
        pixels = ground(rng, rows, self._size)
        paint(pixels, Things(label // len(COLOURS), label % len(COLOURS), y, x, radius))
        return {"pixel_values": pixels}, {"label": label}
