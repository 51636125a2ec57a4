"""Generation: a prompt is read at once (prefill), then token after token (decode).

Keys and values of earlier tokens stay in a cache that is allocated once; a step attends over
a view of its filled part, which is what a problem with ``decode`` describes. Its length grows
with every token and plugins are built for one length, so that a generation of n tokens needs
n builds. All of them are made before (:class:`Generator`), and counted: an implementation
that compiles for each length has a long wait, not a slow token. Nothing is rounded up to
buckets of lengths, for that takes a mask over the unfilled part, which no plugin is given.

The choice is greedy, so that exact implementations agree; where two tokens are nearly alike,
rounding decides, and everything after it differs. So a cache is verified by the logits that it
leads to when the tokens are given (:meth:`Generator.forced`).

Letters: B = batch, G = heads_kv, T = tokens of the prompt, N = tokens so far, S = capacity,
D = head_dim, V = vocabulary, n = new tokens.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from attnbench.attention import Attention, Layout
from attnbench.errors import UserError, unknown
from attnbench.train.models.bridge import Builds
from attnbench.train.models.hugging import Wanted, build_hugging
from attnbench.train.models.int8 import to_int8
from attnbench.train.models.interface import making_places, register
from attnbench.train.models.presets import DECODERS, sized
from attnbench.train.workload import Workload

Weights = Literal["float32", "bfloat16", "float16", "int8"]


class Filled(DynamicLayer):  # type: ignore[misc]
    """One layer's cache: room for all tokens, and a view of those that are there.

    Args:
        capacity: tokens it has room for.
        layout: in memory, as the implementation likes its keys, so that none are copied.
    """

    def __init__(self, capacity: int, layout: Layout) -> None:
        super().__init__()
        self.capacity = capacity
        self.layout = layout
        self.count = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate, when the first tokens come."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._room = tuple(self._allocate(x) for x in (key_states, value_states))
        self.is_initialized = True

    def _allocate(self, x_BGTD: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = x_BGTD.shape
        if self.layout == "BHSD":
            return x_BGTD.new_zeros(batch, heads, self.capacity, dim)
        return x_BGTD.new_zeros(batch, self.capacity, heads, dim).transpose(1, 2)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens ``(B, G, T, D)``; views of all, ``(B, G, N, D)``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, self.count = self.count, self.count + key_states.shape[2]
        for room_BGSD, x_BGTD in zip(self._room, (key_states, value_states), strict=True):
            room_BGSD[:, :, first : self.count] = x_BGTD
        self.keys, self.values = (room[:, :, : self.count] for room in self._room)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens that are there."""
        return self.count

    def reset(self) -> None:
        """Forget the tokens, keep the room."""
        self.count = 0

    def poison(self) -> None:
        """Forget the tokens, and leave NaN in the room: whoever reads beyond them shows it."""
        self.count = 0
        for room_BGSD in self._room:
            room_BGSD.fill_(float("nan"))

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the room, as they are allocated."""
        return sum(room.untyped_storage().nbytes() for room in self._room)


class Generator:
    """A decoder that goes on from a prompt, ready to be timed.

    Everything is built and called once when this returns.

    Args:
        body: a causal model of transformers, in evaluation.
        builds: of the implementation inside, direction ``forward``.
        prompt_BT: int64 ids on the model's device.
        new: tokens to generate, ≥ 1.
        compile: torch.compile the body; each length is a graph of its own.
        alive: called before each token of the first generation, which may take long.

    Attributes:
        build_s: seconds that the first generation took, builds and all.
        logits_B1V: of the token that was said last.

    Raises:
        Unsupported: the implementation cannot do prefill, or a decode step.
    """

    def __init__(
        self,
        body: nn.Module,
        builds: Builds,
        prompt_BT: torch.Tensor,
        new: int,
        *,
        compile: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        if new < 1:
            raise UserError(f"new tokens must be at least 1, got {new}")
        self.body = body
        self.builds = builds
        self.prompt_BT = prompt_BT
        self.new = new
        layers = int(body.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]
        # The last token is said, and never read.
        capacity, layout = prompt_BT.shape[1] + new - 1, builds.attention.layout
        self._layers = [Filled(capacity, layout) for _ in range(layers)]
        self._cache = Cache(layers=self._layers)
        self._call: Any = body
        start = time.perf_counter()
        with making_places(builds):
            self._first(alive)
        if compile:
            self._call = torch.compile(body, fullgraph=True, dynamic=False)
            self._first(alive)
        self.build_s = time.perf_counter() - start
        builds.seal()

    def prefill(self) -> torch.Tensor:
        """Read the prompt into an empty cache; the first new token, ``(B, 1)`` int64."""
        self._cache.reset()
        return self._say(self.prompt_BT)

    def decode(self) -> torch.Tensor:
        """One token more, after :meth:`prefill` and at most ``new − 1`` of these: ``(B, 1)``."""
        return self._say(self._next_B1)

    def run(self) -> torch.Tensor:
        """The whole generation: ``(B, new)``."""
        said = [self.prefill()]
        said += [self.decode() for _ in range(self.new - 1)]
        return torch.cat(said, dim=1)

    @torch.inference_mode()
    def forced(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """The logits of each new token, ``(B, new, V)``, where all tokens are given.

        The first ones are read as a prompt, the others one by one from the cache, whose room
        holds NaN before.

        Args:
            ids_BS: int64, of the prompt's length and ``new − 1`` more.
        """
        prompt = self.prompt_BT.shape[1]
        for layer in self._layers:
            layer.poison()
        self._say(ids_BS[:, :prompt])
        logits = [self.logits_B1V]
        for place in range(prompt, prompt + self.new - 1):
            self._say(ids_BS[:, place : place + 1])
            logits.append(self.logits_B1V)
        return torch.cat(logits, dim=1)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of all layers, as they are allocated."""
        return sum(layer.allocated_bytes for layer in self._layers)

    def _first(self, alive: Callable[[], None]) -> None:
        """Every length once."""
        alive()
        self.prefill()
        for _ in range(self.new - 1):
            alive()
            self.decode()

    @torch.inference_mode()
    def _say(self, ids_BT: torch.Tensor) -> torch.Tensor:
        out = self._call(
            input_ids=ids_BT, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits_B1V: torch.Tensor = out.logits[:, -1:]
        next_B1 = logits_B1V.argmax(dim=-1)
        self.logits_B1V, self._next_B1 = logits_B1V, next_B1
        return next_B1


def build_body(
    workload: Workload, length: int, device: torch.device, seed: int, vocab: int, weights: Weights
) -> nn.Module:
    """A decoder of transformers with random weights, in evaluation; nobody attends in it yet.

    Args:
        workload: its model and sizes.
        length: tokens that it has positions for.
        device: where.
        seed: of the weights.
        vocab: of the tokens; at least the preset's.
        weights: the dtype of the model; ``int8`` keeps activations in bfloat16 on a GPU and in
            float32 on a CPU.

    Raises:
        UserError: no decoder that keeps a cache, or unknown weights.
    """
    preset = sized(workload)
    if preset.family not in DECODERS:
        raise UserError(
            f"model {workload.model} has no cache to generate with; families that have: "
            f"{', '.join(DECODERS)}"
        )
    half = "bfloat16" if device.type == "cuda" else "float32"
    dtypes = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "int8": half}
    if weights not in dtypes:
        raise unknown("weights", weights, dtypes)
    wanted = Wanted(
        objective="causal-lm", vocab=max(preset.vocab, vocab), classes=0, length=length,
        sentences=False, image=None, dropout=0.0, attention=register(),
    )  # fmt: skip
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        body = build_hugging(preset, wanted).body
    body.eval().requires_grad_(False).to(device)
    for parameter in body.parameters():  # buffers stay: RoPE's frequencies need float32
        parameter.data = parameter.data.to(getattr(torch, dtypes[weights]))
    if weights == "int8":
        to_int8(body)
    return body


def sharing(body: nn.Module) -> nn.Module:
    """Another body of the same weights, for another implementation: they are not copied."""
    shared = itertools.chain(body.parameters(), body.buffers())
    return copy.deepcopy(body, {id(x): x for x in shared})


def build_generator(
    workload: Workload,
    attention: Attention,
    prompt_BT: torch.Tensor,
    new: int,
    seed: int,
    *,
    vocab: int = 0,
    weights: Weights = "float32",
) -> Generator:
    """A decoder with random weights, generating.

    Args:
        workload: its model and sizes.
        attention: who attends.
        prompt_BT: int64 ids, on the device that is to generate.
        new: tokens to generate.
        seed: of the weights.
        vocab: of the task; at least the preset's.
        weights: the dtype of the model; see :func:`build_body`.

    Raises:
        UserError: no decoder that keeps a cache, or unknown weights.
        Unsupported: the implementation cannot do prefill, or a decode step.
    """
    device, length = prompt_BT.device, prompt_BT.shape[1] + new
    vocab = max(vocab, int(prompt_BT.max()) + 1)
    body = build_body(workload, length, device, seed, vocab, weights)
    builds = Builds(attention, device, direction="forward", seed=seed)
    return Generator(body, builds, prompt_BT, new)
