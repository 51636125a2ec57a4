"""Columns of the frame that only training runs have, and only generations."""

from __future__ import annotations

from typing import Any

from attnbench.report.points import Point
from attnbench.report.training_text import part, reached
from attnbench.stats import Interval
from attnbench.train.derived import Mfu


def columns(point: Point) -> dict[str, Any]:
    """The figures of a training run; a run that is not ok has none of them.

    ``tokens_per_s`` with its interval; ``timed_batch`` and ``step_tokens``; ``mfu_full``,
    ``mfu_causal`` and ``mfu_own`` over the measured ceiling, ``…_datasheet`` over the
    datasheet's peak, ``mfu_teacher`` (what a teacher's forward takes of it, which is in none of
    those), and ``mfu_is_effective``; ``forward_s``, ``backward_s``, ``optimizer_s``
    and ``attention_share``; ``parameters_bytes``, ``gradients_bytes``, ``optimizer_bytes``,
    ``activations_bytes`` and ``step_peak_bytes``; ``parameters`` and ``trainable``;
    ``learned_steps``, ``stopped``, ``first_loss``, ``last_loss`` (nats) and
    ``steps_to_target``; ``parity_ok`` (missing where it is not judged),
    ``parity_max_deviation``, ``parity_allowed``, ``parity_ratio`` and ``parity_steps``; and
    every metric of the last evaluation as ``metric_NAME``.
    """
    training = part(point)
    if training is None:
        return {}
    found, parts, memory = point.trained, training.breakdown, training.memory
    parity, losses = training.parity, training.losses
    last = training.evaluations[-1].metrics if training.evaluations else {}
    return {
        **interval_columns(
            "tokens_per_s", "tokens_per_s_low", "tokens_per_s_high",
            found.tokens_per_s if found else None,
        ),
        "timed_batch": training.batch,
        "step_tokens": training.tokens,
        **_mfu("", found.measured if found else None),
        **_mfu("_datasheet", found.datasheet if found else None),
        "mfu_is_effective": point.is_approximate,
        "forward_s": parts.forward_s,
        "backward_s": parts.backward_s,
        "optimizer_s": parts.optimizer_s,
        "attention_share": parts.attention_share,
        "parameters_bytes": memory.parameters_bytes,
        "gradients_bytes": memory.gradients_bytes,
        "optimizer_bytes": memory.optimizer_bytes,
        "activations_bytes": memory.activations_bytes,
        "step_peak_bytes": memory.peak_bytes,
        "parameters": training.parameters.total,
        "trainable": training.parameters.trainable,
        "learned_steps": training.learned_steps,
        "stopped": training.stopped,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "steps_to_target": reached(point, training),
        "parity_ok": parity.ok,
        "parity_max_deviation": parity.max_deviation,
        "parity_allowed": parity.allowed,
        "parity_ratio": parity.ratio,
        "parity_steps": parity.steps,
        **{f"metric_{name}": value for name, value in last.items()},
    }  # fmt: skip


def generation_columns(point: Point) -> dict[str, Any]:
    """The figures of a generation; nothing of any other kind, or of one that is not ok.

    ``tokens_per_s`` (new ones, over the whole generation), ``first_token_s`` and
    ``between_tokens_s``, ``prefill_tokens_per_s`` and ``decode_tokens_per_s``, each with its
    interval; ``between_tokens_p90_s`` and ``…_p99_s``; ``cache_bytes`` and ``serving_peak_bytes``;
    ``logits_ok`` (missing where it is not judged) and ``logits_max_error``.
    """
    found, generated = point.served, point.record.generation
    if found is None or generated is None:
        return {}
    intervals = {
        "tokens_per_s": found.overall,
        "first_token_s": found.first_s,
        "between_tokens_s": found.between_s,
        "prefill_tokens_per_s": found.prefill,
        "decode_tokens_per_s": found.decode,
    }
    row: dict[str, Any] = {}
    for name, value in intervals.items():
        row |= interval_columns(name, f"{name}_low", f"{name}_high", value)
    return row | {
        "between_tokens_p90_s": found.between_p90_s,
        "between_tokens_p99_s": found.between_p99_s,
        "cache_bytes": generated.memory.cache_bytes,
        "serving_peak_bytes": generated.memory.peak_bytes,
        "logits_ok": generated.agreement.ok,
        "logits_max_error": generated.agreement.max_error,
    }


def interval_columns(
    middle: str, low: str, high: str, value: Interval | None, scale: float = 1.0
) -> dict[str, float | None]:
    """Three columns of an interval; missing where there is none."""
    if value is None:
        return {middle: None, low: None, high: None}
    return {middle: value.median * scale, low: value.low * scale, high: value.high * scale}


def _mfu(suffix: str, mfu: Mfu | None) -> dict[str, float | None]:
    return {
        f"mfu_{convention}{suffix}": getattr(mfu, convention, None)
        for convention in ("full", "causal", "own", "teacher")
    }
