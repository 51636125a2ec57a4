"""A learning curve: the steps of a workload, looked at now and then.

Losses stay on the device until the end, so that learning does not wait for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from attnbench.train.data import metrics
from attnbench.train.figures import Evaluation
from attnbench.train.roles import Batch, Task
from attnbench.train.step import Trainer
from attnbench.train.workload import Workload

_EVALUATIONS = 10  # over the whole run; one more at its end
_BATCHES = 4  # of validation, in each evaluation
_SIGN_OF_LIFE_S = 1.0


@dataclass
class Curve:
    """What a model learned.

    Attributes:
        losses: of each step, in nats.
        evaluations: the task's metrics on validation batches.
        stopped: why learning ended before its last step.
    """

    losses: list[float]
    evaluations: list[Evaluation] = field(default_factory=list)
    stopped: str | None = None


def learn(
    trainer: Trainer,
    task: Task,
    seed: int,
    alive: Callable[[], None] = lambda: None,
    *,
    evaluate: bool = True,
    most: int | None = None,
) -> Curve:
    """Train for the workload's steps.

    Args:
        trainer: a fresh one; the model is left as learned.
        task: what is learned.
        seed: of dropout and token noise.
        alive: called every second or so.
        evaluate: whether to look at validation batches, and stop early by them.
        most: steps after which to end in any case; the schedule stays that of all steps.
    """
    workload = trainer.workload
    steps = workload.steps if most is None else min(most, workload.steps)
    torch.manual_seed(seed)
    trainer.model.train()
    losses = torch.empty(steps, device=trainer.device)
    stop, curve = _Stop(workload, task), Curve([])
    every, said, done = max(1, steps // _EVALUATIONS), time.monotonic(), 0
    for step in range(steps):
        losses[step] = trainer.step(trainer.put(task.batch(step)))
        done = step + 1
        if time.monotonic() - said > _SIGN_OF_LIFE_S:
            alive()
            said = time.monotonic()
        if evaluate and (done % every == 0 or done == steps):
            found = score(trainer, task)
            curve.evaluations.append(Evaluation(step=done, metrics=found))
            curve.stopped = stop.reason(found) if done < steps else None
            if curve.stopped:
                break
    if curve.evaluations:
        curve.evaluations[-1] = _with_text(curve.evaluations[-1], trainer, task, alive)
    curve.losses = losses[:done].tolist()
    return curve


def _with_text(
    last: Evaluation, trainer: Trainer, task: Task, alive: Callable[[], None]
) -> Evaluation:
    """The last evaluation, with figures of what the model writes by itself."""

    def said(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        alive()
        return trainer.outputs(trainer.move(Batch(inputs, {}, 0)))

    return Evaluation(step=last.step, metrics={**last.metrics, **task.written(said)})


def score(trainer: Trainer, task: Task) -> dict[str, float | None]:
    """The task's metrics over a few validation batches; None for one that is not finite."""
    totals = []
    for step in range(_BATCHES):
        batch = trainer.move(task.batch(step, "validation"))
        totals.append(task.score(trainer.outputs(batch), batch))
    found = metrics.figures(metrics.add(totals))
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


class _Stop:
    """Whether to stop early, from one evaluation to the next, by the task's own metric."""

    def __init__(self, workload: Workload, task: Task) -> None:
        self._patience, self._target = workload.patience, workload.target
        self._metric, self._sign = task.metric, 1.0 if task.maximize else -1.0
        self._best, self._since = -math.inf, 0

    def reason(self, found: Mapping[str, float | None]) -> str | None:
        """Why to stop now; None to go on."""
        value = found[self._metric]
        height = -math.inf if value is None else self._sign * value
        if self._target and height >= self._sign * self._target:
            return f"{self._metric} {value:.4g} has reached the target {self._target:g}"
        self._since = 0 if height > self._best else self._since + 1
        self._best = max(self._best, height)
        if self._patience and self._since >= self._patience:
            return f"{self._metric} has not improved in {self._since} evaluations"
        return None
