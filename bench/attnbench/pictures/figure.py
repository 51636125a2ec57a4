"""A picture as PNG and SVG: small multiples, a panel a method, the reference first.

Nothing in a file depends on when or where it was drawn.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from attnbench.pictures.facts import notes
from attnbench.pictures.paint import ZERO_COLOUR, Colours, colours
from attnbench.pictures.result import Picture

_COLUMNS = 4
_PANEL_IN, _IMAGE_IN = 3.1, 2.56  # across: a panel with its axis, its image alone
_LEFT_IN = 0.46  # of a panel's axis
_LINE_IN, _BELOW_IN, _FOOT_IN = 0.145, 0.5, 0.72  # down: a title's line, the axis, colour bars
_TITLE_WIDTH = 42  # letters in a line
_REASON_WIDTH = 46
_DPI = 200  # an image of 512 keys has a dot for each
_INK, _SOFT, _HATCH, _BAD = "#1d232a", "#59636e", "#c3c9cf", "#b3261e"
_STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "axes.titlelocation": "left", "axes.edgecolor": "#9aa3ac", "axes.labelcolor": _INK,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "xtick.color": _SOFT, "ytick.color": _SOFT,
    "hatch.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8,
    "svg.hashsalt": "attnbench", "svg.fonttype": "none",
    "text.parse_math": False,  # names are data: a $ in one is a $
}  # fmt: skip


def draw_picture(picture: Picture, folder: Path) -> list[Path]:
    """Write ``head-H.png`` and ``head-H.svg`` of every head shown."""
    paths: list[Path] = []
    with matplotlib.rc_context(_STYLE):
        for place, head in enumerate(picture.told.heads):
            figure = _figure(picture, place)
            png, svg = folder / f"head-{head}.png", folder / f"head-{head}.svg"
            figure.savefig(png, dpi=_DPI, metadata={"Software": None})
            figure.savefig(svg, dpi=_DPI, metadata={"Date": None, "Creator": None})
            paths += [png, svg]
    return paths


def _figure(picture: Picture, place: int) -> Figure:
    """One head. Laid out by hand: every panel is square-ish and has room for its own title."""
    told = picture.told
    columns = min(_COLUMNS, len(told.panels))
    titles = [_title(picture, number, place) for number in range(len(told.panels))]
    rows = [titles[i : i + columns] for i in range(0, len(titles), columns)]
    tops = [_LINE_IN * max(len(lines) for lines, _ in row) for row in rows]
    aspect = min(max(picture.forbidden_MN.shape[0] / picture.forbidden_MN.shape[1], 0.25), 2.0)
    width, panel_height = columns * _PANEL_IN, _IMAGE_IN * aspect
    head = textwrap.wrap(f"{told.title}, head {told.heads[place]}", 36 * columns)
    height = len(head) * 0.17 + sum(tops) + len(rows) * (panel_height + _BELOW_IN) + _FOOT_IN
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.06 / height, "\n".join(head), va="top", fontsize=9,
                fontweight="bold", color=_INK)  # fmt: skip
    scales = {signed: colours(picture, place, signed=signed) for signed in (False, True)}
    y = height - len(head) * 0.17
    for row, top in enumerate(tops):
        y -= top + panel_height + 0.1
        for column in range(len(rows[row])):
            number, x = row * columns + column, column * _PANEL_IN + _LEFT_IN
            box = (x / width, y / height, _IMAGE_IN / width, panel_height / height)
            axes = figure.add_axes(box)
            lines, is_warned = titles[number]
            axes.set_title("\n".join(lines), color=_BAD if is_warned else _INK)
            if number in picture.weights:
                scale = scales[picture.is_signed(number)]
                assert scale is not None  # it has this panel
                _draw(axes, picture.weights[number][place], picture.forbidden_MN, scale)
            else:
                _say(axes, told.panels[number].reason or "")
        y -= _BELOW_IN - 0.1
    _foot(figure, picture, place, [s for s in scales.values() if s])
    return figure


def _title(picture: Picture, number: int, place: int) -> tuple[list[str], bool]:
    """The lines above a panel, and whether they tell of something that is not as it should be."""
    panel = picture.told.panels[number]
    lines = textwrap.wrap(panel.name, _TITLE_WIDTH)
    if not number or not panel.facts:
        return lines, False
    said = notes(panel.facts[place], picture.told.epsilon)
    lines.append(f"total variation {panel.facts[place].tv:.3g}")
    lines += [part for note in said for part in textwrap.wrap(note, _TITLE_WIDTH)]
    return lines, bool(said)


def _draw(
    axes: Axes,
    weights_MN: NDArray[np.float32],
    forbidden_MN: NDArray[np.bool_],
    scale: Colours,
) -> None:
    """One method's weights of one head."""
    seqlen_q, seqlen_k = weights_MN.shape
    if forbidden_MN.any():
        box = Rectangle((-0.5, -0.5), seqlen_k, seqlen_q, hatch="/////", fc="white", ec=_HATCH,
                        lw=0)  # fmt: skip
        axes.add_patch(box)
    rgba = scale.palette()[scale.levels(weights_MN, forbidden_MN)]
    axes.imshow(rgba, interpolation="nearest", aspect="auto", zorder=2)
    axes.set_xlim(-0.5, seqlen_k - 0.5)
    axes.set_ylim(seqlen_q - 0.5, -0.5)
    axes.set_xlabel("key", labelpad=1)
    axes.set_ylabel("query", labelpad=1)
    axes.set_xticks(_places(seqlen_k))
    axes.set_yticks(_places(seqlen_q))


def _say(axes: Axes, reason: str) -> None:
    """A panel of a method without weights: why."""
    axes.set_xticks([])
    axes.set_yticks([])
    text = "\n".join(textwrap.wrap(reason, _REASON_WIDTH, max_lines=14, placeholder=" …"))
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=7, color=_SOFT)


def _foot(figure: Figure, picture: Picture, place: int, scales: Sequence[Colours]) -> None:
    """Colour bars, and the looks that are on none."""
    width, height = figure.get_size_inches()
    for number, scale in enumerate(scales):
        x = _LEFT_IN + number * _PANEL_IN
        axes = figure.add_axes((x / width, 0.36 / height, _IMAGE_IN / width, 0.1 / height))
        bar = axes.figure.colorbar(ScalarMappable(scale.norm, scale.cmap), cax=axes,
                                   orientation="horizontal")  # fmt: skip
        values, texts = zip(*scale.ticks(), strict=True)
        bar.outline.set_visible(False)
        axes.set_title("weight" + (", of methods with negative ones" if scale.is_signed else ""),
                       fontsize=7, color=_SOFT)  # fmt: skip
        axes.minorticks_off()
        axes.set_xticks([scale.norm.inverse(v) for v in values], texts)
        labels = axes.get_xticklabels()
        labels[0].set_horizontalalignment("left")
        labels[-1].set_horizontalalignment("right")
    if keys := _keys(picture, place):
        x = _LEFT_IN + len(scales) * _PANEL_IN
        under = x + _PANEL_IN <= width + 0.01
        at = (x / width, 0.3 / height) if under else (_LEFT_IN / width, 0.0)
        figure.legend(handles=keys, loc="lower left", bbox_to_anchor=at, borderpad=0, ncols=2,
                      fontsize=7, labelcolor=_SOFT, columnspacing=1.2)  # fmt: skip


def _keys(picture: Picture, place: int) -> Sequence[Patch]:
    keys = []
    if picture.forbidden_MN.any():
        keys.append(Patch(hatch="/////", fc="white", ec=_HATCH, lw=0, label="the mask forbids it"))
    plain = (w[place] for n, w in picture.weights.items() if not picture.is_signed(n))
    if any(bool(((w == 0) & ~picture.forbidden_MN).any()) for w in plain):
        keys.append(Patch(fc=ZERO_COLOUR, lw=0, label="exactly zero"))
    return keys


def _places(length: int) -> list[int]:
    """Round ticks from 0 on, about four, and none beyond the last."""
    step = 2 ** max(0, math.ceil(math.log2(max(length, 1) / 4)))
    return [int(x) for x in np.arange(0, length, step)]
