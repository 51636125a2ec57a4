"""What a training run is made of: batches, tasks and models, as each sees the others.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, C = d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from attnbench.train.workload import Objective

IGNORED = -100
"""A target that nothing is to be predicted for; the value torch's cross-entropy skips."""

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Batch:
    """Tensors of one step, on the CPU.

    Attributes:
        inputs: by the names of the model's arguments: ``input_ids`` (B, T) and, by objective,
            ``decoder_input_ids`` (B, T), ``token_type_ids`` (B, T), ``pixel_values``
            (B, channels, height, width); int64 but for pixels.
        targets: by the name of the output that is held against them: ``tokens`` (B, T) int64
            with :data:`IGNORED`; ``label`` (B,) int64 (classification; next sentence).
            Matching has none: row i of one side belongs to row i of the other; or, with
            cross-entropy, ``label`` (B,), 1 where the two sides belong together.
        tokens: counted in throughput: all positions that go through attention, the
            encoder's, the decoder's and an image's patches.
    """

    inputs: Mapping[str, torch.Tensor]
    targets: Mapping[str, torch.Tensor]
    tokens: int


@dataclass(frozen=True)
class ImageShape:
    """Square images: channels, pixels of a side, and pixels of a square patch's side."""

    channels: int
    size: int
    patch: int

    @property
    def positions(self) -> int:
        """Patches, and the class token before them."""
        return (self.size // self.patch) ** 2 + 1


class Task(Protocol):
    """Data to learn from, and how well it was learned.

    Batches depend on seed, split and step alone, so that all contenders see the same ones
    and a run can be repeated from any step.
    """

    objective: Objective
    vocab_size: int
    classes: int  # of ``label``; 0 where no output of that name is needed
    image: ImageShape | None  # of ``pixel_values``
    metric: str  # the figure that target and patience look at, among ``metrics.figures``
    maximize: bool  # whether more of it is better

    def batch(self, step: int, split: Split = "train") -> Batch:
        """The batch of a step."""

    def score(
        self, outputs: Mapping[str, torch.Tensor], batch: Batch
    ) -> Mapping[str, tuple[float, float]]:
        """By metric, a sum and its weight: those of several batches add up.

        ``data.metrics.figures`` divides, and derives what is no mean (macro F1, perplexity).
        """

    def written(
        self, said: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
    ) -> Mapping[str, float]:
        """Figures of text that the model writes, which ``said`` asks with a batch's inputs."""


class Model(Protocol):
    """A model: ``torch.nn.Module`` whose forward takes a batch's inputs.

    Returns the outputs that targets are held against: ``tokens`` (B, T, V) and ``label``
    (B, classes); for matching ``left`` and ``right`` (B, C).
    """

    def __call__(self, **inputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Logits, or embeddings."""
