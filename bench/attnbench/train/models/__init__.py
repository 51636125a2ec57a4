"""Models by name: for now a small decoder that stands in until the architectures are here.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, C = d_model, H = heads,
D = head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.attention import Attention, Unsupported
from attnbench.train.models.bridge import Attends, Builds
from attnbench.train.models.presets import Preset, sized
from attnbench.train.roles import Task
from attnbench.train.workload import Workload


def build_model(
    workload: Workload, task: Task, attention: Attention, device: torch.device, seed: int
) -> nn.Module:
    """The model of a workload, equal for equal seeds, whoever does its attention.

    Raises:
        Unsupported: an architecture that is not here yet.
    """
    preset = sized(workload)
    if preset.family != "own" or task.objective != "causal-lm":
        raise Unsupported(f"model {workload.model} with {task.objective} is not here yet")
    torch.manual_seed(seed)
    return _Decoder(preset, workload, task.vocab_size, Builds(attention, device, seed=seed)).to(
        device
    )


class _Block(nn.Module):
    def __init__(self, preset: Preset, builds: Builds, dropout: float) -> None:
        super().__init__()
        width = preset.d_model
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, preset.d_ff), nn.Linear(preset.d_ff, width)
        self.attends = Attends(builds)
        self.heads, self.dropout = preset.heads, dropout

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x_BTC.shape
        qkv = self.qkv(self.before_attention(x_BTC))
        q_BHTD, k_BHTD, v_BHTD = qkv.view(
            batch, tokens, 3, self.heads, width // self.heads
        ).permute(2, 0, 3, 1, 4)
        dropout_p = self.dropout if self.training else 0.0
        y_BHTD = self.attends(q_BHTD, k_BHTD, v_BHTD, mask="causal", dropout_p=dropout_p)
        x_BTC = x_BTC + self.out(y_BHTD.transpose(1, 2).reshape(batch, tokens, width))
        wide_BTC: torch.Tensor = self.down(F.gelu(self.up(self.before_mlp(x_BTC))))
        return x_BTC + wide_BTC


class _Decoder(nn.Module):
    def __init__(self, preset: Preset, workload: Workload, vocab: int, builds: Builds) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, preset.d_model)
        self.places = nn.Embedding(workload.seqlen, preset.d_model)
        self.blocks = nn.ModuleList(
            _Block(preset, builds, workload.dropout) for _ in range(preset.layers)
        )
        self.norm = nn.LayerNorm(preset.d_model)
        self.head = nn.Linear(preset.d_model, vocab, bias=False)

    def forward(self, input_ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        x_BTC = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x_BTC = block(x_BTC)
        return {"tokens": self.head(self.norm(x_BTC))}
