"""What is wrong with a compiled kernel, in words. Each fault begins with its name."""

from __future__ import annotations

from collections.abc import Iterator

from attnbench.offline.binary import TMA_LOADS
from attnbench.offline.result import Compiled, Figures
from attnbench.offline.targets import TARGETS, Target


def check(compiled: Compiled) -> list[str]:
    """The faults of one case on one target; none if it is as it should be.

    Each begins with its name: ``does not compile``, ``spills``, ``shared memory``,
    ``tensor memory``, ``threads``, ``occupancy``, ``tensor cores``, ``tma``,
    ``warp specialisation``, ``atomics``.
    """
    target, figures = TARGETS[compiled.target], compiled.figures
    if figures is None:
        return [f"does not compile: {compiled.failure}"]
    return [
        *_resources(compiled, figures, target),
        *_tensor_cores(compiled, figures, target),
        *_warp_specialisation(compiled, figures, target),
        *_atomics(compiled, figures),
    ]


def _resources(compiled: Compiled, figures: Figures, target: Target) -> Iterator[str]:
    """Spills, and limits that the compiler does not check and a launch would run into."""
    if figures.spill_bytes > compiled.spill_budget_bytes:
        yield (
            f"spills: {figures.spill_bytes} bytes a thread go to local memory, "
            f"{compiled.spill_budget_bytes} may"
        )
    fits = True
    columns = figures.tensor_memory_columns or 0
    threads = figures.num_warps * target.limits.warp_size
    for name, has, most, unit in (
        ("shared memory", figures.shared_bytes, target.shared_bytes, "bytes"),
        ("tensor memory", columns, target.tensor_memory_columns, "columns"),
        ("threads", threads, target.threads, "threads"),
    ):
        if has > most:
            fits = False
            yield f"{name}: a block takes {has} {unit}, {target.name} has {most}"
    if fits and not figures.occupancy:
        yield f"occupancy: not one block fits a multiprocessor, for want of {figures.limit}"


def _tensor_cores(compiled: Compiled, figures: Figures, target: Target) -> Iterator[str]:
    """Products on tensor cores, and loads by the tensor memory accelerator, where expected."""
    found = {name: n for name, n in figures.instructions.items() if name in target.mma}
    if {"tensor_cores", "mma"} & set(compiled.expects) and not found:
        yield "tensor cores: no matrix instruction in the code"
    elif "tensor_cores" in compiled.expects and not any(n in target.tensor_cores for n in found):
        yield (
            f"tensor cores: {', '.join(found)} but no {target.tensor_cores[0]} in the code: "
            f"products run below the full rate of {target.name}"
        )
    if "tma" in compiled.expects and not any(n in TMA_LOADS for n in figures.instructions):
        yield "tma: no load by the tensor memory accelerator in the code"


def _warp_specialisation(compiled: Compiled, figures: Figures, target: Target) -> Iterator[str]:
    """Triton does without it in silence; where it was asked for, that is a fault."""
    if "warp_specialize" not in target.features:
        return
    asked, given = figures.loops_to_specialize, figures.loops_specialized
    if given < asked:
        yield (
            f"warp specialisation: asked for in {asked} of its loops, silently lost in "
            f"{asked - given} (num_warps={compiled.num_warps})"
        )
    elif "warp_specialize" in compiled.expects and not given:
        yield "warp specialisation: expected, but the kernel does not ask for it"


def _atomics(compiled: Compiled, figures: Figures) -> Iterator[str]:
    """Atomic operations that were written must be there: a dropped one is a wrong result."""
    written, kept = figures.atomics_written, figures.atomics_kept
    if kept < written:
        yield f"atomics: {written} written, {kept} left after Triton's optimisation"
    elif written and not figures.atomics:
        yield f"atomics: {written} written, none in the code"
    elif "atomics" in compiled.expects and not written:
        yield "atomics: expected, but the kernel has none"
