"""Compile cases: every kernel × feature × head_dim × dtype that has code of its own.

Each is what a compiler needs to build one kernel for a GPU that is not there: types of the
arguments, constants, launch options, and what the machine code has to hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from .backward import delta_kernel, dkdv_kernel, dq_kernel
from .config import Config, configs, decode_config, padded
from .decode import decode_kernel, merge_kernel
from .dropout import keep_kernel
from .forward import forward_kernel

Case = Mapping[str, Any]
"""name, kernel, signature, constexprs, num_warps, num_stages, expects."""

_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_FLOAT32 = ("lse_ptr", "delta_ptr", "slopes_ptr", "parts_ptr", "part_lse_ptr")
_FLOATS = ("scale", "softcap", "dropout_p")
_PLAIN = {
    "HEAD_DIM": 64, "HEAD_DIM_V": 64, "MASK": "band", "HAS_LOW": False, "SOFTCAP": False,
    "ALIBI": False, "DROPOUT": False, "PRECISION": "ieee",
}  # fmt: skip
_FEATURES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "window": {"HAS_LOW": True},
    "bounds": {"MASK": "bounds", "HAS_LOW": True},
    "blocks": {"MASK": "blocks"},
    "softcap-alibi": {"SOFTCAP": True, "ALIBI": True},
    "dropout": {"DROPOUT": True},
    "head_dim_v": {"HEAD_DIM": 192, "HEAD_DIM_V": 128},
    # Triton makes a constant of every size that is 1, and constants have other methods.
    "size-1": dict.fromkeys(("batch", "heads_q", "group", "seqlen_q", "seqlen_k", "shares"), 1),
}
_DIMS = (16, 64, 80, 128, 256)


def cases() -> Iterator[Case]:
    """One case for each feature at head_dim 64 in bf16, for each head_dim and for each dtype."""
    for feature, changes in _FEATURES.items():
        yield from _attention_cases(feature, "bf16", changes)
    for dim in _DIMS:
        for dtype in _BYTES:
            if (dim, dtype) != (64, "bf16"):
                changes = {"HEAD_DIM": dim, "HEAD_DIM_V": dim}
                yield from _attention_cases(f"head_dim-{dim}", dtype, changes)
    yield from _attention_cases("tf32", "fp32", {"PRECISION": "tf32"})
    constants = {"HEAD_DIM_V": 128, "DIM_V": 128, "SHARES": 128}
    yield _case("merge-bf16", merge_kernel, "bf16", constants, Config(1, 0, 8, 1), set())
    constants = {"HEAD_DIM_V": 80, "DIM_V": 128, "BLOCK_M": 64}
    yield _case("delta-bf16", delta_kernel, "bf16", constants, Config(64, 0, 4, 1), set())
    constants = {"BLOCK_M": 64, "BLOCK_N": 64}
    yield _case("keep", keep_kernel, "bf16", constants, Config(64, 64, 4, 1), set())


def _attention_cases(feature: str, dtype: str, changes: Mapping[str, Any]) -> Iterator[Case]:
    told = {**_PLAIN, **changes}
    dim = max(told["HEAD_DIM"], told["HEAD_DIM_V"])
    chosen = configs(dim, _BYTES[dtype])
    # Exact float32 products are made of scalar FMAs; all others of tensor-core instructions.
    is_exact = dtype == "fp32" and told["PRECISION"] == "ieee"
    expects = set() if is_exact else {"tensor_cores"}
    kernels = [
        (forward_kernel, chosen.forward),
        (dkdv_kernel, chosen.dkdv),
        (dq_kernel, chosen.dq),
    ]
    decode = decode_config(1, 8, dim, _BYTES[dtype])
    if decode is not None and told["MASK"] != "blocks" and not told["DROPOUT"]:
        kernels.append((decode_kernel, decode))
    for kernel, config in kernels:
        constants = {
            **told,
            "DIM": padded(told["HEAD_DIM"]),
            "DIM_V": padded(told["HEAD_DIM_V"]),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "PERSISTENT": config.schedule == "persistent",
        }
        name = f"{kernel.fn.__name__.removesuffix('_kernel')}-{feature}-{dtype}"
        yield _case(name, kernel, dtype, constants, config, expects)


def _case(
    name: str,
    kernel: Any,
    dtype: str,
    constants: Mapping[str, Any],
    config: Config,
    expects: set[str],
) -> Case:
    """With every argument's type; those that a feature leaves out are None."""
    constexprs: dict[str, Any] = {}
    signature: dict[str, str] = {}
    for argument in inspect.signature(kernel.fn).parameters:
        if argument in constants:
            signature[argument], constexprs[argument] = "constexpr", constants[argument]
        elif _is_absent(argument, constants):
            signature[argument], constexprs[argument] = "constexpr", None
        elif argument.endswith("_d"):  # the last axis is contiguous
            signature[argument], constexprs[argument] = "constexpr", 1
        else:
            signature[argument] = _type_of(argument, dtype)
    return {
        "name": name,
        "kernel": kernel,
        "signature": signature,
        "constexprs": constexprs,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "expects": frozenset(expects),
    }


def _is_absent(argument: str, constants: Mapping[str, Any]) -> bool:
    needs = {
        "slopes_ptr": constants.get("ALIBI", True),
        "table_ptr": constants.get("MASK") in ("bounds", "blocks"),
        "patterns_ptr": constants.get("MASK") == "blocks",
        "softcap": constants.get("SOFTCAP", True),
        "seed_ptr": constants.get("DROPOUT", True),
    }
    return not needs.get(argument, True)


def _type_of(argument: str, dtype: str) -> str:
    if argument in _FLOATS:
        return "fp32"
    if not argument.endswith("_ptr"):
        return "i32"
    told = {"table_ptr": "*i32", "patterns_ptr": "*u8", "keep_ptr": "*u8", "seed_ptr": "*i64"}
    return "*fp32" if argument in _FLOAT32 else told.get(argument, f"*{dtype}")
