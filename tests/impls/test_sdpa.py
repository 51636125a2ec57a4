from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from shelf import CPU, Operations, assert_right, implementation, module_of, solve

from attnbench import Problem, Unsupported

PLAIN = Problem.of(heads=2, seqlen=32, head_dim=16)
FLASH_OP = "_scaled_dot_product_flash_attention_for_cpu"


def operations(name: str, problem: Problem) -> Operations:
    execution, _ = solve(name, problem)
    with Operations() as ran:
        execution.step()
    return ran


def test_each_variant_runs_the_backend_in_its_name() -> None:
    assert FLASH_OP in operations("sdpa-flash", PLAIN).names
    assert FLASH_OP not in operations("sdpa-math", PLAIN).names
    assert "bmm" in operations("sdpa-math", PLAIN).names


def test_importing_it_does_not_import_torch_compile() -> None:
    """A second of every worker's life."""
    code = f"""
import runpy, sys
runpy.run_path({module_of("sdpa-flash").__file__!r})
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_backend_that_torch_would_replace_is_unsupported_in_torchs_words() -> None:
    problem = PLAIN.replace(head_dim_v=8)
    with pytest.raises(Unsupported, match=r"requires q,k,v to have the same last dimension.*: 8 i"):
        implementation("sdpa-flash").build(problem, CPU)
    assert_right("sdpa", problem)  # torch's own choice has another backend for it


@pytest.mark.parametrize("name", ["sdpa-efficient", "sdpa-cudnn"])
def test_backends_of_cuda_say_so_on_a_cpu(name: str) -> None:
    with pytest.raises(Unsupported, match="does not do device cpu"):
        implementation(name).supports(PLAIN, CPU)


def test_dropout_is_refused_because_it_cannot_be_verified() -> None:
    with pytest.raises(Unsupported, match="reveals no dropout mask"):
        implementation("sdpa").supports(PLAIN.replace(dropout_p=0.1), CPU)


def test_the_reason_is_that_of_the_wanted_backend_alone() -> None:
    """As on CUDA, where torch explains every backend, also those that are switched off."""
    texts = (
        "Memory efficient kernel not used because:",
        "Memory Efficient attention has been runtime disabled.",
        "Flash attention kernel not used because:",
        "Flash Attention does not support non-null attn_mask. (Triggered internally at x.h:1.)",
        "CuDNN attention kernel not used because:",
        "cuDNN attention has been runtime disabled.",
    )
    error = RuntimeError("No available kernel. Aborting execution.")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for text in texts:
            warnings.warn(text, stacklevel=1)
    reason = module_of("sdpa")._reason
    assert reason(error, told) == "Flash Attention does not support non-null attn_mask."
    assert reason(error, []) == "No available kernel. Aborting execution."


def test_running_out_of_memory_is_not_called_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", full)
    with pytest.raises(torch.OutOfMemoryError):
        implementation("sdpa-flash").build(PLAIN, CPU)


@pytest.mark.parametrize("name", ["sdpa", "sdpa-math", "sdpa-flash"])
def test_causal_is_aligned_bottom_right(name: str) -> None:
    for seqlen_q, seqlen_k in ((7, 20), (20, 7)):
        problem = Problem.of(
            heads=2, seqlen_q=seqlen_q, seqlen_k=seqlen_k, head_dim=16, mask="causal",
            direction="both",
        )  # fmt: skip
        assert_right(name, problem)


@pytest.mark.parametrize("mask", ["causal", "window:window=5", "document:count=2"])
@pytest.mark.parametrize("alibi", [False, True])
def test_the_timed_call_builds_no_mask(mask: str, alibi: bool) -> None:
    problem = PLAIN.replace(mask=mask, alibi=alibi)
    ran = operations("sdpa-flash", problem)
    assert ran.names <= {FLASH_OP, "detach"}


def test_an_additive_bias_carries_alibi_and_mask_together() -> None:
    problem = Problem.of(
        heads=6, seqlen_q=17, seqlen_k=30, head_dim=16, mask="causal", alibi=True, direction="both"
    )
    assert_right("sdpa-flash", problem)
