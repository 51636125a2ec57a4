"""Kernels as Python: launch any ``@triton.jit`` function in Triton's interpreter, at will.

``TRITON_INTERPRET=1`` chooses once for a whole process, when a kernel is decorated. Here the
choice is made for each launch, so that compiled and interpreted kernels live side by side
and tests run the very functions that are compiled. It rests on three of the interpreter's
private names (Triton 3.6 and 3.7); a version that renames them fails at the first launch.

Faults of the interpreter are mended meanwhile, because numpy has no bfloat16 and no 8-bit
floats: products of bfloat16 tiles are taken of their bits, rounding to bfloat16 is
truncation, and a conversion to or from e4m3 loses NaN and does not round to nearest.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from triton.language import core  # noqa: F401 - the interpreter patches what it finds here
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, TensorHandle
from triton.runtime.jit import JITFunction


def launch_interpreted(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Run a kernel over its grid, one program after another, on CPU tensors.

    Args:
        kernel: a ``@triton.jit`` function; what it calls may be ``@triton.jit`` too.
        grid: number of programs along each axis.
        arguments: by name; launch options such as ``num_warps`` are left out by the caller.
    """
    with _interpreting():
        _as_python(kernel.fn)[grid](**arguments)


@functools.cache
def _as_python(function: Callable[..., Any]) -> Any:
    return InterpretedFunction(function)


@contextmanager
def _interpreting() -> Iterator[None]:
    """``tl`` means numpy, and a ``@triton.jit`` function may be called like any other."""
    builder = interpreter.interpreter_builder
    # Patched once for the launch, not anew at every call of a helper.
    scope = interpreter._patch_lang(_here)
    try:
        scope.set_attr(interpreter, "_patch_lang", lambda fn: interpreter._LangPatchScope())
        scope.set_attr(JITFunction, "__call__", lambda self, *a, **k: _as_python(self.fn)(*a, **k))
        unchecked = dataclasses.replace(builder.options, sanitize_overflow=False)
        scope.set_attr(builder, "options", unchecked)  # as compiled code, in half the time
        scope.set_attr(builder, "create_dot", _dot_of(builder.create_dot))
        scope.set_attr(builder, "cast_impl", _cast_of(builder.cast_impl))
        scope.set_attr(builder, "create_fp_to_fp", _convert_of(builder.cast_impl))
        # As on a GPU: −inf − −inf is NaN without a word, and a row of NaN has no maximum.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
            yield
    finally:
        scope.restore()


def _here() -> None:
    """Stands in this module, where the interpreter looks for ``tl`` and ``core`` to patch."""


# ---- bfloat16 and e4m3 -------------------------------------------------------------------


def _dot_of(dot: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        return dot(_widened(a), _widened(b), *rest)

    return create_dot


def _cast_of(cast: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(source: Any, to: Any) -> Any:
        if to.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return TensorHandle(_rounded(source.data), tl.bfloat16)
        if to.scalar == tl.float32:
            source = _widened(source)
        return cast(source, to) if source.dtype.scalar != to.scalar else source

    return cast_impl


def _convert_of(cast: Callable[..., Any]) -> Callable[..., Any]:
    """Conversions from or to 8-bit floats, of which e4m3 is known."""

    def create_fp_to_fp(source: Any, to: Any, rounding: Any) -> Any:
        known = (tl.float8e4nv, tl.bfloat16, tl.float16, tl.float32)
        assert source.dtype.scalar in known
        assert to.scalar in known
        wide = cast(source, tl.float32)
        if to.scalar != tl.float8e4nv:
            return cast(wide, to)
        return TensorHandle(_rounded_to_e4m3(wide.data), tl.float8e4nv)

    return create_fp_to_fp


def _widened(handle: Any) -> Any:
    """A bfloat16 or e4m3 tensor as float32; any other as it is."""
    if handle.dtype.scalar == tl.float8e4nv:
        return TensorHandle(_E4M3[handle.data], tl.float32)
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32), tl.float32)


_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
"""By its bits, every e4m3."""


def _rounded_to_e4m3(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The bits of the nearest e4m3, ties to even; the largest where a GPU's ``satfinite`` is."""
    within = np.clip(np.ascontiguousarray(x), _E4M3[0x7E] * -1, _E4M3[0x7E])  # NaN stays
    bits: npt.NDArray[np.uint8] = (
        torch.from_numpy(within).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    )
    return bits


def _rounded(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, nearest).astype(np.uint16)
