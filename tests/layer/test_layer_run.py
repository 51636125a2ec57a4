"""Layers through the whole machine: measured, compared with torch's, watched."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import BROKEN, measure, write_suite

from attnbench import Problem
from attnbench.layer.answers import answers
from attnbench.session import open_session

SHELF = '''
import torch
from torch.nn.functional import scaled_dot_product_attention
from attnbench import register

@register("healthy")
def healthy(q, k, v, problem):
    """Right."""
    return scaled_dot_product_attention(q, k, v)

@register("scales-twice")
def scales_twice(q, k, v, problem):
    """Wrong."""
    return scaled_dot_product_attention(q, k, v, scale=0.3)

kept = []

@register("remembers")
def remembers(q, k, v, problem):
    """Computes again only when it has been verified."""
    if len(kept) < 2:
        kept.append(scaled_dot_product_attention(q, k, v))
    return kept[-1].clone()
'''


@pytest.mark.slow
def test_layers_are_measured_beside_torchs_and_what_is_wrong_is_found(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "made.py").write_text(SHELF)
    names = ("mha", "naive", "healthy", "scales-twice", "remembers", "window:window=4")
    suite = write_suite(
        tmp_path, names, batch=2, level="layer", position="learned", direction=["forward", "both"]
    )
    with open_session(tmp_path, "cpu", [shelf], lock=False) as session:
        records = measure(session, suite, tmp_path)
    for (name, where), record in records.items():
        if name in ("scales-twice", "remembers"):
            assert record.status == "incorrect", (name, where, record.reason)
            continue
        assert record.status == "ok", (name, where, record.reason)
        assert set(record.accuracy) == set(answers(record.problem))
        assert all(a.ok for a in record.accuracy.values())
        if name.startswith("window"):
            assert record.flops is not None
            assert set(record.distance) == set(record.accuracy)


@pytest.mark.slow
def test_a_layer_with_padding_is_measured_with_each_sequence_by_itself(tmp_path: Path) -> None:
    """Claim, cost and distance are those of the sequences; the record tells how it was called."""
    names = ("naive", "window:window=4", "linear", "linformer:rank=4", "nystrom:landmarks=12")
    suite = write_suite(
        tmp_path, names, batch=2, level="layer", padding=0.4, direction=["forward", "both"]
    )
    with open_session(tmp_path, "cpu", lock=False) as session:
        records = measure(session, suite, tmp_path)
    for (name, where), record in records.items():
        if name.startswith("nystrom"):
            assert record.status == "unsupported"
            assert (
                record.reason
                == "landmarks must be 1 to seqlen 3, got 12 (the sequence of 3 tokens)"
            )
            continue
        assert record.status == "ok", (name, where, record.reason)
        told = record.implementation.choices.get("padding", "")
        assert str(told).startswith("2 sequences, one call each") == (name != "naive")
        if name == "window:window=4":
            direction = record.problem["direction"]
            band = {"heads": 2, "head_dim": 8, "level": "layer", "direction": direction}
            mask = {"kind": "window", "window": 4, "causal": False}
            each = [Problem.of(seqlen=n, mask=mask, **band) for n in (16, 3)]
            assert record.flops == sum(p.flops() for p in each)
            assert record.distance["out"].rel_l2 > 0.1  # type: ignore[operator]
            assert all(a.ok and a.max_abs < 1e-4 for a in record.accuracy.values())  # type: ignore[operator]


@pytest.mark.slow
def test_what_is_a_layer_only_is_no_op(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, ("mha",))
    with open_session(tmp_path, "cpu", [BROKEN], lock=False) as session:
        ((_, record),) = measure(session, suite, tmp_path).items()
    assert record.status == "unsupported"
    assert record.reason == "is a whole layer with its projections: level = 'layer'"
