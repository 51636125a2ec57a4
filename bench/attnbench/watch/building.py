"""What was compiled, autotuned or loaded between two looks: none of it belongs in a timed call.

Looks cost microseconds: counters that torch and triton keep anyway, and the dynamic
linker's count of loaded objects. What is not imported has compiled nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from typing import Any

_COMPILED = "torch.compile: new graphs"
_KERNELS = "triton: new kernels"
_TUNED = "triton autotune: configurations tried"
_LOADED = "shared libraries loaded"

_triton: Counter[str] = Counter()


class _Object(ctypes.Structure):
    """``struct dl_phdr_info`` of glibc."""

    _fields_ = [
        ("addr", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("count", ctypes.c_uint16),
        ("adds", ctypes.c_ulonglong),
        ("subs", ctypes.c_ulonglong),
    ]


_Visit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Object), ctypes.c_size_t, ctypes.c_void_p)
_LIBC = ctypes.CDLL(None)


def look() -> Counter[str]:
    """How much of everything there was so far in this process."""
    _listen_to_triton()
    seen = Counter({_LOADED: _loaded()})
    if (dynamo := sys.modules.get("torch._dynamo.utils")) is not None:
        seen[_COMPILED] = dynamo.counters["stats"]["unique_graphs"]
    seen.update(_triton)
    return seen


def news(before: Counter[str]) -> str | None:
    """What was built since ``before``, in words; None for nothing."""
    after = look()
    told = (_COMPILED, _KERNELS, _TUNED, _LOADED)  # the cause before its effects
    new = {what: after[what] - before[what] for what in told if after[what] > before[what]}
    return ", ".join(f"{what}: {n}" for what, n in new.items()) if new else None


def _loaded() -> int:
    """Shared objects loaded since the process began (the linker's own count)."""
    adds = 0

    def visit(object_: Any, size: int, data: Any) -> int:
        nonlocal adds
        adds = object_.contents.adds
        return 1  # each object is told the same count: one is enough

    _LIBC.dl_iterate_phdr(_Visit(visit), None)
    return adds


def _listen_to_triton() -> None:
    """Count what triton compiles and tries out, from its first use on."""
    knobs = sys.modules.get("triton.knobs")
    if (
        knobs is not None
        and getattr(knobs.runtime.jit_post_compile_hook, "by", None) is not _triton
    ):
        earlier = knobs.runtime.jit_post_compile_hook

        def compiled(*words: Any, **named: Any) -> Any:
            _triton[_KERNELS] += 1
            return earlier(*words, **named) if earlier is not None else None

        compiled.by = _triton  # type: ignore[attr-defined]
        knobs.runtime.jit_post_compile_hook = compiled
    tuner = sys.modules.get("triton.runtime.autotuner")
    if tuner is not None and getattr(tuner.Autotuner._bench, "by", None) is not _triton:
        bench = tuner.Autotuner._bench

        def tried(*words: Any, **named: Any) -> Any:
            _triton[_TUNED] += 1
            return bench(*words, **named)

        tried.by = _triton  # type: ignore[attr-defined]
        tuner.Autotuner._bench = tried
