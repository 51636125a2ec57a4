"""The Gluon forward for Hopper: right on a machine of Python; what it refuses; its machine code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gluon_simulation import HALF, SMALL, part, simulation
from shelf import CPU, SHELF, implementation
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import attnbench
from attnbench import Problem, Unsupported
from attnbench.battery import CASES, Case, run_case
from attnbench.layer import inside
from attnbench.offline import compiling
from attnbench.offline.check import check
from attnbench.offline.targets import TARGETS

GPU = torch.device("cuda", 0)


# ---- right: the battery ------------------------------------------------------------------


def in_half(case: Case) -> Case:
    dtype = "float16" if case.problem.dtype == "float16" else "bfloat16"
    return Case(case.name, case.problem.replace(dtype=dtype), case.check)


FITTING = {
    case.name: in_half(case)
    for case in CASES
    if (core := inside.core(case.problem)).mask.kind in ("full", "causal")
    and core.direction == "forward"
    and not (core.dropout_p or core.alibi or core.bias)
}
QUICK = (
    "seqlen-1", "seqlen-65", "cross-1x65", "cross-causal-33x96", "cross-causal-96x33",
    "cross-causal-65x1", "gqa-causal", "mqa", "head_dim-40", "head_dim-256",
    "head_dim_v-32-64", "head_dim_v-192-128", "dtype-float16-causal", "inputs-large",
    "inputs-peaky-bfloat16", "scale-negative", "softcap-causal", "decode", "decode-gqa",
    "strides-qkv", "new-contents", "repeats", "batch-apart-nan", "nan-in-q-causal",
    "nan-in-k-causal", "nan-in-v-causal",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_the_battery_finds_nothing_wrong_in_small_blocks(name: str) -> None:
    result = run_case(simulation(**SMALL), FITTING[name], CPU)
    assert (result.status, result.reason) == ("ok", None)


@pytest.mark.parametrize("name", ["dtype-bfloat16-causal", "gqa-causal"])
def test_the_battery_finds_nothing_wrong_in_the_blocks_that_ship(name: str) -> None:
    result = run_case(simulation(), FITTING[name], CPU)
    assert (result.status, result.reason) == ("ok", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FITTING))
def test_the_battery_finds_nothing_wrong(name: str) -> None:
    for how in (SMALL, {}):
        result = run_case(simulation(**how), FITTING[name], CPU)
        expected = "unsupported" if name == "strides-expanded" else "ok"
        assert result.status == expected, result.reason


# ---- the launch --------------------------------------------------------------------------


def test_as_many_heads_go_together_as_the_cache_holds_under_a_causal_mask() -> None:
    heads_together = part("launch").heads_together
    p = Problem.of(batch=4, heads_q=8, heads_kv=2, seqlen=4096, head_dim=128, dtype="bfloat16")
    head_bytes = 4096 * 256 * 2
    causal = p.replace(mask="causal")
    assert heads_together(p, 50 * 2**20) == 1
    assert heads_together(causal, 5 * head_bytes) == 3 * 4  # 0.6 × 5 key heads, of 4 query heads
    assert heads_together(causal, 0) == 4
    assert heads_together(causal, 2**40) == 32


def described(x: torch.Tensor) -> Any:
    return part("launch").describe("k", x, 128, 64)


def test_any_order_of_axes_can_be_loaded() -> None:
    x = torch.empty(2, 100, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    assert described(x).strides == [19200, 64, 192, 1]
    assert described(x[:, :1, :50]).shape == [2, 1, 50, 64]
    odd = torch.empty(1, 1, 100, 64, dtype=torch.bfloat16).as_strided(
        (1, 1, 100, 64), (3, 5, 64, 1)
    )
    assert described(odd).strides == [8, 8, 64, 1]  # of one element there is no next


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :1].expand(-1, 3, -1, -1),
        lambda x: x.transpose(2, 3),
        lambda x: x[..., 1:],
        lambda x: torch.empty(2, 3, 64, 68, dtype=x.dtype)[..., :64],
    ],
    ids=["expanded", "last stride", "address", "stride"],
)
def test_what_the_tma_cannot_load_is_refused(change: Callable[[torch.Tensor], Any]) -> None:
    x = torch.empty(2, 3, 64, 64, dtype=torch.bfloat16)
    with pytest.raises(Unsupported, match=r"the TMA cannot load k with strides .* make it contig"):
        described(change(x))


# ---- who may ask -------------------------------------------------------------------------


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def set_to(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))

    set_to(9, 0)
    monkeypatch.setattr(torch.version, "hip", None)
    return set_to


def refusal(problem: Problem, device: torch.device = GPU) -> str:
    with pytest.raises(Unsupported) as caught:
        implementation("triton-gluon").supports(problem, device)
    return str(caught.value)


def test_hopper_does_all_that_is_declared(capability: object) -> None:
    for changes in (
        {}, {"mask": "causal", "softcap": 3.0, "scale": -1.0}, {"head_dim": 192, "head_dim_v": 128},
        {"heads_kv": 1, "seqlen_q": 3, "dtype": "float16"}, {"head_dim": 256, "head_dim_v": 8},
    ):  # fmt: skip
        implementation("triton-gluon").supports(HALF.replace(**changes), GPU)


@pytest.mark.parametrize(("major", "minor"), [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_gpus_are_sent_to_triton(capability: Any, major: int, minor: int) -> None:
    capability(major, minor)
    expected = f"compute capability 9.0), this is {major}.{minor}; triton runs here"
    assert refusal(HALF).endswith(expected)


def test_amd_is_sent_to_triton(capability: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert refusal(HALF) == "needs a Hopper GPU, this is one of AMD; triton runs here"


def test_a_cpu_is_sent_to_the_interpreter() -> None:
    assert "triton:interpret=true runs on a CPU" in refusal(HALF, CPU)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"direction": "both"}, "does not do gradients"),
        ({"dtype": "float32"}, "does not do dtype float32 (does: bfloat16, float16)"),
        ({"mask": "window:window=9"}, "does not do mask window (does: full, causal)"),
        ({"dropout_p": 0.1}, "does not do dropout"),
        ({"alibi": True}, "does not do ALiBi"),
        ({"head_dim": 264}, "does head_dim up to 256"),
        ({"head_dim_v": 264}, "does head_dim_v up to 256"),
        ({"head_dim_v": 20}, "head_dim_v must be a multiple of 8: the TMA counts in 16 bytes"),
    ],
)
def test_what_it_does_not_do_it_refuses(
    capability: object, changes: dict[str, Any], reason: str
) -> None:
    assert refusal(HALF.replace(**changes)) == reason


@pytest.mark.parametrize(
    ("module", "name", "shown"),
    [
        ("language.nvidia.hopper.tma", "async_copy_global_to_shared", None),
        ("language", "warp_specialize", None),
        ("language", "shared_memory_descriptor", "language.shared_memory_descriptor.index"),
    ],
)
def test_a_triton_whose_gluon_has_changed_is_refused_with_the_name(
    capability: object, monkeypatch: pytest.MonkeyPatch, module: str, name: str, shown: str | None
) -> None:
    monkeypatch.setattr("triton.__version__", "3.9.0")
    monkeypatch.delattr(f"triton.experimental.gluon.{module}.{name}")
    expected = (
        f"Gluon of triton 3.9.0 has no gluon.{shown or f'{module}.{name}'}; "
        "this kernel is written for triton 3.6 and 3.7"
    )
    assert refusal(HALF) == expected
    with pytest.raises(Unsupported, match="has no"):
        type(implementation("triton-gluon")).compile_cases()


def test_without_triton_it_says_how_to_get_it(
    capability: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert refusal(HALF).endswith("pip install triton")


FOLDER = SHELF / "triton_gluon"


def test_every_name_of_gluon_that_is_used_is_asked_for_and_no_other() -> None:
    homes = {
        "gl": "language", "gluon": "", "mbarrier": "language.nvidia.hopper.mbarrier",
        "tma": "language.nvidia.hopper.tma",
    }  # fmt: skip
    used = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                home = homes.get(node.value.id)
                if home is not None:
                    used.add(f"{home}.{node.attr}".lstrip("."))
            if isinstance(node, ast.ImportFrom) and "gluon" in (node.module or ""):
                home = str(node.module).removeprefix("triton.experimental.gluon").lstrip(".")
                names = [a.name for a in node.names if a.name not in homes]
                used |= {f"{home}.{name}" for name in names}
    needs = {
        f"{module.removeprefix('triton.experimental.gluon')}.{name}".lstrip(".")
        for module, names in part("needs").NEEDS.items()
        for name in names
        if "descriptor." not in name  # methods, of which the syntax does not tell the class
    }
    used = {name for name in used if "triton" not in name and not name.endswith(".language")}
    assert used == needs


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_it_imports_of_attnbench_only_the_public_api(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attnbench"):
            assert node.module == "attnbench"
            assert {alias.name for alias in node.names} <= set(attnbench.__all__)


# ---- the machine code --------------------------------------------------------------------


def cases() -> dict[str, Any]:
    return {case.name: case for case in type(implementation("triton-gluon")).compile_cases()}


def exponentials_beside_products(sass: str) -> list[int]:
    """Of each loop: how many exponentials stand between the wait for dots and for the output.

    They are in order of the code, from each wait that leaves one product running to the next.
    """
    waits = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\d)", sass)
    spans = zip(waits[1::2], waits[2::2], strict=True)
    return [span.count("MUFU.EX2") for left, span in spans if left == "0x1"]


def compiled(name: str) -> Any:
    return compiling._compile(cases()[name], TARGETS["sm_90"])


def sass_of(name: str) -> str:
    kernel = compiled(name)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assert_softmax_is_overlapped(name: str) -> None:
    case = cases()[name]
    found = exponentials_beside_products(sass_of(name))
    loops = 2 if case.constexprs["CAUSAL"] else 1
    a_thread = 64 * case.constexprs["BLOCK_N"] // 128
    assert len(found) == 2 * loops  # for each consumer
    assert min(found) >= a_thread, found


def test_the_kernel_compiles_without_spills_and_softmax_runs_beside_products() -> None:
    name = "causal, head_dim 128, bfloat16"
    assert check(compiling.compile_case(cases()[name], TARGETS["sm_90"])) == []
    assert_softmax_is_overlapped(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(cases()))
def test_every_configuration_compiles_so(name: str) -> None:
    assert check(compiling.compile_case(cases()[name], TARGETS["sm_90"])) == []
    assert_softmax_is_overlapped(name)


def test_a_softmax_that_waits_for_products_is_seen() -> None:
    wait = "WARPGROUP.DEPBAR.LE gsb0, "
    assert exponentials_beside_products(f"{wait}0x1 MUFU.EX2 MUFU.EX2 {wait}0x0 MUFU.EX2") == [2]
    assert exponentials_beside_products(f"{wait}0x1 FMNMX {wait}0x0 MUFU.EX2") == [0]


class Hopper:
    """Triton's driver, as far as it is asked before a launch."""

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_active", Hopper())


def test_a_launch_compiles_what_its_case_compiles(hopper: None) -> None:
    name = "causal, head_dim 128, bfloat16"
    problem = Problem.of(
        batch=2, heads=8, seqlen=4096, head_dim=128, dtype="bfloat16", mask="causal"
    )
    attention = part("launch").GluonForward(problem, processors=132, l2_bytes=50 * 2**20)
    tensors = (torch.empty(2, 8, 4096, 128, dtype=torch.bfloat16) for _ in range(4))
    kernel = part("forward").forward_kernel.warmup(
        **attention.arguments(*tensors), num_warps=4, grid=(attention.programs,)
    )
    boxes = [told["block_size"] for told in kernel.metadata.tensordesc_meta]
    assert boxes == [[1, 1, 64, 64], [1, 1, 128, 64], [1, 1, 128, 64]]  # 64 columns are 128 bytes
    assert kernel.asm["ptx"] == compiled(name).asm["ptx"]
