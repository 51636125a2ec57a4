"""What the kernel uses of Gluon, and whether the installed Triton has it.

Gluon is experimental: names come and go between minor versions. The kernel is written for
those of Triton 3.6 and 3.7.
"""

from __future__ import annotations

import importlib

_GLUON = "triton.experimental.gluon"
_HOPPER = f"{_GLUON}.language.nvidia.hopper"

NEEDS = {
    _GLUON: ("jit", "constexpr_function"),
    f"{_GLUON}.language": (
        "DotOperandLayout", "NVMMADistributedLayout", "NVMMASharedLayout", "SliceLayout",
        "allocate_shared_memory", "arange", "bfloat16", "cast", "constexpr", "convert_layout",
        "exp2", "float16", "float32", "full", "int64", "max", "maximum", "minimum",
        "num_programs", "program_id", "shared_memory_descriptor.index",
        "shared_memory_descriptor.permute", "shared_memory_descriptor.reshape", "static_assert",
        "static_range", "store", "sum", "warp_specialize", "where", "zeros",
    ),
    _HOPPER: ("warpgroup_mma", "warpgroup_mma_wait"),
    f"{_HOPPER}.mbarrier": ("MBarrierLayout", "arrive", "expect", "init", "wait"),
    f"{_HOPPER}.tma": ("async_copy_global_to_shared",),
    f"{_GLUON}.nvidia.hopper": ("TensorDescriptor",),
}  # fmt: skip
"""Names by module."""


def lacking() -> str | None:
    """Why the kernel cannot be compiled by the installed Triton; None if it can."""
    try:
        import triton
    except ImportError as error:
        return f"needs triton, which cannot be imported ({error}): pip install triton"
    for module, names in NEEDS.items():
        short = module.removeprefix("triton.experimental.")
        missing = short
        try:
            found = importlib.import_module(module)
            for name in names:
                missing = f"{short}.{name}"
                owner = found
                for part in name.split("."):
                    owner = getattr(owner, part)
        except (ImportError, AttributeError):
            return (
                f"Gluon of triton {triton.__version__} has no {missing}; "
                "this kernel is written for triton 3.6 and 3.7"
            )
    return None
