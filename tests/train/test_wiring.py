"""Every key of a training suite reaches the step: the file is read, the group runs, it shows.

Broken: a key that is read, checked, kept in the record, and never looked at. Each case names
what must be another with the key than without it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny import run_group

from attnbench.suite import load_suite
from attnbench.train.figures import Training
from attnbench.train.workload import Workload

BASE = {
    "model": "own-tiny", "d_model": 16, "layers": 1, "task": "copy", "seqlen": 16, "batch": 4,
    "steps": 4, "warmup": 0, "schedule": "constant", "lr": 1e-2,
}  # fmt: skip
PAIRS = {"task": "pairs", "objective": "matching", "seqlen": 17}
ELSEWHERE = {"parallel", "processes"}  # several processes, which have tests of their own


class Case(NamedTuple):
    """A key with a value, what else is given on both sides, and what tells the sides apart."""

    key: str
    value: Any
    shows: Callable[[Training], Any]
    beside: dict[str, Any] = {}


def losses(t: Training) -> Any:
    return tuple(t.losses)


def last_loss(t: Training) -> Any:
    """Of the last step, where the first is the same: the update shows."""
    return t.losses[-1]


def numbers(t: Training) -> Any:
    return t.parameters.total


def learning(t: Training) -> Any:
    return t.parameters.trainable


def activations(t: Training) -> Any:
    return t.memory.activations_bytes


CASES = (
    Case("model", "gpt2-tiny", numbers),
    Case("layers", 2, numbers),
    Case("heads", 2, losses),
    Case("heads_kv", 1, numbers),
    Case("d_model", 32, numbers),
    Case("d_ff", 32, numbers),
    *(Case("position", p, losses) for p in ("none", "sinusoidal", "learned", "relative", "alibi")),
    Case("activation", "relu", losses),
    Case("activation", "silu", losses),
    Case("norm", "layernorm", losses),
    Case("task", "mqar", losses),
    Case("objective", "masked-lm", losses),
    Case("objective", "classification", losses, {"task": "text"}),
    Case("seqlen", 32, lambda t: t.tokens),
    Case("batch", 8, lambda t: t.tokens),
    Case("accumulation", 2, activations),
    Case("precision", "bf16", losses),
    Case("precision", "fp16", losses),
    Case("compile", True, lambda t: t.breakdown.attention_absent),
    Case("checkpointing", True, activations, {"layers": 2}),
    Case("loss", "contrastive", losses, PAIRS),
    Case("label_smoothing", 0.1, losses),
    Case("label_smoothing", 0.1, losses, {**PAIRS, "loss": "contrastive"}),
    Case("distillation", 0.5, losses),
    Case("token_noise", 0.3, losses),
    Case("dropout", 0.2, losses),
    Case("optimizer", "sgd", last_loss),
    Case("lr", 1e-3, last_loss),
    Case("weight_decay", 0.5, last_loss),
    Case("beta1", 0.5, last_loss),
    Case("beta2", 0.5, last_loss),
    Case("clip", 1e-3, last_loss, {"optimizer": "sgd"}),
    *(Case("schedule", s, last_loss) for s in ("cosine", "exponential", "step")),
    Case("warmup", 2, last_loss),
    Case("cooldown", 2, last_loss),
    *(Case("finetune", f, learning, {"layers": 2}) for f in ("last", "frozen", "lora")),
    Case("finetune", "frozen", learning, {"model": "gpt2-tiny"}),
    Case("finetune", "lora", learning, {"model": "llama-tiny"}),
    Case("lora_rank", 2, learning, {"finetune": "lora"}),
    Case("steps", 3, lambda t: t.learned_steps),
    Case("patience", 1, lambda t: t.stopped, {"lr": 1e-12, "steps": 10}),
    Case("target", 1000.0, lambda t: t.stopped, {"task": "text", "steps": 10}),
)


def test_every_key_of_a_workload_has_a_case() -> None:
    assert {case.key for case in CASES} | ELSEWHERE == {
        f.name for f in dataclasses.fields(Workload)
    }


def trained(folder: Path, fields: dict[str, Any]) -> Training:
    """What a suite with these keys leads to."""
    path = folder / "wired.toml"
    told = "\n".join(f"{key} = {json.dumps(value)}" for key, value in fields.items())
    path.write_text(f'title = "One"\nkind = "training"\n[grid]\n{told}\n')
    (workload,) = load_suite(path).problems
    assert isinstance(workload, Workload)
    (result,) = run_group(workload, "naive").values()
    assert result["status"] == "ok", result["reason"]
    return Training.model_validate(result["training"])


@pytest.fixture
def _learning_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rerun for the bound, and attention is taken to be right: both have their tests."""
    monkeypatch.setattr("attnbench.train.bound.RERUNS", 1)
    monkeypatch.setattr("attnbench.train.group.verify_attention", lambda *words, **more: {})


def name_of(case: Case) -> str:
    return "-".join([case.key, str(case.value), *map(str, case.beside.values())])


@pytest.mark.slow
@pytest.mark.usefixtures("_learning_alone")
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_key_of_the_file_shows_in_what_the_group_measured(case: Case, tmp_path: Path) -> None:
    without = {**BASE, **case.beside}
    before, after = (trained(tmp_path, one) for one in (without, {**without, case.key: case.value}))
    assert case.shows(before) != case.shows(after)
    if case.shows is last_loss:
        assert before.losses[0] == after.losses[0], "it shows in the update alone"


@pytest.mark.slow
@pytest.mark.usefixtures("_learning_alone")
def test_schedules_differ_from_one_another(tmp_path: Path) -> None:
    """Broken: every name but the usual one is taken for the same schedule."""
    ends = [
        trained(tmp_path, {**BASE, "schedule": s}).losses[-1]
        for s in ("constant", "cosine", "exponential", "step")
    ]
    assert len(set(ends)) == len(ends)


@pytest.mark.slow
@pytest.mark.usefixtures("_learning_alone")
def test_pictures_are_matched_with_texts_from_the_file_on(tmp_path: Path) -> None:
    found = trained(tmp_path, {**BASE, **PAIRS, "model": "pair-tiny", "d_model": 32})
    assert found.evaluations[-1].metrics["accuracy"] is not None
    assert found.parity.ok is True


@pytest.mark.slow
@pytest.mark.usefixtures("_learning_alone")
def test_translations_are_written_and_judged(tmp_path: Path) -> None:
    """Broken: BLEU and its kin are there, and nobody asks for them."""
    fields = {**BASE, "model": "t5-tiny", "d_model": 32, "task": "translation", "seqlen": 64}
    first, last = (trained(tmp_path, fields).evaluations[i].metrics for i in (0, -1))
    assert {"bleu", "chrf", "ter", "rouge_l"} <= last.keys() - first.keys()
