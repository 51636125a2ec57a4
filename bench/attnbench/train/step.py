"""One training step: what is timed. Nothing in it waits for the device or looks at a number.

Forward, backward, gradient clipping, optimizer and schedule, as anybody would write them
by hand; batches are on the device before. Parts of an accumulated batch are weighted by what
they predict, so that they add up to the gradient of the whole batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from attnbench.attention import Unsupported
from attnbench.train.loss import loss_of, target_counts
from attnbench.train.optim import clip_gradients, lr_at, make_optimizer, set_lr
from attnbench.train.roles import Batch
from attnbench.train.workload import Workload

_AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a batch, on the device.

    Attributes:
        batch: its tensors.
        counts: what the whole batch predicts, by target; None where this is the whole batch.
    """

    batch: Batch
    counts: Mapping[str, float] | None = None


class Trainer:
    """A model in training, with its optimizer and schedule.

    Args:
        workload: how it learns.
        model: a ``roles.Model`` on ``device``.
        device: where.
        teacher: whom it follows, with ``workload.distillation``; asked anew in every step.

    Raises:
        Unsupported: the device cannot do the precision.
    """

    def __init__(
        self,
        workload: Workload,
        model: torch.nn.Module,
        device: torch.device,
        teacher: torch.nn.Module | None = None,
    ) -> None:
        check_precision(workload, device)
        self.workload = workload
        self.model = model
        self.device = device
        self._call: Any = torch.compile(model) if workload.compile else model
        self.teacher = teacher
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(workload, model)
        self._rates = [lr_at(workload, step) for step in range(workload.steps)]
        self._done = 0  # steps
        dtype = _AUTOCAST.get(workload.precision)
        self._context: Any = (
            contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
        )
        self._scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None

    @property
    def teachers(self) -> list[torch.Tensor]:
        """The teacher's parameters and buffers; none without one."""
        return [] if self.teacher is None else [*self.teacher.parameters(),
                                                 *self.teacher.buffers()]  # fmt: skip

    def put(self, batch: Batch) -> list[Piece]:
        """A batch on the device, cut into the parts that are accumulated.

        Raises:
            Unsupported: parts whose losses do not add up to that of the batch.
        """
        moved, parts = self.move(batch), self.workload.accumulation
        if parts == 1:
            return [Piece(moved)]
        if not batch.targets:
            raise Unsupported(
                "a contrastive loss over parts is not that of the whole batch: accumulation must "
                f"be 1, got {parts}"
            )
        counts = target_counts(batch)
        return [Piece(part_of(moved, i, parts), counts) for i in range(parts)]

    def forward(self, piece: Piece) -> torch.Tensor:
        """The share of the batch's loss that belongs to a part; a scalar with its graph."""
        with self._context:
            outputs = self._call(**piece.batch.inputs)
            truth = self._asked(piece.batch) if self.teacher is not None else None
            return loss_of(self.workload, outputs, piece.batch, truth, piece.counts)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Follow the schedule (its last rate, beyond its end), clip, step, clear the gradients."""
        scaler = self._scaler
        set_lr(self.optimizer, self._rates[min(self._done, len(self._rates) - 1)])
        if scaler is None:
            clip_gradients(self.workload, self.parameters)
            self.optimizer.step()
        else:
            if self.workload.clip:
                scaler.unscale_(self.optimizer)
                clip_gradients(self.workload, self.parameters)
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._done += 1

    def step(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Learn from one batch; its loss, a scalar on the device that nobody waited for."""
        total: torch.Tensor | None = None
        for piece in pieces:
            loss = self.forward(piece)
            self.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        self.update()
        assert total is not None, "a batch has at least one part"
        return total

    @torch.no_grad()
    def outputs(self, batch: Batch, *, training: bool = False) -> Mapping[str, torch.Tensor]:
        """What the model says to a batch on the device; with dropout only if ``training``."""
        was_training = self.model.training
        self.model.train(training)
        try:
            with self._context:
                found: Mapping[str, torch.Tensor] = self.model(**batch.inputs)
                return found
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def _asked(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """What the teacher says."""
        assert self.teacher is not None
        said: Mapping[str, torch.Tensor] = self.teacher(**batch.inputs)
        return said

    def move(self, batch: Batch) -> Batch:
        """A batch on the device."""
        return Batch(
            {name: x.to(self.device) for name, x in batch.inputs.items()},
            {name: x.to(self.device) for name, x in batch.targets.items()},
            batch.tokens,
        )


def check_precision(workload: Workload, device: torch.device) -> None:
    """Raise Unsupported where a device does not have a precision."""
    if workload.precision == "tf32" and device.type != "cuda":
        raise Unsupported("tf32 is a format of NVIDIA's matrix units: a CPU has none; use fp32")


@contextlib.contextmanager
def products_of(workload: Workload) -> Iterator[None]:
    """Within, float32 products are what the workload's precision says: TF32, or plain float32."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if workload.precision == "tf32" else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def part_of(batch: Batch, index: int, parts: int) -> Batch:
    """The index-th of equal parts, by sequences."""

    def cut(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: x.chunk(parts)[index] for name, x in tensors.items()}

    return Batch(cut(batch.inputs), cut(batch.targets), batch.tokens // parts)
