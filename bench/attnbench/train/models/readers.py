"""Readers: how a generation reads tokens with each kind of model, at once or from a cache.

A decoder reads the prompt and goes on from it; an encoder-decoder has its encoder read the
prompt and goes on from a token that says nothing (:data:`START`). Keys and values of the
encoder's tokens are projected once, in the prefill, and lie in a cache of their own; that of
the decoder grows with every token.

Letters: B = batch, T = tokens of the prompt, S = tokens that are given (the prompt and all new
ones but the last), n = new tokens, V = vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self, cast

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from attnbench.attention import Layout
from attnbench.train.attentions import reference
from attnbench.train.models.bridge import Builds
from attnbench.train.models.cache import Filled
from attnbench.train.models.interface import making_places, no_mask
from attnbench.train.models.own import Own
from attnbench.train.models.presets import Family

START = 0
"""The token that a decoder with an encoder begins with; nothing is learned, so any will do."""


class Reader(ABC):
    """A model in evaluation, with a cache once :meth:`allocate` was called.

    Args:
        body: the model.

    Attributes:
        body: the same.
    """

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self._call: Callable[..., Any] = self._plain
        self._rooms: list[Filled] = []  # of every layer

    # ---- the model -------------------------------------------------------------------

    @property
    @abstractmethod
    def vocab(self) -> int:
        """Tokens that it knows."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The last projection, of which only the place that speaks has need."""

    @property
    def element_bytes(self) -> int:
        """Bytes of a number that it computes with."""
        return next(self.body.parameters()).dtype.itemsize

    def sharing(self) -> Self:
        """Another one of the same weights, for another implementation: they are not copied."""
        shared = itertools.chain(self.body.parameters(), self.body.buffers())
        return type(self)(copy.deepcopy(self.body, {id(x): x for x in shared}))

    @abstractmethod
    def exact(self) -> Self:
        """Another one in float64, whose attention is the reference."""

    @abstractmethod
    def attended(self, builds: Builds) -> AbstractContextManager[None]:
        """Inside, what is read for the first time is attended to by an implementation."""

    def crosses(self, name: str) -> bool:
        """Whether a module is, or is inside, attention to what an encoder has said."""
        return False

    def rows(self, name: str, prompt: int) -> tuple[int, int]:
        """Tokens of a sequence that a matrix multiplies: in the prefill, and in each step.

        Args:
            name: of the matrix, within the body; not the head.
            prompt: tokens of the prompt.
        """
        return prompt, 1

    # ---- reading ---------------------------------------------------------------------

    @abstractmethod
    def whole(self, ids_BS: torch.Tensor, new: int) -> torch.Tensor:
        """Logits ``(B, n, V)`` of the new tokens, without a cache, all tokens read at once."""

    @abstractmethod
    def allocate(self, prompt: int, new: int, layout: Layout) -> None:
        """Make a cache with room for so many tokens; see :class:`~.cache.Filled`."""

    @abstractmethod
    def prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        """Read a prompt into the empty cache; logits ``(B, 1, V)`` of the first new token."""

    @abstractmethod
    def step(self, ids_B1: torch.Tensor) -> torch.Tensor:
        """Read one token more; logits ``(B, 1, V)`` of the next."""

    def forget(self) -> None:
        """Empty the cache."""
        for room in self._rooms:
            room.reset()

    def poison(self) -> None:
        """Empty the cache, and leave NaN in it: whoever reads beyond the tokens shows it."""
        self.forget()
        for room in self._rooms:
            room.poison()

    def compile(self) -> None:
        """torch.compile what reads; each length is a graph of its own."""
        self._call = torch.compile(self._plain, fullgraph=True, dynamic=False)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of all layers, as they are allocated."""
        return sum(room.allocated_bytes for room in self._rooms)

    @property
    def _plain(self) -> Callable[..., Any]:
        return self.body


class _Hugging(Reader):
    """What is alike in models of transformers."""

    @property
    def vocab(self) -> int:
        return int(self._known.config.vocab_size)

    @property
    def head(self) -> nn.Module:
        return cast(nn.Module, self._known.get_output_embeddings())

    def exact(self) -> Self:
        """With transformers' own attention."""
        body: Any = copy.deepcopy(self.body).double()
        body.set_attn_implementation("eager")
        return type(self)(body)

    def attended(self, builds: Builds) -> AbstractContextManager[None]:
        return making_places(builds)

    @property
    def _known(self) -> Any:
        return self.body


class Decoder(_Hugging):
    """GPT-2, Llama."""

    def whole(self, ids_BS: torch.Tensor, new: int) -> torch.Tensor:
        out = self.body(input_ids=ids_BS, use_cache=False, logits_to_keep=new)
        return cast(torch.Tensor, out.logits)

    def allocate(self, prompt: int, new: int, layout: Layout) -> None:
        layers = int(self._known.config.num_hidden_layers)
        self._rooms = [Filled(prompt + new - 1, layout) for _ in range(layers)]
        self._cache = Cache(layers=self._rooms)

    def prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        return self.step(prompt_BT)

    def step(self, ids_B1: torch.Tensor) -> torch.Tensor:
        out = self._call(
            input_ids=ids_B1, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        return cast(torch.Tensor, out.logits[:, -1:])


class EncoderDecoder(_Hugging):
    """T5, BART."""

    _CROSS = ("EncDecAttention", "encoder_attn")  # of T5, and of BART
    _KEYS_AND_VALUES = ("k", "v", "k_proj", "v_proj")

    def crosses(self, name: str) -> bool:
        return any(part in self._CROSS for part in name.split("."))

    def rows(self, name: str, prompt: int) -> tuple[int, int]:
        """The encoder and what is kept of it have the prompt; the decoder has one token."""
        parts = name.split(".")
        is_kept = self.crosses(name) and parts[-1] in self._KEYS_AND_VALUES
        return (prompt, 0) if is_kept or "encoder" in parts else (1, 1)

    def whole(self, ids_BS: torch.Tensor, new: int) -> torch.Tensor:
        prompt_BT, said = ids_BS.tensor_split([ids_BS.shape[1] - (new - 1)], dim=1)
        said_Bn = torch.cat([self._start(ids_BS), said], dim=1)
        out = self.body(input_ids=prompt_BT, decoder_input_ids=said_Bn, use_cache=False)
        return cast(torch.Tensor, out.logits)

    def allocate(self, prompt: int, new: int, layout: Layout) -> None:
        layers = int(self._known.config.num_hidden_layers)  # of either stack
        own = [Filled(new, layout) for _ in range(layers)]
        kept = [Filled(prompt, layout) for _ in range(layers)]
        self._rooms = own + kept
        self._cache = EncoderDecoderCache(Cache(layers=own), Cache(layers=kept))

    def forget(self) -> None:
        self._cache.reset()  # and with it, that keys and values of the encoder are there

    def prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        out = self._read(input_ids=prompt_BT, decoder_input_ids=self._start(prompt_BT))
        self._memory_BTC = out.encoder_last_hidden_state
        return cast(torch.Tensor, out.logits)

    def step(self, ids_B1: torch.Tensor) -> torch.Tensor:
        out = self._read(encoder_outputs=(self._memory_BTC,), decoder_input_ids=ids_B1)
        return cast(torch.Tensor, out.logits)

    def _read(self, **given: Any) -> Any:
        # Without a mask BART makes one of ones and looks at it, which waits for the device.
        hides_nothing = no_mask(given["decoder_input_ids"].device)
        return self._call(
            **given, decoder_attention_mask=hides_nothing, past_key_values=self._cache,
            use_cache=True,
        )  # fmt: skip

    @staticmethod
    def _start(ids: torch.Tensor) -> torch.Tensor:
        return ids.new_full((len(ids), 1), START)


class OwnDecoder(Reader):
    """Our own model."""

    @property
    def vocab(self) -> int:
        assert self._own.tokens is not None, "it reads tokens"
        return self._own.tokens.num_embeddings

    @property
    def head(self) -> nn.Module:
        return self._own.heads["tokens"]

    def exact(self) -> Self:
        """With attnbench's reference."""
        body = copy.deepcopy(self._own).double()
        device = next(body.parameters()).device
        body.attend_by(Builds(reference(), device, direction="forward"))
        return type(self)(body)

    @contextlib.contextmanager
    def attended(self, builds: Builds) -> Any:
        self._own.attend_by(builds)
        yield

    def whole(self, ids_BS: torch.Tensor, new: int) -> torch.Tensor:
        return self._own.read(ids_BS, new)

    def allocate(self, prompt: int, new: int, layout: Layout) -> None:
        self._rooms = [Filled(prompt + new - 1, layout) for _ in self._own.decoder.layers]

    def prefill(self, prompt_BT: torch.Tensor) -> torch.Tensor:
        return self.step(prompt_BT)

    def step(self, ids_B1: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self._call(ids_B1, 1, self._rooms))

    @property
    def _plain(self) -> Callable[..., Any]:
        return self._own.read

    @property
    def _own(self) -> Own:
        return cast(Own, self.body)


READERS: Mapping[Family, type[Reader]] = {
    "gpt2": Decoder, "llama": Decoder, "t5": EncoderDecoder, "bart": EncoderDecoder,
    "own": OwnDecoder,
}  # fmt: skip
"""Who reads with which family."""
