"""Task ``listops``: the value of a nested expression (Nangia & Bowman 2018, arXiv:1804.06028).

Letters: B = batch, T = tokens of a sequence.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from attnbench.train.data.base import Arrays, SeededTask, at_least, draw_rows
from attnbench.train.data.vocabulary import CLS, PAD, SPECIAL
from attnbench.train.roles import Split

_OPERATORS: Mapping[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
WORDS = (*map(str, range(10)), *_OPERATORS, "]")
"""The ordinary tokens, in their order; digits are their own value."""

_IDS = {word: SPECIAL + number for number, word in enumerate(WORDS)}
_MOST_ARGUMENTS = 5
_LONGEST_FLAT = _MOST_ARGUMENTS + 2  # tokens: the operator, its arguments, the bracket


class ListOps(SeededTask):
    """Expressions such as ``[MAX 2 9 [MIN 4 7 ] 0 ]``, and their value, one of ten classes.

    Operators are minimum, maximum, median (rounded down) and sum modulo 10, of two to five
    arguments. Sequences open with CLS; the rest of an expression's row is padding, which is an
    ordinary token here: nothing masks it. Unlike the paper's, expressions are grown to a
    length, drawn between a quarter of the row and all of it, so that short rows are used well.
    Option ``depth``: of the deepest nesting.
    """

    OPTIONS = {"depth": 6}
    classes = 10
    metric = "accuracy"
    vocab_size = SPECIAL + len(WORDS)

    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """Check the length."""
        at_least("listops", seqlen, _LONGEST_FLAT + 1)
        self._depth = options["depth"]

    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Expressions and their values."""
        # Many small draws: the standard library's generator is the faster one for these.
        own = random.Random(int(rng.integers(2**62)))
        seqlen = self.workload.seqlen
        drawn = draw_rows(
            lambda n: np.array([self._row(own) for _ in range(n)]), split, rows, shown=seqlen
        )
        return {"input_ids": drawn[:, :-1]}, {"label": drawn[:, -1]}

    def _row(self, rng: random.Random) -> list[int]:
        """A padded expression, and its value behind it."""
        room = self.workload.seqlen - 1
        words = grow(rng, rng.randint(room // 4, room), self._depth)
        ids = [_IDS[word] for word in words]
        return [CLS, *ids, *[PAD] * (room - len(ids)), evaluate(words)]


def grow(rng: random.Random, length: int, depth: int) -> list[str]:
    """A random expression of at most ``length`` tokens (or the seven of a flat one).

    Digits are replaced by expressions as long as there is room, and as deep as allowed.
    """
    words = _flat(rng)
    level = [1] * len(words)
    while len(words) + _LONGEST_FLAT - 1 <= length:
        places = [i for i, w in enumerate(words) if w.isdigit() and level[i] < depth]
        if not places:
            break
        place = rng.choice(places)
        inner = _flat(rng)
        words[place : place + 1] = inner
        level[place : place + 1] = [level[place] + 1] * len(inner)
    return words


def evaluate(words: list[str]) -> int:
    """The value of an expression, 0 to 9."""
    stack: list[tuple[str, list[int]]] = [("", [])]
    for word in words:
        if word in _OPERATORS:
            stack.append((word, []))
        elif word == "]":
            operator, values = stack.pop()
            stack[-1][1].append(_OPERATORS[operator](values))
        else:
            stack[-1][1].append(int(word))
    return stack[0][1][0]


def _flat(rng: random.Random) -> list[str]:
    digits = [str(rng.randrange(10)) for _ in range(rng.randint(2, _MOST_ARGUMENTS))]
    return [rng.choice(list(_OPERATORS)), *digits, "]"]
