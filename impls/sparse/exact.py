"""``gathered``: exact attention under any mask, whose work follows the pairs that it keeps."""

from __future__ import annotations

import torch

from attnbench import Attention, ForwardBackward, Problem, Unsupported, register

from .gather import Gathered


@register("gathered")
class AnyMask(Attention):
    """Exact attention in plain PyTorch that gathers for each query block the keys it sees."""

    features = Attention.features | {"alibi", "bias", "softcap"}
    dtypes = ("float64", "float32", "bfloat16", "float16")
    options = {"block": 64}
    version = torch.__version__
    source = "written here; softmax and backward as in Dao 2023, arXiv 2307.08691"

    def supports(self, problem: Problem, device: torch.device) -> None:
        super().supports(problem, device)
        if int(self.options["block"]) < 1:
            raise Unsupported(f"option block must be positive, not {self.options['block']}")

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        attention = Gathered(problem, device, int(self.options["block"]))
        return ForwardBackward(attention.forward, attention.backward)
