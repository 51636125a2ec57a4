"""Adapters of libraries, against stand-ins with the libraries' published signatures.

A stand-in takes what the library takes and answers with plain operations, so that a wrong
argument, mask or layout gives a wrong answer, which the oracle finds.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from installed import Install
from shelf import CPU, assert_right, entries, implementation, module_of, solve
from torch.nn import attention
from torch.nn.attention import _registry

from attnbench import Problem, Unsupported, make_inputs
from attnbench.battery import CASES, run_case
from attnbench.execution import Execution
from attnbench.verify import judge, make_yardstick

STAND_IN = {
    "flash-attn": "flash_attn_2",
    "flash-attn-3": "flash_attn_3",
    "flash-attn-4": "flash_attn_4",
    "sageattention": "sageattention",
    "natten": "natten",
    "fla": "fla",
    "flashinfer": "flashinfer",
    "flashinfer-decode": "flashinfer",
    "cudnn-frontend": "cudnn",
    "sdpa-fa3": "flash_attn_3",
    "sdpa-fa4": "flash_attn_4",
    "xformers": "xformers",
    "xformers-cutlass": "xformers",
    "xformers-fa2": "xformers",
    "xformers-splitk": "xformers",
}
"""By adapter: its folder of ``stand_ins``."""

SINGLE = {"flashinfer-decode"}  # one request only: every decode of the battery has two
PLAIN = Problem.of(batch=2, heads=2, seqlen=24, head_dim=16, dtype="bfloat16")
FLASH = ("flash-attn", "flash-attn-3", "flash-attn-4")


def refusal(name: str, problem: Problem = PLAIN) -> str:
    """Why it cannot be built."""
    with pytest.raises(Unsupported) as told:
        Execution(implementation(name), problem, CPU)
    return str(told.value)


# ---- what is missing ---------------------------------------------------------------------


def test_every_adapter_of_the_folder_is_tested_here() -> None:
    found = {name for name, entry in entries().items() if entry.source.stem == "libraries"}
    assert found == set(STAND_IN)


@pytest.mark.parametrize("name", sorted(STAND_IN))
def test_a_missing_package_is_told_with_name_version_and_how_to_install(name: str) -> None:
    told = refusal(name)
    package = type(implementation(name)).package  # type: ignore[attr-defined]
    assert told.startswith(f"needs {package.distribution} ≥ ")
    assert f"not installed ({package.install})" in told
    assert "an NVIDIA GPU of compute capability" in told


@pytest.mark.parametrize("name", sorted(STAND_IN))
@pytest.mark.usefixtures("on_cpu")
def test_a_version_that_is_too_old_is_told(name: str, install: Install) -> None:
    install(STAND_IN[name], "0.0.1")
    assert "found 0.0.1 (" in refusal(name)


@pytest.mark.parametrize("name", sorted(STAND_IN))
def test_without_a_gpu_only_the_gpu_is_missing(name: str, install: Install) -> None:
    install(STAND_IN[name])
    told = refusal(name)
    assert told.startswith("needs an NVIDIA GPU of compute capability")
    assert told.endswith("this is a cpu")


@pytest.mark.parametrize("name", sorted(set(STAND_IN)))
@pytest.mark.usefixtures("on_cpu")
def test_metadata_without_the_module_is_told(name: str, install: Install) -> None:
    install(STAND_IN[name], only_metadata=True)
    assert "is installed but has no module" in refusal(name)


@pytest.mark.usefixtures("on_cpu")
def test_a_library_that_cannot_be_loaded_gives_its_own_reason(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("natten")

    def fail(name: str, package: str | None = None) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert "OSError: libcudart.so.12: cannot open" in refusal("natten")


@pytest.mark.usefixtures("on_cpu")
def test_a_signature_of_another_version_is_told_by_its_argument(install: Install) -> None:
    install("flash_attn_2")
    library = importlib.import_module("flash_attn")
    library.flash_attn_func = lambda q, k, v, softmax_scale=None, causal=False: q
    told = refusal("flash-attn")
    assert told.startswith("flash_attn_func of flash-attn 2.8.3 takes no window_size, softcap")
    del library.flash_attn_func
    assert refusal("flash-attn") == "flash-attn 2.8.3 has no flash_attn_func"


def test_the_library_is_not_imported_before_a_problem_is_built(install: Install) -> None:
    install("flash_attn_2")
    implementation("flash-attn")
    refusal("flash-attn")
    assert "flash_attn" not in sys.modules


def test_importing_the_adapters_imports_no_compiler() -> None:
    """Dynamo costs a second of every worker's life."""
    code = f"""
import importlib.util, sys
path = {entries()["fla"].source.path!r}
spec = importlib.util.spec_from_file_location("x", path + "/__init__.py",
    submodule_search_locations=[path])
sys.modules["x"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", sorted(STAND_IN))
def test_dropout_is_refused_because_it_cannot_be_verified(name: str, install: Install) -> None:
    install(STAND_IN[name])
    problem = PLAIN.replace(dropout_p=0.1, mask="causal")
    assert "dropout cannot be verified" in refusal(name, problem)


# ---- the arguments are right --------------------------------------------------------------

GQA = {"heads_q": 4, "heads_kv": 2}
CROSS = {"seqlen_q": 9}
BOTH = {"direction": "both"}
MASKS = (
    "causal", "window:window=5", "window:window=5,causal=false", "document:lengths=5+12+7",
    "document:lengths=5+12+7,causal=false",
)  # fmt: skip

FLASH_PROBLEMS: list[dict[str, Any]] = [
    {},
    *({"mask": mask, **BOTH} for mask in MASKS),
    *({"mask": mask, **CROSS} for mask in MASKS[:3]),
    {"mask": "causal", **GQA, **BOTH},
    {"mask": MASKS[3], **GQA, "softcap": 2.0},
    {"mask": "causal", "softcap": 2.0, "scale": 0.7},
    {"mask": "causal", "seqlen_q": 1, "decode": True},
]
RIGHT: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(FLASH, FLASH_PROBLEMS),
    "natten": [
        {}, {"mask": "causal", **BOTH}, {"mask": "window:window=5", **BOTH, **GQA},
        {"mask": "window:window=40,causal=false"}, {"mask": "window:window=40"},
        {"scale": 0.7, "head_dim_v": 8, "dtype": "float32"},
    ],
    "flashinfer": [
        {}, {"mask": "causal", **CROSS, **GQA}, {"mask": "window:window=5", **CROSS},
        {"mask": MASKS[3], **GQA}, {"mask": MASKS[4]}, {"softcap": 2.0, "scale": 0.7},
        {"head_dim_v": 8},
    ],
    "flashinfer-decode": [
        {"batch": 1, "seqlen_q": 1, "decode": True, **extra}
        for extra in ({}, {"mask": "causal", **GQA}, {"mask": "window:window=5"},
                      {"softcap": 2.0, "scale": 0.7})
    ],
    "cudnn-frontend": [
        {}, {"mask": "causal", **BOTH}, {"mask": "causal", **CROSS}, {**GQA, **BOTH},
        {"mask": "window:window=5", **BOTH}, {"mask": "window:window=5,causal=false", **CROSS},
        {"scale": 0.7, "head_dim_v": 8, **BOTH}, {"dtype": "float16", "direction": "backward"},
        {"mask": "causal", "seqlen_q": 1, "decode": True},
    ],
    "xformers": [
        *({"mask": mask, **BOTH} for mask in ("full", *MASKS)),
        *({"mask": mask, **CROSS} for mask in MASKS[:3]),
        *({"mask": mask, **GQA, **extra} for mask in MASKS for extra in ({}, BOTH)),
        {"alibi": True, "mask": MASKS[3], **GQA}, {"mask": "strided:stride=4", **BOTH},
        {"dtype": "float32", "scale": 0.7, "head_dim_v": 8, **BOTH},
        {"mask": "causal", "seqlen_q": 1, "decode": True, **GQA},
    ],
    "xformers-cutlass": [
        *({"mask": mask, "dtype": "float32", **BOTH} for mask in ("full", *MASKS)),
        {"mask": "causal", **CROSS}, {"mask": "window:window=5", "seqlen": 21, **GQA},
        {"mask": "bigbird:block=4", **GQA, **BOTH}, {"alibi": True, **GQA, "head_dim_v": 8},
    ],
    "xformers-fa2": [
        *({"mask": mask, **BOTH} for mask in ("full", *MASKS)),
        *({"mask": mask, **GQA, **extra} for mask in MASKS for extra in (CROSS, BOTH)
          if not (extra is CROSS and "document" in mask)),
    ],
    "xformers-splitk": [
        {}, {"mask": "causal", "seqlen_q": 1, "decode": True, **GQA},
        {"mask": "causal", **CROSS, **GQA}, {"mask": MASKS[3]}, {"alibi": True, "scale": 0.7},
    ],
}  # fmt: skip
RIGHT["flash-attn"] = [
    *RIGHT["flash-attn"], {"alibi": True, "mask": "causal", **CROSS}, {"alibi": True, **BOTH},
    {"alibi": True, "mask": MASKS[3], "heads": 6},
]  # fmt: skip


def _problem(**changes: Any) -> Problem:
    base = {"batch": 2, "seqlen_q": 24, "seqlen_k": 24, "head_dim": 16, "dtype": "bfloat16"}
    if seqlen := changes.pop("seqlen", None):
        base |= {"seqlen_q": seqlen, "seqlen_k": seqlen}
    if "heads_q" not in changes:
        base["heads"] = changes.pop("heads", 2)
    return Problem.of(**{**base, **changes})


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", sorted(RIGHT))
def test_what_is_asked_of_the_library_is_what_the_problem_asks(name: str, install: Install) -> None:
    install(STAND_IN[name])
    for changes in RIGHT[name]:
        assert_right(name, _problem(**changes))


@pytest.mark.usefixtures("on_cpu")
def test_flash_attn_2_and_4_can_be_installed_side_by_side(install: Install) -> None:
    """They share a name: each has its own version and refuses its own lack."""
    install("flash_attn_2")
    assert "needs flash-attn-4 ≥ 4.0, which is not installed" in refusal("flash-attn-4")
    assert "flash_attn.cute cannot be" not in refusal("flash-attn-4")
    install("flash_attn_4", only_metadata=True)
    assert "flash_attn.cute cannot be imported: ModuleNotFoundError" in refusal("flash-attn-4")


WRONG = {
    "flash-attn": ("flash_attn", "flash_attn_func", {"mask": "window:window=5"}, "window_size"),
    "flash-attn-3": ("flash_attn_interface", "flash_attn_func", {"mask": "causal"}, "causal"),
    "flash-attn-4": ("flash_attn.cute", "flash_attn_func", {"scale": 0.7}, "softmax_scale"),
    "natten": ("natten", "na1d", {"mask": "window:window=5"}, "kernel_size"),
    "flashinfer-decode": (
        "flashinfer", "single_decode_with_kv_cache",
        {"mask": "window:window=5", "batch": 1, "seqlen_q": 1, "decode": True}, "window_left",
    ),
    "xformers": ("xformers.ops.fmha", "memory_efficient_attention", {"mask": "causal"},
                 "attn_bias"),
}  # fmt: skip
OTHER = {"window_size": (5, 0), "causal": False, "softmax_scale": 0.25, "kernel_size": 6,
         "window_left": 5, "attn_bias": None}  # fmt: skip


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_argument_would_be_found(
    name: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off by one key, an argument ignored: what the checks above are good for."""
    install(STAND_IN[name])
    module, function, changes, argument = WRONG[name]
    library = importlib.import_module(module)
    right = getattr(library, function)

    def wrong(*args: Any, **keywords: Any) -> Any:
        return right(*args, **{**keywords, argument: OTHER[argument]})

    wrong.__signature__ = importlib.import_module("inspect").signature(right)  # type: ignore[attr-defined]
    monkeypatch.setattr(library, function, wrong)
    with pytest.raises(AssertionError):
        assert_right(name, _problem(**changes))


# ---- what a library has no name for -------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("flash-attn", {"head_dim_v": 8}, "does not do head_dim_v"),
        ("flash-attn", {"head_dim": 264}, "flash-attn refuses: FlashAttention forward only"),
        ("flash-attn-3", {"alibi": True}, "does not do ALiBi"),
        ("flash-attn-4", {"mask": "strided:stride=4"}, "does not do mask strided"),
        ("flash-attn", {"dtype": "float32"}, "does not do dtype float32"),
        ("natten", {"mask": "window:window=5,causal=false"}, "moved inwards at the ends"),
        ("natten", {"mask": "window:window=1"}, "2 keys or more"),
        ("natten", CROSS, "does not do seqlen_q ≠ seqlen_k"),
        ("sageattention", BOTH, "does not do gradients"),
        ("sageattention", {"mask": "causal", **CROSS}, "for seqlen_q = seqlen_k only"),
        ("sageattention", {"head_dim": 160}, "sageattention refuses: Unsupported head_dim: 160"),
        ("fla", {}, "does not do mask full (does: causal)"),
        ("fla", {"mask": "causal", **GQA}, "does not do heads_kv < heads_q"),
        ("fla", {"mask": "causal", "scale": 0.5}, "does not do a scale other"),
        ("flashinfer", {"mask": "window:window=5,causal=false"}, "reaches to the left only"),
        ("flashinfer", {"alibi": True}, "does not do ALiBi"),
        ("flashinfer", BOTH, "does not do gradients"),
        ("flashinfer-decode", {"decode": True, "seqlen_q": 1}, "batch 1, seqlen_q 1"),
        ("cudnn-frontend", {"head_dim": 12}, "cuDNN refuses: hidden_dim should be multiple of 8"),
        ("cudnn-frontend", {"softcap": 2.0}, "does not do softcap"),
        ("xformers", {"softcap": 2.0}, "does not do softcap"),
    ],
)
def test_what_the_library_cannot_do_is_refused_with_the_reason(
    name: str, changes: dict[str, Any], reason: str, install: Install
) -> None:
    install(STAND_IN[name])
    assert reason in refusal(name, _problem(**changes))


@pytest.mark.usefixtures("on_cpu")
def test_running_out_of_memory_is_no_refusal(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("natten")

    def na1d(query, key, value, kernel_size, is_causal, scale):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(importlib.import_module("natten"), "na1d", na1d)
    with pytest.raises(torch.OutOfMemoryError):
        implementation("natten").build(PLAIN, CPU)


# ---- approximate ones ---------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("changes", [{}, {"mask": "causal", **GQA}, {"scale": 0.7, **CROSS}])
def test_sageattention_is_off_by_the_rounding_of_q_and_k_only(
    changes: dict[str, Any], install: Install
) -> None:
    install("sageattention")
    problem = _problem(**changes)
    execution, inputs = solve("sageattention", problem)
    accuracy = judge(make_yardstick(problem, inputs), execution.results(), approximate=True)
    assert 1e-4 < float(accuracy["out"].rel_l2 or 0) < 0.05
    assert implementation("sageattention").kind == "approximate"


@pytest.mark.usefixtures("on_cpu")
def test_linear_attention_is_the_definition_with_elu_plus_one(install: Install) -> None:
    install("fla")
    problem = _problem(mask="causal", dtype="float32", head_dim_v=8, **BOTH)
    execution, inputs = solve("fla", problem)
    q, k, v = (x.double().requires_grad_() for x in inputs.qkv())
    phi_q, phi_k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    weights = torch.ones(24, 24).tril() * torch.einsum("bhmd,bhnd->bhmn", phi_q, phi_k)
    out = weights @ v / weights.sum(-1, keepdim=True)
    gradients = torch.autograd.grad(out, (q, k, v), inputs.grad_out_BHME.double())
    results = execution.results()
    for name, truth in zip(("out", "dq", "dk", "dv"), (out, *gradients), strict=True):
        torch.testing.assert_close(results[name].double(), truth, rtol=1e-4, atol=1e-4)


def test_flops_of_linear_attention_grow_with_the_length_not_with_its_square() -> None:
    short, long = (
        implementation("fla").flops(_problem(mask="causal", seqlen=n)) for n in (512, 1024)
    )
    assert long == 2 * short
    # Worked by hand: B·H·N · (4·D·E + 2·C·(D + E)).
    assert short == 4 * 512 * (4 * 16 * 16 + 2 * 64 * 32)


# ---- strides ------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
def test_cudnn_graphs_are_not_given_strides_they_were_not_built_for(install: Install) -> None:
    install("cudnn")
    problem = _problem(**BOTH)
    built = implementation("cudnn-frontend").build(problem, CPU)
    inputs = make_inputs(problem, seed=3)
    out, saved = built.forward(*inputs.qkv())  # type: ignore[union-attr]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs.qkv()]
    assert torch.equal(built.forward(*turned)[0], out)  # type: ignore[union-attr]
    grad = inputs.grad_out_BHME
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            built.backward(saved, grad),  # type: ignore[union-attr]
            built.backward(saved, grad.mT.contiguous().mT),  # type: ignore[union-attr]
            strict=True,
        )
    )


# ---- xformers -----------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
def test_reasons_of_xformers_are_its_own_for_forward_and_backward(install: Install) -> None:
    install("xformers")
    told = refusal("xformers-fa2", _problem(alibi=True, head_dim_v=8, **BOTH))
    words = (
        "query.shape[-1] != value.shape[-1]; attn_bias type is <class 'torch.Tensor'>"
    )  # fmt: skip
    assert told == (
        f"xformers refuses forward (fa2F@2.8.3-pt): {words} | backward (fa2B@2.8.3-pt): {words}"
    )


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", ["xformers", "xformers-cutlass"])
def test_a_library_for_another_cuda_is_recognised(name: str, install: Install) -> None:
    """Then every operator refuses, although the package imports."""
    install("xformers")
    library = importlib.import_module("xformers._cpp_lib")
    library._built_with_cuda = False
    library._cpp_library_load_exception = OSError("built for PyTorch 2.10 with CUDA 1208")
    told = refusal(name)
    assert "xFormers wasn't build with CUDA support" in told
    assert f"not loaded beside torch {torch.__version__}" in told
    assert "built for PyTorch 2.10 with CUDA 1208" in told


@pytest.mark.usefixtures("on_cpu")
def test_a_version_that_needs_mslk_says_so(install: Install) -> None:
    install("xformers")
    fmha = importlib.import_module("xformers.ops.fmha")
    del fmha.memory_efficient_attention  # as where the re-export found no mslk
    assert "from the package mslk, which is not installed (pip install mslk)" in refusal("xformers")


@pytest.mark.usefixtures("on_cpu")
def test_a_bias_aligned_top_left_would_be_found(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("xformers")
    biases = importlib.import_module("xformers.ops.fmha.attn_bias")
    monkeypatch.setattr(biases, "LowerTriangularFromBottomRightMask", biases.LowerTriangularMask)
    with pytest.raises(AssertionError):
        assert_right("xformers-cutlass", _problem(mask="causal", **CROSS))


@pytest.mark.usefixtures("on_cpu")
def test_heads_in_another_order_would_be_found(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("xformers")
    fmha = importlib.import_module("xformers.ops.fmha")
    right = fmha.memory_efficient_attention

    def wrong(q: Any, k: Any, v: Any, **keywords: Any) -> Any:
        return right(q, k.flip(2), v.flip(2), **keywords)

    monkeypatch.setattr(fmha, "memory_efficient_attention", wrong)
    with pytest.raises(AssertionError):
        assert_right("xformers", _problem(**GQA))


# ---- through torch's own switch -----------------------------------------------------------


@pytest.fixture
def activated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch's switch does, in order, with nothing behind it."""
    asked: list[str] = []

    class Handle:
        def __init__(self) -> None:
            asked.append("on")

        def remove(self) -> None:
            asked.append("off")

    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA4", Handle)
    return asked


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("changes", [{}, {"mask": "causal", **BOTH}, {**GQA, "scale": 0.7, **BOTH}])
def test_torchs_switch_is_on_for_the_call_alone(
    changes: dict[str, Any], activated: list[str], install: Install
) -> None:
    install("flash_attn_4")
    problem = _problem(**changes)
    assert_right("sdpa-fa4", problem)
    calls = 2 if problem.direction == "both" else 1
    # Once to import, once to try, once to answer; never left on.
    assert activated == ["on", "off"] * (1 + 2 * calls)
    assert attention.current_flash_attention_impl() is None


@pytest.mark.usefixtures("on_cpu")
def test_what_torch_cannot_activate_is_refused_in_its_words(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("flash_attn_4")  # without the kernels that torch looks for
    told = refusal("sdpa-fa4")
    assert "torch cannot activate FA4: Module 'flash_attn.cute.interface'" in told or (
        "No module named 'flash_attn.cute.interface'" in told
    )
    assert "for seqlen_q = seqlen_k only" in refusal("sdpa-fa4", _problem(mask="causal", **CROSS))
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", {})
    assert "cannot activate FA3 (can: none)" in refusal("sdpa-fa3")
    monkeypatch.delattr(module_of("sdpa-fa4").attention, "activate_flash_attention_impl")
    assert "has no torch.nn.attention.activate_flash_attention_impl" in refusal("sdpa-fa4")


# ---- the whole battery --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", sorted(set(STAND_IN) - {"sdpa-fa3", "sdpa-fa4", *SINGLE}))
def test_the_battery_finds_nothing_wrong_with_an_adapter(name: str, install: Install) -> None:
    """Strides of all kinds, NaN, new contents at old addresses: what adapters get wrong."""
    install(STAND_IN[name])
    results = [run_case(implementation(name), case, CPU) for case in CASES]
    wrong = [(r.case.name, r.reason) for r in results if r.status in ("incorrect", "error")]
    assert wrong == []
    assert sum(r.status == "ok" for r in results) >= 2
