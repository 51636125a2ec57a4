"""One generation: which model goes on from how long a prompt, for how many tokens.

What ``Workload`` is to a training run, ``Generation`` is to serving: immutable, hashable,
serialisable, checked to the last field, and silent about who does the attention.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from attnbench.errors import UserError, unknown
from attnbench.train.asked import Asked
from attnbench.train.models.presets import (
    ENCODER_DECODERS,
    Preset,
    check_generates,
    sized,
)
from attnbench.train.workload import Position, Workload

ServedPrecision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]


@dataclass(frozen=True)
class Generation(Asked):
    """One generation, but for the attention in it.

    Attributes:
        model: preset of a model that keeps a cache (see ``attnbench.train.models.presets``): a
            decoder, or an encoder with a decoder.
        layers, heads, heads_kv, d_model: instead of the preset's; 0 keeps it.
        position: of the model of our own; empty keeps the preset's.
        batch: sequences that are generated side by side, of one length.
        prompt: tokens of each that are given, and read at once: by the encoder, where there is
            one, and the decoder's first step on a token that says nothing is part of that.
        new: tokens of each that are generated, at least 2: the first comes from the prompt,
            the cache is decoded from for all others.
        precision: of the weights and of everything else: fp32, tf32 (fp32 with TF32 products),
            bf16, fp16; int8 is for weights alone (bf16 for the rest on a GPU, fp32 on a CPU).
        compile: torch.compile the whole model, once for each length of the cache.

    Raises:
        UserError: for any value that is out of range or does not fit the others.
    """

    _NAME: ClassVar = "generation"
    _KIND: ClassVar = "generation"

    model: str = "gpt2-tiny"
    layers: int = 0
    heads: int = 0
    heads_kv: int = 0
    d_model: int = 0
    position: Position | Literal[""] = ""
    batch: int = 1
    prompt: int = 128
    new: int = 32
    precision: ServedPrecision = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                kind = type(field.default).__name__
                raise UserError(f"{field.name} must be of type {kind}, got {value!r}")
        for name, least in _LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be ≥ {least}, got {getattr(self, name)!r}")
        if self.precision not in get_args(ServedPrecision):
            raise unknown("precision", self.precision, get_args(ServedPrecision))
        if self.position not in ("", *get_args(Position)):
            raise unknown("position", self.position, get_args(Position))
        check_generates(self.model, self.preset.family)

    # ---- what is served --------------------------------------------------------------

    @property
    def workload(self) -> Workload:
        """A training run of the same model, for what is asked of models and precisions."""
        return Workload(
            model=self.model, layers=self.layers, heads=self.heads, heads_kv=self.heads_kv,
            d_model=self.d_model, position=self.position,
            precision="tf32" if self.precision == "tf32" else "fp32",
        )  # fmt: skip

    @property
    def preset(self) -> Preset:
        """The model's sizes."""
        return sized(self.workload)

    @property
    def read(self) -> int:
        """Tokens of a sequence that are given or said, and read: all but the last."""
        return self.prompt + self.new - 1

    @property
    def cached(self) -> int:
        """Tokens of a sequence whose keys and values each layer of a decoder keeps.

        Those that are read; with an encoder, the decoder's first token is kept too.
        """
        return self.read + (self.preset.family in ENCODER_DECODERS)

    # ---- for people --------------------------------------------------------------------

    @property
    def label(self) -> str:
        """A short text for people: model, lengths, precision, and what is unusual."""
        words = [self.model, f"B{self.batch}", f"{self.prompt}+{self.new} tokens", self.precision]
        shown = ("model", "batch", "prompt", "new", "precision")
        return " ".join(words + [f"{k}={v}" for k, v in self.told.items() if k not in shown])


_LEAST: Mapping[str, int] = {
    "layers": 0, "heads": 0, "heads_kv": 0, "d_model": 0, "batch": 1, "prompt": 1, "new": 2,
}  # fmt: skip
