"""Metrics against values worked out by hand, and that batches add up to one.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, K = classes.
"""

from __future__ import annotations

import math

import pytest
import torch

from attnbench.train.data import make_task
from attnbench.train.data.metrics import add, figures, label_totals, token_totals
from attnbench.train.data.written import translation_figures
from attnbench.train.roles import IGNORED, Batch
from attnbench.train.workload import Workload


def sure_of(classes: list[int], count: int) -> torch.Tensor:
    return 5 * torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def test_token_figures_are_those_of_the_targets_that_are_not_ignored():
    logits_BTV = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]))
    targets_BT = torch.tensor([[0, 2, IGNORED]])
    told = figures(token_totals(logits_BTV, targets_BT))
    mean = -(math.log(0.5) + math.log(0.1)) / 2
    assert told == pytest.approx(
        {"cross_entropy": mean, "token_accuracy": 0.5, "perplexity": math.exp(mean)}
    )


def test_text_is_told_in_bits_a_character():
    task = make_task(Workload(task="text", seqlen=8, batch=2), 0)
    batch = task.batch(0)
    even_BTV = torch.zeros(2, 8, task.vocab_size)
    told = figures(task.score({"tokens": even_BTV}, batch))
    assert told["bits_per_character"] == pytest.approx(math.log2(task.vocab_size))
    assert told["perplexity"] == pytest.approx(task.vocab_size, rel=1e-5)
    assert task.metric in told
    assert not task.maximize


def test_macro_f1_is_the_mean_over_classes_that_occur():
    # Class 0: TP 2, FP 1, FN 0; class 1: TP 1, FP 0, FN 1; class 2: TP 0, FP 1, FN 1;
    # class 3 neither occurs nor is guessed.
    label_B, guess = torch.tensor([0, 0, 1, 1, 2]), [0, 0, 1, 2, 0]
    told = figures(label_totals(sure_of(guess, 4), label_B))
    assert told == pytest.approx({"accuracy": 3 / 5, "f1_macro": (4 / 5 + 2 / 3 + 0) / 3})


def test_figures_of_two_batches_are_those_of_both_in_one():
    generator = torch.Generator().manual_seed(0)
    logits_BK = torch.randn(40, 5, generator=generator)
    label_B = torch.randint(0, 5, (40,), generator=generator)
    parts = [label_totals(logits_BK[a:b], label_B[a:b]) for a, b in ((0, 3), (3, 40))]
    assert figures(add(parts)) == pytest.approx(figures(label_totals(logits_BK, label_B)))
    averaged = sum(figures(part)["f1_macro"] for part in parts) / 2
    assert abs(averaged - figures(add(parts))["f1_macro"]) > 0.01  # what adding is there for


def test_what_has_no_weight_has_no_figure():
    none = token_totals(torch.zeros(1, 2, 3), torch.full((1, 2), IGNORED))
    assert figures(none) == {}


def test_a_perplexity_that_no_number_holds_is_infinite_and_ends_nothing():
    """A model that has diverged is told as such; exp() would raise."""
    assert figures({"cross_entropy": (2000.0, 2.0)})["perplexity"] == math.inf
    assert figures({"cross_entropy": (1400.0, 2.0)})["perplexity"] == math.exp(700.0)


def test_matching_is_scored_both_ways():
    w = Workload(task="pairs", objective="matching", loss="contrastive", seqlen=17, batch=4)
    task = make_task(w, 0)
    left_BC = torch.eye(4)
    right_BC = left_BC[[0, 1, 3, 2]]
    told = figures(task.score({"left": left_BC, "right": right_BC}, task.batch(0)))
    assert told == {"accuracy": 0.5}
    one_way = torch.stack([left_BC[0], left_BC[0] + left_BC[1], left_BC[2], left_BC[3]])
    told = figures(task.score({"left": left_BC, "right": one_way}, task.batch(0)))
    assert told["accuracy"] == 7 / 8  # row 1's two best are equally good
    labelled = make_task(w.replace(loss="cross-entropy"), 0)
    batch = Batch({}, {"label": torch.tensor([1, 1, 1, 0])}, 0)
    told = figures(labelled.score({"left": left_BC, "right": right_BC - 0.1}, batch))
    assert told["accuracy"] == 3 / 4


def test_texts_are_judged_by_words_letters_edits_and_common_sequence():
    true = ["the cat sat on the mat", "a dog barked at me today"]
    told = translation_figures(["the cat sat on the mat", "a dog barked at me"], true)
    # All n-grams fit; only the brevity penalty is left: 11 words for 12.
    assert told["bleu"] == pytest.approx(100 * math.exp(1 - 12 / 11))
    assert told["ter"] == pytest.approx(100 / 12)  # one word to insert, of twelve
    assert told["rouge_l"] == pytest.approx(100 * (1 + 2 * 5 / 11) / 2)
    assert 80 < told["chrf"] < 100
    with pytest.raises(ValueError, match="1 texts cannot be held against 2"):
        translation_figures(["one"], true)
