"""The record: one measured (or refused, or failed) point, one line of JSON.

Schema history
    1.0.0  first form.
    1.1.0  device and host time apart (``host_samples``); samples say method, cache state and
           whether warm-up reached a steady state; memory by parts; energy; telemetry;
           kernels; pairs and revisions of an implementation.
    1.2.0  implementations that ran in a simulator (``Implementation.simulated``); what one
           chose for itself in ``build()`` (``choices``); of approximate methods their own
           FLOPs and bytes, and their distance from the answer that was asked for.
    1.3.0  problems of level ``layer``, with the accuracy of a layer's own tensors; records of
           the kinds ``training`` and ``generation``, with a part of that name; FLOPs
           of a teacher's forward and of a prefill beside the others.

A reader accepts any 1.x: a field it does not know is kept and ignored, one that is
missing takes its default. Derived figures (TFLOPS, speed-up, share of roofline) are never
stored; they are computed on load. A point that did not measure has no number at all:
never 0, never NaN.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import model_validator

from attnbench.layer.answers import answers
from attnbench.record_part import Part
from attnbench.samples import Samples as Samples
from attnbench.spec import Value, format_spec
from attnbench.train.figures import Training
from attnbench.train.generation.figures import Generated

SCHEMA = "1.3.0"
OTHERS = "(others)"
"""Name of the entry of ``Record.kernels`` that sums the shortest ones."""

PointKind = Literal["attention", "training", "generation"]
"""What a record is about. A second of one kind means something else than of another."""

Status = Literal[
    "ok", "incorrect", "unsupported", "unavailable", "oom", "timeout", "crash", "error"
]
STATUSES: tuple[Status, ...] = (
    "ok", "incorrect", "unsupported", "unavailable", "oom", "timeout", "crash", "error",
)  # fmt: skip


class Implementation(Part):
    """Who was measured."""

    name: str
    options: dict[str, Value] = {}  # the resolved options, defaults included
    given: dict[str, Value] = {}  # those asked for, as in ``name:key=value``
    kind: str = "exact"
    layout: str = "BHSD"
    origin: str = ""  # built-in, project, or the package that brought it
    version: str | None = None
    source_sha256: str | None = None
    simulated: str | None = None  # "in Triton's interpreter": its times are no timings
    choices: dict[str, Value] = {}  # what build() chose for itself, such as tuned configurations
    revision: str | None = None  # commit its source was brought out of; None: as it lay there

    @property
    def spec(self) -> str:
        """``name:key=value`` with the options that were asked for."""
        return format_spec(self.name, self.given)


class Memory(Part):
    """Bytes beyond the inputs. A figure that this machine cannot tell is absent.

    The peaks of forward and backward count from where each begins; a part that is not in
    the timed call has none.
    """

    peak_bytes: int | None = None  # highest extra allocation during the timed call
    forward_peak_bytes: int | None = None
    saved_bytes: int | None = None  # kept by the forward for the backward, output not counted
    backward_peak_bytes: int | None = None
    workspace_bytes: int | None = None  # of the peak, what is neither output nor gradient
    reserved_bytes: int | None = None  # that torch's allocator took from the device (CUDA)
    foreign_bytes: int | None = None  # taken beside torch's allocator and kept (CUDA)
    resident_bytes: int | None = None  # rise of the process's high-water mark (CPU)
    method: str = ""
    note: str | None = None  # where the figures disagree, or could not be cross-checked


class Energy(Part):
    """Joules a call, each with the 95 % interval over the loops; see ``measure.power``.

    *Gross* is all that the device used meanwhile, *net* is without its idle power.
    """

    gross_j: float
    gross_low_j: float
    gross_high_j: float
    net_j: float | None = None
    net_low_j: float | None = None
    net_high_j: float | None = None
    net_absent: str | None = None  # why there is no net figure
    idle_w: float
    power_w: float  # mean, during the loops
    joules: list[float]  # gross joules a call of each loop
    calls: int  # a loop
    method: str


class TensorAccuracy(Part):
    """How far one tensor is from the float64 reference, and what was allowed.

    None for a number that is not finite, because then there is no number.
    """

    ok: bool
    max_abs: float | None = None
    rel_l2: float | None = None  # ‖x − ref‖₂ / ‖ref‖₂
    row_rel: float | None = None  # the same of the worst row (one token of one head)
    quantiles: dict[str, float] = {}  # of |x − ref|: "0.5", "0.9", "0.99", "0.999"
    max_abs_allowed: float | None = None
    rel_l2_allowed: float | None = None
    row_rel_allowed: float | None = None
    naive_max_abs: float | None = None  # error of the textbook in the same dtype
    naive_rel_l2: float | None = None
    verdict: str = ""  # in words: is this mismatch normal?

    @model_validator(mode="after")
    def _measured(self) -> TensorAccuracy:
        if self.ok and self.max_abs is None:
            raise ValueError("a tensor cannot be ok without a measured error (max_abs)")
        return self


class Distance(Part):
    """How far one tensor is from the float64 answer that was asked for; see ``distance``."""

    rel_l2: float | None = None
    cosine: float | None = None
    max_abs: float | None = None


class Record(Part):
    """One point: an implementation on a problem, or inside a model, on a machine."""

    schema_version: str = SCHEMA
    kind: PointKind = "attention"
    id: str
    suite: str
    title: str = ""
    baseline: str = ""
    time: str  # ISO 8601, UTC
    attnbench: str
    implementation: Implementation
    problem: dict[str, Any]  # to_json() of the Problem; by kind, of the Workload or Generation
    problem_id: str
    device: str  # "cpu", "cuda:0"
    seed: int = 0
    status: Status
    reason: str | None = None
    log_tail: str | None = None
    samples: Samples | None = None  # the device's own time: the headline
    host_samples: Samples | None = None  # CUDA: wall time of the eager call, launch included
    memory: Memory | None = None
    accuracy: dict[str, TensorAccuracy] = {}  # by tensor: ``layer.answers``
    flops: int | None = None  # of an approximate method, by its own formula
    ideal_bytes: int | None = None  # likewise
    distance: dict[str, Distance] = {}  # of an approximate method, by tensor, where accuracy is
    weights_tv: float | None = None  # of another claim; mean total variation of its weights
    training: Training | None = None
    generation: Generated | None = None
    energy: Energy | None = None
    energy_absent: str | None = None  # why there is none, though the suite asked for it
    telemetry: dict[str, Any] = {}  # while it was sampled; see ``conditions``
    kernels: list[dict[str, Any]] = []
    wall_s: float | None = None
    environment: str  # address of the environment file
    command: str = ""  # reproduces this point
    pair: str | None = None  # one id for two records whose rounds were taken side by side

    @model_validator(mode="after")
    def _status_fits(self) -> Record:
        if self.status == "ok":
            if self.samples is None:
                raise ValueError("status ok needs samples")
            self._check_proof()
            for tensor, accuracy in self.accuracy.items():
                if not accuracy.ok:
                    raise ValueError(f"status ok, but the accuracy of {tensor} is not")
        elif self.samples is not None or self.host_samples is not None:
            raise ValueError(f"status {self.status} must not carry samples")
        elif not self.reason:
            raise ValueError(f"status {self.status} needs a reason")
        return self

    def _check_proof(self) -> None:
        """What is ok has been compared with the truth."""
        if self.kind == "training":
            if self.training is None:
                raise ValueError("status ok of a training run needs its figures")
            if self.implementation.kind == "exact" and not self.training.parity.ok:
                raise ValueError("status ok of an exact implementation needs parity")
            return
        if self.kind == "generation":
            if self.generation is None:
                raise ValueError("status ok of a generation needs its figures")
            if self.implementation.kind == "exact" and not self.generation.agreement.ok:
                raise ValueError("status ok of an exact implementation needs agreement")
            return
        for tensor in answers(self.problem):
            if tensor not in self.accuracy:
                raise ValueError(f"status ok needs the accuracy of {tensor}")

    @property
    def point(self) -> tuple[str, str]:
        """Problem and implementation with its options: the same in every run, wherever."""
        return self.problem_id, self.implementation.spec

    def to_line(self) -> str:
        """One line of strict JSON (no NaN) fit for UTF-8, newline included."""
        data = self.model_dump(mode="json")
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        # A log or a path may hold bytes that were no UTF-8; they must not cost the record.
        return text.encode(errors="replace").decode() + "\n"


def point_id(
    problem_id: str, spec: str, source_sha256: str | None, machine_id: str, seed: int
) -> str:
    """Identity of a point: what is solved, by whom (options and source), where.

    Stable across runs; editing an implementation's source makes it another point.
    """
    text = json.dumps([problem_id, spec, source_sha256, machine_id, seed])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def worst(seen: Iterable[Mapping[str, TensorAccuracy]]) -> dict[str, TensorAccuracy]:
    """By tensor, the accuracy with the largest error (``max_abs``) of all that were seen."""
    found: dict[str, TensorAccuracy] = {}
    for accuracies in seen:
        for name, accuracy in accuracies.items():
            found[name] = max(found.get(name, accuracy), accuracy, key=lambda a: a.max_abs or 0.0)
    return found


def finite(value: float | None) -> float | None:
    """The value, or None where it is no number: records never hold NaN or infinity."""
    return value if value is not None and math.isfinite(value) else None


def schema_major(data: Mapping[str, Any]) -> int | None:
    """Major number of a line's schema, or None where it has none."""
    version = str(data.get("schema_version", ""))
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else None
