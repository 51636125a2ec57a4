"""What a worker does with one generation: verify each contender's cache, then time them together.

The order is fixed: the model reads given tokens without a cache, in float64 and again with
other rounding, which bounds how far exact contenders may be from it; each contender is built
for every length, its attention is verified by itself, and its logits from the cache are held
against that. Then whole generations from another prompt are timed in interleaved rounds, and
the tokens that the last of them said are verified. A contender that fails drops out with its
status, the others go on.

Letters: B = batch, S = tokens read, T = tokens of the prompt, n = new tokens.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from attnbench import registry
from attnbench.attention import Attention
from attnbench.failure import Failed
from attnbench.measure import figures
from attnbench.measure.kernels import what_ran
from attnbench.measure.meters import trace
from attnbench.measure.sampling import Taken
from attnbench.problem import Problem
from attnbench.record import Memory, TensorAccuracy, worst
from attnbench.rounds import Rounds
from attnbench.train.generation import clock, counts
from attnbench.train.generation.clock import Stream, StreamClock, StreamTimer
from attnbench.train.generation.figures import Agreement, ServingMemory
from attnbench.train.generation.spec import Generation
from attnbench.train.generation.truth import Truth
from attnbench.train.models.bridge import Builds
from attnbench.train.models.generate import Generator, Weights, build_reader
from attnbench.train.models.interface import places
from attnbench.train.models.readers import Reader
from attnbench.train.proof import used_in, verify_attention
from attnbench.train.step import check_precision, products_of
from attnbench.turns import Send

VOCAB = 256  # of the tiny models, which have none of their own: bytes
_WEIGHTS: dict[str, Weights] = {
    "fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8",
}  # fmt: skip
_MOST_LENGTHS = 16  # of the cache, at which attention is verified by itself
_VARIANTS = 4  # graphs of one compiled model beside one for each length


@dataclass
class Speaker:
    """One implementation with options, on its way through the phases."""

    key: str
    told: dict[str, Any]  # as the task names it
    attention: Attention
    generator: Generator
    stream: Stream
    accuracy: dict[str, TensorAccuracy] = field(default_factory=dict)
    agreement: Agreement | None = None
    figures: dict[str, Any] = field(default_factory=dict)  # of the record's part: times
    samples: Any = None
    sampled_s: float = 0.0


class GenerateGroup(Rounds[Speaker]):
    """All contenders of one generation, in one worker process."""

    def __init__(self, task: dict[str, Any], send: Send) -> None:
        super().__init__(task, send)
        self.generation = Generation.from_json(task["problem"])
        self._reader: Reader | None = None  # nobody attends in it
        self._truth: Truth | None = None

    def run(self) -> None:
        """Verify and measure every contender; send a ``result`` for each."""
        self._reference_step()
        try:
            self._prepare()
        except Exception as error:
            return self._all_fail(error, "the model without a cache")
        for told in self._task["contenders"]:
            self._try(told["key"], self._build_and_verify, told)
        if self._ready:
            self._time()

    def _prepare(self) -> None:
        """The model, and the truth about it."""
        generation, device = self.generation, self.device
        check_precision(generation.workload, device)
        self._reader = build_reader(
            generation.workload, generation.prompt + generation.new, device, self.seed, VOCAB,
            _WEIGHTS[generation.precision],
        )  # fmt: skip
        self._truth = Truth(
            self._reader, self._tokens(self.seed), generation.new, self._computes_in,
            self._reference_step,
        )  # fmt: skip

    @property
    def _model(self) -> Reader:
        assert self._reader is not None, "it is built before anybody attends"
        return self._reader

    @property
    def _computes_in(self) -> str:
        """The precision of everything but the weights."""
        if self.generation.precision == "int8":
            return "bf16" if self.device.type == "cuda" else "fp32"
        return self.generation.precision

    def _tokens(self, seed: int) -> torch.Tensor:
        """Given tokens ``(B, S)`` int64: a prompt, and what follows it."""
        shape, vocab = (self.generation.batch, self.generation.read), self._model.vocab
        drawn_BS = torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))
        return drawn_BS.to(self.device)

    # ---- phases ----------------------------------------------------------------------

    def _build_and_verify(self, told: dict[str, Any]) -> None:
        key, generation = told["key"], self.generation
        self._step(key, "import")
        attention = registry.make(told)
        self._choices[key] = {}
        ids_BS = self._tokens(self.seed)
        builds = Builds(attention, self.device, direction="forward", seed=self.seed)
        generator = Generator(
            self._model.sharing(), builds, ids_BS[:, : generation.prompt].clone(), generation.new,
            compile=generation.compile, alive=lambda: self._step(key, "build"),
        )  # fmt: skip
        speaker = Speaker(key, told, attention, generator, Stream(generator, self.device))
        if self._process == 0:
            assert self._truth is not None
            self._step(key, "verify")
            problems = asked_of(generator)
            speaker.accuracy = verify_attention(
                registry.make(told), problems, self.device, self.seed, direction="forward"
            )
            speaker.agreement = self._truth.agreement(generator.forced(ids_BS), attention.kind)
            self._judge(speaker.agreement)
        self._ready[key] = speaker

    def _judge(self, agreement: Agreement) -> None:
        if agreement.ok is False:
            raise Failed("incorrect", in_words(agreement))
        if agreement.max_error is None:
            raise Failed("incorrect", f"a logit of new token {agreement.token} is not finite")

    def _time(self) -> None:
        """Interleaved rounds of whole generations, then what needs passes of its own."""
        ids_BS = self._tokens(self.seed + 1)
        for speaker in self._ready.values():
            speaker.generator.prompt_BT.copy_(ids_BS[:, : self.generation.prompt])
        own_clock = StreamClock(self.device)
        taken = self._sample_survivors(own_clock)
        self._try_all(self._check_again, taken, own_clock)
        taken.clear()
        self._try_all(self._inspect)

    def _call(self, contender: Speaker) -> Stream:
        return contender.stream

    def _check_again(self, key: str, taken: dict[str, Taken], own_clock: StreamClock) -> None:
        """The figures, if what was said while the clock ran is right."""
        speaker, own = self._ready[key], taken[key]
        self._step(key, "check again")
        if late := speaker.generator.builds.late:
            raise Failed("incorrect", f"it was built in the middle of the timed part: {late[0]}")
        self._check_said(speaker)  # in each process: its times count, too
        if speaker.attention.kind == "approximate":  # what it said was held against itself alone
            self._check_used(speaker)
        timer = own.timer
        assert isinstance(timer, StreamTimer)
        gaps = clock.between_s(timer)
        rounds = {
            "first": clock.first_s(timer),
            "rest": clock.rest_s(timer),
            "between": clock.thinned(gaps),
        }
        speaker.figures = {
            name: clock.samples_of(of, own_clock, self.budget).model_dump()
            for name, of in rounds.items()
        }
        speaker.figures["gaps"] = sum(map(len, gaps))
        speaker.samples = figures.headline(own, own_clock, self.budget)
        speaker.sampled_s = own.warmup_s + own.spent_s

    def _check_said(self, speaker: Speaker) -> None:
        """Hold the last timed tokens against the truth; an approximate method against itself."""
        truth, generator = self._truth, speaker.generator
        assert truth is not None
        said_Bn = torch.cat(speaker.stream.said, dim=1)
        ids_BS = torch.cat([generator.prompt_BT, said_Bn[:, :-1]], dim=1)
        is_exact = speaker.attention.kind == "exact"
        last_B1V = generator.logits_B1V
        truth_BnV = truth.without_cache(ids_BS) if is_exact else generator.forced(ids_BS)
        if (fault := truth.missed(truth_BnV, said_Bn, last_B1V)) is not None:
            raise Failed("incorrect", fault)

    def _check_used(self, speaker: Speaker) -> None:
        """Verify the attention once more, with the very objects that were called."""
        again = verify_attention(
            speaker.attention, asked_of(speaker.generator), self.device, self.seed + 1,
            direction="forward", used=used_in(speaker.generator.reader.body),
        )  # fmt: skip
        if self._process == 0:
            speaker.accuracy = worst([speaker.accuracy, again])

    def _inspect(self, key: str) -> None:
        speaker = self._ready[key]
        told = self._taken_apart(speaker) if self._process == 0 else {}
        told["generation"] = {**speaker.figures, **told.get("generation", {})}
        self._guard.check()
        self._send(
            "result",
            who=key,
            status="ok",
            choices=self._choices[key],
            samples=speaker.samples.model_dump(),
            host_samples=None,
            accuracy={name: a.model_dump() for name, a in speaker.accuracy.items()},
            wall_s=self._phase_s(key) + speaker.sampled_s,
            **told,
        )
        del self._ready[key]  # its cache is the next one's memory

    def _taken_apart(self, speaker: Speaker) -> dict[str, Any]:
        """Fields of the result that come from passes of their own."""
        key, generator, stream = speaker.key, speaker.generator, speaker.stream
        self._step(key, "memory")
        memory = self._memory(speaker)
        told: dict[str, Any] = {
            "memory": Memory(peak_bytes=memory.working_bytes, method=memory.method).model_dump(),
            "kernels": what_ran(stream, self.device),
        }
        told |= self._energy(key, stream)
        assert speaker.agreement is not None
        flops = counts.flops_of(self.generation, generator.reader, speaker.attention)
        told["generation"] = {
            "agreement": speaker.agreement.model_dump(),
            "memory": memory.model_dump(),
            "parameters": counts.parameters_of(self._model.body),
            "flops": flops.prefill + flops.decode,
            "prefill_flops": flops.prefill,
            "build_s": generator.build_s,
        }
        return told

    def _memory(self, speaker: Speaker) -> ServingMemory:
        (change,) = trace([speaker.stream], self.device)
        generator = speaker.generator
        return ServingMemory(
            weights_bytes=counts.bytes_of(generator.reader.body),
            cache_counted_bytes=counts.cache_bytes(self.generation, self._model.element_bytes),
            cache_bytes=generator.reader.cache_bytes,
            working_bytes=change.peak_bytes,
            method=(
                "torch.cuda.max_memory_allocated"
                if self.device.type == "cuda"
                else "torch profiler, sum of allocation events"
            ),
        )


def in_words(agreement: Agreement) -> str:
    """Why logits do not pass, in a line."""
    where = f"of new token {agreement.token} (sequence {agreement.sequence})"
    if agreement.error is None:
        return f"with a cache, a logit {where} is not finite"
    return (
        f"with a cache, a logit {where} is off by {agreement.error:.3g}, allowed "
        f"{agreement.allowed:.3g} (from {agreement.reruns} reruns of {agreement.reference} with "
        "other rounding)"
    )


def asked_of(generator: Generator) -> list[Problem]:
    """What each place asked for, growing lengths thinned: the same in every layer, once."""
    asked = places(generator.reader.body).values()
    return list(dict.fromkeys(p for place in asked for p in spread(place.problems, _MOST_LENGTHS)))


def spread(problems: Sequence[Problem], most: int) -> list[Problem]:
    """At most so many, evenly spaced, the first and the last among them."""
    if len(problems) <= most:
        return list(problems)
    step = (len(problems) - 1) / (most - 1)
    return [problems[round(i * step)] for i in range(most)]


def generate(task: dict[str, Any], send: Send) -> None:
    """Measure one generation's contenders and leave the process clean for the next."""
    gc.collect()
    generation = Generation.from_json(task["problem"])
    with products_of(generation.workload), _compiling(generation, len(task["contenders"])):
        GenerateGroup(task, send).run()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # compiled variants must not count towards the next one's limit


@contextlib.contextmanager
def _compiling(generation: Generation, contenders: int) -> Iterator[None]:
    """Room for every contender's graphs, one a length; one too many raises, and is never eager."""
    if not generation.compile:
        yield
        return
    import torch._dynamo.config

    limit = (generation.new + _VARIANTS) * contenders
    with torch._dynamo.config.patch(
        recompile_limit=limit, accumulated_recompile_limit=limit, fail_on_recompile_limit_hit=True,
        automatic_dynamic_shapes=False,
    ):  # fmt: skip
        yield
