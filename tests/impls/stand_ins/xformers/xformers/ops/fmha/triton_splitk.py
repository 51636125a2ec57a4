from __future__ import annotations

import torch

from .common import Operator


class FwOp(Operator):
    NAME = "triton_splitKF"
    DTYPES = {torch.half, torch.bfloat16}
    BIASES = (type(None), torch.Tensor)
