"""Contenders of a generation: a cache that is misread is found, whatever the others do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from serving import generation, run_group

from attnbench.train.generation.figures import Generated
from attnbench.train.models.cache import Filled


def statuses(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {who: told["status"] for who, told in results.items()}


WRONG = ("forgetful", "blind", "ahead", "padded", "long-blind")


def test_right_attention_is_timed_and_who_misreads_the_cache_is_named() -> None:
    results = run_group(generation(), "fair", *WRONG, "prefill-only", "window", "linear")
    assert statuses(results) == {
        "fair": "ok", **dict.fromkeys(WRONG, "incorrect"), "prefill-only": "unsupported",
        "window": "ok", "linear": "unsupported",
    }  # fmt: skip
    assert results["prefill-only"]["reason"] == "reads prompts; who decodes needs another kernel"
    assert results["linear"]["reason"] == "does not do a decode step on a KV cache"
    assert "its attention by itself" in results["blind"]["reason"]
    fair = Generated.model_validate(results["fair"]["generation"])
    assert fair.agreement.ok is True
    assert fair.agreement.ratio is not None
    assert 0 < fair.agreement.ratio < 1
    assert fair.agreement.places == 2 * 4
    approximate = Generated.model_validate(results["window"]["generation"])
    assert approximate.agreement.ok is None


@pytest.mark.parametrize("model", ["llama-tiny", pytest.param("gpt2-tiny", marks=pytest.mark.slow)])
def test_logits_from_the_cache_find_what_each_attention_alone_would_hide(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: a fault of the whole that no single call shows."""
    monkeypatch.setattr("attnbench.train.generation.group.verify_attention", lambda *w, **k: {})
    results = run_group(generation(model=model), *WRONG, "fair")
    assert statuses(results) == {**dict.fromkeys(WRONG, "incorrect"), "fair": "ok"}
    assert "with a cache, a logit of new token" in results["blind"]["reason"]
    assert "is not finite" in results["padded"]["reason"]  # the room beyond the tokens holds NaN


@pytest.mark.parametrize("model", ["gpt2-tiny", pytest.param("llama-tiny", marks=pytest.mark.slow)])
def test_a_position_too_early_is_found(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a step that thinks it stands where the token before it stood."""
    monkeypatch.setattr(Filled, "get_seq_length", lambda self: max(0, self.count - 1))
    (told,) = run_group(generation(model=model), "fair").values()
    assert told["status"] == "incorrect"
    assert "with a cache, a logit of new token 1" in told["reason"]


def test_who_repeats_itself_while_the_clock_runs_is_found() -> None:
    results = run_group(generation(), "stale", "fair")
    assert statuses(results) == {"stale": "incorrect", "fair": "ok"}
    assert "in the timed calls" in results["stale"]["reason"]
    unclaimed = run_group(generation(), "stale-unclaimed")["stale-unclaimed"]
    assert unclaimed["status"] == "incorrect"  # with a cache and without, it says the same zeros
    assert "its attention by itself" in unclaimed["reason"]
    later = run_group(generation(), "stale", "fair", process=1)
    assert statuses(later) == {"stale": "incorrect", "fair": "ok"}


def test_stamps_bytes_and_flops_are_those_of_the_generation() -> None:
    of = generation(model="gpt2-tiny", new=5)
    (told,) = run_group(of, "fair").values()
    found = Generated.model_validate(told["generation"])
    (rounds,) = told["samples"]["times_s"]
    taken = (rounds, found.first.times_s[0], found.rest.times_s[0])
    for whole, first, rest in zip(*map(itertools.chain.from_iterable, taken), strict=True):
        assert first + rest <= whole
    (gaps,) = found.between.times_s
    assert [len(r) for r in gaps] == [4 * len(r) for r in rounds]
    assert found.gaps == sum(map(len, gaps))
    for gap, rest in zip(gaps, found.rest.times_s[0], strict=True):
        assert sum(gap) == pytest.approx(sum(rest))
    tokens, width, layers = 2 * (8 + 4), 32, 2
    assert found.memory.cache_counted_bytes == 2 * layers * tokens * width * 4
    assert found.memory.cache_bytes == found.memory.cache_counted_bytes
    inside = layers * (4 * width * width + 2 * width * 4 * width)
    dense = 2 * (inside * tokens + 256 * width * 2 * 5)
    pairs = 2 * (8 * 9 // 2 + 9 + 10 + 11 + 12)  # of all heads of a layer
    assert found.flops == dense + layers * 4 * pairs * width
    assert found.memory.peak_bytes > found.memory.weights_bytes + found.memory.cache_bytes


def test_a_later_process_only_takes_samples() -> None:
    (told,) = run_group(generation(), "fair", process=1).values()
    assert told["status"] == "ok"
    assert set(told["generation"]) == {"first", "rest", "between", "gaps"}
    assert told["accuracy"] == {}


@pytest.mark.parametrize("precision", ["int8", pytest.param("bf16", marks=pytest.mark.slow)])
def test_low_precision_is_held_against_its_own_weights(precision: str) -> None:
    results = run_group(generation(precision=precision), "fair", "forgetful", "naive")
    assert statuses(results) == {"fair": "ok", "forgetful": "incorrect", "naive": "ok"}
    whole = Generated.model_validate(
        run_group(generation(), "fair")["fair"]["generation"]
    ).memory.weights_bytes
    small = Generated.model_validate(results["fair"]["generation"]).memory.weights_bytes
    assert small < 0.75 * whole


def test_what_nobody_can_do_here_is_unsupported_with_its_reason() -> None:
    results = run_group(generation(precision="tf32"), "fair", "naive")
    assert statuses(results) == {"fair": "unsupported", "naive": "unsupported"}
    assert "a CPU has none" in results["fair"]["reason"]


def test_a_model_without_truth_leaves_nobody_without_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*words: Any) -> None:
        raise ArithmeticError("no truth")

    monkeypatch.setattr("attnbench.train.generation.truth.Truth.without_cache", fail)
    results = run_group(generation(), "fair", "naive")
    assert statuses(results) == {"fair": "error", "naive": "error"}
    assert "the model without a cache failed: " in results["fair"]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_exact_attention_stays_within_the_bound_from_any_seed(model: str, precision: str) -> None:
    """The bound is no guess, and not too wide either: it is reached to a hundredth at least."""
    ratios = []
    for seed in range(8):
        of = generation(model=model, precision=precision, new=6)
        results = run_group(of, "fair", "sdpa", "sdpa-math", "blockwise", "gathered", seed=seed)
        for told in results.values():
            assert told["status"] == "ok", told["reason"]
            ratios.append(told["generation"]["agreement"]["ratio"])
    assert 0.01 < max(ratios) < 1


@pytest.mark.slow
def test_a_compiled_model_is_built_for_each_length_and_says_the_same() -> None:
    results = run_group(generation(compile=True, new=2), "fair", "forgetful")
    assert statuses(results) == {"fair": "ok", "forgetful": "incorrect"}


def test_shared_weights_are_held_once() -> None:
    from attnbench.train.models.generate import build_reader

    for model in ("llama-tiny", "t5-tiny", "own-tiny"):
        of = generation(model=model)
        reader = build_reader(of.workload, 12, torch.device("cpu"), 0, 50, "float32")
        held = (r.body.parameters() for r in (reader, reader.sharing()))
        assert all(one is other for one, other in zip(*held, strict=True))
