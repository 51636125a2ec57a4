"""One attention problem: its shape, its mask, its exact FLOPs and bytes, its identity.

A ``Problem`` is immutable, hashable and serialisable, and says nothing about who solves
it. Everything that is published about a point is relative to the numbers computed here,
so they are counted from the mask's exact pairs (in ``cost``), never estimated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from attnbench import cost
from attnbench.errors import UserError, unknown
from attnbench.layer import inside
from attnbench.masks import Full, Mask, parse_mask

if TYPE_CHECKING:
    import torch

Direction = Literal["forward", "backward", "both"]
Level = Literal["op", "layer"]
Position = Literal["none", "sinusoidal", "learned", "relative", "rope", "alibi"]
InputKind = Literal["normal", "large", "peaky", "correlated", "local", "needle"]

DTYPES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
}
"""Bytes of one element, by dtype name (torch's own names)."""

DTYPE_ALIASES: Mapping[str, str] = {
    "fp64": "float64",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp8": "float8_e4m3fn",
}

_ALIASES = ("heads", "seqlen", "d_model")


@dataclass(frozen=True)
class Problem:
    """One attention problem.

    ``out = dropout(softmax(softcap(q kᵀ · scale) + alibi, mask)) v`` for each head, with
    ``heads_q / heads_kv`` query heads sharing a key head (GQA; MQA when heads_kv is 1).
    A row whose keys are all masked gives zeros and has zero gradients.

    Attributes:
        batch, heads_q, heads_kv, seqlen_q, seqlen_k, head_dim, head_dim_v: sizes, ≥ 1.
        dtype: name of the torch dtype of q, k, v and the output.
        mask: which query may look at which key.
        dropout_p: probability in [0, 1) of dropping an attention weight.
        scale: factor on the logits; None means 1/√head_dim.
        softcap: c in ``c·tanh(logits/c)``; None means no cap (Gemma 2).
        alibi: add ALiBi's linear bias (Press et al. 2021, arXiv 2108.12409).
        bias: add a bias ``(H, M, N)`` to the logits after softcap, which each call is handed
            and whose gradient is wanted too; only the inside of a layer or a model has it.
        direction: what is timed: the forward, the backward alone, or both together.
        decode: a generation step: k and v are views of a longer KV cache, filled before.
        level: ``op`` (q, k, v given) or ``layer`` (with the projections of d_model).
        position: of a layer, how it knows where tokens stand (``attnbench.layer.positions``).
        padding: of a layer, the share of tokens in [0, 0.5] that are padding; see ``lengths``.
        inputs: how the inputs are drawn (see ``attnbench.inputs``).

    Raises:
        UserError: for any value that is out of range or does not fit the others.
    """

    batch: int = 1
    heads_q: int = 8
    heads_kv: int = 8
    seqlen_q: int = 512
    seqlen_k: int = 512
    head_dim: int = 64
    head_dim_v: int = 64
    dtype: str = "float32"
    mask: Mask = Full()
    dropout_p: float = 0.0
    scale: float | None = None
    softcap: float | None = None
    alibi: bool = False
    bias: bool = False
    direction: Direction = "forward"
    decode: bool = False
    level: Level = "op"
    position: Position = "none"
    padding: float = 0.0
    inputs: InputKind = "normal"

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen: normalise before use
        set_field(self, "dtype", read_dtype(self.dtype))
        set_field(self, "mask", parse_mask(self.mask))
        self._check_sizes()
        self._check_numbers()
        self._check_choices()
        inside.check(self)
        core = self.core
        core.mask.check(core.seqlen_q, core.seqlen_k)

    # ---- construction ----------------------------------------------------------------

    @classmethod
    def of(cls, **fields: Any) -> Problem:
        """Build from loose fields, with the short names people use.

        ``heads`` sets heads_q; heads_kv follows heads_q unless given. ``seqlen`` sets both
        lengths; seqlen_k follows seqlen_q. ``d_model`` with heads gives head_dim =
        d_model / heads. head_dim_v follows head_dim.

        Raises:
            UserError: unknown field, two names for one thing, or an invalid problem.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in fields:
            if key not in names and key not in _ALIASES:
                raise unknown("problem field", key, [*names, *_ALIASES])
        values = {k: v for k, v in fields.items() if k not in _ALIASES}
        _expand_alias(fields, values, "heads", ["heads_q"])
        _expand_alias(fields, values, "seqlen", ["seqlen_q", "seqlen_k"])
        if "d_model" in fields:
            values["head_dim"] = _head_dim(fields["d_model"], values)
        for follower, leader in (
            ("heads_kv", "heads_q"),
            ("seqlen_k", "seqlen_q"),
            ("head_dim_v", "head_dim"),
        ):
            if leader in values:
                values.setdefault(follower, values[leader])
        return cls(**values)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Problem:
        """The inverse of :meth:`to_json`."""
        return cls.of(**data)

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"mask": self.mask.to_json()}

    def replace(self, **changes: Any) -> Problem:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    # ---- identity --------------------------------------------------------------------

    @property
    def id(self) -> str:
        """16 hex digits that stay the same across processes, machines and versions.

        Only fields that differ from their default enter the hash (the mask as its text, for
        which the same holds), so that a field added later does not rename older problems.
        """
        fields = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        told = {name: value for name, (value, default) in fields.items() if value != default}
        if "mask" in told:
            told["mask"] = str(self.mask)
        text = json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A short text for people: shape, dtype, mask, direction, and what is unusual."""
        heads = f"H{self.heads_q}" + (f"/{self.heads_kv}" if self.heads_kv != self.heads_q else "")
        seqlen = f"N{self.seqlen_q}" + (
            f"×{self.seqlen_k}" if self.seqlen_k != self.seqlen_q else ""
        )
        dim = f"D{self.head_dim}" + (
            f"/{self.head_dim_v}" if self.head_dim_v != self.head_dim else ""
        )
        words = [f"B{self.batch}", heads, seqlen, dim, self.dtype, str(self.mask), self.direction]
        words += [f"dropout={self.dropout_p}"] if self.dropout_p else []
        words += [f"scale={self.scale}"] if self.scale is not None else []
        words += [f"softcap={self.softcap}"] if self.softcap is not None else []
        words += ["alibi"] if self.alibi else []
        words += ["bias"] if self.bias else []
        words += ["decode"] if self.decode else []
        words += [self.level] if self.level != "op" else []
        words += [f"position={self.position}"] if self.position != "none" else []
        words += [f"padding={self.padding}"] if self.padding else []
        words += [self.inputs] if self.inputs != "normal" else []
        return " ".join(words)

    # ---- derived ---------------------------------------------------------------------

    @property
    def d_model(self) -> int:
        """Width of the model this attention belongs to: heads_q × head_dim."""
        return self.heads_q * self.head_dim

    @property
    def softmax_scale(self) -> float:
        """The factor really applied to the logits."""
        return 1 / math.sqrt(self.head_dim) if self.scale is None else self.scale

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype named by :attr:`dtype`."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def lengths(self) -> tuple[int, ...]:
        """Queries of each batch entry that are no padding: first all, then evenly fewer."""
        return inside.lengths(self)

    @property
    def core(self) -> Problem:
        """The attention inside a layer, as a problem at op level; itself at that level."""
        return inside.core(self)

    @property
    def features(self) -> frozenset[str]:
        """What a solver must be able to do beyond plain multi-head attention."""
        if self.level == "layer":
            return self.core.features
        needed = {
            "backward": self.direction != "forward",
            "gqa": self.heads_kv != self.heads_q,
            "cross": self.seqlen_q != self.seqlen_k,
            "head_dim_v": self.head_dim_v != self.head_dim,
            "scale": self.scale is not None,
            "dropout": self.dropout_p > 0,
            "softcap": self.softcap is not None,
            "alibi": self.alibi,
            "bias": self.bias,
            "decode": self.decode,
        }
        return frozenset(name for name, is_needed in needed.items() if is_needed)

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of q, k, v and the output."""
        return DTYPES[self.dtype]

    def flops(self) -> int:
        """Floating-point operations in its direction; see :func:`attnbench.cost.flops`."""
        return cost.flops(self)

    def ideal_bytes(self) -> int:
        """Fewest bytes to move; see :func:`attnbench.cost.ideal_bytes`."""
        return cost.ideal_bytes(self)

    # ---- checks ----------------------------------------------------------------------

    def _check_sizes(self) -> None:
        for field in (
            "batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k", "head_dim", "head_dim_v",
        ):  # fmt: skip
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{field} must be a positive integer, got {value!r}")
        if self.heads_q % self.heads_kv:
            raise UserError(f"heads_q {self.heads_q} is not a multiple of heads_kv {self.heads_kv}")

    def _check_numbers(self) -> None:
        numbers = {
            "dropout_p": _number("dropout_p", self.dropout_p, low=0, below=1),
            "padding": _number("padding", self.padding, low=0),
        }
        if self.scale is not None:
            numbers["scale"] = _number("scale", self.scale)
        if self.softcap is not None:
            numbers["softcap"] = _number("softcap", self.softcap, above=0)
        for field, value in numbers.items():  # 1 and 1.0 are the same problem
            object.__setattr__(self, field, value)
        for field in ("alibi", "bias", "decode"):
            if not isinstance(getattr(self, field), bool):
                raise UserError(f"{field} must be true or false, got {getattr(self, field)!r}")

    def _check_choices(self) -> None:
        for field, allowed in (
            ("direction", get_args(Direction)),
            ("level", get_args(Level)),
            ("position", get_args(Position)),
            ("inputs", get_args(InputKind)),
        ):
            if getattr(self, field) not in allowed:
                raise unknown(field, getattr(self, field), allowed)
        if self.decode and self.direction != "forward":
            raise UserError(f"decode has no backward; direction is {self.direction!r}")
        if self.decode and self.seqlen_q > self.seqlen_k:
            raise UserError(
                f"decode: seqlen_q {self.seqlen_q} must not exceed the cache's "
                f"seqlen_k {self.seqlen_k}"
            )


def read_dtype(name: str) -> str:
    """The torch name of a dtype given by torch's name or a usual short one (bf16, fp32…)."""
    full = DTYPE_ALIASES.get(str(name), str(name)).removeprefix("torch.")
    if full not in DTYPES:
        raise unknown("dtype", name, [*DTYPES, *DTYPE_ALIASES])
    return full


def _expand_alias(
    fields: Mapping[str, Any], values: dict[str, Any], alias: str, targets: list[str]
) -> None:
    if alias not in fields:
        return
    for target in targets:
        if target in values:
            raise UserError(
                f"give either {alias} or {target}, "
                f"got {alias} {fields[alias]!r} and {target} {values[target]!r}"
            )
        values[target] = fields[alias]


def _head_dim(d_model: Any, values: Mapping[str, Any]) -> int:
    heads = values.get("heads_q", Problem.heads_q)
    if "head_dim" in values:
        raise UserError(
            "give either d_model or head_dim, "
            f"got d_model {d_model!r} and head_dim {values['head_dim']!r}"
        )
    for name, value in (("d_model", d_model), ("heads_q", heads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a positive integer, got {value!r}")
    if d_model % heads:
        raise UserError(f"d_model {d_model} is not divisible by heads {heads}")
    return int(d_model // heads)


def _number(
    name: str,
    value: Any,
    low: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value as a float, if it is finite and within its limits."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:
        number = math.inf
    ok = math.isfinite(number)
    ok = ok and (low is None or number >= low) and (above is None or number > above)
    ok = ok and (below is None or number < below)
    if not ok:
        limits = [f"≥ {low}"] * (low is not None) + [f"> {above}"] * (above is not None)
        limits += [f"< {below}"] * (below is not None)
        raise UserError(
            f"{name} must be a finite number {' and '.join(limits)}".rstrip() + f", got {value!r}"
        )
    return number
