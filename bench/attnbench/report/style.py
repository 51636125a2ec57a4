"""Who looks like what: one colour, marker and dash for an implementation, everywhere.

Colours are Okabe and Ito's (2008), which people with any colour vision tell apart; shapes
and dashes say the same again, for print and for more implementations than colours. The
baseline is drawn in the ink of the page, so that everything else stands out against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnbench.report.fields import natural
from attnbench.report.points import Point

INK = "ink"  # the page's own text colour, which depends on the theme
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",  # Okabe and Ito
    "#8E8E2B", "#8F6FD0",  # olive and violet, told from the others by shape as well
)  # fmt: skip
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
OUTLINES = {
    "circle": "M.8,0A.8,.8,0,1,1,-.8,0A.8,.8,0,1,1,.8,0Z",
    "square": "M-.75,-.75H.75V.75H-.75Z",
    "triangle-up": "M0,-.85L.9,.7H-.9Z",
    "triangle-down": "M0,.85L.9,-.7H-.9Z",
    "triangle-right": "M.85,0L-.7,.9V-.9Z",
    "diamond": "M0,-1L.75,0L0,1L-.75,0Z",
    "cross": "M-.3,-.9H.3V-.3H.9V.3H.3V.9H-.3V.3H-.9V-.3H-.3Z",
}
"""The shapes as SVG paths in the square from −1 to 1, for legends."""

_DASHES: tuple[tuple[int, ...], ...] = ((), (6, 3), (2, 2), (8, 3, 2, 3))


@dataclass(frozen=True)
class Look:
    """How an implementation is drawn. ``color`` is ``#rrggbb`` or :data:`INK`."""

    name: str
    color: str
    shape: str
    dash: tuple[int, ...]
    is_baseline: bool = False

    @property
    def outline(self) -> str:
        """The marker as an SVG path in the square from −1 to 1."""
        return OUTLINES[self.shape]


def looks(points: Iterable[Point]) -> dict[str, Look]:
    """A look for every implementation, the baseline first, the others by name.

    Depends on nothing but the set of names, so that an implementation looks the same in
    every chart of a page.
    """
    names: dict[str, bool] = {}
    for point in points:
        names[point.implementation] = names.get(point.implementation, False) or point.is_baseline
    ordered = sorted(names, key=lambda name: (not names[name], natural(name)))
    first_baseline = next((name for name in ordered if names[name]), None)
    result = {}
    index = 0
    for name in ordered:
        if name == first_baseline:
            result[name] = Look(name, INK, "circle", (4, 2), is_baseline=True)
            continue
        result[name] = Look(
            name,
            COLORS[index % len(COLORS)],
            SHAPES[(index + 1) % len(SHAPES)],
            _DASHES[index // len(COLORS) % len(_DASHES)],
            is_baseline=names[name],
        )
        index += 1
    return result
