from __future__ import annotations

import torch

from .attn_bias import (
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    LocalAttentionFromBottomRightMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)
from .common import Operator


class FwOp(Operator):
    NAME = "fa2F@2.8.3-pt"
    DTYPES = {torch.half, torch.bfloat16}
    BIASES = (
        type(None), LowerTriangularMask, LowerTriangularFromBottomRightMask,
        LocalAttentionFromBottomRightMask, BlockDiagonalMask, BlockDiagonalCausalMask,
    )  # fmt: skip


class BwOp(FwOp):
    NAME = "fa2B@2.8.3-pt"
    BMGHK = False
