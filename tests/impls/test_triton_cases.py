"""Compile cases of the fused Triton attention: which there are, and what finds their faults."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import pytest
from fused import part
from shelf import implementation

from attnbench import Case, Problem
from attnbench.offline import TARGETS, check, compile_case
from attnbench.offline.case import checked_cases

KERNELS = {"forward", "specialized", "decode", "merge", "delta", "dkdv", "dq", "dbias", "keep"}


@functools.cache
def cases() -> dict[str, Case]:
    """By name, which two may not share."""
    return {case.name: case for case in checked_cases(implementation("triton").compile_cases())}


def of(kernel: str, target: str) -> Iterator[Case]:
    for case in cases().values():
        if case.kernel_name == f"{kernel}_kernel" and case.targets == (target,):
            yield case


def schedule_of(case: Case) -> str:
    if case.kernel_name == "specialized_kernel":
        return "specialized"
    return "persistent" if case.constexprs.get("PERSISTENT") else "tiles"


def faults(case: Case) -> list[str]:
    (target,) = case.compiled_for
    return check(compile_case(case, target))


def test_targets_are_those_of_the_compile_check() -> None:
    assert tuple(TARGETS) == part("config").TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_has_cases_on_every_target(target: str) -> None:
    """A kernel that is never launched on the way here would go unchecked."""
    expected = KERNELS if target in ("sm_90", "sm_100") else KERNELS - {"specialized"}
    assert {kernel for kernel in KERNELS if any(of(kernel, target))} == expected
    assert {case.kernel_name for case in cases().values()} == {f"{k}_kernel" for k in KERNELS}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["forward", "dkdv", "dq"])
@pytest.mark.parametrize(("kind", "element_bytes"), [("*bf16", 2), ("*fp32", 4)])
def test_every_candidate_is_compiled(
    kernel: str, kind: str, element_bytes: int, target: str
) -> None:
    """One that is not could be chosen by tuning and spill, or not fit at all."""
    compiled = {
        (case.constexprs["DIM"], case.constexprs["BLOCK_M"], case.constexprs["BLOCK_N"],
         case.num_warps, case.num_stages, schedule_of(case))
        for name in ((kernel, "specialized") if kernel == "forward" else (kernel,))
        for case in of(name, target)
        if case.signature["q_ptr"] == kind
    }  # fmt: skip
    for dim in (32, 64, 128, 256):
        for config in part("config").candidates(kernel, dim, element_bytes, target):
            assert (dim, *dataclasses.astuple(config)) in compiled


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["dkdv", "dq"])
def test_tuning_has_a_choice_that_repeats_nothing(kernel: str, target: str) -> None:
    for element_bytes in (2, 4):
        for dim in (64, 128, 256):
            found = part("config").candidates(kernel, dim, element_bytes, target)
            assert len(set(found)) == len(found) <= 6
            assert len(found) >= (1 if (element_bytes, dim) == (4, 256) else 2)


def test_no_kernel_is_compiled_twice() -> None:
    told = [
        (case.kernel_name, case.targets, case.num_warps, case.num_stages, case.multiples_of_16,
         frozenset(case.signature.items()), frozenset(case.constexprs.items()))
        for case in cases().values()
    ]  # fmt: skip
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["forward", "dkdv", "dq"])
def test_the_first_case_is_the_most_telling(kernel: str, target: str) -> None:
    """It stands for the others in a quick check: head_dim 128, causal, bfloat16."""
    first = next(of(kernel, target))
    assert first.name == f"{kernel} causal-128 bf16 {target}"
    assert first.expects == {"tensor_cores"}


def test_alignment_is_that_of_a_real_launch() -> None:
    """Strides of whole vectors: without that knowledge loads are of single elements."""
    assert {"q_h", "q_m", "seqlen_k"} <= cases()["forward causal-128 bf16 sm_90"].multiples_of_16
    ragged = cases()["forward ragged bf16 sm_90"].multiples_of_16
    assert not {"q_m", "seqlen_q", "seqlen_k"} & ragged
    sizes = cases()["dq size-1 bf16 sm_90"].constexprs
    assert [sizes[name] for name in ("seqlen_q", "seqlen_k", "group", "q_d")] == [1] * 4


def test_float32_expects_no_matrix_instructions_unless_tf32_is_asked_for() -> None:
    assert cases()["dq causal-128 fp32 sm_90"].expects == frozenset()
    assert cases()["dq tf32-causal-128 fp32 sm_90"].expects == {"mma"}


def test_a_kernel_of_which_nothing_is_known_is_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be compiled with nothing expected of it."""
    monkeypatch.delitem(part("cases")._ROWS, "dq")
    with pytest.raises(KeyError, match="dq"):
        list(implementation("triton").compile_cases())


def test_warps_are_specialised_wherever_that_is_asked_for() -> None:
    for target in ("sm_90", "sm_100"):
        found = list(of("specialized", target))
        assert found
        assert all({"warp_specialize", "tma"} <= case.expects for case in found)


# ---- compiled ----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["forward", "delta"])
def test_a_kernel_is_sound_on_hopper(kernel: str) -> None:
    assert faults(cases()[f"{kernel} causal-128 bf16 sm_90"]) == []


def test_only_what_has_a_reason_may_spill() -> None:
    """Dropout, float32, and the large tile of the forward on Ampere and Ada."""
    for case in cases().values():
        if case.spill_budget_bytes > 32:
            assert case.constexprs["DROPOUT"]
        if case.kernel_name in ("dkdv_kernel", "dq_kernel") and case.signature["q_ptr"] == "*bf16":
            assert bool(case.spill_budget_bytes) == case.constexprs["DROPOUT"]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["dkdv", "dq"])
def test_the_backward_is_sound_on_every_target(kernel: str, target: str) -> None:
    assert faults(cases()[f"{kernel} causal-128 bf16 {target}"]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "cut", "fault"),
    [
        ("sm_80", (32, 128, 8, 2), "spills: "),
        ("sm_89", (64, 128, 8, 2), "shared memory: "),
        ("sm_90", (64, 128, 8, 2), "spills: "),
        ("sm_90", (64, 32, 4, 2), "tensor cores: HMMA but no HGMMA"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_found(
    target: str, cut: tuple[int, int, int, int], fault: str
) -> None:
    """What was shipped for every target once, and its like."""
    config, case_part = part("config"), part("cases")
    chosen: Any = config.Configs(*[config.Config(*cut)] * 3)
    problem = Problem.of(seqlen=1024, head_dim=128, mask="causal", dtype="bf16", direction="both")
    launches = case_part.record(problem, "ieee", chosen, target)
    (launch,) = (launch for launch in launches if launch.name == "dkdv")
    case = Case.of_launch(
        "c", launch.kernel, launch.arguments, num_warps=cut[2], num_stages=cut[3],
        expects=frozenset({"tensor_cores"}), targets=(target,),
    )  # fmt: skip
    assert any(said.startswith(fault) for said in faults(case))
