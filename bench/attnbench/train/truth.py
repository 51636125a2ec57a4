"""The truth about a learning curve: the reference's, and how far rounding may lead from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from attnbench.attention import Kind
from attnbench.failure import Failed, classify
from attnbench.train import bound
from attnbench.train.attentions import REFERENCE, reference, shaken
from attnbench.train.data import make_task
from attnbench.train.figures import Parity
from attnbench.train.learning import Curve, learn
from attnbench.train.roles import Task
from attnbench.train.setup import make_trainer
from attnbench.train.workload import Workload

_MOST_BATCH = 64  # to learn with, where the workload asks for the largest that fits


class Truth:
    """The reference's learning curve of one workload.

    Args:
        workload: what is learned; with batch 0, and where the reference does not fit, its
            curve is learned with a smaller batch, and so are those held against it.
        device: where.
        seed: of model, data and dropout.
        alive: called every second or so.
        teacher: whom everybody follows, if anybody.
    """

    def __init__(
        self,
        workload: Workload,
        device: torch.device,
        seed: int,
        alive: Callable[[], None],
        teacher: torch.nn.Module | None = None,
    ) -> None:
        batch = workload.batch or _first_batch(workload.accumulation)
        self.workload = workload.replace(batch=batch)
        self._device, self._seed, self._alive, self._teacher = device, seed, alive, teacher
        self._curve = Curve([])
        self._bound = np.empty(0)

    @property
    def task(self) -> Task:
        """What is learned, as the reference did."""
        return make_task(self.workload, self._seed)

    def find(self) -> None:
        """Train the reference, then again with other rounding.

        Raises:
            Exception: whatever keeps it from learning with the smallest batch.
        """
        while True:
            try:
                self._curve = self._learn(None)
                break
            except Exception as error:
                half = self.workload.batch // 2
                if classify(error).status != "oom" or half % self.workload.accumulation or not half:
                    raise
            self.workload = self.workload.replace(batch=half)
        reruns = [self._learn(i) for i in range(bound.RERUNS)]
        self._bound = bound.allowed(self._curve.losses, [rerun.losses for rerun in reruns])

    def judged(self, losses: list[float], kind: Kind) -> Parity:
        """How far a curve is from the reference's, if it may be so far.

        Raises:
            Failed: an exact implementation's is too far, or any loss is not finite.
        """
        found = self.parity(losses, kind)
        if found.ok is False:
            raise Failed("incorrect", in_words(found))
        if not bound.is_finite(losses):
            raise Failed("incorrect", f"the loss is not finite in step {found.step}")
        return found

    def parity(self, losses: list[float], kind: Kind) -> Parity:
        """How far a curve is from the reference's; judged where it should be the same."""
        found = bound.gap(losses, self._curve.losses, self._bound)
        return Parity(
            ok=found.ok if kind == "exact" else None,
            reference=REFERENCE,
            max_deviation=found.max_deviation,
            ratio=found.ratio,
            step=found.step,
            deviation=found.deviation,
            allowed=found.allowed,
            steps=found.steps,
            batch=self.workload.batch,
            reruns=bound.RERUNS,
            rule=bound.rule(self.workload.precision, dropout=self.workload.dropout > 0),
        )

    def _learn(self, rerun: int | None) -> Curve:
        """One curve: the reference's own, or a rerun's."""
        attention, seed = reference(), self._seed
        workload = self.workload
        if rerun is not None:
            attention = shaken(attention, workload.precision, rerun)
            seed += (1 + rerun) * (workload.dropout > 0)  # other masks
            # A compiled contender rounds differently everywhere: so does the rerun that is not.
            workload = workload.replace(compile=False)
        trainer = make_trainer(workload, attention, self._device, self._seed, self._teacher)
        if rerun is None:
            return learn(trainer, self.task, seed, self._alive)
        return learn(trainer, self.task, seed, self._alive, evaluate=False, most=bound.STEPS)


def _first_batch(parts: int) -> int:
    """The largest ``parts · 2^k`` up to the most that is worth learning with."""
    batch = parts
    while 2 * batch <= _MOST_BATCH:
        batch *= 2
    return batch


def in_words(parity: Parity) -> str:
    """Why a curve does not pass, in a line."""
    if parity.deviation is None:
        return f"the loss is not finite in step {parity.step}; the reference's is"
    return (
        f"does not learn as the reference does: in step {parity.step} the loss is off by "
        f"{parity.deviation:.3g}, allowed {parity.allowed:.3g} (from {parity.reruns} reruns of "
        f"{parity.reference} with other rounding)"
    )
