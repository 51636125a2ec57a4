"""Contenders of a workload: each gets its status and figures, whatever the others do."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import run_group, workload

from attnbench.train.figures import Training


def statuses(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {who: told["status"] for who, told in results.items()}


def test_right_attention_is_timed_and_wrong_attention_is_named() -> None:
    results = run_group(workload(), "fair", "leaks", "keyless", "window", "raises", "greedy")
    assert statuses(results) == {
        "fair": "ok", "leaks": "incorrect", "keyless": "incorrect", "window": "ok",
        "raises": "error", "greedy": "ok",
    }  # fmt: skip
    assert "its attention by itself" in results["leaks"]["reason"]
    assert "cannot go on" in results["raises"]["reason"]
    training = Training.model_validate(results["fair"]["training"])
    assert training.parity.ok is True
    assert training.tokens == 4 * 16
    assert len(training.losses) == 8
    assert training.evaluations[-1].step == 8
    assert training.breakdown.attention_share is not None
    assert training.flops.attention_own is None
    approximate = Training.model_validate(results["window"]["training"])
    assert approximate.parity.ok is None
    assert approximate.flops.attention_own is not None
    assert all(
        t > 0 for process in results["fair"]["samples"]["times_s"] for r in process for t in r
    )


def test_what_is_right_until_it_is_timed_is_incorrect() -> None:
    """Its curve is the reference's, and only its steps on the clock are cheap."""
    results = run_group(workload(), "tires", "fair")
    assert statuses(results) == {"tires": "incorrect", "fair": "ok"}
    assert "its attention by itself" in results["tires"]["reason"]
    later = run_group(workload(), "tires-at-once", process=1)
    assert statuses(later) == {"tires-at-once": "incorrect"}


def test_modules_that_are_right_until_they_are_timed_are_incorrect() -> None:
    """Each layer has one of its own with what it learns; built afresh, they would begin anew."""
    results = run_group(workload(), "module-tires", "second-module-tires", "fair")
    assert statuses(results) == {
        "module-tires": "incorrect", "second-module-tires": "incorrect", "fair": "ok",
    }  # fmt: skip
    assert "its attention by itself" in results["module-tires"]["reason"]


SILENT = (
    "silent-zeros", "silent-zeros-by-input", "silent-zeros-unclaimed", "silent-later", "learns-only"
)  # fmt: skip


def test_what_is_right_with_gradients_alone_is_incorrect() -> None:
    """Its curve is right, and what evaluations hear is nothing: the quality would be another's."""
    results = run_group(workload(steps=2), *SILENT, "own-backward")
    assert statuses(results) == {**dict.fromkeys(SILENT, "incorrect"), "own-backward": "ok"}
    for name in SILENT:
        assert "without gradients, as evaluations call it" in results[name]["reason"]


def test_an_implementation_that_ignores_dropout_is_incorrect() -> None:
    results = run_group(workload(dropout=0.5), "undropped", "naive", "fair")
    assert statuses(results) == {"undropped": "incorrect", "naive": "ok", "fair": "unsupported"}
    assert results["fair"]["reason"] == "does not do dropout"


def test_the_curve_catches_what_the_problem_alone_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.train.group.verify_attention", lambda *words, **more: {})
    results = run_group(workload(task="text", seqlen=32, steps=12), "off-scale", "fair")
    assert statuses(results) == {"off-scale": "incorrect", "fair": "ok"}
    assert "does not learn as the reference does: in step" in results["off-scale"]["reason"]


def test_what_nobody_can_do_here_is_unsupported_with_its_reason() -> None:
    results = run_group(workload(precision="tf32"), "fair", "naive")
    assert statuses(results) == {"fair": "unsupported", "naive": "unsupported"}
    assert "a CPU has none" in results["fair"]["reason"]
    results = run_group(workload(parallel="context", processes=2), "fair")
    assert results["fair"]["status"] == "unsupported"
    assert "no model is cut along its sequences yet" in results["fair"]["reason"]


def test_a_model_that_attention_cannot_serve_is_unsupported_before_any_training() -> None:
    told = run_group(workload(), "linformer", "fair")
    assert statuses(told) == {"linformer": "unsupported", "fair": "ok"}
    assert "mask causal" in told["linformer"]["reason"]


def test_attention_with_a_learned_bias_is_verified_and_learns() -> None:
    of = workload(model="t5-tiny", task="translation", seqlen=64, steps=4)
    told = run_group(of, "naive", "sdpa", "blockwise", "linear")
    assert statuses(told) == {
        "naive": "ok", "sdpa": "ok", "blockwise": "ok", "linear": "unsupported",
    }  # fmt: skip
    assert "learned bias" in told["linear"]["reason"]


def test_a_reference_that_fails_leaves_nobody_without_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*words: Any) -> None:
        raise ArithmeticError("no curve")

    monkeypatch.setattr("attnbench.train.truth.Truth.find", fail)
    results = run_group(workload(), "fair", "naive")
    assert statuses(results) == {"fair": "error", "naive": "error"}
    assert "the reference's training failed: " in results["fair"]["reason"]


@pytest.mark.slow
def test_the_largest_batch_is_each_ones_own_and_parity_is_found_at_the_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attnbench.train.sizes.MOST", 16)
    monkeypatch.setattr("attnbench.train.truth._MOST_BATCH", 4)
    results = run_group(workload(batch=0, steps=4), "greedy", "fair")
    assert statuses(results) == {"greedy": "ok", "fair": "ok"}
    batches = {who: told["training"]["batch"] for who, told in results.items()}
    assert batches == {"greedy": 8, "fair": 16}
    # What has learned is gone when the largest batch is timed: it is verified before.
    (told,) = run_group(workload(batch=0, steps=4), "silent-later").values()
    assert "without gradients, as evaluations call it" in told["reason"]
    assert {told["training"]["parity"]["batch"] for told in results.values()} == {4}
    assert results["fair"]["training"]["tokens"] == 16 * 16


def test_a_later_process_only_takes_samples() -> None:
    (told,) = run_group(workload(), "fair", process=1).values()
    assert told["status"] == "ok"
    assert "training" not in told
    assert told["accuracy"] == {}


@pytest.mark.slow
def test_compiled_training_is_held_against_the_compiled_reference() -> None:
    results = run_group(workload(compile=True, steps=4), "fair", "off-scale")
    assert statuses(results) == {"fair": "ok", "off-scale": "incorrect"}
    share = results["fair"]["training"]["breakdown"]
    assert share["attention_share"] is None
    assert "compiled as a whole" in share["attention_absent"]
