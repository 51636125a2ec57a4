"""The fused Triton attention: what it supports, its interpreter, its configurations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from fused import interpreted, part, run
from shelf import CPU, implementation, module_of

from attnbench import Problem, Unsupported


@triton.jit
def doubled(x):
    return x * 2


def test_on_a_cpu_it_is_unsupported_unless_interpreted() -> None:
    with pytest.raises(Unsupported, match="interpret=true"):
        implementation("triton").supports(Problem.of(), CPU)
    interpreted().supports(Problem.of(), CPU)


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({"fp32": "tf32"}, {}, "no tf32"),
        ({"fp32": "fast"}, {}, "ieee or tf32, not fast"),
        ({}, {"head_dim": 264}, "head_dim up to 256"),
        ({}, {"dtype": "float64"}, "does not do dtype float64"),
    ],
)
def test_what_it_cannot_do_it_says(
    options: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason):
        implementation("triton", interpret=True, **options).supports(Problem.of(**changes), CPU)


def test_importing_it_does_not_import_triton() -> None:
    """A second of every worker's life."""
    code = f"""
import runpy, sys
runpy.run_path({str(Path(str(module_of("triton").__file__)))!r})
sys.exit("triton" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_interpreting_leaves_triton_as_it_was() -> None:
    before = (tl.dot, tl.core.reduce, tl.tensor.__add__, type(doubled).__call__)
    assert run("seqlen-16").status == "ok"
    assert (tl.dot, tl.core.reduce, tl.tensor.__add__, type(doubled).__call__) == before
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        part("tiles").tanh_of(1.0)


def test_bfloat16_rounds_to_nearest_as_torch_does() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)).numpy()
    x = np.concatenate([x, np.float32([1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, 0.0])])
    bits = torch.from_numpy(part("interpret")._rounded(x).view(np.int16))
    assert torch.equal(bits.view(torch.bfloat16), torch.from_numpy(x).to(torch.bfloat16))


@pytest.mark.parametrize("dim", [16, 40, 64, 80, 128, 192, 256])
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("target", part("config").TARGETS)
def test_tiles_are_powers_of_two_that_tensor_cores_take(
    dim: int, element_bytes: int, target: str
) -> None:
    assert part("config").padded(dim) in (16, 32, 64, 128, 256)
    for kernel in part("config").KERNELS:
        for config in part("config").candidates(kernel, dim, element_bytes, target):
            for size in (config.block_m, config.block_n):
                assert size >= 16
                assert size & (size - 1) == 0
