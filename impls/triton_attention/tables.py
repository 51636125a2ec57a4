"""Tiles of the backward kernels, and where logits have a learned bias: what was found to fit.

Each cut is rows of queries, keys, warps, stages; the first is the default, the others are for
tuning to choose from. The defaults spill no registers in any feature but dropout, whose random
numbers take some of their own (``cases`` has the budget), the others none on the plain causal
mask. What shaped them:

* dK/dV keeps two sums and two operands a key, dQ one of each a query, in float32 or in
  shared memory: at 255 registers a thread that is 64 or 128 keys up to head_dim 128.
* On sm_90 and sm_100 products run at full rate from 64 rows on. At head_dim 256 on sm_90, 64
  keys spill 700 bytes a thread and more, so that dK/dV takes 32 and the older instruction.
* ptxas 12.8 has a fault for sm_80: a kernel of 8 warps that does not fit 255 registers gets
  32, and spills thousands of bytes. The same code for sm_86 spills a few hundred.
* Exact float32 products on NVIDIA GPUs are scalar: every operand passes through registers,
  and loads that run ahead take more. At head_dim 256 one cut is all that fits some targets.
* gfx942 gives a thread of 4 warps 512 registers, of 8 warps 256.
"""

from __future__ import annotations

from collections.abc import Mapping

Cut = tuple[int, int, int, int]

BACKWARD: Mapping[tuple[str, str], Mapping[tuple[int, int], tuple[Cut, ...]]] = {
    ("dkdv", "sm_80"): {
        (2, 64): ((32, 128, 8, 2), (32, 64, 4, 2)),
        (2, 128): ((64, 64, 8, 2), (64, 64, 8, 3), (32, 64, 8, 2)),
        (2, 256): ((32, 32, 8, 1), (16, 64, 8, 1)),
        (4, 64): ((32, 32, 8, 1), (16, 32, 8, 1)),
        (4, 128): ((16, 32, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 32, 8, 1)),
    },
    ("dkdv", "sm_89"): {
        (2, 64): ((32, 128, 8, 2), (32, 64, 4, 2)),
        (2, 128): ((64, 64, 8, 2), (32, 64, 8, 2)),
        (2, 256): ((32, 32, 8, 1), (16, 64, 8, 1)),
        (4, 64): ((32, 32, 8, 1), (16, 32, 8, 1)),
        (4, 128): ((16, 16, 8, 1), (16, 32, 8, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 32, 8, 1)),
    },
    ("dkdv", "sm_90"): {
        (2, 64): ((32, 128, 8, 2), (64, 128, 8, 2), (64, 64, 4, 2)),
        (2, 128): ((32, 128, 8, 2), (32, 64, 8, 2)),
        (2, 256): ((32, 32, 8, 1), (32, 32, 8, 2)),
        (4, 64): ((32, 32, 8, 1), (16, 32, 8, 1)),
        (4, 128): ((16, 32, 8, 1), (16, 16, 8, 1)),
        (4, 256): ((16, 16, 8, 1),),
    },
    ("dkdv", "sm_100"): {
        (2, 64): ((32, 128, 8, 2), (64, 128, 8, 2), (64, 64, 4, 2)),
        (2, 128): ((64, 128, 8, 2), (64, 64, 8, 2), (32, 128, 8, 2)),
        (2, 256): ((32, 64, 8, 1), (32, 32, 8, 1)),
        (4, 64): ((16, 32, 8, 1), (32, 32, 8, 1)),
        (4, 128): ((16, 16, 8, 1), (16, 16, 4, 1)),
        (4, 256): ((16, 16, 8, 1),),
    },
    ("dkdv", "gfx942"): {
        (2, 64): ((32, 64, 4, 2), (32, 128, 8, 2)),
        (2, 128): ((32, 64, 8, 1), (32, 64, 4, 1), (64, 64, 4, 1)),
        (2, 256): ((16, 32, 4, 1), (32, 32, 4, 1)),
        (4, 64): ((32, 64, 8, 1), (32, 32, 4, 1)),
        (4, 128): ((16, 32, 8, 1), (16, 16, 4, 1)),
        (4, 256): ((16, 16, 4, 1),),
    },
    ("dq", "sm_80"): {
        (2, 64): ((128, 32, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2)),
        (2, 128): ((64, 64, 8, 2), (128, 32, 8, 2)),
        (2, 256): ((64, 32, 8, 2), (64, 16, 8, 2)),
        (4, 64): ((32, 16, 8, 1), (32, 32, 4, 1)),
        (4, 128): ((32, 16, 8, 1), (32, 32, 8, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 16, 4, 1)),
    },
    ("dq", "sm_89"): {
        (2, 64): ((128, 32, 8, 2), (64, 64, 4, 2)),
        (2, 128): ((64, 64, 8, 2), (128, 32, 8, 2)),
        (2, 256): ((64, 32, 8, 1), (64, 16, 8, 2)),
        (4, 64): ((32, 16, 8, 1), (32, 32, 4, 1)),
        (4, 128): ((32, 16, 8, 1), (16, 16, 8, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 16, 4, 1)),
    },
    ("dq", "sm_90"): {
        (2, 64): ((128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3)),
        (2, 128): ((128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 4, 2)),
        (2, 256): ((64, 16, 8, 2), (32, 32, 8, 1)),
        (4, 64): ((32, 16, 8, 1), (32, 32, 4, 1)),
        (4, 128): ((32, 16, 8, 1), (16, 16, 8, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 16, 4, 1)),
    },
    ("dq", "sm_100"): {
        (2, 64): ((128, 64, 8, 2), (64, 64, 4, 2)),
        (2, 128): ((128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 4, 2)),
        (2, 256): ((64, 64, 8, 1), (128, 32, 8, 2), (64, 32, 8, 2)),
        (4, 64): ((32, 16, 8, 1), (32, 32, 4, 1)),
        (4, 128): ((32, 16, 8, 1), (16, 16, 8, 1)),
        (4, 256): ((16, 16, 8, 1), (16, 16, 4, 1)),
    },
    ("dq", "gfx942"): {
        (2, 64): ((128, 32, 8, 2), (128, 64, 8, 2)),
        (2, 128): ((128, 32, 8, 2), (64, 32, 4, 2)),
        (2, 256): ((64, 16, 8, 2), (64, 16, 4, 2)),
        (4, 64): ((64, 32, 8, 1), (32, 32, 4, 1)),
        (4, 128): ((32, 16, 8, 1), (16, 16, 4, 1)),
        (4, 256): ((16, 16, 4, 1),),
    },
}
"""By kernel and target, then bytes of an element and head dimension, padded, at least 64."""

_BIASED: Mapping[str, Mapping[int, Cut]] = {
    "forward": {
        32: (128, 32, 8, 2), 64: (128, 32, 8, 2), 128: (128, 32, 8, 2), 256: (64, 32, 8, 1),
    },
    "dkdv": {64: (32, 32, 8, 2), 128: (32, 32, 8, 2), 256: (16, 32, 8, 1)},
    "dq": {64: (128, 32, 8, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 1)},
    "dbias": {64: (64, 32, 8, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 2)},
}  # fmt: skip
_BIASED_OTHERWISE: Mapping[tuple[str, str, int], Cut] = {
    ("dkdv", "sm_90", 64): (32, 64, 8, 2),  # fits there, at full rate
    ("forward", "sm_100", 64): (64, 32, 8, 2),
    ("forward", "gfx942", 256): (64, 32, 4, 1),
    ("dkdv", "gfx942", 64): (32, 32, 4, 2),
    ("dkdv", "gfx942", 128): (32, 32, 4, 2),
    ("dq", "gfx942", 256): (64, 16, 4, 2),
    ("dbias", "gfx942", 256): (32, 32, 4, 1),
}


def biased(kernel: str, target: str, width: int) -> Cut:
    """The cut that a kernel begins with where logits have a learned bias, of 2 bytes an element.

    A tile of the bias takes registers beside that of the logits, and one that cannot be read by
    vectors (keys no multiple of 8, or not innermost) an address for each of its rows as well: the
    usual cuts spill up to 700 bytes a thread then. These keep to the budgets of ``cases``.

    Args:
        kernel: whose, ``dbias`` among them.
        target: architecture.
        width: head dimension, padded, at least 64; of the forward at least 32.
    """
    return _BIASED_OTHERWISE.get((kernel, target, width), _BIASED[kernel][width])
