"""Small Triton kernels, each with one thing wrong (or nothing), and an implementation of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from attnbench import Attention, Case, Problem, Unsupported, register

POINTERS = {"A": "*bf16", "B": "*bf16", "C": "*fp32"}
TENSOR_CORES = frozenset({"tensor_cores"})
NVIDIA = ("sm_80", "sm_89", "sm_90", "sm_100")


@triton.jit
def product(A, B, C, K, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """C_MN = A_MK B_KN, one tile."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BLOCK)
    c_MN = tl.zeros([M, N], tl.float32)
    for start in tl.range(0, K, BLOCK):
        a_MK = tl.load(A + m[:, None] * K + start + k[None, :])
        b_KN = tl.load(B + (start + k)[:, None] * N + n[None, :])
        c_MN = tl.dot(a_MK, b_KN, c_MN)
    tl.store(C + m[:, None] * N + n[None, :], c_MN)


@triton.jit
def specialized(A, B, C, K, M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
                ADD: tl.constexpr):  # fmt: skip
    """The same product by TMA, its loop split over warp groups.

    ADD counts in the loop, atomically: Triton 3.6 and 3.7 drop that in silence.
    """
    a_desc = tl.make_tensor_descriptor(A, shape=[M, K], strides=[K, 1], block_shape=[M, BLOCK])
    b_desc = tl.make_tensor_descriptor(B, shape=[K, N], strides=[N, 1], block_shape=[BLOCK, N])
    m, n = tl.arange(0, M), tl.arange(0, N)
    c_MN = tl.zeros([M, N], tl.float32)
    for start in tl.range(0, K, BLOCK, num_stages=2, warp_specialize=True):
        c_MN = tl.dot(a_desc.load([0, start]), b_desc.load([start, 0]), c_MN)
        if ADD:
            tl.atomic_add(C + M * N + m, start.to(tl.float32) + m, sem="relaxed")
    tl.store(C + m[:, None] * N + n[None, :], c_MN)


@triton.jit
def adding(A, C, N: tl.constexpr):
    """C += A, atomically."""
    n = tl.arange(0, N)
    tl.atomic_add(C + n, tl.load(A + n).to(tl.float32))


@triton.jit
def refusing(A, C, N: tl.constexpr):
    """Does not compile: Triton's own front end says why."""
    tl.static_assert(N < 64, "tiles of 64 are too large for this toy")
    tl.store(C + tl.arange(0, N), tl.load(A + tl.arange(0, N)).to(tl.float32))


@gluon.jit
def copying(A, C, N: gl.constexpr):
    """C = A, in Gluon: layouts are the kernel's own."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    n = gl.arange(0, N, layout=layout)
    gl.store(C + n, gl.load(A + n).to(gl.float32))


class Fatal(dict[str, str]):
    """A signature that takes the compiler's process down, as an LLVM assertion does."""

    def __iter__(self) -> Iterator[str]:
        os.write(2, b"LLVM ERROR: Cannot select: a toy\n")
        os.abort()


def tile(name: str, m: int, n: int, block: int, **more: Any) -> Case:
    told: dict[str, Any] = {"num_warps": 4, "num_stages": 2, "expects": TENSOR_CORES, **more}
    constexprs = {"M": m, "N": n, "BLOCK": block}
    return Case(name, product, {**POINTERS, "K": "i32"}, constexprs,
                multiples_of_16=frozenset({"K"}), **told)  # fmt: skip


def split(name: str, expects: Iterable[str] = (), add: bool = False, **more: Any) -> Case:
    told: dict[str, Any] = {"num_warps": 4, "num_stages": 2, "targets": ("sm_90",), **more}
    constexprs = {"M": 128, "N": 64, "BLOCK": 64, "ADD": add}
    return Case(name, specialized, {**POINTERS, "K": "i32"}, constexprs,
                multiples_of_16=frozenset({"K"}), expects=frozenset(expects), **told)  # fmt: skip


class Toy(Attention):
    """Nothing that attends."""

    def build(self, problem: Problem, device: torch.device) -> Any:
        raise Unsupported("a toy")


@register("toy-quick")
class Quick(Toy):
    """What the quick tests compile: one fine, one that is refused."""

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        yield tile("fine", 64, 64, 32, targets=("sm_90",))
        yield tile("fine too", 128, 64, 32, targets=("sm_90",))
        types = {"A": "*bf16", "C": "*fp32"}
        yield Case("refused", refusing, types, {"N": 64}, 4, 1, targets=("sm_80",))


@register("toy-sound")
class Sound(Toy):
    """Nothing is wrong with these, on any target."""

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        yield tile("product", 128, 128, 32)
        yield tile("few registers", 128, 64, 32, maxnreg=80, spill_budget_bytes=512,
                   targets=("sm_90",))  # fmt: skip
        a_MK, b_KN = (torch.empty(128, 128, dtype=torch.bfloat16, device="meta") for _ in "AB")
        arguments = {"A": a_MK, "B": b_KN, "C": a_MK.float(), "K": 128, "M": 128, "N": 128,
                     "BLOCK": 32}  # fmt: skip
        yield Case.of_launch("launched", product, arguments, num_warps=4, num_stages=2,
                             expects=TENSOR_CORES)  # fmt: skip
        types = {"A": "*bf16", "C": "*fp32"}
        yield Case("adding", adding, types, {"N": 256}, 4, 1, expects=frozenset({"atomics"}))
        yield Case("copying", copying, types, {"N": 256}, 4, 1, targets=("sm_90",))
        yield split("specialized", ["warp_specialize", "tma", "tensor_cores"])


@register("toy-faulty")
class Faulty(Toy):
    """Each has one thing wrong."""

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        types = {"A": "*bf16", "C": "*fp32"}
        yield tile("spilling", 128, 128, 32, num_warps=1, targets=("sm_80",))
        yield tile("large", 128, 256, 64, num_warps=8, num_stages=6, targets=NVIDIA)
        yield tile("small", 16, 64, 32, targets=("sm_90",))
        yield split("eight warps", num_warps=8)
        yield split("dropping", ["atomics"], add=True)
        yield Case("crashing", adding, Fatal(types), {"N": 256}, 4, 1, targets=("sm_80",))
        yield Case("untold", adding, {"A": "*bf16"}, {"N": 256}, 4, 1, targets=("sm_80",))


@register("toy-silent")
class Silent(Toy):
    """Offers nothing."""


@register("toy-broken")
class Broken(Toy):
    """Cannot say what it offers."""

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        raise KeyError("no such configuration")


@register("toy-misnamed")
class Misnamed(Toy):
    """Its launch has an argument that the kernel has not."""

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        arguments = {"A": None, "C": None, "M": 256}
        yield Case.of_launch("misnamed", adding, arguments, num_warps=4, num_stages=1)


@register("toy-short")
class Short(Toy):
    """Its launch lacks an argument."""

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        yield Case.of_launch("short", adding, {"A": None, "C": None}, num_warps=4, num_stages=1)
