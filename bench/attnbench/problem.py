"""One attention problem: its shape, its mask, its exact FLOPs and bytes, its identity.

A ``Problem`` is immutable, hashable and serialisable, and says nothing about who solves
it. Everything that is published about a point is relative to the numbers computed here,
so they are counted from the mask's exact pairs, never estimated.

Letters: B = batch, H = heads_q, G = heads_kv, M = seqlen_q, N = seqlen_k,
D = head_dim, E = head_dim_v.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from attnbench.errors import UserError, unknown
from attnbench.masks import Full, Mask, parse_mask

if TYPE_CHECKING:
    import torch

Direction = Literal["forward", "backward", "both"]
Level = Literal["op", "layer"]
InputKind = Literal["normal", "large", "peaky", "correlated"]

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
_LSE_BYTES = 4  # the log-sum-exp of each row is kept in float32


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
        direction: what is timed: the forward, the backward alone, or both together.
        decode: a generation step: k and v are views of a longer KV cache, filled before.
        level: ``op`` (q, k, v given) or ``layer`` (with the projections of d_model).
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
    direction: Direction = "forward"
    decode: bool = False
    level: Level = "op"
    inputs: InputKind = "normal"

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen: normalise before use
        set_field(self, "dtype", read_dtype(self.dtype))
        set_field(self, "mask", parse_mask(self.mask))
        self._check_sizes()
        self._check_numbers()
        self._check_choices()
        self.mask.check(self.seqlen_q, self.seqlen_k)

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

        Only fields that differ from their default enter the hash, so that a field added
        later does not rename every older problem.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        told = {k: v for k, v in self.to_json().items() if getattr(self, k) != defaults[k]}
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
        words += ["decode"] if self.decode else []
        words += [self.level] if self.level != "op" else []
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
    def features(self) -> frozenset[str]:
        """What a solver must be able to do beyond plain multi-head attention."""
        needed = {
            "backward": self.direction != "forward",
            "gqa": self.heads_kv != self.heads_q,
            "cross": self.seqlen_q != self.seqlen_k,
            "head_dim_v": self.head_dim_v != self.head_dim,
            "scale": self.scale is not None,
            "dropout": self.dropout_p > 0,
            "softcap": self.softcap is not None,
            "alibi": self.alibi,
            "decode": self.decode,
            "layer": self.level == "layer",
        }
        return frozenset(name for name, is_needed in needed.items() if is_needed)

    def flops(self) -> int:
        """Floating-point operations of the matrix products, two a multiply-add.

        Attention's forward is 2·pairs·(D + E) a head (QKᵀ and PV), counted over exactly
        the pairs the mask keeps; the backward 2·pairs·(3D + 2E): dV, dP, dQ, dK and the
        logits again, which for D = E is the 2.5 × of FlashAttention-2 (Dao 2023, arXiv
        2307.08691, §4.1). ``layer`` adds the four projections, with twice their forward
        for the backward. Softmax is not counted, as everywhere in the field.
        """
        pairs = self.batch * self.heads_q * self.mask.coverage(self.seqlen_q, self.seqlen_k).pairs
        forward = 2 * pairs * (self.head_dim + self.head_dim_v)
        backward = 2 * pairs * (3 * self.head_dim + 2 * self.head_dim_v)
        if self.level == "layer":
            forward += self._projection_flops()
            backward += 2 * self._projection_flops()
        return {"forward": forward, "backward": backward, "both": forward + backward}[
            self.direction
        ]

    def ideal_bytes(self) -> int:
        """Fewest bytes that must cross device memory: each needed element once.

        Only keys that some query may see, and queries that may see some key, have to be
        read; every output row is written. Forward: q, k, v in; out and (for training, as
        every fused kernel keeps it) the float32 LSE out. Backward: q, k, v, out, grad_out
        and LSE in; dq, dk, dv out. ``layer`` adds the projection weights and the hidden
        states instead of q, k, v and out.
        """
        size = DTYPES[self.dtype]
        seen = self.mask.coverage(self.seqlen_q, self.seqlen_k)
        query_heads, key_heads = self.batch * self.heads_q, self.batch * self.heads_kv
        read = query_heads * seen.queries * self.head_dim
        read += key_heads * seen.keys * (self.head_dim + self.head_dim_v)
        out = query_heads * self.seqlen_q * self.head_dim_v
        lse = query_heads * self.seqlen_q * _LSE_BYTES
        gradients = query_heads * self.seqlen_q * self.head_dim
        gradients += key_heads * self.seqlen_k * (self.head_dim + self.head_dim_v)
        active_out = query_heads * seen.queries * self.head_dim_v
        forward = size * (read + out) + lse
        backward = size * (read + 2 * active_out + gradients) + lse
        if self.level == "layer":
            weights = self._projection_weights()
            hidden = self.batch * (self.seqlen_q + self.seqlen_k) * self.d_model
            forward += size * (weights + hidden + self.batch * self.seqlen_q * self.d_model)
            backward += size * 2 * (weights + hidden)
        return {"forward": forward, "backward": backward, "both": forward + backward}[
            self.direction
        ]

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
        _check_number("dropout_p", self.dropout_p, low=0, below=1)
        if self.scale is not None:
            _check_number("scale", self.scale)
        if self.softcap is not None:
            _check_number("softcap", self.softcap, above=0)
        for field in ("alibi", "decode"):
            if not isinstance(getattr(self, field), bool):
                raise UserError(f"{field} must be true or false, got {getattr(self, field)!r}")

    def _check_choices(self) -> None:
        for field, allowed in (
            ("direction", get_args(Direction)),
            ("level", get_args(Level)),
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

    def _projection_weights(self) -> int:
        wide = self.heads_q * (self.head_dim + self.head_dim_v)
        return self.d_model * (wide + self.heads_kv * (self.head_dim + self.head_dim_v))

    def _projection_flops(self) -> int:
        from_q = self.heads_q * (self.head_dim + self.head_dim_v)  # Wq and Wo
        from_k = self.heads_kv * (self.head_dim + self.head_dim_v)  # Wk and Wv
        rows = self.seqlen_q * from_q + self.seqlen_k * from_k
        return 2 * self.batch * self.d_model * rows


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
            raise UserError(f"give either {alias} or {target}, not both")
        values[target] = fields[alias]


def _head_dim(d_model: Any, values: Mapping[str, Any]) -> int:
    heads = values.get("heads_q", Problem.heads_q)
    if "head_dim" in values:
        raise UserError("give either d_model or head_dim, not both")
    for name, value in (("d_model", d_model), ("heads_q", heads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a positive integer, got {value!r}")
    if d_model % heads:
        raise UserError(f"d_model {d_model} is not divisible by heads {heads}")
    return int(d_model // heads)


def _check_number(
    name: str,
    value: Any,
    low: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ok = ok and (low is None or value >= low) and (above is None or value > above)
    ok = ok and (below is None or value < below)
    if not ok:
        limits = [f"≥ {low}"] * (low is not None) + [f"> {above}"] * (above is not None)
        limits += [f"< {below}"] * (below is not None)
        raise UserError(
            f"{name} must be a finite number {' and '.join(limits)}".rstrip() + f", got {value!r}"
        )
