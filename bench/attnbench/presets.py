"""Attention shapes of real models, by name, from their published configurations.

A preset gives heads, head_dim and mask; batch, seqlen, dtype and direction stay with the
suite. A suite's own key wins over the preset's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # GPT-2 124M (Radford et al. 2019): 12 heads, width 768.
    "gpt2": {"heads_q": 12, "heads_kv": 12, "head_dim": 64, "mask": "causal"},
    # BERT-base (Devlin et al. 2018): bidirectional.
    "bert-base": {"heads_q": 12, "heads_kv": 12, "head_dim": 64, "mask": "full"},
    # Llama 3 8B and 70B (Meta 2024): GQA with 8 key heads.
    "llama-3-8b": {"heads_q": 32, "heads_kv": 8, "head_dim": 128, "mask": "causal"},
    "llama-3-70b": {"heads_q": 64, "heads_kv": 8, "head_dim": 128, "mask": "causal"},
    # Mistral 7B v0.1 (Jiang et al. 2023): sliding window of 4096.
    "mistral-7b": {
        "heads_q": 32,
        "heads_kv": 8,
        "head_dim": 128,
        "mask": {"kind": "window", "window": 4096},
    },
    # ViT-L/16 (Dosovitskiy et al. 2020): 196 patches and a class token at 224 × 224.
    "vit-l": {"heads_q": 16, "heads_kv": 16, "head_dim": 64, "mask": "full", "seqlen": 197},
    # T5-base encoder (Raffel et al. 2019): no scaling of the logits.
    "t5": {"heads_q": 12, "heads_kv": 12, "head_dim": 64, "mask": "full", "scale": 1.0},
}
