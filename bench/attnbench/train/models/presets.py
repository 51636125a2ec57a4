"""Architectures by name: sizes that are published, and tiny ones for a CPU.

Weights are random and nothing is downloaded. A workload may change layers, heads, heads_kv,
d_model and d_ff; the vocabulary is the task's, or the published one where that is larger, for
the last projection is a good part of what such a model computes. This module imports no
torch: names and sizes are checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from attnbench.errors import UserError, unknown
from attnbench.train.workload import Activation, Norm, Objective, Position, Workload

Family = Literal["own", "gpt2", "llama", "bert", "t5", "bart", "vit", "pair"]

OBJECTIVES: Mapping[Family, tuple[Objective, ...]] = {
    "own": ("causal-lm", "masked-lm", "seq2seq", "classification", "matching"),
    "gpt2": ("causal-lm", "classification"),
    "llama": ("causal-lm", "classification"),
    "bert": ("masked-lm", "classification"),
    "t5": ("seq2seq",),
    "bart": ("seq2seq",),
    "vit": ("classification",),
    "pair": ("matching",),
}
"""What each family can be trained for, the usual first."""

DECODERS: tuple[Family, ...] = ("own", "gpt2", "llama")
"""Families that go on from a prompt with a KV cache (our own model in the shape of a decoder)."""

ENCODER_DECODERS: tuple[Family, ...] = ("t5", "bart")
"""Families that have an encoder read the prompt and go on with a KV cache."""


def check_generates(model: str, family: Family) -> None:
    """Refuse a model that has nothing to generate.

    Raises:
        UserError: its family has no decoder.
    """
    able = (*DECODERS, *ENCODER_DECODERS)
    if family not in able:
        raise UserError(
            f"model {model} has no cache to generate with; families that have: {', '.join(able)}"
        )


@dataclass(frozen=True)
class Preset:
    """Sizes of one architecture.

    Attributes:
        family: who builds it.
        layers: of each stack; an encoder-decoder and a pair have two.
        heads, heads_kv, d_model, d_ff: heads_kv is heads but where keys are shared (GQA).
        vocab: published size of the vocabulary; 0 takes the task's.
        tied: whether the last projection is the embedding.
        position, activation, norm: of the own model; others have what their paper has.
    """

    family: Family
    layers: int = 2
    heads: int = 4
    heads_kv: int = 4
    d_model: int = 64
    d_ff: int = 256
    vocab: int = 0
    tied: bool = True
    position: Position = "rope"
    activation: Activation = "gelu"
    norm: Norm = "rmsnorm"


PRESETS: Mapping[str, Preset] = {
    "own-tiny": Preset("own"),
    "own-small": Preset("own", 6, 6, 6, 384, 1536),
    "gpt2-tiny": Preset("gpt2"),
    # The vocabulary of 50257, filled up to a multiple of 64 as in nanoGPT and llm.c.
    "gpt2-124m": Preset("gpt2", 12, 12, 12, 768, 3072, vocab=50304),
    "gpt2-350m": Preset("gpt2", 24, 16, 16, 1024, 4096, vocab=50304),
    "llama-tiny": Preset("llama", heads_kv=2, d_ff=192, tied=False),
    "llama-1b": Preset("llama", 16, 32, 8, 2048, 8192, vocab=128256),  # Llama 3.2
    "llama-8b": Preset("llama", 32, 32, 8, 4096, 14336, vocab=128256, tied=False),  # Llama 3.1
    "bert-tiny": Preset("bert"),
    "bert-base": Preset("bert", 12, 12, 12, 768, 3072, vocab=30522),
    "bert-large": Preset("bert", 24, 16, 16, 1024, 4096, vocab=30522),
    "t5-tiny": Preset("t5"),
    "t5-small": Preset("t5", 6, 8, 8, 512, 2048, vocab=32128),
    "t5-base": Preset("t5", 12, 12, 12, 768, 3072, vocab=32128),
    "bart-tiny": Preset("bart"),
    "bart-base": Preset("bart", 6, 12, 12, 768, 3072, vocab=50265),
    "vit-tiny": Preset("vit"),
    "vit-base": Preset("vit", 12, 12, 12, 768, 3072),
    "pair-tiny": Preset("pair"),  # ViT and BERT
}


def sized(workload: Workload) -> Preset:
    """The preset of a workload, with the sizes that the workload changes.

    d_ff follows d_model, unless it is given. heads_kv follows heads, in the preset's proportion
    where it can.

    Raises:
        UserError: unknown name, or a change that the architecture does not know.
    """
    if workload.model not in PRESETS:
        raise unknown("model", workload.model, PRESETS)
    preset = PRESETS[workload.model]
    is_grouped = preset.family in ("own", "llama")
    if workload.heads_kv and not is_grouped:
        raise UserError(f"model {workload.model} has no heads_kv: its heads share no keys")
    if preset.family != "own":
        for name in ("position", "activation", "norm"):
            if getattr(workload, name):
                raise UserError(
                    f"{name} is an option of our own models, not of {workload.model}: "
                    f"got {getattr(workload, name)!r}"
                )
    heads = workload.heads or preset.heads
    d_model = workload.d_model or preset.d_model
    heads_kv = workload.heads_kv or max(1, heads * preset.heads_kv // preset.heads)
    if d_model % heads:
        raise UserError(f"d_model {d_model} is not divisible by heads {heads} ({workload.model})")
    if heads % heads_kv:
        raise UserError(f"heads {heads} is not a multiple of heads_kv {heads_kv}")
    _check_position(preset.family, workload.position or preset.position, d_model, d_model // heads)
    return replace(
        preset,
        layers=workload.layers or preset.layers,
        heads=heads,
        heads_kv=heads_kv,
        d_model=d_model,
        d_ff=workload.d_ff or preset.d_ff * d_model // preset.d_model,
        position=workload.position or preset.position,
        activation=workload.activation or preset.activation,
        norm=workload.norm or preset.norm,
        # A frozen body must not learn through the head that it shares its embedding with.
        tied=preset.tied and workload.finetune not in ("last", "frozen"),
    )


def _check_position(family: Family, position: Position, d_model: int, head_dim: int) -> None:
    """Refuse sizes that a position encoding by pairs cannot have."""
    has_rope = family == "llama" or (family == "own" and position == "rope")
    if has_rope and head_dim % 2:
        raise UserError(f"RoPE turns pairs: d_model / heads must be even, got {head_dim}")
    if family == "own" and position == "sinusoidal" and d_model % 2:
        raise UserError(f"sinusoidal positions come in pairs: d_model must be even, got {d_model}")


def objective_of(workload: Workload, task_objective: Objective) -> Objective:
    """What a workload's model is trained for: what it says, or what its task is made for.

    Raises:
        UserError: the architecture cannot be trained for that.
    """
    if workload.model not in PRESETS:
        raise unknown("model", workload.model, PRESETS)
    family = PRESETS[workload.model].family
    objective = workload.objective or task_objective
    if objective not in OBJECTIVES[family]:
        raise UserError(
            f"model {workload.model} is not made for objective {objective} "
            f"(for: {', '.join(OBJECTIVES[family])})"
        )
    return objective
