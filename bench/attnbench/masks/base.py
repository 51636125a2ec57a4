"""What every mask is: a predicate, and the forms and counts that follow from it.

Query positions are in key coordinates and aligned bottom-right (row ``i`` of ``M`` sits at
``i + N - M``), as in FlashAttention ≥ 2.1, so that the last query always sees the last key.

Letters: M = seqlen_q, N = seqlen_k.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from attnbench.errors import UserError
from attnbench.spec import format_spec

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Table = Callable[[npt.NDArray[Any]], Any]
"""Turns a lookup table into the caller's array type (numpy array or torch tensor)."""
Predicate = Callable[[Any, Any], Any]
"""(query position, key position) → allowed; elementwise on ints, numpy arrays or tensors."""

LARGEST = 2**31 - 1
"""Of a whole number; positions are int32 in many kernels."""
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
    ``full[r, :counts[r]]`` says which of them need no masking inside (the last block of a
    sequence may reach past its end all the same). Entries past ``counts[r]`` are zero.
    """

    block_m: int
    block_n: int
    counts: Ints  # (M blocks,)
    indices: Ints  # (M blocks, N blocks)
    full: Bools  # (M blocks, N blocks)


@dataclass(frozen=True)
class Mask(ABC):
    """Base of all masks: immutable, hashable, serialisable.

    Every field has a default, whose type the field's value must have.

    Raises:
        UserError: a field of another type, or out of range.
    """

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = self._typed(field.name, getattr(self, field.name), field.default)
            object.__setattr__(self, field.name, value)  # frozen: normalise before use

    @abstractmethod
    def predicate(self, seqlen_q: int, seqlen_k: int, table: Table = np.asarray) -> Predicate:
        """The defining function. Query positions are in key coordinates (see module text)."""

    def check(self, seqlen_q: int, seqlen_k: int) -> None:  # noqa: B027 - most masks always fit
        """Raise ``UserError`` if this mask makes no sense at these lengths."""

    def bounds(self, seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints] | None:
        """Each row's allowed keys as ``[low, high)`` if they are one interval, else None."""
        return None

    @property
    def is_causal(self) -> bool:
        """True when no query may look past its own position."""
        return bool(getattr(self, "causal", False))

    @property
    def period(self) -> int:
        """Keys that a query sees outside its neighbourhood are multiples of this away.

        1 where a mask has no such habit. Whoever sorts positions by their remainder has
        side by side what the mask scatters.
        """
        return 1

    # ---- forms an implementation may want -------------------------------------------

    def dense(
        self, seqlen_q: int, seqlen_k: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Boolean ``(M, N)`` tensor, True = may attend."""
        import torch

        self.check(seqlen_q, seqlen_k)
        q_pos, k_pos = positions(seqlen_q, seqlen_k)
        rows_MN = np.empty((seqlen_q, seqlen_k), dtype=np.bool_)
        allows = self.predicate(seqlen_q, seqlen_k)
        for rows in _row_chunks(seqlen_q, seqlen_k):
            rows_MN[rows] = allows(q_pos[rows, None], k_pos[None, :])
        return torch.from_numpy(rows_MN).to(device)

    def additive(
        self, seqlen_q: int, seqlen_k: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """``(M, N)`` bias: 0 where allowed, −inf where not.

        Raises:
            UserError: the dtype has no infinity (float8_e4m3fn).
        """
        import torch

        if not torch.tensor(float("inf")).to(dtype).float().isinf():
            raise UserError(f"mask {self.kind}: {dtype} has no infinity to mask with; use dense")
        dense_MN = self.dense(seqlen_q, seqlen_k, device)
        bias_MN = torch.zeros(seqlen_q, seqlen_k, dtype=dtype, device=device)
        return bias_MN.masked_fill_(~dense_MN, float("-inf"))

    def mask_mod(
        self, seqlen_q: int, seqlen_k: int, device: torch.device | str = "cpu"
    ) -> Callable[[Any, Any, Any, Any], Any]:
        """The FlexAttention form: ``mask_mod(batch, head, q_index, k_index) → bool``."""
        import torch

        self.check(seqlen_q, seqlen_k)
        allows = self.predicate(
            seqlen_q, seqlen_k, lambda array: torch.as_tensor(array, device=device)
        )
        offset = seqlen_k - seqlen_q

        def mask_mod(batch: Any, head: Any, q_index: Any, k_index: Any) -> Any:
            return allows(q_index + offset, k_index)

        return mask_mod

    def blocks(self, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int) -> BlockList:
        """Which blocks of the ``(M, N)`` plane a blocked kernel has to visit."""
        self.check(seqlen_q, seqlen_k)
        find = _blocks_by_pairs if self.bounds(seqlen_q, seqlen_k) is None else _blocks_by_bounds
        any_, all_ = find(self, seqlen_q, seqlen_k, block_m, block_n)
        counts = any_.sum(axis=1).astype(np.int64)
        order = np.argsort(~any_, axis=1, kind="stable").astype(np.int64)
        kept = np.arange(any_.shape[1])[None, :] < counts[:, None]
        full = np.take_along_axis(all_, order, axis=1) & kept
        return BlockList(block_m, block_n, counts, np.where(kept, order, 0), full)

    def coverage(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        """Exact counts at this shape; the ground of FLOPs and ideal bytes."""
        return _coverage(self, seqlen_q, seqlen_k)

    def tally(self, seqlen_q: int, seqlen_k: int) -> Coverage:
        """What :meth:`coverage` remembers. Masks that are not intervals count themselves."""
        bounds = self.bounds(seqlen_q, seqlen_k)
        assert bounds is not None, f"{type(self).__name__} must define bounds() or tally()"
        low, high = bounds
        sees = high > low
        # Keys seen by anybody: a difference array over the row intervals.
        change = np.zeros(seqlen_k + 1, dtype=np.int64)
        np.add.at(change, low[sees], 1)
        np.add.at(change, high[sees], -1)
        keys = int((np.cumsum(change)[:seqlen_k] > 0).sum())
        return Coverage(int((high - low).sum()), int(sees.sum()), keys)

    # ---- text and JSON ---------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A plain object: ``kind`` and every field."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"kind": self.kind} | {k: _plain(v) for k, v in fields.items()}

    def __str__(self) -> str:
        """``kind:field=value,…`` with the fields that differ from their default."""
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }
        return format_spec(self.kind, {k: _short(v) for k, v in changed.items()})

    # ---- checks of fields ------------------------------------------------------------

    def _typed(self, name: str, value: Any, default: Any) -> Any:
        """The value in the type of its default: lists as tuples, integers as floats."""
        if isinstance(default, tuple):
            if not isinstance(value, (list, tuple)):
                raise UserError(f"mask {self.kind}: {name} must be a list, got {value!r}")
            return tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if type(value) is int and abs(value) > LARGEST:
            raise UserError(f"mask {self.kind}: {name} is too large: {value}")
        if isinstance(default, float) and type(value) is int:
            return float(value)
        if type(value) is not type(default):
            raise UserError(
                f"mask {self.kind}: {name} must be of type {type(default).__name__}, got {value!r}"
            )
        return value

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value < least:
                words = {0: "must not be negative", 1: "must be positive"}[least]
                raise UserError(f"mask {self.kind}: {name} {words}, got {value}")


def positions(seqlen_q: int, seqlen_k: int) -> tuple[Ints, Ints]:
    """Query positions (aligned bottom-right, in key coordinates) and key positions."""
    q_pos = np.arange(seqlen_q, dtype=np.int64) + (seqlen_k - seqlen_q)
    return q_pos, np.arange(seqlen_k, dtype=np.int64)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _short(value: Any) -> Any:
    """Lists in the text form: ``3+4+5``, and pairs ``0-0+1-0``."""
    if not isinstance(value, tuple):
        return value
    if len(value) == 1 and not isinstance(value[0], tuple):
        return value[0]
    return "+".join("-".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)


def _row_chunks(seqlen_q: int, seqlen_k: int, multiple: int = 1) -> list[slice]:
    """Slices over the rows, each of at most about ``_CHUNK_ELEMENTS`` pairs."""
    step = max(1, _CHUNK_ELEMENTS // max(seqlen_k, 1) // multiple) * multiple
    return [slice(start, min(start + step, seqlen_q)) for start in range(0, seqlen_q, step)]


@functools.lru_cache(maxsize=512)
def _coverage(mask: Mask, seqlen_q: int, seqlen_k: int) -> Coverage:
    mask.check(seqlen_q, seqlen_k)
    return mask.tally(seqlen_q, seqlen_k)


def _blocks_by_bounds(
    mask: Mask, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int
) -> tuple[Bools, Bools]:
    """(any allowed, all allowed) of each block, from the row intervals alone."""
    bounds = mask.bounds(seqlen_q, seqlen_k)
    assert bounds is not None
    low, high = bounds
    starts_m, starts_n = np.arange(0, seqlen_q, block_m), np.arange(0, seqlen_k, block_n)
    sees = high > low
    row_block = (np.arange(seqlen_q) // block_m)[sees]
    change = np.zeros((len(starts_m), len(starts_n) + 1), dtype=np.int64)
    np.add.at(change, (row_block, low[sees] // block_n), 1)
    np.add.at(change, (row_block, (high[sees] - 1) // block_n + 1), -1)
    any_ = np.cumsum(change, axis=1)[:, :-1] > 0
    ends_n = np.minimum(starts_n + block_n, seqlen_k)
    all_ = (np.maximum.reduceat(low, starts_m)[:, None] <= starts_n) & (
        np.minimum.reduceat(high, starts_m)[:, None] >= ends_n
    )
    return any_, all_


def _blocks_by_pairs(
    mask: Mask, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int
) -> tuple[Bools, Bools]:
    """(any allowed, all allowed) of each block, by looking at every pair."""
    starts_n = np.arange(0, seqlen_k, block_n)
    any_ = np.zeros((-(-seqlen_q // block_m), len(starts_n)), dtype=np.bool_)
    all_ = np.zeros_like(any_)
    q_pos, k_pos = positions(seqlen_q, seqlen_k)
    allows = mask.predicate(seqlen_q, seqlen_k)
    for rows in _row_chunks(seqlen_q, seqlen_k, multiple=block_m):
        chunk = allows(q_pos[rows, None], k_pos[None, :])
        starts_m = np.arange(0, rows.stop - rows.start, block_m)
        out = slice(rows.start // block_m, rows.start // block_m + len(starts_m))
        for reduce, result in ((np.logical_or, any_), (np.logical_and, all_)):
            by_rows = reduce.reduceat(chunk, starts_m, axis=0)
            result[out] = reduce.reduceat(by_rows, starts_n, axis=1)
    return any_, all_
