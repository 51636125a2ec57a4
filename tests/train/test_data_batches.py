"""What holds for every task: repeatable batches, separate splits, noise, clear refusals.

Letters: B = batch, T = tokens of a sequence.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from attnbench.errors import UserError
from attnbench.train.data import TASKS, make_task, metrics, objectives_of, reported
from attnbench.train.data.vocabulary import SPECIAL
from attnbench.train.roles import IGNORED, Batch
from attnbench.train.workload import Workload

EVERY = [(task, objective) for task in TASKS for objective in objectives_of(task)]
SEQLEN = {"images": 17, "pairs": 17, "translation": 64}
ROWS = 8


def workload(task: str, objective: str = "", **fields) -> Workload:
    fields = {"seqlen": SEQLEN.get(task, 32), "batch": ROWS, **fields}
    if task == "pairs":
        fields = {"loss": "contrastive", **fields}
        objective = "matching"
    return Workload.of(task=task, objective=objective, **fields)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.inputs, other.inputs), (one.targets, other.targets)]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


@pytest.mark.parametrize(("name", "objective"), EVERY)
def test_a_batch_depends_on_seed_split_and_step_alone(name, objective):
    w = workload(name, objective)
    task, again = make_task(w, seed=3), make_task(w, seed=3)
    task.batch(0), task.batch(1, "validation")  # what was asked before does not matter
    assert same(task.batch(5), again.batch(5))
    assert same(task.batch(5, "validation"), again.batch(5, "validation"))
    assert not same(task.batch(5), task.batch(6))
    assert not same(task.batch(5), task.batch(5, "validation"))
    assert not same(task.batch(5), make_task(w, seed=4).batch(5))


@pytest.mark.parametrize(("name", "objective"), EVERY)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_batch_is_what_its_role_says(name, objective, split):
    task = make_task(workload(name, objective, token_noise=0.0), seed=0)
    batch = task.batch(2, split)
    seqlen = SEQLEN.get(name, 32)
    assert task.objective == objective
    positions = 0
    for given, ids in batch.inputs.items():
        if given == "pixel_values":
            assert ids.dtype == torch.float32
            assert ids.shape == (ROWS, task.image.channels, task.image.size, task.image.size)
            assert task.image.positions == seqlen
            positions += ROWS * seqlen
        else:
            assert ids.dtype == torch.int64
            assert ids.min() >= 0
            kinds = 2 if given == "token_type_ids" else task.vocab_size
            assert ids.max() < kinds
            assert ids.shape == (ROWS, 8 if name == "pairs" else seqlen)
            positions += 0 if given == "token_type_ids" else ids.numel()
    assert batch.tokens == positions
    for given, target in batch.targets.items():
        assert target.dtype == torch.int64
        if given == "tokens":
            assert target.shape == (ROWS, seqlen)
            assert ((target != IGNORED).sum(1) >= 1).all()
            assert target[target != IGNORED].min() >= 0
            assert target.max() < task.vocab_size
        else:
            assert target.shape == (ROWS,)
            assert target.min() >= 0
            assert target.max() < task.classes


@pytest.mark.parametrize(("name", "objective"), [*EVERY, ("pairs", "cross-entropy")])
def test_the_metrics_that_are_promised_are_those_that_are_reported(name, objective):
    """They are refused before anything is measured, by what is promised alone."""
    fields = {"loss": "cross-entropy"} if objective == "cross-entropy" else {}
    of = workload(name, objective, **fields)
    task = make_task(of, seed=0)
    batch = task.batch(0, "validation")
    outputs = {"left": torch.randn(ROWS, 4), "right": torch.randn(ROWS, 4)}
    for given, target in batch.targets.items():
        last = task.vocab_size if given == "tokens" else task.classes
        outputs[given] = torch.zeros(*target.shape, last)
    assert set(metrics.figures(task.score(outputs, batch))) == set(reported(of))


@pytest.mark.parametrize(
    "name", ["copy:vocab=2", "mqar:vocab=4,pairs=1", "listops:depth=1", "images", "pairs"]
)
def test_no_generated_sequence_is_in_both_splits(name):
    """These have few different sequences: without care, both splits would meet many of them."""
    seqlen = {"copy": 16, "mqar": 6, "listops": 8}.get(name.partition(":")[0], 17)
    plain = name.partition(":")[0]
    task = make_task(workload(plain, seqlen=seqlen, batch=64).replace(task=name), seed=0)
    seen = {"train": set(), "validation": set()}
    for split, rows in seen.items():
        for step in range(8):
            batch = task.batch(step, split)
            name = "pixel_values" if plain == "images" else "input_ids"
            rows |= {tuple(row.flatten().tolist()) for row in batch.inputs[name]}
    assert seen["train"]
    assert seen["validation"]
    assert not seen["train"] & seen["validation"]


@pytest.mark.parametrize(
    ("name", "objective"), [e for e in EVERY if e[0] != "images"]
)  # fmt: skip
def test_token_noise_replaces_its_share_of_ordinary_training_inputs(name, objective):
    share = 0.3
    clean = make_task(workload(name, objective, batch=64), seed=0)
    noisy = make_task(workload(name, objective, batch=64, token_noise=share), seed=0)
    assert same(clean.batch(1, "validation"), noisy.batch(1, "validation"))
    before, after = clean.batch(1), noisy.batch(1)
    for given, target in before.targets.items():
        assert torch.equal(target, after.targets[given])
    for given, ids in before.inputs.items():
        if not given.endswith("input_ids"):
            assert torch.equal(ids, after.inputs[given])
            continue
        ordinary = ids >= SPECIAL
        changed = after.inputs[given] != ids
        assert not changed[~ordinary].any()
        # One random token in vocab_size − SPECIAL is the old one.
        expected = share * (1 - 1 / (clean.vocab_size - SPECIAL))
        spread = (share * (1 - share) / int(ordinary.sum())) ** 0.5
        assert abs(changed[ordinary].float().mean().item() - expected) < 5 * spread


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "txt"}, "unknown task 'txt'.*did you mean 'text'"),
        ({"task": "copy:voca=3"}, "unknown option of task copy 'voca'; allowed: vocab"),
        ({"task": "copy:vocab=0"}, "vocab of task copy must be a positive integer, got 0"),
        ({"task": "copy:vocab=x"}, "vocab of task copy must be a positive integer, got 'x'"),
        ({"task": "text:vocab=9"}, "unknown option of task text 'vocab'; allowed: none"),
        ({"task": "listops", "objective": "seq2seq"},
         "task 'listops' is for objective classification, got 'seq2seq'"),
        ({"task": "copy", "seqlen": 33}, "even seqlen"),
        ({"task": "copy", "seqlen": 4}, "task copy needs seqlen ≥ 8, got 4"),
        ({"task": "copy:vocab=1"}, "vocab of task copy must be ≥ 2"),
        ({"task": "mqar", "seqlen": 15}, "mqar with 4 pairs needs seqlen ≥ 16, got 15"),
        ({"task": "mqar:vocab=6"}, "vocab of task mqar must be ≥ 8 for 4 pairs, got 6"),
        ({"task": "listops", "seqlen": 4}, "task listops needs seqlen ≥ 8, got 4"),
        ({"task": "translation", "seqlen": 32}, "pairs of verses that fit into seqlen 32"),
        ({"task": "text", "seqlen": 10**6}, "task text has passages of at most"),
        ({"task": "text", "objective": "masked-lm", "seqlen": 3}, "needs seqlen ≥ 7, got 3"),
        ({"task": "images", "seqlen": 64}, "a square number of patches"),
        ({"task": "images", "seqlen": 17, "token_noise": 0.1}, "images has no tokens"),
        ({"task": "pairs", "seqlen": 17, "batch": 9999, "objective": "matching"},
         "batch of 2 to"),
    ],
)  # fmt: skip
def test_what_a_task_cannot_be_is_told_in_one_line(fields, says):
    with pytest.raises(UserError, match=says) as told:
        make_task(Workload.of(**fields), seed=0)
    assert "\n" not in str(told.value)


def test_a_task_with_a_handful_of_sequences_is_refused_rather_than_searched_for_ever():
    w = Workload(task="mqar:vocab=2,pairs=1", seqlen=4, batch=2)
    task = make_task(w, seed=0)
    with pytest.raises(UserError, match="too few different sequences"):
        list(map(task.batch, (0, 0), ("train", "validation")))  # one of the two has none


def test_an_open_batch_has_to_be_decided_first():
    task = make_task(Workload(task="copy", batch=0), seed=0)
    with pytest.raises(ValueError, match="decide it first"):
        task.batch(0)


def test_names_and_objectives_cost_no_torch():
    code = (
        "import sys, attnbench.train.data as d; d.objectives_of('copy');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
