"""From weights to colours: one scale for all methods of a picture, and small PNG files.

Weights that are a distribution are drawn in viridis, perceptually uniform, from nothing to the
largest weight of the head; those of a method that has negative ones in coolwarm (Moreland
2009), with zero in the middle. On the logarithmic scale viridis spans four decades, and what
is smaller has its lowest colour. A weight of exactly zero, and a pair that the mask forbids, have
looks of their own: a key that nobody looks at is not a key with little weight.

Letters: M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import Colormap, LogNorm, Normalize, SymLogNorm
from numpy.typing import NDArray
from PIL import Image

from attnbench.pictures.result import Picture

DECADES = 4
"""Of the logarithmic scale, below the largest weight."""
_SIGNED_DECADES = 2  # of the diverging one on either side; linear within
_LEVELS = 254
_ZERO, _FORBIDDEN = 254, 255
_ZERO_LOOK = (176, 180, 184, 255)  # on paper of any colour

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Colours:
    """The scale of one head: a norm and a map.

    Attributes:
        is_signed: for methods with negative weights.
        low, high: the weights at its ends.
    """

    is_signed: bool
    norm: Normalize
    cmap: Colormap
    low: float
    high: float

    def levels(self, weights_MN: Floats, forbidden_MN: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Each weight as one of 254 levels, zero (254) or forbidden (255)."""
        inside = np.clip(weights_MN, self.low, self.high)
        share = np.ma.filled(self.norm(inside), 0.0)
        level_MN: NDArray[np.uint8]
        level_MN = np.clip(np.rint(share * (_LEVELS - 1)), 0, _LEVELS - 1).astype(np.uint8)
        if not self.is_signed:
            level_MN[weights_MN == 0] = _ZERO
        level_MN[forbidden_MN & (weights_MN == 0)] = _FORBIDDEN
        return level_MN

    def palette(self) -> NDArray[np.uint8]:
        """RGBA of the 256 levels."""
        rgba = np.zeros((256, 4), dtype=np.uint8)
        rgba[:_LEVELS] = self.cmap(np.linspace(0, 1, _LEVELS), bytes=True)
        rgba[_ZERO] = _ZERO_LOOK
        return rgba

    def ticks(self) -> list[tuple[float, str]]:
        """Where a colour bar has which label: (0 to 1, text)."""
        if isinstance(self.norm, LogNorm):
            values = list(np.geomspace(self.low, self.high, DECADES + 1))
        elif isinstance(self.norm, SymLogNorm):
            linear = self.norm.linthresh
            values = [self.low, -linear, 0.0, linear, self.high]
        else:
            values = list(np.linspace(self.low, self.high, 3))
        texts = [_short(value) for value in values]
        if isinstance(self.norm, LogNorm):
            texts[0] = f"≤ {texts[0]}"
        return [(float(self.norm(value)), text) for value, text in zip(values, texts, strict=True)]


def colours(picture: Picture, head: int, *, signed: bool) -> Colours | None:
    """The scale of a head (by its place in the picture) for its methods with or without signs.

    None if it has no such method.
    """
    own = [w[head] for n, w in picture.weights.items() if picture.is_signed(n) == signed]
    if not own:
        return None
    high = max(float(np.abs(w).max()) for w in own) or 1.0
    is_log = picture.told.scale == "log"
    norm: Normalize
    if signed:
        low = -high
        linear = high * 10.0**-_SIGNED_DECADES
        norm = SymLogNorm(linear, vmin=low, vmax=high) if is_log else Normalize(low, high)
    else:
        low = high * 10.0**-DECADES if is_log else 0.0
        norm = LogNorm(low, high) if is_log else Normalize(low, high)
    cmap = matplotlib.colormaps["coolwarm" if signed else "viridis"]
    return Colours(signed, norm, cmap, low, high)


def _short(value: float) -> str:
    """Two digits, as few letters as can be: ``0.16``, ``1.6e-5``."""
    return (
        f"{value:.2g}" if abs(value) >= 1e-3 or not value else f"{value:.1e}".replace("e-0", "e-")
    )


def png(levels_MN: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """A PNG file with a pixel for each pair, of 8 bits; forbidden pairs are transparent."""
    image = Image.fromarray(levels_MN)
    image.putpalette(palette[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=palette[:, 3].tobytes())
    return file.getvalue()


ZERO_COLOUR = "#{:02x}{:02x}{:02x}".format(*_ZERO_LOOK)
"""Of a weight of exactly zero, for keys and legends."""


def bar_png(colours: Colours) -> bytes:
    """The colours of a scale from low to high, a pixel each, one row."""
    return png(np.arange(_LEVELS, dtype=np.uint8)[None, :], colours.palette())
