"""Generated pictures: filled shapes on a dark, noisy ground.

Letters: B = batch, S = side of the square image in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attnbench.errors import UserError
from attnbench.train.roles import ImageShape

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow")
PATCH = 4  # pixels of a patch's side
_CHANNELS = 3
_RGB = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=np.float32)
_NOISE = 0.1  # standard deviation of a pixel

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Things:
    """One thing a picture: indices of shape and colour (B,); centre and radius (B,) in S."""

    shape: Integers
    colour: Integers
    row: Floats
    column: Floats
    radius: Floats


def image_shape(task: str, seqlen: int) -> ImageShape:
    """The image whose patches, and one class token, make ``seqlen``.

    Raises:
        UserError: no square has so many patches, or it would be smaller than 4 × 4 patches.
    """
    side = math.isqrt(seqlen - 1)
    if side < 4 or side * side + 1 != seqlen:
        raise UserError(
            f"task {task} needs a seqlen of a square number of patches ≥ 16 and a class token, "
            f"such as 17, 65 or 197; got {seqlen}"
        )
    return ImageShape(channels=_CHANNELS, size=side * PATCH, patch=PATCH)


def ground(rng: np.random.Generator, rows: int, size: int) -> npt.NDArray[np.float32]:
    """Empty pictures (B, 3, S, S) float32, of noise alone."""
    return rng.standard_normal((rows, _CHANNELS, size, size), dtype=np.float32) * _NOISE


def paint(pixels: npt.NDArray[np.float32], things: Things) -> None:
    """Add one thing to each picture (B, 3, S, S)."""
    size = pixels.shape[-1]
    middle_S = (np.arange(size) + 0.5) / size
    radius_B11 = things.radius[:, None, None]
    y_BS1 = (middle_S[None, :, None] - things.row[:, None, None]) / radius_B11
    x_B1S = (middle_S[None, None, :] - things.column[:, None, None]) / radius_B11
    widest_BSS = np.maximum(abs(x_B1S), abs(y_BS1))
    inside = [
        x_B1S**2 + y_BS1**2 <= 1,
        widest_BSS <= 0.85,
        (abs(y_BS1) <= 1) & (abs(x_B1S) <= (y_BS1 + 1) / 2),
        (widest_BSS <= 1) & (np.minimum(abs(x_B1S), abs(y_BS1)) <= 0.3),
    ]
    shape_B11 = things.shape[:, None, None]
    covered_BSS = np.select([shape_B11 == number for number in range(len(SHAPES))], inside)
    pixels += covered_BSS[:, None] * _RGB[things.colour][:, :, None, None]
