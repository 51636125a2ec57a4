"""Compiling Triton kernels for GPUs that are not there, and checking what comes out.

An implementation offers its kernels by a class method, and ``attnbench compile-check`` finds
them wherever implementations are found::

    from attnbench import Attention, Case, register

    @register("mine")
    class Mine(Attention):
        @classmethod
        def compile_cases(cls):
            q = torch.empty(1, 8, 4096, 64, dtype=torch.bfloat16, device="meta")
            yield Case.of_launch(
                "forward, head_dim 64",
                forward_kernel,
                {"q": q, "k": q, "v": q, "o": q, "n": 4096, "BLOCK_M": 128, "HEAD_DIM": 64},
                num_warps=8,
                num_stages=2,
                expects=frozenset({"tensor_cores"}),
            )

Nothing here imports Triton or torch before something is compiled.
"""

from attnbench.offline.case import Case
from attnbench.offline.check import check
from attnbench.offline.compiling import compile_case
from attnbench.offline.result import Compiled, Figures
from attnbench.offline.targets import EXPECTATIONS, TARGETS, Target

__all__ = [
    "EXPECTATIONS",
    "TARGETS",
    "Case",
    "Compiled",
    "Figures",
    "Target",
    "check",
    "compile_case",
]
