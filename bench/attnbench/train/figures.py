"""The ``training`` part of a record: what was learned, how well, and where the step went.

Only what was measured or counted; tokens a second, MFU and joules a token are derived on
load (``train.derived``).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from attnbench.record_part import Part

BatchLimit = Literal["memory", "time", "most"]
"""Twice as many sequences have no memory, take too long to try, or are more than ever tried."""


class Evaluation(Part):
    """Metrics of the task on its validation batches; one that is not finite has no number."""

    step: int  # optimizer steps made before it
    metrics: dict[str, float | None]


class Parity(Part):
    """How far the learning curve is from the reference's; see ``train.parity``."""

    ok: bool | None  # None: an approximate method; its distance is told, not judged
    reference: str
    max_deviation: float | None = None  # of a step's loss, in nats; None if it is not finite
    ratio: float | None = None  # the largest of deviation ÷ what was allowed at its step
    step: int | None = None  # where that was
    deviation: float | None = None  # there
    allowed: float | None = None  # there
    steps: int  # that were compared
    batch: int  # both curves were learned with
    reruns: int  # of the reference, from which the bound was found
    rule: str  # how, in words


class StepFlops(Part):
    """Floating-point operations of one step's products, by part and in two conventions."""

    dense: int  # outside attention: 6N a token where everything learns
    attention_full: int  # all pairs of every attention
    attention_causal: int  # exactly the pairs that the masks keep

    @property
    def full(self) -> int:
        """The convention that counts a causal mask as full."""
        return self.dense + self.attention_full

    @property
    def causal(self) -> int:
        """The convention that counts exact pairs."""
        return self.dense + self.attention_causal


class TeacherFlops(StepFlops):
    """Of a teacher's forward, whose answer is followed."""


class ModelFlops(StepFlops):
    """Of the model that learns; see ``train.flops``."""

    attention_own: int | None = None  # of an approximate method, by its own formula
    teacher: TeacherFlops | None = None  # beside all these, and in no MFU

    @property
    def attention_least(self) -> int:
        """What attention has to compute: an approximate method by its own formula."""
        return self.attention_causal if self.attention_own is None else self.attention_own


class Parameters(Part):
    """How many numbers the model holds; tied ones count once."""

    total: int
    embedding: int  # of these in tables that are looked up (tied or not)
    trainable: int


class Breakdown(Part):
    """Seconds of the parts of one step, taken apart in a pass of its own.

    Waiting for the device between the parts costs a little: they add up to more than the
    step that was timed.
    """

    forward_s: float
    backward_s: float
    optimizer_s: float  # unscaling, clipping, schedule and clearing gradients included
    attention_share: float | None = None  # of a step, by the profiler, in [0, 1]
    attention_absent: str | None = None  # why it is not told
    method: str


class MemoryParts(Part):
    """Bytes of one step by what they are for."""

    parameters_bytes: int  # buffers included
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int  # that the forward of one part keeps for its backward
    peak_bytes: int  # of everything
    method: str


class Ranks(Part):
    """The processes that shared each step; one of their own session for each contender."""

    processes: int
    backend: str  # of torch.distributed: nccl, or gloo on a CPU
    devices: list[str]  # by rank
    peak_bytes: list[int]  # by rank, of everything, as ``MemoryParts.peak_bytes``
    method: str


class Training(Part):
    """One training run.

    Of several ranks: batch, tokens and FLOPs are those of all, breakdown is rank 0's, memory
    that of the rank whose peak is highest, parameters are those of the whole model.
    """

    batch: int  # sequences a step that were timed; found, where the workload says 0
    batch_limit: BatchLimit | None = None  # why a found batch is no larger
    tokens: int  # a step
    learned_steps: int
    stopped: str | None = None  # why learning ended early
    losses: list[float]  # of each step, in nats, over the whole batch
    evaluations: list[Evaluation] = []
    parity: Parity
    flops: ModelFlops
    parameters: Parameters
    breakdown: Breakdown
    memory: MemoryParts
    ranks: Ranks | None = None

    @model_validator(mode="after")
    def _plausible(self) -> Training:
        if self.batch < 1 or self.tokens < 1:
            raise ValueError("batch and tokens must be positive")
        if len(self.losses) != self.learned_steps:
            raise ValueError("there must be one loss a step")
        return self
