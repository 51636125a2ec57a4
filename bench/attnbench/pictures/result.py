"""A picture as it is kept: ``picture.json`` and ``weights.npz``, in a folder beside the records.

Letters: P = panels, h = heads shown, M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from attnbench.pictures.facts import Facts, is_signed

PICTURES = "pictures"
FILE = "picture.json"
WEIGHTS = "weights.npz"
PAGE = "index.html"

LONGEST = 512
"""The longest seqlen_q and seqlen_k of a picture: every weight is a pixel of its own."""
MOST_HEADS = 8
"""Heads of one picture."""

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
# pydantic's ValidationError is a ValueError

Scale = Literal["log", "linear"]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Panel(_Plain):
    """One method.

    Attributes:
        name: its spec; of the first panel, what the reference is.
        facts: of each head shown; empty if it has no weights to show.
        reason: then, why.
    """

    name: str
    facts: tuple[Facts, ...] = ()
    reason: str | None = None


class PictureFile(_Plain):
    """What is told of a picture; the weights are in an array file beside it.

    Attributes:
        title: the problem in words, or the file with the layer's tensors and the problem.
        problem: as ``Problem.to_json`` has it.
        heads: numbers of the heads shown.
        scale: of the colours.
        epsilon: of the problem's dtype.
        device: that the methods ran on.
        command: that made it.
        panels: the reference first.
    """

    attnbench: str
    title: str
    problem: dict[str, Any]
    heads: tuple[int, ...] = Field(min_length=1, max_length=MOST_HEADS)
    scale: Scale
    epsilon: float
    device: str
    command: str
    panels: tuple[Panel, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Picture:
    """A picture, whole.

    Attributes:
        told: everything but the weights.
        weights: by the number of the panel, float32 (h, M, N); absent where there are none.
        forbidden_MN: bool, the pairs that the mask hides.
    """

    told: PictureFile
    weights: dict[int, NDArray[np.float32]]
    forbidden_MN: NDArray[np.bool_]

    def is_signed(self, panel: int) -> bool:
        """Whether a panel has negative weights in any head, and a diverging scale for all."""
        return is_signed(self.told.panels[panel].facts, self.told.epsilon)

    def write(self, folder: Path) -> None:
        """Write both files.

        Raises:
            OSError: they cannot be written.
        """
        arrays = {f"panel_{number}": w_hMN for number, w_hMN in self.weights.items()}
        np.savez_compressed(folder / WEIGHTS, forbidden=self.forbidden_MN, **arrays)  # type: ignore[arg-type]
        text = self.told.model_dump_json(indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_picture(folder: Path) -> Picture | None:
    """The picture that a folder holds, or None if there is none that can be read.

    Nothing in it is trusted: arrays of other shapes than the problem's make it unreadable.
    """
    try:
        told = PictureFile.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
        with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
            forbidden_MN = arrays["forbidden"]
            shown = [n for n, panel in enumerate(told.panels) if panel.facts]
            weights = {n: arrays[f"panel_{n}"] for n in shown}
    except _UNREADABLE:
        return None
    shape = (len(told.heads), *forbidden_MN.shape)
    is_whole = forbidden_MN.dtype == np.bool_ and forbidden_MN.ndim == 2 and 0 in weights
    is_whole = is_whole and 0 < min(forbidden_MN.shape) <= max(forbidden_MN.shape) <= LONGEST
    for number, w_hMN in weights.items():
        is_whole = is_whole and w_hMN.shape == shape and w_hMN.dtype == np.float32
        is_whole = is_whole and len(told.panels[number].facts) == len(told.heads)
        is_whole = is_whole and bool(np.isfinite(w_hMN).all())
    return Picture(told, weights, forbidden_MN) if is_whole else None


def picture_folder(records: Path, what: str, told: str) -> Path:
    """The folder of one picture; the same request gives the same.

    Args:
        records: folder of the machine's records.
        what: a short name; what no file name should hold becomes ``-``.
        told: everything that tells this picture from others.
    """
    name = re.sub(r"[^\w.]+", "-", what).strip("-.")[:60]
    return records / PICTURES / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def is_picture(folder: Path) -> bool:
    """Whether a folder holds a picture, or nothing."""
    return folder.is_dir() and ((folder / FILE).is_file() or not any(folder.iterdir()))
