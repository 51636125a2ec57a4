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

Letters: B = batch, T = tokens of the prompt, S = tokens that are given, V = vocabulary,
n = new tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch

from attnbench.attention import Attention
from attnbench.errors import UserError, unknown
from attnbench.train.attentions import reference
from attnbench.train.models.bridge import Builds
from attnbench.train.models.hugging import Wanted, build_hugging
from attnbench.train.models.int8 import to_int8
from attnbench.train.models.interface import register
from attnbench.train.models.own import Own
from attnbench.train.models.presets import ENCODER_DECODERS, check_generates, sized
from attnbench.train.models.readers import READERS, Reader
from attnbench.train.workload import Workload

Weights = Literal["float32", "bfloat16", "float16", "int8"]


class Generator:
    """A model that goes on from a prompt, ready to be timed.

    Everything is built and called once when this returns.

    Args:
        reader: a model that nobody attends in yet.
        builds: of the implementation inside, direction ``forward``.
        prompt_BT: int64 ids on the model's device.
        new: tokens to generate, ≥ 1.
        compile: torch.compile the model; each length is a graph of its own.
        alive: called before each token of the first generation, which may take long.

    Attributes:
        build_s: seconds that the first generation took, builds and all.
        logits_B1V: of the token that was said last.

    Raises:
        Unsupported: the implementation cannot do prefill, or a decode step.
    """

    def __init__(
        self,
        reader: Reader,
        builds: Builds,
        prompt_BT: torch.Tensor,
        new: int,
        *,
        compile: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        if new < 1:
            raise UserError(f"new tokens must be at least 1, got {new}")
        self.reader = reader
        self.builds = builds
        self.prompt_BT = prompt_BT
        self.new = new
        reader.allocate(prompt_BT.shape[1], new, builds.attention.layout)
        start = time.perf_counter()
        with reader.attended(builds):
            self._first(alive)
        if compile:
            reader.compile()
            self._first(alive)
        self.build_s = time.perf_counter() - start
        builds.seal()

    @torch.inference_mode()
    def prefill(self) -> torch.Tensor:
        """Read the prompt into an empty cache; the first new token, ``(B, 1)`` int64."""
        self.reader.forget()
        return self._say(self.reader.prefill(self.prompt_BT))

    @torch.inference_mode()
    def decode(self) -> torch.Tensor:
        """One token more, after :meth:`prefill` and at most ``new − 1`` of these: ``(B, 1)``."""
        return self._say(self.reader.step(self._next_B1))

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
        self.reader.poison()
        logits = [self.reader.prefill(ids_BS[:, :prompt])]
        for place in range(prompt, prompt + self.new - 1):
            logits.append(self.reader.step(ids_BS[:, place : place + 1]))
        return torch.cat(logits, dim=1)

    def _first(self, alive: Callable[[], None]) -> None:
        """Every length once."""
        alive()
        self.prefill()
        for _ in range(self.new - 1):
            alive()
            self.decode()

    def _say(self, logits_B1V: torch.Tensor) -> torch.Tensor:
        self.logits_B1V, self._next_B1 = logits_B1V, logits_B1V.argmax(dim=-1)
        return self._next_B1


def build_reader(
    workload: Workload, length: int, device: torch.device, seed: int, vocab: int, weights: Weights
) -> Reader:
    """A model with random weights, in evaluation; nobody attends in it yet.

    Args:
        workload: its model and sizes.
        length: tokens that it has positions for.
        device: where.
        seed: of the weights.
        vocab: of the tokens; at least the preset's.
        weights: the dtype of the model; ``int8`` keeps activations in bfloat16 on a GPU and in
            float32 on a CPU.

    Raises:
        UserError: no model that keeps a cache, or unknown weights.
    """
    preset = sized(workload)
    check_generates(workload.model, preset.family)
    half = "bfloat16" if device.type == "cuda" else "float32"
    dtypes = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "int8": half}
    if weights not in dtypes:
        raise unknown("weights", weights, dtypes)
    wanted = Wanted(
        objective="seq2seq" if preset.family in ENCODER_DECODERS else "causal-lm",
        vocab=max(preset.vocab, vocab), classes=0, length=length,
        sentences=False, image=None, dropout=0.0, attention=register(),
    )  # fmt: skip
    body: torch.nn.Module
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        if preset.family == "own":
            body = Own(preset, wanted, Builds(reference(), device, direction="forward"))
        else:
            body = build_hugging(preset, wanted).body
    body.eval().requires_grad_(False).to(device)
    for parameter in body.parameters():  # buffers stay: RoPE's frequencies need float32
        parameter.data = parameter.data.to(getattr(torch, dtypes[weights]))
    if weights == "int8":
        to_int8(body)
    return READERS[preset.family](body)


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
    """A model with random weights, generating.

    Args:
        workload: its model and sizes.
        attention: who attends.
        prompt_BT: int64 ids, on the device that is to generate.
        new: tokens to generate.
        seed: of the weights.
        vocab: of the task; at least the preset's.
        weights: the dtype of the model; see :func:`build_reader`.

    Raises:
        UserError: no model that keeps a cache, or unknown weights.
        Unsupported: the implementation cannot do prefill, or a decode step.
    """
    device, length = prompt_BT.device, prompt_BT.shape[1] + new
    vocab = max(vocab, int(prompt_BT.max()) + 1)
    reader = build_reader(workload, length, device, seed, vocab, weights)
    builds = Builds(attention, device, direction="forward", seed=seed)
    return Generator(reader, builds, prompt_BT, new)
