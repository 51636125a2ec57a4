"""Generated tasks: a solver that knows the rule finds the targets in the inputs.

Letters: B = batch, T = tokens of a sequence, S = symbols to be copied.
"""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from attnbench.train.data import make_task
from attnbench.train.data.drawing import COLOURS, SHAPES, Things, paint
from attnbench.train.data.listops import WORDS, evaluate, grow
from attnbench.train.data.pairs import WORDS as CAPTION_WORDS
from attnbench.train.data.vocabulary import CLS, MASK, PAD, SEP, SPECIAL, START
from attnbench.train.roles import IGNORED
from attnbench.train.workload import Workload


def batch_of(**fields):
    workload = Workload.of(**{"batch": 32, **fields})
    task = make_task(workload, seed=0)
    return task, task.batch(0)


# ---- copy and recall -------------------------------------------------------------------


def test_a_causal_copy_is_shown_after_the_separator_one_step_late():
    _, batch = batch_of(task="copy", seqlen=48)
    ids, targets = batch.inputs["input_ids"], batch.targets["tokens"]
    assert (ids[:, 24] == SEP).all()
    assert (targets[:, :24] == IGNORED).all()
    assert torch.equal(targets[:, 24:], ids[:, :24])
    assert torch.equal(ids[:, 25:], targets[:, 24:-1])


def test_a_masked_copy_shows_nothing_of_the_second_half():
    _, batch = batch_of(task="copy", objective="masked-lm", seqlen=16)
    ids, targets = batch.inputs["input_ids"], batch.targets["tokens"]
    assert (ids[:, 8:] == MASK).all()
    assert (targets[:, :8] == IGNORED).all()
    assert torch.equal(targets[:, 8:], ids[:, :8])


def test_a_copy_from_encoder_to_decoder_is_shown_one_step_late():
    _, batch = batch_of(task="copy", objective="seq2seq", seqlen=15)
    decoder, targets = batch.inputs["decoder_input_ids"], batch.targets["tokens"]
    assert torch.equal(targets, batch.inputs["input_ids"])
    assert (decoder[:, 0] == START).all()
    assert torch.equal(decoder[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm"])
def test_each_key_is_asked_for_once_and_its_value_is_the_answer(objective):
    task, batch = batch_of(task="mqar", objective=objective, seqlen=32)
    assert task.vocab_size == SPECIAL + 64
    for row, answers in zip(
        batch.inputs["input_ids"].tolist(), batch.targets["tokens"].tolist(), strict=True
    ):
        value_of = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(value_of) == len(set(value_of.values())) == 4
        asked = [(key, answer) for key, answer in zip(row, answers, strict=True) if answer >= 0]
        assert dict(asked) == value_of
        assert len(asked) == 4
        assert answers[:8] == [IGNORED] * 8
        assert max(value_of) < SPECIAL + 32 <= min(value_of.values())


def test_questions_come_sooner_more_often_but_everywhere():
    _, batch = batch_of(task="mqar", seqlen=32, batch=2048)
    by_slot = (batch.targets["tokens"] >= 0).float().mean(0)
    assert (by_slot[9::2] == 0).all()  # only at even distances, as in the paper
    assert (by_slot[8::2] > 0).all()
    assert by_slot[8] > 0.8 > 0.4 > by_slot[30]


# ---- ListOps ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM 9 8 7 ]", 4),
        ("[MED 1 8 ]", 4),  # of 4.5, rounded down
        ("[MED 5 1 9 ]", 5),
        ("[MIN [SM 5 5 ] [MAX 3 4 ] ]", 0),
        ("7", 7),
    ],
)
def test_expressions_have_the_value_of_the_paper(text, value):
    assert evaluate(text.split()) == value


def test_expressions_keep_to_length_and_depth_and_use_both():
    rng = random.Random(0)
    longest = deepest = 0
    for _ in range(300):
        words = grow(rng, length=40, depth=3)
        depth = opened = 0
        for word in words:
            opened += word.startswith("[")
            depth = max(depth, opened)
            opened -= word == "]"
        assert opened == 0
        assert len(words) <= 40
        longest, deepest = max(longest, len(words)), max(deepest, depth)
    assert deepest == 3
    assert longest > 34


def test_a_row_of_listops_holds_an_expression_and_its_value():
    _, batch = batch_of(task="listops", seqlen=48, batch=256)
    for row, label in zip(batch.inputs["input_ids"].tolist(), batch.targets["label"], strict=True):
        assert row[0] == CLS
        words = [WORDS[i - SPECIAL] for i in row[1:] if i != PAD]
        assert row[1 + len(words) :] == [PAD] * (47 - len(words))
        assert evaluate(words) == label
        inner = " ".join(words)  # every bracket closes: innermost ones can be taken away to a digit
        while inner.startswith("["):
            inner, times = re.subn(r"\[\w+(?: \d)+ \]", "0", inner)
            assert times
    assert len(set(batch.targets["label"].tolist())) == 10


# ---- pictures --------------------------------------------------------------------------

_PIXELS = {"circle": np.pi, "square": 4 * 0.85**2, "triangle": 2.0, "cross": 2.4 - 0.36}


def test_shapes_cover_the_area_that_they_should_and_differ():
    pixels = np.zeros((4, 3, 256, 256), dtype=np.float32)
    middle = np.full(4, 0.5)
    paint(pixels, Things(np.arange(4), np.arange(4), middle, middle, np.full(4, 0.25)))
    for number, shape in enumerate(SHAPES):
        covered = pixels[number].max(0).sum() / (0.25 * 256) ** 2
        assert covered == pytest.approx(_PIXELS[shape], rel=0.02)
        red, green, blue = pixels[number].max((1, 2))
        assert (red, green, blue) == ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))[number]


def test_a_pictures_label_is_its_shape_and_colour():
    task, batch = batch_of(task="images", seqlen=65, batch=256)
    assert (task.image.size, task.image.patch, task.image.channels) == (32, 4, 3)
    bright = batch.inputs["pixel_values"].flatten(2).sort(-1).values[:, :, -20:].mean(-1)
    colour = batch.targets["label"] % len(COLOURS)
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])[colour]
    assert torch.equal((bright > 0.6).long(), expected)
    assert len(set(batch.targets["label"].tolist())) == task.classes


def captions(batch) -> list[list[str]]:
    return [[CAPTION_WORDS[i - SPECIAL] for i in row[1:]] for row in batch.inputs["input_ids"]]


def told_colours(image: torch.Tensor, relation: str) -> list[str]:
    """Of the first and the second thing of a picture (3, S, S), by where they must be."""
    half = image.shape[-1] // 2
    one, other = {
        "above": (image[:, :half], image[:, half:]),
        "below": (image[:, half:], image[:, :half]),
        "left-of": (image[:, :, :half], image[:, :, half:]),
        "right-of": (image[:, :, half:], image[:, :, :half]),
    }[relation]
    bright = [part.flatten(1).sort(-1).values[:, -6:].mean(-1) > 0.6 for part in (one, other)]
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    return [names.get(tuple(b.long().tolist()), "none") for b in bright]


def test_a_caption_tells_its_picture_and_no_two_of_a_batch_are_the_same():
    _, batch = batch_of(task="pairs", objective="matching", loss="contrastive", seqlen=65)
    assert batch.targets == {}
    said = captions(batch)
    assert len({tuple(words) for words in said}) == len(said)
    for image, words in zip(batch.inputs["pixel_values"], said, strict=True):
        assert words[0] in ("small", "large")
        assert words[2] in SHAPES
        assert told_colours(image, words[3]) == [words[1], words[5]]


def test_mismatched_captions_are_labelled_so():
    _, batch = batch_of(task="pairs", objective="matching", seqlen=65, batch=128)
    label = batch.targets["label"]
    assert 0.3 < label.float().mean() < 0.7
    fits = [
        told_colours(image, words[3]) == [words[1], words[5]]
        for image, words in zip(batch.inputs["pixel_values"], captions(batch), strict=True)
    ]
    by_label = [
        [f for f, y in zip(fits, label.tolist(), strict=True) if y == side] for side in (0, 1)
    ]
    assert all(by_label[1])
    assert sum(by_label[0]) / len(by_label[0]) < 0.3  # colours alone rarely fit by chance
