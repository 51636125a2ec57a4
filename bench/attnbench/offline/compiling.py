"""Compiles one case for one target, in this process. A GPU is not needed, Triton is.

Triton's cache (``TRITON_CACHE_DIR``) is used as always, so a second look is quick. The
compiler may end its process: :mod:`attnbench.offline.workers` calls this in one of its own.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from typing import Any

from attnbench.offline.binary import Code, Unreadable, read_amdgcn, read_cubin
from attnbench.offline.case import Case
from attnbench.offline.result import Compiled, Figures
from attnbench.offline.targets import Target

_LOG_BYTES = 1 << 18
_ATOMIC = re.compile(r"\b(?:tt\.(?:atomic_(?:rmw|cas)|descriptor_reduce)"
                     r"|ttng\.async_tma_reduce|\w+\.buffer_atomic_(?:rmw|cas))\b")  # fmt: skip
_ASKED = re.compile(r"\btt\.warp_specialize\b")
_GIVEN = re.compile(r"\bttg\.warp_specialize\(")
_TELLING = re.compile(r"\berror\b\s*:|LLVM ERROR|Assertion|UNREACHABLE|ptxas fatal", re.IGNORECASE)
_PASS = re.compile(r"Pipeline failed while executing")
_EMPTY = re.compile(  # lines that are drawn, or say no more than that something went wrong
    r"[\s^~=|-]*|.*Ptx assembly aborted due to errors.*"
    r"|.*Failures have been detected while processing an MLIR pass pipeline.*"
)
_LONGEST = 300


class NotCompilable(Exception):
    """The case is not what can be compiled; the text says why."""


def compile_case(case: Case, target: Target) -> Compiled:
    """Compile and read the result; a failure is part of the answer.

    Args:
        case: whose kernel was decorated while ``TRITON_INTERPRET`` was not set.
        target: one of :data:`~attnbench.offline.targets.TARGETS`.
    """
    begin, figures, failure = time.monotonic(), None, None
    log_begin = _log_position()
    try:
        figures = _figures(_compile(case, target), case, target)
    except Exception as error:  # the compiler, and the kernel's own code, may raise anything
        failure = in_a_line(error, _log_since(log_begin))
    return Compiled(
        case=case.name,
        kernel=case.kernel_name,
        target=target.name,
        expects=tuple(sorted(case.expects)),
        spill_budget_bytes=case.spill_budget_bytes,
        num_warps=case.num_warps,
        seconds=time.monotonic() - begin,
        figures=figures,
        failure=failure,
    )


def telling_line(text: str) -> str:
    """The line in which a compiler says what is wrong: its last error, or its last words."""
    lines = [line.strip() for line in text.splitlines() if not _EMPTY.fullmatch(line)]
    errors = [line for line in lines if _TELLING.search(line)]
    passes = [line for line in lines if _PASS.search(line)]
    line = next(iter((errors or passes or lines)[-1:]), "")
    if line.startswith("UNREACHABLE executed") and lines.index(line):
        line = f"{lines[lines.index(line) - 1]} {line}"  # LLVM says why in the line before
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


def in_a_line(error: BaseException, log: str) -> str:
    """Why something does not compile: the exception's line, or what was printed before it.

    MLIR prints what is wrong and raises no more than that a pass has failed.
    """
    if isinstance(error, NotCompilable):
        return str(error)
    said = telling_line(str(error))
    if not said and error.__cause__ is not None:
        return in_a_line(error.__cause__, log)
    printed = telling_line(log)
    if "PassManager::run failed" in said and printed:
        said = printed
    return f"{type(error).__name__}: {said}".rstrip(": ")


def _compile(case: Case, target: Target) -> Any:
    """Triton's ``CompiledKernel``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    kernel = case.kernel
    if not isinstance(kernel, JITFunction):
        raise NotCompilable(
            f"the kernel is of type {type(kernel).__name__}, not a triton.jit function: give the "
            ".fn of an autotuned one, and leave TRITON_INTERPRET alone when it is decorated"
        )
    source: type[Any] = ASTSource
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        source = GluonASTSource
    made = source(
        kernel, _signature(case), constexprs=dict(case.constexprs), attrs=_attributes(case, target)
    )
    options: dict[str, Any] = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    if case.maxnreg is not None:
        options["maxnreg"] = case.maxnreg
    where = GPUTarget(target.backend, target.arch, target.limits.warp_size)
    return triton.compile(made, target=where, options=options)


def _signature(case: Case) -> dict[str, str]:
    """Of every argument, in the kernel's order."""
    arguments = case.kernel.arg_names
    told = [*case.signature, *case.constexprs]
    for name in dict.fromkeys([*told, *arguments]):
        if name not in arguments:
            raise NotCompilable(f"the kernel has no argument {name!r}")
        if told.count(name) != 1:
            what = "a type and a value" if name in told else "neither a type nor a value"
            raise NotCompilable(f"argument {name!r} has {what}")
    return {name: case.signature.get(name, "constexpr") for name in arguments}


def _attributes(case: Case, target: Target) -> dict[tuple[int, ...], list[list[Any]]]:
    """What Triton finds out of arguments at launch: torch's pointers, and strides, are even."""
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for name in case.multiples_of_16:
        if not case.signature.get(name, "").startswith(("i", "u")):
            raise NotCompilable(f"multiples_of_16: {name!r} is no integer argument")
    for index, name in enumerate(case.kernel.arg_names):
        is_pointer = case.signature.get(name, "").startswith("*")
        if is_pointer or name in case.multiples_of_16:
            attributes[(index,)] = [["tt.divisibility", 16]]
        if is_pointer and not target.is_nvidia:  # as for every tensor below 2 GiB
            attributes[(index,)].append(["tt.pointer_range", 32])
    return attributes


def _figures(kernel: Any, case: Case, target: Target) -> Figures:
    """Of Triton's compiled kernel."""
    code = _read(kernel, target)
    before = kernel.asm.get("ttir") or kernel.asm["source"]  # Gluon begins below Triton's own IR
    after = kernel.asm["ttgir"]
    about = kernel.metadata
    columns = about.tmem_size if target.tensor_memory_columns else None
    share, limit = target.occupancy(code.registers, about.shared, about.num_warps, columns or 0)
    return Figures(
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=about.shared,
        num_warps=about.num_warps,
        tensor_memory_columns=columns,
        occupancy=share,
        limit=limit,
        instructions=dict(code.instructions),
        atomics_written=len(_ATOMIC.findall(before)),
        atomics_kept=len(_ATOMIC.findall(after)),
        atomics=code.atomics,
        loops_to_specialize=len(_ASKED.findall(before)),
        loops_specialized=len(_GIVEN.findall(after)),
    )


def _read(kernel: Any, target: Target) -> Code:
    try:
        if target.is_nvidia:
            return read_cubin(kernel.asm["cubin"], kernel.asm["ptx"])
        return read_amdgcn(kernel.asm["amdgcn"])
    except Unreadable as error:
        raise NotCompilable(f"its code cannot be read: {error}") from error


def _log_position() -> int | None:
    """How far the file has got into which this process writes its errors; None if it is no file.

    The compiler's C++ parts write there by themselves, past Python's ``sys.stderr``.
    """
    sys.stderr.flush()
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return None
    return os.lseek(2, 0, os.SEEK_CUR)


def _log_since(begin: int | None) -> str:
    """What was written there since; nothing if it cannot be read back."""
    if begin is None:
        return ""
    sys.stderr.flush()
    try:
        return os.pread(2, _LOG_BYTES, begin).decode(errors="replace")
    except OSError:  # opened for writing alone
        return ""
