"""What all tasks share: draws that depend on seed, split and step, token noise, batches.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, K = classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from attnbench.errors import UserError
from attnbench.train.data.metrics import Totals, label_totals, token_totals
from attnbench.train.data.vocabulary import SPECIAL, Ids
from attnbench.train.roles import Batch, ImageShape, Split
from attnbench.train.workload import Objective, Workload

Arrays = Mapping[str, npt.NDArray[Any]]
Said = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]

_SPLITS: Mapping[Split, int] = {"train": 0, "validation": 1}
_HELD_OUT = 10  # one in so many goes to validation
_ROUNDS = 1000
_MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], dtype=np.uint64)


class SeededTask(ABC):
    """A ``roles.Task`` whose subclass says in :meth:`draw` what a batch holds.

    Attributes:
        OPTIONS: what ``name:option=value`` may set, with its default.
        metric, maximize: see ``roles.Task``.
        image: the images' shape, where there are any.
    """

    OPTIONS: ClassVar[Mapping[str, int]] = {}
    vocab_size: int = 0
    classes: int = 0
    metric: str = "token_accuracy"
    maximize: bool = True
    image: ImageShape | None = None

    def __init__(
        self, workload: Workload, seed: int, objective: Objective, options: Mapping[str, int]
    ) -> None:
        self.objective = objective
        self.workload = workload
        self.seed = seed
        self.setup(workload.seqlen, options)

    @abstractmethod
    def setup(self, seqlen: int, options: Mapping[str, int]) -> None:
        """Read or prepare what batches are made of, and set the attributes.

        Raises:
            UserError: a seqlen or option that the task cannot have.
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, split: Split, rows: int) -> tuple[Arrays, Arrays]:
        """Inputs and targets of ``rows`` sequences, before token noise."""

    def batch(self, step: int, split: Split = "train") -> Batch:
        """The batch of a step: see ``roles.Batch``.

        Raises:
            ValueError: the workload leaves its batch open.
        """
        if not self.workload.batch:
            raise ValueError("batch 0 stands for the largest that fits: decide it first")
        drawn, targets = self.draw(self._rng(step, split, 0), split, self.workload.batch)
        inputs = dict(drawn)
        if split == "train" and self.workload.token_noise:
            self._add_noise(inputs, self._rng(step, split, 1))
        positions = sum(a.size for name, a in inputs.items() if name.endswith("input_ids"))
        if "pixel_values" in inputs and self.image is not None:
            positions += self.workload.batch * self.image.positions
        return Batch(_tensors(inputs), _tensors(targets), positions)

    def score(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> Totals:
        """By metric, a sum and its weight; ``metrics.figures`` makes figures of added ones."""
        totals: Totals = {}
        if "tokens" in batch.targets:
            totals |= token_totals(outputs["tokens"], batch.targets["tokens"])
        if "label" in batch.targets:
            totals |= label_totals(outputs["label"], batch.targets["label"])
        return totals

    def written(self, said: Said) -> dict[str, float]:
        """Figures of text that a model writes by itself; none where nothing is written.

        Args:
            said: what the model says to the inputs of a batch.
        """
        return {}

    def _rng(self, step: int, split: Split, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _SPLITS[split], step, purpose])

    def _add_noise(self, inputs: dict[str, npt.NDArray[Any]], rng: np.random.Generator) -> None:
        """Replace a share of the ordinary tokens; a stream of its own leaves the rest alone."""
        for name in [n for n in inputs if n.endswith("input_ids")]:
            ids = inputs[name]
            hit = (rng.random(ids.shape) < self.workload.token_noise) & (ids >= SPECIAL)
            inputs[name] = np.where(hit, rng.integers(SPECIAL, self.vocab_size, ids.shape), ids)


def belongs(rows: Ids, split: Split) -> npt.NDArray[np.bool_]:
    """Which rows (B, n) of whole numbers are this split's: a hash holds one in ten out.

    A generated task could draw the same sequence for training and for validation; that a
    row's own content decides about its side makes it impossible.
    """
    mixed = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.T.astype(np.uint64):
        mixed = (mixed ^ column) * _MIX[0]
        mixed ^= mixed >> np.uint64(29)
    held_out: npt.NDArray[np.bool_] = (mixed * _MIX[1] >> np.uint64(33)) % np.uint64(_HELD_OUT) == 0
    return held_out if split == "validation" else ~held_out


def draw_rows(draw: Callable[[int], Ids], split: Split, rows: int, shown: int | None = None) -> Ids:
    """Rows of a split: draws more of them until enough belong to it.

    Their first ``shown`` columns, or all, decide where they belong: what a model gets to see.

    Raises:
        UserError: none ever does, because the task has only a handful of different rows.
    """
    kept: list[Ids] = []
    missing = rows
    for _ in range(_ROUNDS):
        drawn = draw(missing * _HELD_OUT if split == "validation" else missing + missing // 8 + 1)
        kept.append(drawn[belongs(drawn[:, :shown], split)])
        missing -= len(kept[-1])
        if missing <= 0:
            return np.concatenate(kept)[:rows]
    raise UserError(f"the task has too few different sequences to keep some for {split}")


def at_least(name: str, seqlen: int, least: int) -> None:
    """Refuse sequences that are too short for a task.

    Raises:
        UserError: ``seqlen`` is below ``least``.
    """
    if seqlen < least:
        raise UserError(f"task {name} needs seqlen ≥ {least}, got {seqlen}")


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
