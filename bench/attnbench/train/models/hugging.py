"""Hugging Face architectures from a configuration, with the outputs that targets are held to.

transformers loads its models one by one; each family is imported when it is built.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, C = d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnbench.errors import UserError
from attnbench.train.models.parts import Parts, find
from attnbench.train.models.presets import Family, Preset
from attnbench.train.roles import ImageShape
from attnbench.train.workload import Objective

Outputs = dict[str, torch.Tensor]
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
# The task knows its special tokens. transformers would leave the embedding of a padding token
# without a gradient, whatever token has its number.


@dataclass(frozen=True)
class Wanted:
    """What a model is made for.

    Attributes:
        objective: what it is trained for.
        vocab: rows of the embedding.
        classes: of ``label``; 0 without one.
        length: the longest sequence of tokens.
        sentences: whether tokens say which of two sentences they are of.
        image: of pictures; None without them.
        dropout: of residual branches and attention weights. Llama has none of the former.
        attention: transformers' name of the implementation.
    """

    objective: Objective
    vocab: int
    classes: int
    length: int
    sentences: bool
    image: ImageShape | None
    dropout: float
    attention: str


class Hugging(nn.Module):
    """A model of transformers, and what is to be read from what it returns."""

    def __init__(
        self, body: nn.Module, read: Callable[[Any], Outputs], parts: Mapping[str, tuple[str, ...]]
    ) -> None:
        super().__init__()
        self.body = body
        self._read = read
        self._paths = parts

    def forward(self, **inputs: torch.Tensor) -> Outputs:
        """By name of the target; see :class:`attnbench.train.roles.Model`."""
        return self._read(self.body(**inputs))

    @property
    def parts(self) -> Parts:
        """Stacks of layers, last norms and heads."""
        return Parts(*(find(self.body, self._paths[kind]) for kind in ("stacks", "norms", "heads")))

    def checkpoint(self) -> None:
        """Recompute the activations of each layer in the backward."""
        from transformers import PreTrainedModel

        for model in self.body.modules():
            if isinstance(model, PreTrainedModel):
                known: Any = model
                enable = getattr(known, "activation_checkpointing_enable", None)
                (enable or known.gradient_checkpointing_enable)({"use_reentrant": False})
                # It also made embeddings ask for gradients, which would run the whole
                # backward of a body that is frozen.
                known.disable_input_require_grads()


class WithHead(nn.Module):
    """A decoder that classifies by what it holds at the last token."""

    def __init__(self, decoder: nn.Module, d_model: int, classes: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = nn.Linear(d_model, classes)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """``(B, classes)``."""
        last_BC = self.decoder(**inputs).last_hidden_state[:, -1]
        return self.head(last_BC)  # type: ignore[no-any-return]


class ImageAndText(nn.Module):
    """ViT and BERT, each with a projection to a common space (as CLIP, arXiv 2103.00020)."""

    def __init__(self, image: nn.Module, text: nn.Module, d_model: int) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.left = nn.Linear(d_model, d_model, bias=False)
        self.right = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, pixel_values: torch.Tensor, **text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the images and of the texts, each ``(B, C)``: the mean over places."""
        image_BTC = self.image(pixel_values=pixel_values).last_hidden_state
        text_BTC = self.text(**text).last_hidden_state
        return self.left(image_BTC.mean(dim=1)), self.right(text_BTC.mean(dim=1))


def build_hugging(preset: Preset, wanted: Wanted) -> Hugging:
    """A model of transformers with random weights.

    Raises:
        UserError: sizes that do not fit the task.
    """
    return _FAMILIES[preset.family](preset, wanted)


def _gpt2(preset: Preset, wanted: Wanted) -> Hugging:
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    config = GPT2Config(
        n_layer=preset.layers, n_head=preset.heads, n_embd=preset.d_model, n_inner=preset.d_ff,
        n_positions=wanted.length, vocab_size=wanted.vocab, resid_pdrop=wanted.dropout,
        embd_pdrop=wanted.dropout, attn_pdrop=wanted.dropout, use_cache=False,
        tie_word_embeddings=preset.tied, attn_implementation=wanted.attention, **_NO_TOKENS,
    )  # fmt: skip
    return _decoder(GPT2LMHeadModel, GPT2Model, config, preset, wanted, "transformer", "h", "ln_f")


def _llama(preset: Preset, wanted: Wanted) -> Hugging:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    config = LlamaConfig(
        num_hidden_layers=preset.layers, num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads_kv, hidden_size=preset.d_model,
        intermediate_size=preset.d_ff, max_position_embeddings=wanted.length,
        vocab_size=wanted.vocab, attention_dropout=wanted.dropout, use_cache=False,
        tie_word_embeddings=preset.tied, attn_implementation=wanted.attention, **_NO_TOKENS,
    )  # fmt: skip
    return _decoder(LlamaForCausalLM, LlamaModel, config, preset, wanted, "model", "layers", "norm")


def _decoder(
    with_tokens: Any, bare: Any, config: Any, preset: Preset, wanted: Wanted,
    prefix: str, stack: str, norm: str,
) -> Hugging:  # fmt: skip
    if wanted.objective == "causal-lm":
        paths = {"stacks": (f"{prefix}.{stack}",), "norms": (f"{prefix}.{norm}",),
                 "heads": ("lm_head",)}  # fmt: skip
        return Hugging(with_tokens(config), _tokens, paths)
    body = WithHead(bare(config), preset.d_model, wanted.classes)
    paths = {"stacks": (f"decoder.{stack}",), "norms": (f"decoder.{norm}",), "heads": ("head",)}
    return Hugging(body, _label_alone, paths)


def _bert_config(preset: Preset, wanted: Wanted) -> Any:
    from transformers import BertConfig

    return BertConfig(
        num_hidden_layers=preset.layers, num_attention_heads=preset.heads,
        hidden_size=preset.d_model, intermediate_size=preset.d_ff, vocab_size=wanted.vocab,
        max_position_embeddings=wanted.length, num_labels=max(wanted.classes, 1),
        hidden_dropout_prob=wanted.dropout, attention_probs_dropout_prob=wanted.dropout,
        tie_word_embeddings=preset.tied, attn_implementation=wanted.attention, **_NO_TOKENS,
    )  # fmt: skip


def _bert(preset: Preset, wanted: Wanted) -> Hugging:
    from transformers import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification

    config, stacks = _bert_config(preset, wanted), ("bert.encoder.layer",)
    paths = {"stacks": stacks, "norms": (), "heads": ("cls",)}
    if wanted.objective == "classification":
        paths["heads"] = ("bert.pooler", "classifier")
        return Hugging(BertForSequenceClassification(config), _label, paths)
    if not wanted.classes:
        return Hugging(BertForMaskedLM(config), _tokens, paths)
    if wanted.classes != 2:
        raise UserError(f"whether a sentence follows has 2 answers, the task has {wanted.classes}")
    paths["heads"] = ("bert.pooler", "cls")
    return Hugging(BertForPreTraining(config), _tokens_and_label, paths)


def _t5(preset: Preset, wanted: Wanted) -> Hugging:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        num_layers=preset.layers, num_heads=preset.heads, d_model=preset.d_model,
        d_kv=preset.d_model // preset.heads, d_ff=preset.d_ff, vocab_size=wanted.vocab,
        dropout_rate=wanted.dropout, use_cache=False, tie_word_embeddings=preset.tied,
        attn_implementation=wanted.attention, **_NO_TOKENS,
    )  # fmt: skip
    paths = {
        "stacks": ("encoder.block", "decoder.block"),
        "norms": ("decoder.final_layer_norm",),
        "heads": ("lm_head",),
    }
    return Hugging(T5ForConditionalGeneration(config), _tokens, paths)


def _bart(preset: Preset, wanted: Wanted) -> Hugging:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        encoder_layers=preset.layers, decoder_layers=preset.layers, d_model=preset.d_model,
        encoder_attention_heads=preset.heads, decoder_attention_heads=preset.heads,
        encoder_ffn_dim=preset.d_ff, decoder_ffn_dim=preset.d_ff, vocab_size=wanted.vocab,
        max_position_embeddings=wanted.length, dropout=wanted.dropout,
        attention_dropout=wanted.dropout, use_cache=False, tie_word_embeddings=preset.tied,
        attn_implementation=wanted.attention, forced_eos_token_id=None,
        decoder_start_token_id=None, **_NO_TOKENS,
    )  # fmt: skip
    paths = {
        "stacks": ("model.encoder.layers", "model.decoder.layers"),
        "norms": (),
        "heads": ("lm_head",),
    }
    return Hugging(BartForConditionalGeneration(config), _tokens, paths)


def _vit_config(preset: Preset, wanted: Wanted) -> Any:
    from transformers import ViTConfig

    if wanted.image is None:
        raise UserError("a vision model needs a task with pictures (pixel_values)")
    return ViTConfig(
        num_hidden_layers=preset.layers, num_attention_heads=preset.heads,
        hidden_size=preset.d_model, intermediate_size=preset.d_ff, image_size=wanted.image.size,
        patch_size=wanted.image.patch, num_channels=wanted.image.channels,
        num_labels=max(wanted.classes, 1),
        hidden_dropout_prob=wanted.dropout, attention_probs_dropout_prob=wanted.dropout,
        attn_implementation=wanted.attention,
    )  # fmt: skip


def _vit(preset: Preset, wanted: Wanted) -> Hugging:
    from transformers import ViTForImageClassification

    paths = {"stacks": ("vit.layers",), "norms": ("vit.layernorm",), "heads": ("classifier",)}
    return Hugging(ViTForImageClassification(_vit_config(preset, wanted)), _label, paths)


def _pair(preset: Preset, wanted: Wanted) -> Hugging:
    from transformers import BertModel, ViTModel

    image = ViTModel(_vit_config(preset, wanted), add_pooling_layer=False)
    text = BertModel(_bert_config(preset, wanted), add_pooling_layer=False)
    paths = {
        "stacks": ("image.layers", "text.encoder.layer"),
        "norms": ("image.layernorm",),
        "heads": ("left", "right"),
    }
    return Hugging(ImageAndText(image, text, preset.d_model), _embeddings, paths)


def _tokens(out: Any) -> Outputs:
    return {"tokens": out.logits}


def _label(out: Any) -> Outputs:
    return {"label": out.logits}


def _label_alone(logits: torch.Tensor) -> Outputs:
    return {"label": logits}


def _tokens_and_label(out: Any) -> Outputs:
    return {"tokens": out.prediction_logits, "label": out.seq_relationship_logits}


def _embeddings(out: tuple[torch.Tensor, torch.Tensor]) -> Outputs:
    return {"left": out[0], "right": out[1]}


_FAMILIES: Mapping[Family, Callable[[Preset, Wanted], Hugging]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "bert": _bert,
    "t5": _t5,
    "bart": _bart,
    "vit": _vit,
    "pair": _pair,
}
