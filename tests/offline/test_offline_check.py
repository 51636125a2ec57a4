"""Faults in words, cases that cannot be meant, and reading what compilers leave: no compiling."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.errors import UserError
from attnbench.offline import TARGETS, Case, Compiled, Figures, check
from attnbench.offline.binary import Unreadable, read_amdgcn, read_sass
from attnbench.offline.case import checked_cases
from attnbench.offline.compiling import in_a_line, telling_line

SOUND: dict[str, Any] = {
    "registers": 168, "spill_bytes": 0, "shared_bytes": 98304, "num_warps": 8,
    "tensor_memory_columns": None, "occupancy": 0.125, "limit": "registers",
    "instructions": {"HGMMA": 16}, "atomics_written": 0, "atomics_kept": 0, "atomics": 0,
    "loops_to_specialize": 0, "loops_specialized": 0,
}  # fmt: skip


def compiled(target: str = "sm_90", expects: str = "", **figures: Any) -> Compiled:
    return Compiled(
        case="c", kernel="k", target=target, expects=tuple(expects.split()),
        spill_budget_bytes=16, num_warps=8, seconds=1.0,
        figures=Figures(**{**SOUND, **figures}),
    )  # fmt: skip


def case(**changes: Any) -> Case:
    told = {"name": "c", "kernel": None, "signature": {}, "constexprs": {}, "num_warps": 4,
            "num_stages": 2, **changes}  # fmt: skip
    return Case(**told)


def test_nothing_is_wrong_with_what_is_as_expected() -> None:
    everything = "tensor_cores mma tma warp_specialize atomics"
    figures = {
        "num_warps": 12, "spill_bytes": 16, "atomics_written": 1, "atomics_kept": 2, "atomics": 2,
        "loops_to_specialize": 1, "loops_specialized": 1,
        "instructions": {"HGMMA": 8, "UTMALDG": 3},
    }  # fmt: skip
    assert check(compiled(expects=everything, **figures)) == []


@pytest.mark.parametrize(
    ("fault", "expects", "figures"),
    [
        ("spills: 24 bytes a thread", "", {"spill_bytes": 24}),
        ("shared memory: a block takes 232449 bytes, sm_90 has 232448", "",
         {"shared_bytes": 232449, "occupancy": 0.0}),
        ("threads: a block takes 1280 threads, sm_90 has 1024", "", {"num_warps": 40}),
        ("occupancy: not one block fits a multiprocessor, for want of registers", "",
         {"occupancy": 0.0}),
        ("tensor cores: no matrix instruction", "tensor_cores", {"instructions": {"LDGSTS": 8}}),
        ("tensor cores: no matrix instruction", "mma", {"instructions": {}}),
        ("tensor cores: HMMA but no HGMMA", "tensor_cores", {"instructions": {"HMMA": 64}}),
        ("tma: no load", "tma", {"instructions": {"HGMMA": 1, "UTMASTG": 2}}),
        ("warp specialisation: asked for in 1 of its loops, silently lost in 1 (num_warps=8)", "",
         {"loops_to_specialize": 1}),
        ("warp specialisation: asked for in 2 of its loops, silently lost in 1", "",
         {"loops_to_specialize": 2, "loops_specialized": 1}),
        ("warp specialisation: expected, but the kernel does not ask", "warp_specialize", {}),
        ("atomics: 2 written, 1 left", "", {"atomics_written": 2, "atomics_kept": 1}),
        ("atomics: 1 written, none in the code", "atomics",
         {"atomics_written": 1, "atomics_kept": 1}),
        ("atomics: expected, but the kernel has none", "atomics", {}),
    ],
)  # fmt: skip
def test_a_fault_is_told_alone_and_by_its_name(
    fault: str, expects: str, figures: dict[str, Any]
) -> None:
    (said,) = check(compiled(expects=expects, **figures))
    assert said.startswith(fault)


def test_tensor_memory_has_a_limit_where_there_is_such_memory() -> None:
    (said,) = check(compiled("sm_100", tensor_memory_columns=1024))
    assert said == "tensor memory: a block takes 1024 columns, sm_100 has 512"


def test_products_of_a_single_warp_do_where_no_full_rate_is_expected() -> None:
    assert check(compiled(expects="mma", instructions={"HMMA": 64})) == []
    assert check(compiled("sm_80", "tensor_cores", instructions={"HMMA": 64})) == []


def test_asking_older_targets_for_warp_specialisation_is_no_fault() -> None:
    assert check(compiled("sm_89", instructions={}, loops_to_specialize=1)) == []


def test_what_does_not_compile_has_no_other_fault() -> None:
    failed = compiled("sm_90", "tensor_cores").model_copy(
        update={"figures": None, "failure": "ptxas fatal : no"}
    )
    assert check(failed) == ["does not compile: ptxas fatal : no"]


# ---- targets and cases ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "registers", "shared_bytes", "num_warps", "share", "limit"),
    [
        ("sm_89", 128, 0, 4, 4 * 4 / 48, "registers"),
        ("sm_90", 168, 0, 12, 12 / 64, "registers"),
        ("sm_90", 32, 113 * 1024, 4, 2 * 4 / 64, "shared memory"),
        ("sm_90", 32, 114 * 1024, 4, 4 / 64, "shared memory"),  # with the driver's KiB: too much
        ("gfx942", 128, 0, 4, 4 * 4 / 32, "registers"),  # 512 a lane of a SIMD: four waves
        ("gfx942", 129, 0, 4, 3 * 4 / 32, "registers"),
        ("gfx942", 32, 32768, 4, 2 * 4 / 32, "shared memory"),
    ],
)
def test_occupancy_follows_the_limits_of_the_target(
    target: str, registers: int, shared_bytes: int, num_warps: int, share: float, limit: str
) -> None:
    told = TARGETS[target].occupancy(registers, shared_bytes, num_warps)
    assert told == (pytest.approx(share), limit)


def test_tensor_memory_limits_occupancy_too() -> None:
    sm_100 = TARGETS["sm_100"]
    assert sm_100.occupancy(64, 0, 8, tensor_memory_columns=256) == (2 * 8 / 64, "tensor memory")
    assert sm_100.occupancy(128, 0, 8, tensor_memory_columns=128)[1] == "registers"
    assert sm_100.occupancy(64, 0, 8, tensor_memory_columns=1024)[0] == 0


def test_a_case_is_for_every_target_that_can_have_what_it_expects() -> None:
    assert [t.name for t in case().compiled_for] == list(TARGETS)
    assert [t.name for t in case(expects=frozenset({"tma"})).compiled_for] == ["sm_90", "sm_100"]
    assert "gfx942" not in [t.name for t in case(maxnreg=168).compiled_for]
    assert [t.name for t in case(targets=("sm_89",)).compiled_for] == ["sm_89"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"expects": {"tensor_core"}}, "unknown expectation 'tensor_core'.*'tensor_cores'"),
        ({"targets": ("sm90",)}, "unknown target 'sm90'.*'sm_90'"),
        ({"targets": ("sm_80",), "expects": {"tma"}}, "case 'c': sm_80 cannot have tma"),
        ({"targets": ("gfx942",), "maxnreg": 128}, "maxnreg is nothing that gfx942 has"),
    ],
)
def test_a_case_that_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        case(**changes)


def test_cases_of_one_name_and_things_that_are_no_cases_are_refused() -> None:
    with pytest.raises(UserError, match="two cases of the name 'c'"):
        checked_cases([case(), case()])
    with pytest.raises(UserError, match="'c', which is no attnbench"):
        checked_cases(["c"])


# ---- what compilers leave ------------------------------------------------------------------

USAGE = """Resource usage:
 Common:
  GLOBAL:0
 Function HMMA_kernel:
  REG:168 STACK:{stack} SHARED:0 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
.section .text.HMMA_kernel
HMMA_kernel:
.text.HMMA_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0020*/              @UP1 UTMALDG.2D [UR8], [UR4] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0040*/                   REDUX.SUM UR4, R3 ;
        /*0050*/                   ATOMG.E.EXCH.STRONG.GPU PT, RZ, [R2], R9 ;
"""
PTX = """
.visible .entry atom.shared_kernel(
	@%p1 atom.global.gpu.relaxed.add.f32 %r1, [ %rd1 + 0 ], %r2;
	red.global.gpu.add.f32 [%rd2], %f1;
	@!%p2 atom.acq_rel.cta.shared.exch.b32 %r3, [%r4], %r5;
	fence.proxy.tensormap::generic.acquire.gpu [%rd3], 0x80;
"""


def test_instructions_are_counted_and_names_that_look_like_them_are_not() -> None:
    code = read_sass(USAGE.format(stack=0), SASS, PTX)
    assert code.registers == 168
    assert code.instructions == {"HGMMA": 2, "UTMALDG": 1}
    assert code.atomics == 2


def test_of_several_functions_the_largest_counts() -> None:
    helper = " Function helper:\n  REG:24 STACK:8 SHARED:0 LOCAL:0\n"
    usage = USAGE.format(stack=0)
    for text in (usage + helper, helper + usage):
        assert read_sass(text, SASS, PTX).registers == 168


def test_a_stack_counts_as_spilled_where_it_is_read_or_written() -> None:
    assert read_sass(USAGE.format(stack=48), SASS, PTX).spill_bytes == 0
    local = SASS + "        /*0070*/                   STL.64 [R1+0x8], R4 ;\n"
    assert read_sass(USAGE.format(stack=48), local, PTX).spill_bytes == 48


AMDGCN = """
	v_mfma_f32_32x32x8_bf16 a[0:15], v[8:9], v[10:11], a[0:15]
	v_mfma_f32_32x32x8_bf16 a[16:31], v[8:9], v[10:11], a[16:31]
	global_atomic_add_f32 v[0:1], v2, off
	.private_segment_fixed_size: 20
    .vgpr_count:     152
"""


def test_amds_assembly_tells_the_same() -> None:
    code = read_amdgcn(AMDGCN)
    assert (code.registers, code.spill_bytes) == (152, 20)
    assert (code.instructions, code.atomics) == ({"MFMA": 2}, 1)


def test_code_that_tells_nothing_is_not_taken_for_code_without_registers() -> None:
    with pytest.raises(Unreadable, match="no registers"):
        read_sass("cuobjdump info: no device code", SASS, PTX)
    with pytest.raises(Unreadable, match="no vgpr_count"):
        read_amdgcn("s_endpgm")


def test_the_line_that_tells_is_found() -> None:
    ptxas = """`ptxas` failed with error code 255
`ptxas` stderr:
ptxas /tmp/t.ptx, line 12; error   : Unknown symbol 'x'
ptxas fatal   : Ptx assembly aborted due to errors

Repro command: ptxas -v /tmp/t.ptx
"""
    assert telling_line(ptxas) == "ptxas /tmp/t.ptx, line 12; error   : Unknown symbol 'x'"
    assert telling_line("at 3:4:\n    x = y\n        ^\nNameError('y')\n") == "NameError('y')"
    assert (
        telling_line("a.py:7:3: error: no layout\nnote: see here") == "a.py:7:3: error: no layout"
    )
    assert telling_line("\n") == ""


def test_a_pass_pipeline_that_failed_is_told_by_what_stopped_it() -> None:
    mlir = """{note}module {{
  tt.func public @kernel() {{ }}
}}
a.py:5:0: error: Failures have been detected while processing an MLIR pass pipeline
a.py:5:0: note: Pipeline failed while executing [`Specialize` on 'builtin.module' operation]
"""
    assert "Pipeline failed while executing [`Specialize`" in telling_line(mlir.format(note=""))
    note = "Unexpected size()\nUNREACHABLE executed at Partition.cpp:777!\n"
    assert telling_line(mlir.format(note=note)) == (
        "Unexpected size() UNREACHABLE executed at Partition.cpp:777!"
    )


def test_a_pass_that_failed_is_told_by_what_it_printed() -> None:
    error = RuntimeError("PassManager::run failed")
    assert (
        in_a_line(error, "a.py:7:3: error: no layout\n")
        == "RuntimeError: a.py:7:3: error: no layout"
    )
    assert in_a_line(error, "") == "RuntimeError: PassManager::run failed"
    assert in_a_line(ValueError("bad shape"), "warning: slow") == "ValueError: bad shape"
