"""What all built-in implementations have in common."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shelf import CPU, SHELF, entries, implementation

import attnbench
from attnbench.battery import CASES, run_case

NAMES = {
    "naive", "sdpa", "sdpa-math", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "flex", "blockwise",
    "triton", "triton-gluon", "gathered", "window", "dilated", "strided", "fixed", "block-sparse",
    "bigbird", "top-k",
    "linformer", "nystrom", "performer", "linear", "cosformer", "rfa", "mha", "ring", "ring-torch",
}  # fmt: skip

# Adapters: each has the version of its library, where that is installed.
LIBRARIES = {
    "cudnn-frontend", "fla", "flash-attn", "flash-attn-3", "flash-attn-4", "flashinfer",
    "flashinfer-decode", "natten", "sageattention", "sdpa-fa3", "sdpa-fa4", "xformers",
    "xformers-cutlass", "xformers-fa2", "xformers-splitk",
}  # fmt: skip


def test_the_shelf_holds_these_and_all_are_available() -> None:
    assert {name: entry.reason for name, entry in entries().items()} == dict.fromkeys(
        NAMES | LIBRARIES
    )


@pytest.mark.parametrize("name", sorted(NAMES | LIBRARIES))
def test_each_says_what_it_is(name: str) -> None:
    entry = entries()[name]
    assert len(entry.summary) > 20
    assert entry.version or name in LIBRARIES
    assert entry.paper


@pytest.mark.parametrize(
    "path",
    sorted([*SHELF.glob("*.py"), *SHELF.glob("libraries/*.py")]),
    ids=lambda path: path.stem,
)
def test_each_imports_only_the_public_api_and_torch(path: Path) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for module, names in imports(path):
        if module == "attnbench":
            assert set(names) <= set(attnbench.__all__)
        else:
            assert module.partition(".")[0] in allowed


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", [alias.name for alias in node.names]


NO_FP8 = "does not do dtype float8_e4m3fn"

# What each may leave out on a CPU beside 8-bit floats, by the beginning of its reason.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "naive": (),
    "blockwise": ("does not do dropout",),
    "sdpa": ("does not do softcap", "dropout cannot be verified"),
    "sdpa-math": ("does not do softcap", "dropout cannot be verified"),
    "sdpa-flash": (
        "does not do softcap",
        "dropout cannot be verified",
        "Flash attention requires q,k,v to have the same last dimension",
        "No available kernel",  # for a bias that has a gradient
    ),
}


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_the_battery_finds_nothing_wrong_on_a_cpu(name: str) -> None:
    results = [run_case(implementation(name), case, CPU) for case in CASES]
    wrong = [(r.case.name, r.reason) for r in results if r.status in ("incorrect", "error")]
    assert wrong == []
    refused = {str(r.reason) for r in results if r.status == "unsupported"}
    assert all(reason.startswith((NO_FP8, *LEFT_OUT[name])) for reason in refused), refused
    assert sum(r.status == "ok" for r in results) >= len(CASES) - 25
