from __future__ import annotations

import torch

from .attn_bias import (
    BlockDiagonalCausalMask,
    BlockDiagonalMask,
    LowerTriangularFromBottomRightMask,
    LowerTriangularMask,
)
from .common import Operator


class FwOp(Operator):
    NAME = "cutlassF-pt"
    DTYPES = {torch.float, torch.half, torch.bfloat16}
    BIASES = (
        type(None), torch.Tensor, LowerTriangularMask, LowerTriangularFromBottomRightMask,
        BlockDiagonalMask, BlockDiagonalCausalMask,
    )  # fmt: skip
    OTHER_VALUE_DIM = True


class BwOp(FwOp):
    NAME = "cutlassB-pt"
    BMGHK = False
