"""Metrics of training tasks for people: their names, their digits, and which one leads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attnbench.report import units


@dataclass(frozen=True)
class Metric:
    """How a metric is told. ``is_share`` is written in per cent."""

    label: str
    maximize: bool
    is_share: bool = False


_KNOWN: Mapping[str, Metric] = {
    "bits_per_character": Metric("bits a character", False),
    "accuracy": Metric("accuracy", True, True),
    "token_accuracy": Metric("token accuracy", True, True),
    "f1_macro": Metric("macro F1", True, True),
    "perplexity": Metric("perplexity", False),
    "cross_entropy": Metric("nats a token", False),
    "bleu": Metric("BLEU", True),
    "chrf": Metric("chrF", True),
    "ter": Metric("TER", False),
    "rouge_l": Metric("ROUGE-L", True),
}
_LEADING = ("bits_per_character", "accuracy", "token_accuracy")
LOCAL = "bits_per_character"
"""The metric of character models, which rewards locality and never decides alone."""


def metric(name: str) -> Metric:
    """What is known of a metric; one of a newer attnbench goes by its own name."""
    return _KNOWN.get(name, Metric(name.replace("_", " "), True))


def leading(names: Iterable[str]) -> str | None:
    """The metric that a task is judged by, among those it has: the task's own ``metric``."""
    present = list(names)
    return next((name for name in (*_LEADING, *present) if name in present), None)


def ordered(names: Iterable[str]) -> list[str]:
    """The leading one first, then as listed here, then what is not known."""
    present = list(dict.fromkeys(names))
    first = leading(present)
    known = [name for name in _KNOWN if name in present and name != first]
    others = sorted(name for name in present if name not in _KNOWN and name != first)
    return [*([first] if first else []), *known, *others]


def text(name: str, value: float | None) -> str:
    """``99.6 %``, ``2.82``; a value that is no number says so."""
    if value is None:
        return "not finite"
    if metric(name).is_share:
        return f"{100 * value:.1f} %"
    return units.number(value)
