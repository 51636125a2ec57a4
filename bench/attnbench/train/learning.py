"""A learning curve: the steps of a workload, looked at now and then.

Losses stay on the device until the end, so that learning does not wait for them.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from attnbench.train.figures import Evaluation
from attnbench.train.loss import loss_of
from attnbench.train.roles import Task
from attnbench.train.step import Trainer

_EVALUATIONS = 10  # over the whole run; one more at its end
_BATCHES = 4  # of validation, in each evaluation
_SIGN_OF_LIFE_S = 1.0
LOSS = "loss"
"""The metric that patience follows: every task has it, and less of it is better."""


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
) -> Curve:
    """Train for the workload's steps.

    Args:
        trainer: a fresh one; the model is left as learned.
        task: what is learned.
        seed: of dropout and token noise.
        alive: called every second or so.
        evaluate: whether to look at validation batches, and stop early by them.
    """
    workload, steps = trainer.workload, trainer.workload.steps
    torch.manual_seed(seed)
    trainer.model.train()
    losses = torch.empty(steps, device=trainer.device)
    stop, curve = _Stop(workload.patience, workload.target), Curve([])
    every, said, done = max(1, steps // _EVALUATIONS), time.monotonic(), 0
    for step in range(steps):
        losses[step] = trainer.step(trainer.put(task.batch(step)))
        done = step + 1
        if time.monotonic() - said > _SIGN_OF_LIFE_S:
            alive()
            said = time.monotonic()
        if evaluate and (done % every == 0 or done == steps):
            metrics = score(trainer, task)
            curve.evaluations.append(Evaluation(step=done, metrics=metrics))
            curve.stopped = stop.reason(metrics) if done < steps else None
            if curve.stopped:
                break
    curve.losses = losses[:done].tolist()
    return curve


def score(trainer: Trainer, task: Task) -> dict[str, float | None]:
    """The task's metrics over a few validation batches; None for one that is not finite."""
    sums: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for step in range(_BATCHES):
        batch = trainer.move(task.batch(step, "validation"))
        outputs = trainer.outputs(batch)
        found = {LOSS: (loss_of(trainer.workload, outputs, batch).item(), 1.0)}
        for name, (total, weight) in (found | dict(task.score(outputs, batch))).items():
            sums[name] += total
            weights[name] += weight
    means = {name: sums[name] / weights[name] for name in sums if weights[name]}
    return {name: value if math.isfinite(value) else None for name, value in means.items()}


class _Stop:
    """Whether to stop early, from one evaluation to the next."""

    def __init__(self, patience: int, target: float) -> None:
        self._patience, self._target = patience, target
        self._best, self._since = math.inf, 0

    def reason(self, metrics: dict[str, float | None]) -> str | None:
        """Why to stop now; None to go on."""
        accuracy = metrics.get("accuracy")
        if self._target and accuracy is not None and accuracy >= self._target:
            return f"accuracy {accuracy:.4g} has reached the target {self._target:g}"
        loss = metrics.get(LOSS)
        if loss is not None and loss < self._best:
            self._best, self._since = loss, 0
        else:
            self._since += 1
        if self._patience and self._since >= self._patience:
            return f"no lower validation loss in {self._since} evaluations"
        return None
