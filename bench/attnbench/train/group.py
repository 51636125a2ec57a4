"""What a worker does with one workload: train with every contender, then time them together.

The order is fixed: the reference learns, and again with other rounding, which bounds how far
exact contenders may be from it; each contender is built, verified by itself, learns on the
same batches and is held against that; whole steps are timed in interleaved rounds, and what they
called is verified again; then each step is taken apart. A contender that fails drops out with
its status, the others go on.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from attnbench import registry
from attnbench.attention import Attention
from attnbench.measure import figures
from attnbench.measure.kernels import what_ran
from attnbench.record import TensorAccuracy, worst
from attnbench.rounds import Rounds
from attnbench.train import anatomy, attentions, flops
from attnbench.train.clock import StepClock
from attnbench.train.data import make_task
from attnbench.train.figures import BatchLimit, Breakdown, ModelFlops, Parity
from attnbench.train.learning import Curve, learn
from attnbench.train.models.build import Built
from attnbench.train.proof import used_in, verify_attention
from attnbench.train.setup import make_teacher, make_trainer
from attnbench.train.sizes import largest_batch
from attnbench.train.step import Piece, Trainer, check_precision, products_of
from attnbench.train.truth import Truth
from attnbench.train.workload import Workload
from attnbench.turns import Send

_VARIANTS = 8  # of one compiled model: torch's own limit
_RING = 4  # batches on the device, of which each timed step takes the next


@dataclass
class Learner:
    """One implementation with options, on its way through the phases."""

    key: str
    told: dict[str, Any]  # as the task names it
    attention: Attention
    trainer: Trainer
    workload: Workload  # with the batch that is timed
    batch_limit: BatchLimit | None  # why that is no larger, where it was found
    accuracy: dict[str, TensorAccuracy] = field(default_factory=dict)
    curve: Curve = field(default_factory=lambda: Curve([]))
    parity: Parity | None = None
    ring: list[list[Piece]] = field(default_factory=list)
    tokens: int = 0  # a step
    samples: Any = None
    sampled_s: float = 0.0


class TrainGroup(Rounds[Learner]):
    """All contenders of one workload, in one worker process."""

    def __init__(self, task: dict[str, Any], send: Send) -> None:
        super().__init__(task, send)
        self.workload = Workload.from_json(task["problem"])
        self._truth: Truth | None = None
        self._teacher: torch.nn.Module | None = None

    def run(self) -> None:
        """Train and measure every contender; send a ``result`` for each."""
        self._reference_step()
        try:
            check_precision(self.workload, self.device)
            alive = self._reference_step
            self._teacher = make_teacher(self.workload, self.device, self.seed, alive)
            if self._process == 0:
                self._truth = Truth(self.workload, self.device, self.seed, alive, self._teacher)
                self._truth.find()
        except Exception as error:
            return self._all_fail(error, "the reference's training")
        for told in self._task["contenders"]:
            self._try(told["key"], self._build_and_learn, told)
        if self._ready:
            self._time()

    # ---- phases ----------------------------------------------------------------------

    def _build_and_learn(self, told: dict[str, Any]) -> None:
        key = told["key"]
        self._step(key, "import")
        attention = registry.make(told)
        self._choices[key] = {}
        self._step(key, "build")
        problems = attentions.noted(attention)
        workload, limit = self._sized(key, told)
        trainer = self._trainer(workload, attention)
        learner = Learner(key, told, attention, trainer, workload, limit)
        task = make_task(workload, self.seed)
        piece = learner.trainer.put(task.batch(0))[0]
        for training in (True, False):  # by now at the latest it builds what it needs
            learner.trainer.outputs(piece.batch, training=training)
        if self._truth is not None:
            self._step(key, "verify")
            learner.accuracy = verify_attention(
                registry.make(told), problems, self.device, self.seed
            )
            self._learn(learner)
        learner.ring = [learner.trainer.put(task.batch(i)) for i in range(_RING)]
        learner.tokens = task.batch(0).tokens
        self._ready[key] = learner

    def _sized(self, key: str, told: dict[str, Any]) -> tuple[Workload, BatchLimit | None]:
        """The workload with the batch that this contender is timed with, and its limit."""
        if self.workload.batch:
            return self.workload, None

        def try_batch(batch: int) -> None:
            self._step(key, f"try batch {batch}")
            workload = self.workload.replace(batch=batch)
            trainer = self._trainer(workload, registry.make(told))
            pieces = trainer.put(make_task(workload, self.seed).batch(0))
            for _ in range(2):  # the second has the optimizer's state already
                trainer.step(pieces)

        found = largest_batch(try_batch, self._release, self.workload.accumulation)
        return self.workload.replace(batch=found.batch), found.limit

    def _learn(self, learner: Learner) -> None:
        """Train as the reference did, and hold the curve against its."""
        truth, key = self._truth, learner.key
        assert truth is not None
        self._step(key, "learn")
        trainer = learner.trainer
        is_apart = learner.workload != truth.workload  # timed with another batch than learned with
        if is_apart:
            trainer = self._trainer(truth.workload, registry.make(learner.told))
        learner.curve = learn(trainer, truth.task, self.seed, lambda: self._step(key, "learn"))
        learner.parity = truth.judged(learner.curve.losses, learner.attention.kind)
        if is_apart:  # what is timed is verified afterwards, and this will be gone by then
            self._verify_used(learner, trainer)

    def _time(self) -> None:
        """Interleaved rounds of whole steps, then what needs passes of its own."""
        clock = StepClock(self.device)
        taken = self._sample_survivors(clock)
        for key, own in taken.items():
            learner = self._ready[key]
            learner.samples = figures.headline(own, clock, self.budget)
            learner.sampled_s = own.warmup_s + own.spent_s
        taken.clear()
        self._try_all(self._check_again)
        self._try_all(self._inspect)

    def _check_again(self, key: str) -> None:
        """Verify what the timed steps have called: a curve says nothing about them."""
        learner = self._ready[key]
        self._step(key, "check again")
        self._verify_used(learner, learner.trainer)

    def _verify_used(self, learner: Learner, trainer: Trainer) -> None:
        """Verify once more, with the very objects that a trainer has called."""
        model = cast(Built, trainer.model)
        again = verify_attention(
            learner.attention, model.builds.problems, self.device, self.seed + 1,
            used=used_in(model),
        )  # fmt: skip
        if self._truth is not None:
            learner.accuracy = worst([learner.accuracy, again])

    def _call(self, contender: Learner) -> Callable[[], None]:
        return _next_step(contender)

    def _turn_begins(self, contender: Learner, phase: str) -> None:
        contender.trainer.model.train()

    def _inspect(self, key: str) -> None:
        learner = self._ready[key]
        told = self._taken_apart(learner) if self._process == 0 else {}
        self._guard.check()
        self._send(
            "result",
            who=key,
            status="ok",
            choices=self._choices[key],
            samples=learner.samples.model_dump(),
            host_samples=None,
            accuracy={name: a.model_dump() for name, a in learner.accuracy.items()},
            wall_s=self._phase_s(key) + learner.sampled_s,
            **told,
        )
        del self._ready[key]  # its memory is the next one's

    # ---- a step, taken apart -----------------------------------------------------------

    def _taken_apart(self, learner: Learner) -> dict[str, Any]:
        key, trainer, pieces = learner.key, learner.trainer, learner.ring[0]
        self._step(key, "memory")
        parts, memory = anatomy.memory_parts(trainer, pieces)
        told: dict[str, Any] = {
            "memory": memory.model_dump(),
            "kernels": what_ran(_next_step(learner), self.device),
        }
        told |= self._energy(key, _next_step(learner))
        self._step(key, "breakdown")
        breakdown, counts = self._looked_into(learner, pieces)
        told["training"] = {
            "batch": learner.workload.batch,
            "batch_limit": learner.batch_limit,
            "tokens": learner.tokens,
            "learned_steps": len(learner.curve.losses),
            "stopped": learner.curve.stopped,
            "losses": learner.curve.losses,
            "evaluations": [e.model_dump() for e in learner.curve.evaluations],
            "parity": learner.parity and learner.parity.model_dump(),
            "flops": counts.model_dump(),
            "parameters": flops.parameters_of(trainer.model).model_dump(),
            "breakdown": breakdown.model_dump(),
            "memory": parts.model_dump(),
        }
        return told

    def _looked_into(
        self, learner: Learner, pieces: Sequence[Piece]
    ) -> tuple[Breakdown, ModelFlops]:
        """Breakdown; and FLOPs, of a model built to count: eager, each attention noted."""
        plain = learner.workload.replace(compile=False, checkpointing=False)
        counts = flops.count_step(
            registry.make(learner.told),
            lambda attention: self._trainer(plain, attention),
            make_task(plain, self.seed).batch(0),
        )
        return anatomy.break_down(learner.trainer, pieces), counts

    def _trainer(self, workload: Workload, attention: Attention) -> Trainer:
        return make_trainer(workload, attention, self.device, self.seed, self._teacher)


def _next_step(learner: Learner) -> Callable[[], None]:
    """The timed call: a whole step on the next batch of the ring."""
    step, batches = learner.trainer.step, itertools.cycle(learner.ring)

    def call() -> None:
        step(next(batches))

    return call


def train(task: dict[str, Any], send: Send) -> None:
    """Train one workload's contenders and leave the process clean for the next."""
    gc.collect()
    workload = Workload.from_json(task["problem"])
    with products_of(workload), compiling(workload, len(task["contenders"])):
        if workload.parallel == "none":
            TrainGroup(task, send).run()
        else:
            from attnbench.train.ranks.group import RanksGroup

            RanksGroup(task, send).run()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # compiled variants must not count towards the next one's limit


@contextlib.contextmanager
def compiling(workload: Workload, contenders: int) -> Iterator[None]:
    """Room for every contender's compiled model; one too many raises, and never runs eagerly."""
    if not workload.compile:
        yield
        return
    import torch._dynamo.config

    limit = _VARIANTS * (contenders + 1)
    with torch._dynamo.config.patch(
        recompile_limit=limit, accumulated_recompile_limit=limit, fail_on_recompile_limit_hit=True
    ):
        yield
