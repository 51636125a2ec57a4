"""What everybody in a process shares, and nobody may leave changed.

All implementations of a problem, the textbook that sets their limits and the float64
reference run in one process. One that leaves torch with two threads fewer, TF32 switched
on, or ``scaled_dot_product_attention`` replaced by its own kernel has changed everybody's
figures. It is told so, and things are put back before anybody else's turn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import _pop_mode as _pop_function_mode
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch_mode

_CUDA = torch.backends.cuda
_MKLDNN: Any = torch.backends.mkldnn
_PRODUCTS: tuple[Any, ...] = (_CUDA.matmul, _MKLDNN.matmul, torch.backends)


_CODE = (FunctionType, BuiltinFunctionType, property, classmethod, staticmethod, type)
_TELLING = (bool, int, str, tuple, torch.dtype, torch.device)  # values worth telling


class Meddling(Exception):
    """Somebody changed what others depend on; the text says what."""


@dataclass(frozen=True)
class _Shared:
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _attribute(owner: Any, name: str, title: str) -> _Shared:
    return _Shared(title, lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _stream(name: str, descriptor: int) -> _Shared:
    """``sys.stdout`` or ``sys.stderr``, and the descriptor below, which may be closed as well."""
    spare = os.dup(descriptor)

    def read() -> Any:
        stream = getattr(sys, name)
        try:
            is_open = os.path.samestat(os.fstat(descriptor), os.fstat(spare))
        except OSError:
            is_open = False
        return stream if is_open and stream is not None and not stream.closed else None

    def write(stream: Any) -> None:
        os.dup2(spare, descriptor)
        closed = stream is None or stream.closed
        setattr(sys, name, open(descriptor, "w", closefd=False) if closed else stream)  # noqa: SIM115

    return _Shared(f"sys.{name}", read, write)


def _autocast(device: str) -> _Shared:
    return _Shared(
        f"autocast on {device}",
        lambda: torch.is_autocast_enabled(device),
        lambda value: torch.set_autocast_enabled(device, value),
    )


def _set_default_device(device: torch.device) -> None:
    """Without an index it is what torch starts with, and setting it would slow every call."""
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _precision() -> tuple[str, ...]:
    """What float32 products are made of, read where old and new ways of setting it meet."""
    return tuple(str(place.fp32_precision).replace("ieee", "none") for place in _PRODUCTS)


def _set_precision(values: tuple[str, ...]) -> None:
    # The old way first: torch refuses to tell it when the two disagree.
    torch.set_float32_matmul_precision("high" if "tf32" in values else "highest")
    for place, value in zip(_PRODUCTS, values, strict=True):
        place.fp32_precision = value


def _pop_function_modes(wanted: int) -> None:
    while torch._C._len_torch_function_stack() > wanted:
        _pop_function_mode()  # type: ignore[no-untyped-call]


def _pop_dispatch_modes(wanted: int) -> None:
    while torch._C._len_torch_dispatch_stack() > wanted:
        _pop_dispatch_mode()


_SHARED = (
    _stream("stdout", 1),
    _stream("stderr", 2),
    _Shared("torch.get_num_threads()", torch.get_num_threads, torch.set_num_threads),
    _Shared("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Shared("torch's default device", torch.get_default_device, _set_default_device),
    _Shared("torch.is_grad_enabled()", torch.is_grad_enabled, torch.set_grad_enabled),
    _autocast("cpu"),
    _autocast("cuda"),
    _Shared("float32 matmul precision (CUDA, oneDNN, all)", _precision, _set_precision),
    _Shared(
        "torch.are_deterministic_algorithms_enabled()",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    _Shared("SDPA's flash backend", _CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    _Shared("SDPA's efficient backend", _CUDA.mem_efficient_sdp_enabled,
            _CUDA.enable_mem_efficient_sdp),
    _Shared("SDPA's math backend", _CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
    _Shared("SDPA's cuDNN backend", _CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
    _Shared("torch's function modes", torch._C._len_torch_function_stack, _pop_function_modes),
    _Shared("torch's dispatch modes", torch._C._len_torch_dispatch_stack, _pop_dispatch_modes),
    _attribute(F, "scaled_dot_product_attention", "F.scaled_dot_product_attention"),
    _attribute(F, "softmax", "F.softmax"),
    *(_attribute(torch, name, f"torch.{name}") for name in
      ("softmax", "matmul", "bmm", "einsum", "empty", "equal", "quantile")),
    *(_attribute(torch.Tensor, name, f"torch.Tensor.{name}") for name in
      ("softmax", "matmul", "abs", "clone", "copy_", "detach", "double", "fill_", "isfinite",
       "max", "mul_", "norm", "to", "view")),
    *(_attribute(torch.autograd, name, f"torch.autograd.{name}") for name in ("grad", "backward")),
    *(_attribute(torch.cuda, name, f"torch.cuda.{name}") for name in
      ("Event", "Stream", "CUDAGraph", "graph", "current_stream", "synchronize", "_sleep",
       "max_memory_allocated")),
    *(_attribute(torch.cuda.Event, name, f"torch.cuda.Event.{name}") for name in
      ("record", "query", "synchronize", "elapsed_time")),
    _attribute(torch.cuda.CUDAGraph, "replay", "torch.cuda.CUDAGraph.replay"),
    *(_attribute(time, name, f"time.{name}") for name in
      ("perf_counter", "perf_counter_ns", "monotonic", "time", "sleep", "clock_gettime_ns")),
)  # fmt: skip


class Guard:
    """Remembers how things are when it is made."""

    def __init__(self) -> None:
        self._before = [shared.read() for shared in _SHARED]
        self._own = _own_code()

    def restore(self) -> list[str]:
        """Put everything back; say what had changed, and from what to what."""
        changed = []
        for i, shared in enumerate(_SHARED):
            before, now = self._before[i], shared.read()
            if now is not before and now != before:
                shared.write(before)
                self._before[i] = shared.read()  # a closed stream comes back as another one
                how = f" from {before} to {now}" if type(before) in _TELLING else ""
                changed.append(f"{shared.name}{how}")
        return changed

    def check(self) -> None:
        """Put everything back.

        Raises:
            Meddling: something had changed.
        """
        if changed := self.restore():
            raise Meddling(
                f"it changed {', '.join(changed)}, on which the others in this process depend; "
                "change it inside the call and put it back"
            )

    def check_all(self) -> None:
        """As ``check``, and of attnbench's own functions and classes too, which takes longer.

        Raises:
            Meddling: something had changed.
        """
        changed = []
        for (owner, name), before in self._own.items():
            if vars(owner).get(name) is not before:
                setattr(owner, name, before)
                changed.append(f"{getattr(owner, '__qualname__', owner.__name__)}.{name}")
        self.check()
        if changed:
            raise Meddling(f"it replaced code that measures it: {', '.join(changed)}")


def _own_code() -> dict[tuple[Any, str], Any]:
    """What attnbench's modules, and the classes in them, hold in functions and classes."""
    own: dict[tuple[Any, str], Any] = {}
    modules = [m for name, m in list(sys.modules.items()) if f"{name}.".startswith("attnbench.")]
    owners: list[Any] = list(modules)
    while owners:
        owner = owners.pop()
        for name, value in list(vars(owner).items()):
            if not name.startswith("__") and isinstance(value, _CODE):
                own[owner, name] = value
                is_new = isinstance(value, type) and value.__module__ == owner.__name__
                if is_new and isinstance(owner, ModuleType):
                    owners.append(value)
    return own
