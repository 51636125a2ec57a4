"""Attention masks: which query may look at which key. Each mask is defined once, here.

A mask is its *predicate*: given a query position and a key position, may they meet? From
that one definition come the dense mask, the block lists, the FlexAttention ``mask_mod``
and the exact counts behind FLOPs and bytes. Query positions are in key coordinates and
aligned bottom-right (row ``i`` of ``M`` sits at ``i + N - M``), as in FlashAttention ≥ 2.1,
so that the last query always sees the last key.

Letters: M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from attnbench.errors import UserError, unknown
from attnbench.spec import format_spec, parse_spec

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Table = Callable[[npt.NDArray[Any]], Any]
"""Turns a lookup table into the caller's array type (numpy array or torch tensor)."""
Predicate = Callable[[Any, Any], Any]
"""(query position, key position) → allowed; elementwise on ints, numpy arrays or tensors."""

_CHUNK_ELEMENTS = 1 << 24  # dense work is done in pieces of at most this many pairs


@dataclass(frozen=True)
class Coverage:
    """What a mask keeps at one shape: exact numbers, no estimate."""

    pairs: int  # allowed (query, key) pairs
    queries: int  # query rows with at least one allowed key
    keys: int  # keys that at least one query may see


@dataclass(frozen=True)
class BlockList:
    """Allowed blocks of each row of blocks, in ascending order.

    ``indices[r, :counts[r]]`` are the key blocks that query block ``r`` must visit, and
    ``full[r, :counts[r]]`` says which of them need no masking inside. Entries past
    ``counts[r]`` are zero.
    """

    block_m: int
    block_n: int
    counts: Ints  # (M blocks,)
    indices: Ints  # (M blocks, N blocks)
    full: Bools  # (M blocks, N blocks)


@dataclass(frozen=True)
class Mask:
    """Base of all masks: immutable, hashable, serialisable."""

    kind: ClassVar[str] = ""

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        """Raise ``UserError`` if this mask makes no sense at these lengths."""

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        """The defining function. Query positions are in key coordinates (see module text)."""
        raise UserError(f"mask {self.kind!r} has no predicate")

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints] | None:
        """Each row's allowed keys as ``[low, high)`` if they are one interval, else None."""
        return None

    @property
    def is_causal(self) -> bool:
        """True when no query may look past its own position."""
        return bool(getattr(self, "causal", False))

    # ---- forms an implementation may want -------------------------------------------

    def dense(
        self, seqlen_q: int, seqlen_k: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Boolean ``(M, N)`` tensor, True = may attend."""
        import torch

        q_pos, k_pos = positions(seqlen_q, seqlen_k)
        rows_MN = np.empty((seqlen_q, seqlen_k), dtype=np.bool_)
        allows = self.predicate(seqlen_q, seqlen_k)
        for rows in _row_chunks(seqlen_q, seqlen_k):
            rows_MN[rows] = allows(q_pos[rows, None], k_pos[None, :])
        return torch.from_numpy(rows_MN).to(device)

    def additive(
        self, seqlen_q: int, seqlen_k: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """``(M, N)`` bias: 0 where allowed, −inf where not."""
        import torch

        dense_MN = self.dense(seqlen_q, seqlen_k, device)
        bias_MN = torch.zeros(seqlen_q, seqlen_k, dtype=dtype, device=device)
        return bias_MN.masked_fill_(~dense_MN, float("-inf"))

    def mask_mod(
        self, seqlen_q: int, seqlen_k: int, device: torch.device | str = "cpu"
    ) -> Callable[[Any, Any, Any, Any], Any]:
        """The FlexAttention form: ``mask_mod(batch, head, q_index, k_index) → bool``."""
        import torch

        allows = self.predicate(
            seqlen_q, seqlen_k, lambda array: torch.as_tensor(array, device=device)
        )
        offset = seqlen_k - seqlen_q

        def mask_mod(batch: Any, head: Any, q_index: Any, k_index: Any) -> Any:
            return allows(q_index + offset, k_index)

        return mask_mod

    def blocks(self, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int) -> BlockList:
        """Which blocks of the ``(M, N)`` plane a blocked kernel has to visit."""
        return _blocks(self, seqlen_q, seqlen_k, block_m, block_n)

    def coverage(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        """Exact counts at this shape; the ground of FLOPs and ideal bytes."""
        return _coverage(self, seqlen_q, seqlen_k)

    # ---- text and JSON ---------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A plain object: ``kind`` and every field."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"kind": self.kind} | {k: _plain(v) for k, v in fields.items()}

    def __str__(self) -> str:
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }
        return format_spec(self.kind, {k: _short(v) for k, v in changed.items()})


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _short(value: Any) -> Any:
    return "+".join(str(v) for v in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Full(Mask):
    """Every query sees every key."""

    kind: ClassVar[str] = "full"

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        return lambda q, k: (q == q) & (k >= 0)  # true everywhere, with both broadcast

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        low = np.zeros(seqlen_q, dtype=np.int64)
        return low, low + seqlen_k


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees its own position and what came before it."""

    kind: ClassVar[str] = "causal"

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        return lambda q, k: q >= k

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        q_pos, _ = positions(seqlen_q, seqlen_k)
        return np.zeros_like(q_pos), np.maximum(q_pos + 1, 0)

    @property
    def is_causal(self) -> bool:
        return True


@dataclass(frozen=True)
class Window(Mask):
    """Sliding window: the ``window`` most recent keys, the query's own among them.

    With ``causal = false`` the window reaches as far ahead as it does back:
    ``|q - k| < window``.
    """

    kind: ClassVar[str] = "window"
    window: int = 256
    causal: bool = True

    def __post_init__(self) -> None:
        _positive(self, "window")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        if self.causal:
            return lambda q, k: (q >= k) & (q - k < self.window)
        return lambda q, k: (q - k < self.window) & (k - q < self.window)

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        q_pos, _ = positions(seqlen_q, seqlen_k)
        ahead = 1 if self.causal else self.window
        high = np.clip(q_pos + ahead, 0, seqlen_k)
        return np.clip(q_pos - self.window + 1, 0, high), high


@dataclass(frozen=True)
class PrefixLM(Mask):
    """Causal, except that everybody sees the first ``prefix`` keys (T5, UniLM)."""

    kind: ClassVar[str] = "prefix"
    prefix: int = 64

    def __post_init__(self) -> None:
        _positive(self, "prefix")

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        if self.prefix > seqlen_k:
            raise UserError(f"mask prefix: prefix {self.prefix} is longer than seqlen_k {seqlen_k}")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        return lambda q, k: (q >= k) | (k < self.prefix)

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        q_pos, _ = positions(seqlen_q, seqlen_k)
        return np.zeros_like(q_pos), np.maximum(q_pos + 1, self.prefix)


@dataclass(frozen=True)
class Document(Mask):
    """Packed sequences of variable length: nobody looks outside their own document.

    Give the ``lengths`` themselves, or a ``count``: then the lengths are uneven, drawn
    from ``seed`` for whatever seqlen the problem has.
    """

    kind: ClassVar[str] = "document"
    lengths: tuple[int, ...] = ()
    count: int = 0
    causal: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if bool(self.lengths) == bool(self.count):
            raise UserError("mask document: give either lengths or count")
        if any(length <= 0 for length in self.lengths) or self.count < 0:
            raise UserError(
                "mask document: lengths and count must be positive, "
                f"got {self.lengths or self.count}"
            )

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        if seqlen_q != seqlen_k:
            raise UserError(
                f"mask document: seqlen_q {seqlen_q} and seqlen_k {seqlen_k} must be equal"
            )
        if self.lengths and sum(self.lengths) != seqlen_k:
            raise UserError(
                f"mask document: lengths add up to {sum(self.lengths)}, seqlen is {seqlen_k}"
            )
        if self.count > seqlen_k:
            raise UserError(
                f"mask document: count {self.count} is more than seqlen {seqlen_k} tokens"
            )

    def document_lengths(self, seqlen: int) -> tuple[int, ...]:
        """The length of each document, adding up to ``seqlen``."""
        if self.lengths:
            return self.lengths
        rng = np.random.default_rng([self.seed, seqlen, self.count])
        cuts = np.sort(rng.choice(seqlen - 1, size=self.count - 1, replace=False)) + 1
        return tuple(np.diff([0, *cuts, seqlen]).tolist())

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        lengths = self.document_lengths(seqlen_k)
        doc = table(np.repeat(np.arange(len(lengths)), lengths))
        if self.causal:
            return lambda q, k: (doc[q] == doc[k]) & (q >= k)
        return lambda q, k: doc[q] == doc[k]

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
        lengths = np.asarray(self.document_lengths(seqlen_k), dtype=np.int64)
        ends = np.cumsum(lengths)
        high = np.repeat(ends, lengths)
        low = np.repeat(ends - lengths, lengths)
        return low, (np.arange(seqlen_q, dtype=np.int64) + 1 if self.causal else high)


@dataclass(frozen=True)
class Strided(Mask):
    """Sparse Transformer's strided pattern (Child et al. 2019, arXiv 1904.10509, §4.3).

    The ``stride`` most recent keys, and every ``stride``-th one before them.
    """

    kind: ClassVar[str] = "strided"
    stride: int = 64
    causal: bool = True

    def __post_init__(self) -> None:
        _positive(self, "stride")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        stride = self.stride
        if self.causal:
            return lambda q, k: (q >= k) & ((q - k < stride) | ((q - k) % stride == 0))
        return lambda q, k: ((q - k < stride) & (k - q < stride)) | ((q - k) % stride == 0)


@dataclass(frozen=True)
class _BlockMask(Mask):
    """Masks that are a table of allowed ``block × block`` squares, cut by causality."""

    block: int = 64
    causal: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(self, "block")

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        if seqlen_q > seqlen_k:
            raise UserError(
                f"mask {self.kind}: seqlen_q {seqlen_q} must not exceed seqlen_k {seqlen_k}"
            )

    def block_table(self, blocks: int) -> Bools:
        """``(blocks, blocks)``: which squares of the key × key plane are allowed."""
        raise UserError(f"mask {self.kind!r} has no block table")

    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        allowed = table(self.block_table(-(-seqlen_k // self.block)))
        block = self.block
        if self.causal:
            return lambda q, k: allowed[q // block, k // block] & (q >= k)
        return lambda q, k: allowed[q // block, k // block]


@dataclass(frozen=True)
class BlockSparse(_BlockMask):
    """Any list of blocks, or a share of all blocks drawn from ``seed``.

    ``blocks`` lists allowed ``(query block, key block)`` squares. Without it each square
    is kept with probability ``density``; the diagonal is always kept, so that no query is
    left without a key.
    """

    kind: ClassVar[str] = "block_sparse"
    blocks_kept: tuple[tuple[int, int], ...] = ()
    density: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise UserError(f"mask block_sparse: density must be in (0, 1], got {self.density}")

    def check(self, seqlen_q: int, seqlen_k: int) -> None:
        super().check(seqlen_q, seqlen_k)
        last = -(-seqlen_k // self.block) - 1
        for pair in self.blocks_kept:
            if not all(0 <= index <= last for index in pair):
                raise UserError(
                    f"mask block_sparse: block {pair} lies outside 0…{last} at seqlen_k {seqlen_k}"
                )

    def block_table(self, blocks: int) -> Bools:
        if self.blocks_kept:
            kept = np.zeros((blocks, blocks), dtype=np.bool_)
            rows, columns = zip(*self.blocks_kept, strict=True)
            kept[list(rows), list(columns)] = True
            return kept
        rng = np.random.default_rng([self.seed, blocks])
        drawn: Bools = rng.random((blocks, blocks)) < self.density
        return drawn | np.eye(blocks, dtype=np.bool_)


@dataclass(frozen=True)
class BigBird(_BlockMask):
    """Window + global + random blocks (Zaheer et al. 2020, arXiv 2007.14062)."""

    kind: ClassVar[str] = "bigbird"
    window_blocks: int = 3
    global_blocks: int = 1
    random_blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("window_blocks", "global_blocks", "random_blocks"):
            if getattr(self, field) < 0:
                raise UserError(f"mask bigbird: {field} must not be negative")
        if self.window_blocks % 2 == 0:
            raise UserError(f"mask bigbird: window_blocks must be odd, got {self.window_blocks}")

    def block_table(self, blocks: int) -> Bools:
        index = np.arange(blocks)
        kept: Bools = np.abs(index[:, None] - index[None, :]) <= self.window_blocks // 2
        kept[: self.global_blocks, :] = True
        kept[:, : self.global_blocks] = True
        rng = np.random.default_rng([self.seed, blocks])
        for row in range(blocks):
            free = np.flatnonzero(~kept[row, : row + 1] if self.causal else ~kept[row])
            kept[row, rng.permutation(free)[: self.random_blocks]] = True
        return kept


MASKS: Mapping[str, type[Mask]] = {
    cls.kind: cls
    for cls in (Full, Causal, Window, PrefixLM, Document, BlockSparse, Strided, BigBird)
}


def parse_mask(given: str | Mapping[str, Any] | Mask) -> Mask:
    """Read a mask from ``"causal"``, ``"window:window=256"`` or ``{"kind": "window", …}``.

    Raises:
        UserError: unknown kind or field, wrong type, or a value out of range.
    """
    if isinstance(given, Mask):
        return given
    if isinstance(given, str):
        kind, fields = parse_spec(given)
        values: dict[str, Any] = dict(fields)
    elif isinstance(given, Mapping):
        values = {k: v for k, v in given.items() if k != "kind"}
        kind = str(given.get("kind", ""))
    else:
        raise UserError(f"mask must be a name or a table with 'kind', got {given!r}")
    if kind not in MASKS:
        raise unknown("mask", kind, MASKS)
    cls = MASKS[kind]
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in defaults:
            raise unknown(f"field of mask {kind}:", key, defaults)
        values[key] = _read_field(kind, key, value, defaults[key])
    return cls(**values)


def _read_field(kind: str, key: str, value: Any, default: Any) -> Any:
    """Check one field against the type of its default; lists become tuples."""
    if isinstance(default, tuple):
        if isinstance(value, (int, str)):
            value = [int(word) for word in str(value).split("+")]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"mask {kind}: {key} must be a list, got {value!r}")
        return tuple(tuple(v) if isinstance(v, (list, tuple)) else v for v in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(
            f"mask {kind}: {key} must be of type {type(default).__name__}, got {value!r}"
        )
    return value


def positions(seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
    """Query positions (aligned bottom-right, in key coordinates) and key positions."""
    q_pos = np.arange(seqlen_q, dtype=np.int64) + (seqlen_k - seqlen_q)
    return q_pos, np.arange(seqlen_k, dtype=np.int64)


def _positive(mask: Mask, field: str) -> None:
    value = getattr(mask, field)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UserError(f"mask {mask.kind}: {field} must be a positive integer, got {value!r}")


def _row_chunks(seqlen_q: int, seqlen_k: int, multiple: int = 1) -> list[slice]:
    """Slices over the rows, each of at most about ``_CHUNK_ELEMENTS`` pairs."""
    step = max(1, _CHUNK_ELEMENTS // max(seqlen_k, 1) // multiple) * multiple
    return [slice(start, min(start + step, seqlen_q)) for start in range(0, seqlen_q, step)]


@functools.lru_cache(maxsize=512)
def _coverage(mask: Mask, seqlen_q: int, seqlen_k: int) -> Coverage:
    bounds = mask.bounds(seqlen_q, seqlen_k)
    if bounds is not None:
        low, high = bounds
        counts = high - low
        # Keys seen by anybody: a difference array over the row intervals.
        seen = np.zeros(seqlen_k + 1, dtype=np.int64)
        np.add.at(seen, low, counts > 0)
        np.add.at(seen, high, -(counts > 0).astype(np.int64))
        keys = int((np.cumsum(seen)[:seqlen_k] > 0).sum())
        return Coverage(int(counts.sum()), int((counts > 0).sum()), keys)
    q_pos, k_pos = positions(seqlen_q, seqlen_k)
    allows = mask.predicate(seqlen_q, seqlen_k)
    pairs = queries = 0
    key_seen = np.zeros(seqlen_k, dtype=np.bool_)
    for rows in _row_chunks(seqlen_q, seqlen_k):
        chunk = allows(q_pos[rows, None], k_pos[None, :])
        pairs += int(chunk.sum())
        queries += int(chunk.any(axis=1).sum())
        key_seen |= chunk.any(axis=0)
    return Coverage(pairs, queries, int(key_seen.sum()))


def _blocks(mask: Mask, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int) -> BlockList:
    rows_m, rows_n = -(-seqlen_q // block_m), -(-seqlen_k // block_n)
    any_ = np.zeros((rows_m, rows_n), dtype=np.bool_)
    all_ = np.zeros((rows_m, rows_n), dtype=np.bool_)
    q_pos, k_pos = positions(seqlen_q, seqlen_k)
    allows = mask.predicate(seqlen_q, seqlen_k)
    starts_n = np.arange(0, seqlen_k, block_n)
    for rows in _row_chunks(seqlen_q, seqlen_k, multiple=block_m):
        chunk = np.broadcast_to(
            allows(q_pos[rows, None], k_pos[None, :]), (rows.stop - rows.start, seqlen_k)
        )
        starts_m = np.arange(0, rows.stop - rows.start, block_m)
        out = slice(rows.start // block_m, rows.start // block_m + len(starts_m))
        for reduce, result in ((np.logical_or, any_), (np.logical_and, all_)):
            by_rows = reduce.reduceat(chunk, starts_m, axis=0)
            result[out] = reduce.reduceat(by_rows, starts_n, axis=1)
    counts = any_.sum(axis=1).astype(np.int64)
    order = np.argsort(~any_, axis=1, kind="stable").astype(np.int64)
    kept = np.arange(rows_n)[None, :] < counts[:, None]
    return BlockList(
        block_m,
        block_n,
        counts,
        np.where(kept, order, 0),
        np.take_along_axis(all_, order, axis=1) & kept,
    )
