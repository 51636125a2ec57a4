"""A model that several processes train: DDP or FSDP2 around it, and each one's rows of a batch.

The processes learn from the same sequences as one process would: a step's batch is drawn as a
whole, ``processes · batch`` sequences, and each rank takes its rows of it. Losses are weighted
by what the whole batch predicts, over all ranks; the mean of the ranks' gradients, which DDP
and FSDP2 make, is then the gradient of the whole batch, also where ranks predict unequal
numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from attnbench.train.data import make_task
from attnbench.train.data.base import Said
from attnbench.train.data.metrics import Totals
from attnbench.train.loss import target_counts
from attnbench.train.models.build import Built
from attnbench.train.roles import Batch, Split
from attnbench.train.step import Piece, Trainer, part_of
from attnbench.train.workload import Workload


def whole_of(workload: Workload) -> Workload:
    """The same in a single process: one step's sequences of all ranks, in as many parts.

    Parts are as large as a rank's, so that it fits wherever a rank does.
    """
    world = workload.processes
    return workload.replace(
        parallel="none",
        processes=1,
        batch=workload.batch * world,
        accumulation=workload.accumulation * world,
    )


def share_of(workload: Workload) -> Workload:
    """What one rank does of it, as a workload of its own."""
    return workload.replace(parallel="none", processes=1)


class Share:
    """A task as one rank sees it: its rows of each batch; the metrics of rank 0.

    ``own`` is the task of so many rows in a process of its own: that of validation.

    Args:
        workload: of all ranks.
        seed: of the data.
        rank: which rows.
        group: processes whose rank 0 decides what was scored, so that all stop at once.
    """

    def __init__(
        self, workload: Workload, seed: int, rank: int, group: dist.ProcessGroup | None
    ) -> None:
        self._rank, self._world, self._group = rank, workload.processes, group
        self._whole = make_task(whole_of(workload), seed)
        own = self.own = make_task(share_of(workload), seed)
        self.objective, self.vocab_size, self.classes = own.objective, own.vocab_size, own.classes
        self.image, self.metric, self.maximize = own.image, own.metric, own.maximize

    def batch(self, step: int, split: Split = "train") -> Batch:
        """This rank's rows; in validation all ranks look at the same ones."""
        if split == "validation":
            return self.own.batch(step, split)
        return part_of(self._whole.batch(step), self._rank, self._world)

    def score(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> Totals:
        """As rank 0 scored."""
        totals: Totals = self._told(dict(self.own.score(outputs, batch)))
        return totals

    def written(self, said: Said) -> Mapping[str, float]:
        """As rank 0 has the model write: all ranks are asked what it asks, as shards must be."""
        if self._rank == 0:

            def asked(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
                self._told(dict(inputs))
                return said(inputs)

            found = self.own.written(asked)
            self._told(None)
        else:
            found = {}
            while (inputs := self._told(None)) is not None:
                said(inputs)
        figures: Mapping[str, float] = self._told(dict(found))
        return figures

    def _told(self, value: Any) -> Any:
        """What rank 0 gives, on all ranks."""
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self._group)
        return told[0]


@dataclass(frozen=True)
class RankPiece(Piece):
    """A part of a rank's rows.

    Attributes:
        is_last: of the step: only then are gradients exchanged.
    """

    is_last: bool = True


class RankTrainer(Trainer):
    """One rank of a model in training.

    Args:
        workload: of all ranks.
        model: equal on all ranks, on this one's device.
        device: of this rank.
        group: of all ranks, on the CPU.
    """

    def __init__(
        self, workload: Workload, model: Built, device: torch.device, group: dist.ProcessGroup
    ) -> None:
        self._group = group
        if workload.parallel == "fsdp2":
            shard(model, device)  # first: the optimizer shall know the shards
        super().__init__(workload, model, device)
        if workload.parallel == "ddp":
            devices = [device.index] if device.type == "cuda" else None
            # Around the compiled model, where it is compiled, as nanoGPT has it.
            self._call = DistributedDataParallel(self._call, device_ids=devices)

    def put(self, batch: Batch) -> list[Piece]:
        """This rank's rows on the device, in parts, weighted by what all ranks predict."""
        moved, parts = self.move(batch), self.workload.accumulation
        counts = _over_ranks(target_counts(batch), self._group)
        return [
            RankPiece(part_of(moved, i, parts), counts, is_last=i == parts - 1)
            for i in range(parts)
        ]

    def forward(self, piece: Piece) -> torch.Tensor:
        """This rank's share of the loss; the mean over ranks is that of the whole batch."""
        assert isinstance(piece, RankPiece)
        if isinstance(self._call, DistributedDataParallel):
            self._call.require_backward_grad_sync = piece.is_last  # what no_sync() sets
        elif isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(piece.is_last)
        return super().forward(piece)

    @property
    def bucket_bytes(self) -> int:
        """Of the flat copies of gradients that DDP keeps to exchange them."""
        if not isinstance(self._call, DistributedDataParallel):
            return 0
        return sum(p.numel() * p.element_size() for p in self.parameters)


def shard(model: Built, device: torch.device) -> None:
    """FSDP2 with a unit for each layer and one for the rest; parameters stay float32.

    Autocast computes in the lower precision, as in a single process.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for stack in model.inside.parts.stacks:
        for layer in stack.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def agree_on_losses(losses: list[float], group: dist.ProcessGroup) -> list[float]:
    """The mean over ranks, which is the loss of the whole batch."""
    mean = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(mean, group=group)
    found: list[float] = (mean / dist.get_world_size()).tolist()
    return found


def _over_ranks(counts: Mapping[str, float], group: dist.ProcessGroup) -> dict[str, float]:
    """Mean by target of what a rank predicts."""
    names = sorted(counts)
    mean = torch.tensor([counts[name] for name in names], dtype=torch.float64)
    dist.all_reduce(mean, group=group)
    return dict(zip(names, (mean / dist.get_world_size()).tolist(), strict=True))
