"""Encoder-decoders and our own model on a cache: the truth, each trap, FLOPs and bytes.

Letters: B = batch, S = tokens that are given.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from serving import generation, run_group
from torch.utils.flop_counter import FlopCounterMode

from attnbench import Problem, implementation
from attnbench.layer.positions import RelativeBias
from attnbench.train.generation import counts
from attnbench.train.generation.figures import Generated
from attnbench.train.generation.spec import Generation
from attnbench.train.models.bridge import Builds
from attnbench.train.models.cache import Filled
from attnbench.train.models.generate import Generator, build_reader
from attnbench.train.models.interface import places
from attnbench.train.models.presets import DECODERS, ENCODER_DECODERS
from attnbench.train.models.readers import READERS, EncoderDecoder

CPU = torch.device("cpu")
POSITIONS = ("none", "sinusoidal", "learned", "relative", "rope", "alibi")
OWN = [{"model": "own-tiny", "position": position} for position in POSITIONS]
CROSSED = [{"model": "t5-tiny"}, {"model": "bart-tiny"}]


def named(of: dict[str, Any]) -> str:
    return "-".join(map(str, of.values()))


def slow(*several: dict[str, Any]) -> list[Any]:
    return [pytest.param(of, marks=pytest.mark.slow) for of in several]


def generator(of: Generation, name: str = "naive") -> Generator:
    reader = build_reader(of.workload, of.prompt + of.new, CPU, 0, 50, "float32")
    torch.manual_seed(3)
    for parameter_name, p in reader.body.named_parameters():
        if p.dim() > 1 and "embed" not in parameter_name:
            p.data.normal_(std=0.3)  # tokens differ from one another, so that equal ones say much
    prompt = torch.randint(50, (of.batch, of.prompt), generator=torch.Generator().manual_seed(0))
    builds = Builds(implementation(name), CPU, direction="forward")
    return Generator(reader, builds, prompt, of.new)


@torch.no_grad()
def plain(made: Generator) -> torch.Tensor:
    """Greedy decoding in float64 without a cache, all tokens read again for each."""
    exact, ids_BS = made.reader.exact(), made.prompt_BT
    for said in range(made.new):
        chosen = exact.whole(ids_BS, said + 1)[:, -1:].argmax(-1)
        ids_BS = torch.cat([ids_BS, chosen], dim=1)
    return ids_BS[:, -made.new :]


# ---- the truth ---------------------------------------------------------------------------


@pytest.mark.parametrize("of", [*CROSSED, *OWN], ids=named)
def test_logits_and_tokens_from_the_cache_are_those_without_one(of: dict[str, Any]) -> None:
    made = generator(generation(new=8, **of))
    drawn = torch.Generator().manual_seed(1)
    ids_BS = torch.cat([made.prompt_BT, torch.randint(50, (2, 7), generator=drawn)], dim=1)
    with torch.no_grad():
        truth_BnV = made.reader.exact().whole(ids_BS, 8)
    off = float((made.forced(ids_BS) - truth_BnV).norm() / truth_BnV.norm())
    assert off < 2e-6, off
    assert float(truth_BnV.diff(dim=1).norm() / truth_BnV.norm()) > 0.1  # each place says another
    assert torch.equal(made.run(), plain(made))
    assert torch.equal(made.run(), plain(made))  # the second prefill begins anew
    assert made.builds.late == []


@pytest.mark.parametrize("of", [*slow(CROSSED[1], OWN[3]), CROSSED[0], OWN[5]], ids=named)
def test_who_has_what_the_model_asks_for_is_timed_and_others_refuse(of: dict[str, Any]) -> None:
    results = run_group(generation(new=2, **of), "naive", "sdpa", "linear")
    assert {who: told["status"] for who, told in results.items()} == {
        "naive": "ok", "sdpa": "ok", "linear": "unsupported",
    }  # fmt: skip
    words = {"t5-tiny": "learned bias", "bart-tiny": "decode step"}
    by_position = {"relative": "learned bias", "alibi": "ALiBi"}
    told = words.get(of["model"]) or by_position[of["position"]]
    assert told in results["linear"]["reason"]


def test_every_family_that_can_generate_has_a_reader() -> None:
    assert set(READERS) == {*DECODERS, *ENCODER_DECODERS}


# ---- traps -------------------------------------------------------------------------------


def reason(of: dict[str, Any]) -> str:
    (told,) = run_group(generation(**of), "naive").values()
    assert told["status"] == "incorrect", told["reason"]
    return str(told["reason"])


@pytest.mark.parametrize("of", [*slow(CROSSED[0], OWN[1], OWN[2]), CROSSED[1], OWN[4]], ids=named)
def test_a_position_too_early_is_found(of: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a step that thinks it stands where the token before it stood."""
    monkeypatch.setattr(Filled, "get_seq_length", lambda self: max(0, self.count - 1))
    assert "with a cache, a logit of new token" in reason(of)


def test_a_steps_bias_that_is_the_first_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a step takes its position bias from row 0, as if nothing were in the cache."""
    from transformers.models.t5.modeling_t5 import T5Attention

    whole = T5Attention.compute_bias

    def from_row_0(self: Any, queries: int, keys: int, **told: Any) -> torch.Tensor:
        return whole(self, queries, keys, device=told["device"])

    monkeypatch.setattr(T5Attention, "compute_bias", from_row_0)
    assert "with a cache, a logit of new token" in reason(CROSSED[0])
    find = RelativeBias.find
    monkeypatch.setattr(RelativeBias, "find", lambda self, q, k: find(self, q - q[0], k))
    assert "with a cache, a logit of new token" in reason(OWN[3])


@pytest.mark.parametrize("of", [*slow(CROSSED[0]), CROSSED[1]], ids=named)
def test_keys_of_an_earlier_prompt_are_found(
    of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: what the encoder said is kept for good, and the next prompt is answered by it."""

    def forget(self: EncoderDecoder) -> None:
        self._cache.self_attention_cache.reset()

    def poison(self: EncoderDecoder) -> None:  # or NaN would show it at once
        self.forget()

    monkeypatch.setattr(EncoderDecoder, "forget", forget)
    monkeypatch.setattr(EncoderDecoder, "poison", poison)
    assert "in the timed calls" in reason(of)


# ---- FLOPs and bytes ---------------------------------------------------------------------


def counted(made: Generator) -> counts.Flops:
    """What torch counts of a generation."""
    with FlopCounterMode(display=False) as prefill:
        made.prefill()
    with FlopCounterMode(display=False) as decode:
        for _ in range(made.new - 1):
            made.decode()
    return counts.Flops(prefill.get_total_flops(), decode.get_total_flops())


def hidden(problem: Problem) -> int:
    """FLOPs of the pairs that a mask hides, which the textbook computes."""
    return problem.replace(mask="full").flops() - problem.flops()


@pytest.mark.parametrize(
    "of",
    [*CROSSED, {"model": "bart-tiny", "prompt": 1}, OWN[3], OWN[4],
     {"model": "llama-tiny"}, {"model": "gpt2-tiny", "prompt": 1}],
    ids=named,
)  # fmt: skip
def test_flops_of_prefill_and_decode_are_what_torch_counts(of: dict[str, Any]) -> None:
    asked = generation(new=5, **of)
    made = generator(asked)
    found = counts.flops_of(asked, made.reader, implementation("naive"))
    more = sum(hidden(p) for place in places(made.reader.body).values() for p in place.problems)
    assert counts.Flops(found.prefill + more, found.decode) == counted(made)


@pytest.mark.parametrize("of", CROSSED, ids=named)
def test_an_encoders_keys_that_are_projected_in_each_step_would_show_in_the_flops(
    of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: cross-attention without a cache of its own, right and slow."""
    step = EncoderDecoder.step

    def anew(self: EncoderDecoder, ids_B1: torch.Tensor) -> torch.Tensor:
        self._cache.cross_attention_cache.reset()
        self._cache.is_updated = dict.fromkeys(self._cache.is_updated, False)
        return step(self, ids_B1)

    asked = generation(new=5, **of)
    made = generator(asked)
    once, tokens = counted(made).decode, made.run()
    monkeypatch.setattr(EncoderDecoder, "step", anew)
    assert torch.equal(made.run(), tokens)
    projected = 2 * 2 * asked.batch * asked.prompt * 32 * 32 * 2  # of two matrices and layers
    assert counted(made).decode == once + 4 * projected


@pytest.mark.parametrize("of", [*CROSSED, OWN[4]], ids=named)
def test_bytes_of_the_cache_are_those_of_every_token_that_is_kept(of: dict[str, Any]) -> None:
    asked = generation(new=5, **of)
    tokens = 8 + 5 if of in CROSSED else 8 + 4  # a decoder with an encoder reads a start, too
    expected = 2 * 2 * 2 * tokens * 32 * 4  # keys and values, layers, sequences
    assert counts.cache_bytes(asked, 4) == expected == generator(asked).reader.cache_bytes


# ---- precision and compiling -------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "precision"),
    [(CROSSED[0], "int8"),
     *(pytest.param(of, precision, marks=pytest.mark.slow)
       for of in [*CROSSED, OWN[4]] for precision in ("int8", "bf16", "fp16"))],
)  # fmt: skip
def test_low_precision_is_held_against_its_own_weights(of: dict[str, Any], precision: str) -> None:
    (told,) = run_group(generation(precision=precision, new=3, **of), "naive").values()
    assert told["status"] == "ok", told["reason"]
    found = Generated.model_validate(told["generation"])
    assert found.prefill_flops is not None
    assert 0 < found.prefill_flops < found.flops


@pytest.mark.slow
@pytest.mark.parametrize("of", [*CROSSED, OWN[3]], ids=named)
def test_compiled_models_say_the_same(of: dict[str, Any]) -> None:
    (told,) = run_group(generation(compile=True, new=2, **of), "naive").values()
    assert told["status"] == "ok", told["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("of", [*CROSSED, OWN[3], OWN[4]], ids=named)
def test_exact_attention_stays_within_the_bound_from_any_seed(
    of: dict[str, Any], precision: str
) -> None:
    """The bound is no guess, and not too wide either: it is reached to a hundredth at least."""
    ratios = []
    for seed in range(4):
        asked = generation(precision=precision, new=6, **of)
        results = run_group(asked, "sdpa", "sdpa-math", "blockwise", "gathered", seed=seed)
        for told in results.values():
            assert told["status"] == "ok", told["reason"]
            ratios.append(told["generation"]["agreement"]["ratio"])
    assert 0.01 < max(ratios) < 1
