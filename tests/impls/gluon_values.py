"""What a kernel sees on the machine of ``gluon_machine``: tensors, buffers, barriers."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class Fault(Exception):
    """What would be a wrong result, or a hang, on a GPU."""


class Array(np.ndarray):  # type: ignore[type-arg]
    """A tensor in registers; float32 as on the GPU, rounded to a dtype only on ``to``."""

    def to(self, dtype: Any) -> Array:
        return dtype.rounded(self)


@dataclass(frozen=True)
class Dtype:
    """Of buffers and pointers."""

    name: str

    def rounded(self, x: Any) -> Array:
        x = np.asarray(x, dtype=np.float32)
        if self.name == "float16":
            x = x.astype(np.float16).astype(np.float32)
        if self.name == "bfloat16":
            bits = np.ascontiguousarray(x).view(np.uint32)
            nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
            x = np.where(np.isnan(x), x, nearest.astype(np.uint32).view(np.float32))
        return x.view(Array)


def tensor(x: Any) -> Array:
    return np.array(x).view(Array)


@dataclass(frozen=True)
class Buffer:
    """Shared memory, or a view of it."""

    data: np.ndarray  # type: ignore[type-arg]
    dtype: Dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def index(self, i: int) -> Buffer:
        return Buffer(self.data[i], self.dtype)

    def reshape(self, shape: Sequence[int]) -> Buffer:
        view = self.data.view()
        view.shape = tuple(shape)  # raises where a copy would be needed
        return Buffer(view, self.dtype)

    def permute(self, order: Sequence[int]) -> Buffer:
        return Buffer(self.data.transpose(order), self.dtype)


class Barrier:
    """An mbarrier: phases that end after ``count`` arrivals and all announced bytes."""

    def __init__(self) -> None:
        self.count = 0
        self.phase = 0
        self.left = 0
        self.bytes = 0

    def arrive(self) -> None:
        if self.left == 0:
            raise Fault("an arrival too many in one phase of a barrier")
        self.left -= 1
        self._end()

    def add_bytes(self, number: int) -> None:
        self.bytes += number
        self._end()

    def is_over(self, parity: int) -> bool:
        """Whether the phase of that parity is over: the current one has the other parity."""
        return self.phase % 2 != parity

    def _end(self) -> None:
        if self.left == 0 and self.bytes == 0:
            self.phase += 1
            self.left = self.count


class Barriers:
    """An array of them."""

    def __init__(self, number: int) -> None:
        self.all = [Barrier() for _ in range(number)]

    def index(self, i: int) -> Barrier:
        return self.all[i]


@dataclass(frozen=True)
class Descriptor:
    """Of a tensor (B, heads, seqlen, dim), in blocks."""

    data: np.ndarray  # type: ignore[type-arg]
    block_shape: Sequence[int]
    dtype: Dtype
    layout: None = None

    @property
    def block_type(self) -> Any:
        return types.SimpleNamespace(nbytes=2 * int(np.prod(self.block_shape)))

    def block(self, corner: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
        """Zeros where there is nothing, as the TMA does."""
        out = np.zeros(self.block_shape, dtype=np.float32)
        ends = [min(c + n, s) for c, n, s in zip(corner, out.shape, self.data.shape, strict=True)]
        part = self.data[tuple(slice(c, e) for c, e in zip(corner, ends, strict=True))]
        out[tuple(slice(0, n) for n in part.shape)] = part
        return out


@dataclass(frozen=True)
class Pointer:
    """Into an output, flat; ``written`` counts how often each element was."""

    data: np.ndarray  # type: ignore[type-arg]
    written: np.ndarray  # type: ignore[type-arg]
    element: Dtype
    offset: Any = 0

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=self.element)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.data, self.written, self.element, self.offset + offset)
