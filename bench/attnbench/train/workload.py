"""One training workload: which model learns what from which data, and how.

What ``Problem`` is to a single attention, ``Workload`` is to a training run: immutable,
hashable, serialisable, checked to the last field, and silent about who does the attention.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from attnbench.errors import UserError, unknown
from attnbench.train.asked import Asked

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Position = Literal["none", "sinusoidal", "learned", "relative", "rope", "alibi"]
Activation = Literal["relu", "gelu", "silu"]
Norm = Literal["layernorm", "rmsnorm"]
Objective = Literal["causal-lm", "masked-lm", "seq2seq", "classification", "matching"]
Loss = Literal["cross-entropy", "contrastive"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["constant", "cosine", "exponential", "step"]
Finetune = Literal["full", "last", "frozen", "lora"]
Parallel = Literal["none", "ddp", "fsdp2", "context"]


@dataclass(frozen=True)
class Workload(Asked):
    """One training run, but for the attention in it.

    Attributes:
        model: preset of an architecture (see ``attnbench.train.models``).
        layers, heads, heads_kv, d_model, d_ff: instead of the preset's; 0 keeps it (d_ff: in
            the preset's proportion to d_model).
        position, activation, norm: of the model of our own; empty keeps the preset's.
        task: what is learned from (see ``attnbench.train.data``).
        objective: how it is learned; empty takes what the model and the task are made for.
        seqlen: tokens of a sequence, special ones included.
        batch: sequences a step and process, over all accumulated parts; 0 is the largest
            power of two that fits.
        accumulation: parts that the batch of a step is cut into.
        precision: fp32, tf32 (fp32 with TF32 products), bf16 (autocast), fp16 (autocast with
            a gradient scaler).
        compile: torch.compile the whole model.
        checkpointing: recompute activations in the backward.
        loss: cross-entropy, or contrastive (between the two halves of matching pairs).
        label_smoothing, distillation: the former in [0, 1); the latter the share in [0, 1] of
            the loss that follows a teacher, an exact model of twice the width trained first.
        token_noise: share in [0, 1) of input tokens that are replaced by random ones.
        dropout: of residual branches and of attention weights, in [0, 1).
        optimizer, lr, weight_decay, beta1, beta2, clip: clip is the largest norm of the
            gradient; 0 does not clip.
        schedule, warmup, cooldown: steps of linear warm-up from 0, what follows, and steps of
            linear cool-down to 0 at the end.
        finetune: which parameters learn: all, the last layers (``last``: last layer, last norm
            and head), only the head on a frozen body (``frozen``), or low-rank additions
            (``lora``, of ``lora_rank``).
        steps: of the learning curve.
        patience: evaluations without improvement after which learning stops; 0 never.
        target: stop when the task's score reaches it; 0 never.
        parallel, processes: how many processes share the work, and how.

    Raises:
        UserError: for any value that is out of range or does not fit the others.
    """

    _NAME: ClassVar = "workload"
    _KIND: ClassVar = "training"

    model: str = "own-tiny"
    layers: int = 0
    heads: int = 0
    heads_kv: int = 0
    d_model: int = 0
    d_ff: int = 0
    position: Position | Literal[""] = ""
    activation: Activation | Literal[""] = ""
    norm: Norm | Literal[""] = ""
    task: str = "text"
    objective: Objective | Literal[""] = ""
    seqlen: int = 128
    batch: int = 8
    accumulation: int = 1
    precision: Precision = "fp32"
    compile: bool = False
    checkpointing: bool = False
    loss: Loss = "cross-entropy"
    label_smoothing: float = 0.0
    distillation: float = 0.0
    token_noise: float = 0.0
    dropout: float = 0.0
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    schedule: Schedule = "cosine"
    warmup: int = 10
    cooldown: int = 0
    finetune: Finetune = "full"
    lora_rank: int = 8
    steps: int = 100
    patience: int = 0
    target: float = 0.0
    parallel: Parallel = "none"
    processes: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name)))
        for name in _RANGES:
            _check_range(name, getattr(self, name))
        for name in _CHOICES:
            _check_choice(name, getattr(self, name))
        _check_together(self)

    # ---- for people --------------------------------------------------------------------

    @property
    def label(self) -> str:
        """A short text for people: model, task, shape, precision, and what is unusual."""
        words = [self.model, self.task, f"N{self.seqlen}"]
        words += [f"B{self.batch}" if self.batch else "largest batch", self.precision]
        shown = ("model", "task", "seqlen", "batch", "precision")
        return " ".join(words + [f"{k}={v}" for k, v in self.told.items() if k not in shown])


_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Workload)}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "position": ("", *get_args(Position)),
    "activation": ("", *get_args(Activation)),
    "norm": ("", *get_args(Norm)),
    "objective": ("", *get_args(Objective)),
    "precision": get_args(Precision),
    "loss": get_args(Loss),
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "finetune": get_args(Finetune),
    "parallel": get_args(Parallel),
}
_RANGES: Mapping[str, tuple[float, float, bool]] = {  # least, most, whether most is allowed
    **dict.fromkeys(
        ("layers", "heads", "heads_kv", "d_model", "d_ff", "batch", "warmup", "cooldown",
         "patience", "weight_decay", "clip", "target"),
        (0, math.inf, False),
    ),
    **dict.fromkeys(
        ("seqlen", "accumulation", "steps", "processes", "lora_rank"), (1, math.inf, False)
    ),
    **dict.fromkeys(
        ("label_smoothing", "token_noise", "dropout", "beta1", "beta2"), (0, 1, False)
    ),
    "distillation": (0, 1, True),
    "lr": (0, math.inf, False),
}  # fmt: skip


def _typed(name: str, value: Any) -> Any:
    """The value, if it has the type of the field's default; 1 and 1.0 are the same number."""
    default = _DEFAULTS[name]
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise UserError(f"{name} must be of type {type(default).__name__}, got {value!r}")
    return value


def check_field(name: str, value: Any) -> Any:
    """The value, if a workload could have it in this field, whatever its other fields are.

    Raises:
        UserError: no such field, or a value of another type, out of range or unknown.
    """
    if name not in _DEFAULTS:
        raise unknown("workload field", name, _DEFAULTS)
    value = _typed(name, value)
    _check_range(name, value)
    _check_choice(name, value)
    return value


def _check_range(name: str, value: Any) -> None:
    if name not in _RANGES:
        return
    least, most, allowed = _RANGES[name]
    if not least <= value or not (value < most or (allowed and value == most)):
        limits = f"≥ {least:g}" + (
            f" and {'≤' if allowed else '<'} {most:g}" if most < math.inf else ""
        )
        raise UserError(f"{name} must be {limits}, got {value!r}")
    if name == "lr" and value == 0:
        raise UserError("lr must be > 0, got 0.0")


def _check_choice(name: str, value: Any) -> None:
    if name in _CHOICES and value not in _CHOICES[name]:
        raise unknown(name, value, [a for a in _CHOICES[name] if a])


def _check_together(w: Workload) -> None:
    if w.batch and w.batch % w.accumulation:
        raise UserError(f"batch {w.batch} cannot be cut into {w.accumulation} equal parts")
    if w.warmup + w.cooldown > w.steps:
        raise UserError(
            f"warmup {w.warmup} and cooldown {w.cooldown} are more than steps {w.steps}"
        )
    if (w.processes > 1) != (w.parallel != "none"):
        raise UserError(
            f"parallel {w.parallel!r} does not fit processes {w.processes}: "
            "several processes need ddp, fsdp2 or context"
        )
    if w.d_model and w.heads and w.d_model % w.heads:
        raise UserError(f"d_model {w.d_model} is not divisible by heads {w.heads}")
    if w.heads and w.heads_kv and w.heads % w.heads_kv:
        raise UserError(f"heads {w.heads} is not a multiple of heads_kv {w.heads_kv}")
    if w.optimizer == "sgd" and "beta2" in w.told:
        raise UserError(f"optimizer sgd has no beta2, got {w.beta2}")
    if w.finetune != "lora" and "lora_rank" in w.told:
        raise UserError(f"lora_rank {w.lora_rank} needs finetune lora, got {w.finetune!r}")
    if w.loss == "contrastive" and w.objective != "matching":
        raise UserError(f"loss contrastive needs objective matching, got {w.objective!r}")
