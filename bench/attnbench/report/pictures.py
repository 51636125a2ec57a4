"""Attention pictures: on their own page, and beside the records of a report on its page.

A panel is a small PNG inside the page, drawn from the weights that lie in the picture's
folder; texts go through autoescape, and weights of an unexpected form make no picture.
"""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from attnbench.pictures.facts import notes
from attnbench.pictures.paint import Colours, bar_png, colours, png
from attnbench.pictures.result import PAGE, PICTURES, Picture, read_picture
from attnbench.report.profiles import record_folders

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_BYTES = 3 << 20  # of images inside a report's page, all pictures together


@dataclass(frozen=True)
class PanelView:
    """One method: its image as a data URI, or the reason why there is none."""

    name: str
    distance: str
    notes: Sequence[str]
    image: str | None
    reason: str


@dataclass(frozen=True)
class BarView:
    """A colour bar: an image of one row, and labels with their places in per cent."""

    label: str
    image: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class HeadView:
    """One head: a panel a method."""

    number: int
    panels: Sequence[PanelView]
    bars: Sequence[BarView]


@dataclass(frozen=True)
class PictureView:
    """A picture as the template needs it; without heads it was too large for the page."""

    title: str
    command: str
    seqlen_q: int
    seqlen_k: int
    has_forbidden: bool
    heads: Sequence[HeadView]
    address: str | None  # of its own page, relative to this one

    @property
    def size(self) -> int:
        """Bytes of its images."""
        panels = [panel for head in self.heads for panel in head.panels]
        return sum(len(panel.image) for panel in panels if panel.image)


def find_pictures(results: Sequence[Path], out: Path) -> list[PictureView]:
    """The pictures beside the records of a report, by the names of their folders.

    Args:
        results: record files, and folders of them.
        out: the page's folder.
    """
    parents = sorted({folder.resolve() for path in results for folder in record_folders(path)})
    views, left = [], _MOST_BYTES
    for folder in (folder for parent in parents for folder in sorted(parent.glob(f"{PICTURES}/*"))):
        picture = read_picture(folder)
        if picture is None:
            continue
        address = quote(os.path.relpath(folder / PAGE, out.resolve()))
        view = picture_view(picture, address if (folder / PAGE).is_file() else None)
        if view.size > left:
            view = PictureView(**{**vars(view), "heads": ()})
        left -= view.size
        views.append(view)
    return views


def picture_view(picture: Picture, address: str | None = None) -> PictureView:
    """Everything that is shown of a picture."""
    told = picture.told
    seqlen_q, seqlen_k = picture.forbidden_MN.shape
    heads = [_head(picture, place) for place in range(len(told.heads))]
    has_forbidden = bool(picture.forbidden_MN.any())
    return PictureView(told.title, told.command, seqlen_q, seqlen_k, has_forbidden, heads, address)


def write_page(picture: Picture, path: Path) -> None:
    """The picture's own page: one file, nothing to fetch, no script."""
    css = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    template = _templates().get_template("picture.html.j2")
    text = template.render(picture=picture_view(picture), css=Markup(css))
    path.write_text(text, encoding="utf-8")


def _head(picture: Picture, place: int) -> HeadView:
    told, panels = picture.told, []
    scales = {signed: colours(picture, place, signed=signed) for signed in (False, True)}
    for number, panel in enumerate(told.panels):
        image, distance, said = None, "", []
        if number in picture.weights:
            scale = scales[picture.is_signed(number)]
            assert scale is not None  # it has this panel
            levels_MN = scale.levels(picture.weights[number][place], picture.forbidden_MN)
            image = _uri(png(levels_MN, scale.palette()))
        if number and panel.facts:
            distance = f"total variation {panel.facts[place].tv:.3g}"
            said = notes(panel.facts[place], told.epsilon)
        panels.append(PanelView(panel.name, distance, said, image, panel.reason or ""))
    return HeadView(told.heads[place], panels, [_bar(s) for s in scales.values() if s])


def _bar(scale: Colours) -> BarView:
    label = "weight, of methods with negative ones" if scale.is_signed else "weight"
    ticks = [(100 * share, text) for share, text in scale.ticks()]
    return BarView(label, _uri(bar_png(scale)), ticks)


def _uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
