"""``build_model``: from a workload to a model that is ready for its optimizer.

Letters: B = batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from attnbench.attention import Attention
from attnbench.train.models.bridge import Builds, prepare
from attnbench.train.models.finetune import Counts, finetune
from attnbench.train.models.hugging import Hugging, Outputs, Wanted, build_hugging
from attnbench.train.models.interface import attach, register
from attnbench.train.models.own import Own
from attnbench.train.models.presets import objective_of, sized
from attnbench.train.roles import Task
from attnbench.train.workload import Workload

AUTOCAST: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype that a workload's precision computes in, where it is not that of the weights."""


class Built(nn.Module):
    """A model that learns; what is known about it beside its outputs.

    Attributes:
        inside: the model itself.
        builds: what the implementation built; ``builds.late`` tells of shapes that came later.
        counts: its parameters.
    """

    def __init__(self, inside: Hugging | Own, builds: Builds, counts: Counts) -> None:
        super().__init__()
        self.inside = inside
        self.builds = builds
        self.counts = counts

    def forward(self, **inputs: torch.Tensor) -> Outputs:
        """By name of the target; see :class:`attnbench.train.roles.Model`."""
        return cast(Outputs, self.inside(**inputs))


def build_model(
    workload: Workload, task: Task, attention: Attention, device: torch.device, seed: int
) -> Built:
    """A model on the device, its attention built for every shape that training will meet.

    The same seed gives the same weights, whatever the implementation: what that draws for
    itself comes from a generator of its own. What it learns is there when this returns, so
    that an optimizer made afterwards knows it.

    Raises:
        UserError: unknown model, or sizes or an objective that do not fit it.
        Unsupported: the implementation cannot do what the model needs, in words.
    """
    preset = sized(workload)
    batch = dict(task.batch(0).inputs)
    wanted = Wanted(
        objective=objective_of(workload, task.objective),
        vocab=max(preset.vocab, task.vocab_size),
        classes=task.classes,
        length=max(workload.seqlen, *_lengths(batch), 1),
        sentences="token_type_ids" in batch,
        image=task.image,
        dropout=workload.dropout,
        attention=register(),
    )
    builds = Builds(attention, device, seed=seed)
    with _drawing(device, seed), device:
        inside: Hugging | Own
        if preset.family == "own":
            inside = Own(preset, wanted, builds)
        else:
            inside = build_hugging(preset, wanted)
    inside.to(device)
    _build_attention(inside, builds, workload, batch)
    with _drawing(device, seed):
        counts = finetune(inside, inside.parts, workload.finetune, workload.lora_rank)
    if workload.checkpointing:
        inside.checkpoint()
    return Built(inside, builds, counts)


@contextmanager
def _drawing(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, random numbers follow from the seed; outside, nobody notices."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _lengths(batch: Mapping[str, torch.Tensor]) -> list[int]:
    return [0, *(x.shape[1] for name, x in batch.items() if name.endswith("input_ids"))]


def _build_attention(
    inside: Hugging | Own, builds: Builds, workload: Workload, batch: Mapping[str, torch.Tensor]
) -> None:
    """For a part of a step in training, and for the whole of one in evaluation."""
    whole = {name: x.to(builds.device) for name, x in batch.items()}
    part = {name: x.chunk(workload.accumulation)[0] for name, x in whole.items()}
    ready = attach if isinstance(inside, Hugging) else prepare
    ready(inside, builds, part, whole, AUTOCAST.get(workload.precision))
