"""What is in machine code: registers, local memory, and how often which instruction occurs.

NVIDIA's cubin is read by ``cuobjdump`` and ``nvdisasm``, which come with Triton, but its
atomics are counted in PTX: in SASS, fences of TMA descriptors look the same. AMD's code is
kept by Triton as assembly with its metadata.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from attnbench.offline.targets import TARGETS, WARP_MMA

TMA_LOADS = ("UTMALDG", "UBLKCP")
_LOCAL = ("LDL", "STL")
_TOLD = {
    *TMA_LOADS, *_LOCAL, *WARP_MMA, "UTMASTG", "LDGSTS",
    *(name for target in TARGETS.values() for name in target.tensor_cores),
}  # fmt: skip

# /*0a10*/  @!P0 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
_SASS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
# @%p3 atom.global.gpu.relaxed.add.f32 …; those on shared memory are the compiler's own
_PTX_ATOMIC = re.compile(
    r"^\s*(?:@!?%?\w+\s+)?(?:(?:atom|red)\.(?!\S*\bshared)|cp\.reduce\.async\.bulk)", re.MULTILINE
)
_MFMA = re.compile(r"^\s*v_s?mfma\w*", re.MULTILINE)
_GCN_ATOMIC = re.compile(r"^\s*(?:global|buffer|flat)_atomic_\w+", re.MULTILINE)


class Unreadable(Exception):
    """A tool could not read the code; the text is what it said."""


@dataclass(frozen=True)
class Code:
    """What machine code tells about itself.

    Attributes:
        registers: a thread; AMD's vector registers, accumulators included.
        spill_bytes: local (AMD: scratch) memory a thread that is read or written.
        instructions: how often those worth telling occur; those that do not are absent.
        atomics: operations on global memory.
    """

    registers: int
    spill_bytes: int
    instructions: Mapping[str, int]
    atomics: int


def read_cubin(cubin: bytes, ptx: str) -> Code:
    """Of NVIDIA's binary, and the PTX that it was made of.

    Raises:
        Unreadable: a tool failed.
    """
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        sass = _tool(knobs.nvidia.nvdisasm.path, "-c", file.name)
    return read_sass(usage, sass, ptx)


def read_sass(usage: str, sass: str, ptx: str) -> Code:
    """Of what ``cuobjdump -res-usage`` and ``nvdisasm -c`` print, and PTX.

    Raises:
        Unreadable: the usage does not tell registers and stack.
    """
    found = re.findall(r"\bREG:(\d+)\s+STACK:(\d+)", usage)
    if not found:
        raise Unreadable(f"cuobjdump tells no registers: {usage.strip()[-200:]!r}")
    counts = Counter(name for name in _SASS.findall(sass) if name in _TOLD)
    registers, stack = (max(map(int, values)) for values in zip(*found, strict=True))
    # A stack frame without loads and stores is the calling convention's.
    spilled = stack if any(counts[name] for name in _LOCAL) else 0
    return Code(registers, spilled, dict(sorted(counts.items())), len(_PTX_ATOMIC.findall(ptx)))


def read_amdgcn(text: str) -> Code:
    """Of AMD's assembly, by its metadata (code object V3 and later).

    Raises:
        Unreadable: the metadata do not tell registers and scratch memory.
    """

    def tell(name: str) -> int:
        found = re.search(rf"^\s*(?:- )?\.{name}:\s*(\d+)", text, re.MULTILINE)
        if found is None:
            raise Unreadable(f"the assembly's metadata tell no {name}")
        return int(found[1])

    products = len(_MFMA.findall(text))
    return Code(
        tell("vgpr_count"),
        tell("private_segment_fixed_size"),
        {"MFMA": products} if products else {},
        len(_GCN_ATOMIC.findall(text)),
    )


def _tool(*words: str) -> str:
    ended = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["it said nothing"]
        raise Unreadable(f"{words[0]} exited with code {ended.returncode}: {said[-1]}")
    return ended.stdout
