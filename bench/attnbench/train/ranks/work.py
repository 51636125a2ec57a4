"""What each rank does of a contender: build, verify, learn, be timed, and be taken apart.

All ranks go through the same phases in the same order; where one of them does something
alone (rank 0 verifies and samples), the others wait for it or follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist

from attnbench import registry
from attnbench.attention import Attention
from attnbench.device import synchronize
from attnbench.guard import Guard
from attnbench.measure import figures
from attnbench.measure.kernels import what_ran
from attnbench.measure.sampling import Budget, sample
from attnbench.problem import Problem
from attnbench.record import TensorAccuracy, worst
from attnbench.train import anatomy, attentions, flops
from attnbench.train.learning import Curve, learn
from attnbench.train.models import build_model
from attnbench.train.models.build import Built
from attnbench.train.proof import used_in, verify_attention
from attnbench.train.ranks.events import Events
from attnbench.train.ranks.lockstep import Lockstep, RankClock
from attnbench.train.ranks.trainer import RankTrainer, Share, agree_on_losses, share_of
from attnbench.train.workload import Workload

_RING = 4  # batches on the device, of which each timed step takes the next


class Work:
    """One rank's part of a job.

    Args:
        job: of all ranks: contender, seed, budget, process.
        workload: of all ranks.
        device: of this one.
        group: of all ranks, on the CPU.
        events: told what goes on.
    """

    def __init__(
        self,
        job: dict[str, Any],
        workload: Workload,
        device: torch.device,
        group: dist.ProcessGroup,
        events: Events,
    ) -> None:
        self._job, self._workload, self._device = job, workload, device
        self._group, self._events = group, events
        self._rank, self._seed = dist.get_rank(), job["seed"]
        self._is_lead = self._rank == 0
        self._guard = Guard()

    def run(self) -> dict[str, Any]:
        """Every phase; of rank 0 what the record will say, but for what the worker counts."""
        attention = registry.make(self._job["contender"])
        problems = attentions.noted(attention)
        trainer = self._trainer(self._workload, attention)
        task = Share(self._workload, self._seed, self._rank, self._group)
        told: dict[str, Any] = {}
        accuracy: dict[str, TensorAccuracy] = {}
        if self._job["process"] == 0:
            if self._is_lead:
                accuracy = self._verified(registry.make(self._job["contender"]), problems, 0)
            told |= self._learned(trainer, task)
        ring = [trainer.put(task.batch(i)) for i in range(_RING)]
        batches = itertools.cycle(ring)

        def step() -> None:
            trainer.step(next(batches))

        trainer.model.train()
        told["samples"] = self._timed(step)
        if self._is_lead:  # what the timed steps have called: a curve says nothing about them
            model = cast(Built, trainer.model)
            again = self._verified(attention, model.builds.problems, 1, used_in(model))
            told["accuracy"] = {
                name: found.model_dump() for name, found in worst([accuracy, again]).items()
            }
        if self._job["process"] == 0:
            told |= self._taken_apart(trainer, ring[0], step)
        self._guard.check_all()
        return told

    def _trainer(self, workload: Workload, attention: Attention) -> RankTrainer:
        """A model with the weights that every rank, and the single process, begins with."""
        torch.manual_seed(self._seed)
        own = share_of(workload)
        task = Share(workload, self._seed, self._rank, self._group)
        model = build_model(own, task.own, attention, self._device, self._seed)
        return RankTrainer(workload, model.train(), self._device, self._group)

    def _verified(
        self,
        attention: Attention,
        problems: list[Problem],
        later: int,
        used: Mapping[Problem, Sequence[Any]] | None = None,
    ) -> dict[str, TensorAccuracy]:
        self._events.step("check again" if later else "verify")
        return verify_attention(attention, problems, self._device, self._seed + later, used=used)

    def _learned(self, trainer: RankTrainer, task: Share) -> dict[str, Any]:
        """The learning curve, with the batch that the reference could learn with."""
        self._events.step("learn")
        workload = self._workload.replace(batch=self._job["learn_batch"])
        if workload != self._workload:
            trainer = self._trainer(workload, registry.make(self._job["contender"]))
            task = Share(workload, self._seed, self._rank, self._group)
        # With dropout each rank draws masks of its own, as rows of one batch have.
        seed = self._seed + self._rank * (workload.dropout > 0)
        curve: Curve = learn(trainer, task, seed, lambda: self._events.step("learn"))
        return {
            "losses": agree_on_losses(curve.losses, self._group),
            "evaluations": [e.model_dump() for e in curve.evaluations],
            "stopped": curve.stopped,
        }

    def _timed(self, step: Callable[[], None]) -> dict[str, Any] | None:
        """Samples of whole steps of all ranks; None but on rank 0."""
        lockstep = Lockstep(step, lambda: synchronize(self._device), self._group)
        if not self._is_lead:
            lockstep.follow()
            return None
        clock, budget = RankClock(self._device, lockstep), Budget(**self._job["budget"])
        taken = sample(
            {"": lambda: _ignore(lockstep.run(1))},
            clock,
            budget,
            self._seed + self._job["process"],
            lambda key, phase: self._events.step(phase),
            lambda key: self._guard.check(),
        )
        lockstep.dismiss()
        return figures.headline(taken[""], clock, budget).model_dump()

    def _taken_apart(
        self, trainer: RankTrainer, pieces: list[Any], step: Callable[[], None]
    ) -> dict[str, Any]:
        """Memory, kernels and parts of a step; on all ranks at once, so many steps each."""
        self._events.step("memory")
        parts, memory = anatomy.memory_parts(trainer, pieces)
        if trainer.bucket_bytes:
            parts = parts.model_copy(
                update={
                    "peak_bytes": parts.peak_bytes + trainer.bucket_bytes,
                    "method": f"{parts.method}; and DDP's buckets",
                }
            )
        peaks: list[Any] = [None] * dist.get_world_size()
        mine = (parts.model_dump(), memory.model_dump())
        dist.all_gather_object(peaks, mine, group=self._group)
        highest = max(peaks, key=lambda own: own[0]["peak_bytes"])
        kernels = what_ran(step, self._device)
        self._events.step("breakdown")
        breakdown = anatomy.break_down(trainer, pieces)
        return {
            "kernels": kernels,
            "memory": highest[1],
            "parts": highest[0],
            "peak_bytes": [own[0]["peak_bytes"] for own in peaks],
            "breakdown": breakdown.model_dump(),
            "parameters": flops.parameters_of(trainer.model).model_dump(),
        }


def _ignore(seconds: float) -> None:
    """A timed call returns nothing."""
