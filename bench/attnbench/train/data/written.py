"""How good written text is: BLEU, chrF and TER by sacrebleu, ROUGE-L by rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.errors import UserError


def translation_figures(said: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """``bleu``, ``chrf``, ``ter`` and ``rouge_l`` of a corpus of English texts.

    All in percent; of ``ter`` (edits for a hundred words of the true text) less is better.
    BLEU's signature is sacrebleu's default (13a, exponential smoothing), chrF's is chrF2,
    TER is not case-sensitive, and ROUGE-L is the mean F-measure over texts without stemming.

    Raises:
        UserError: a package is missing.
        ValueError: no texts, or not as many on both sides.
    """
    if not said or len(said) != len(true):
        raise ValueError(f"{len(said)} texts cannot be held against {len(true)}")
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
        from sacrebleu.metrics.ter import TER
    except ImportError as error:
        raise UserError(f"judging texts: {error}; pip install 'attnbench[train]'") from None
    references = [list(true)]
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(t, s)["rougeL"].fmeasure for s, t in zip(said, true, strict=True)]
    return {
        # Texts here keep their blanks, and sacrebleu warns of tokenized periods without force.
        "bleu": BLEU(force=True).corpus_score(list(said), references).score,
        "chrf": CHRF().corpus_score(list(said), references).score,
        "ter": TER().corpus_score(list(said), references).score,
        "rouge_l": 100 * sum(rouge) / len(rouge),
    }
