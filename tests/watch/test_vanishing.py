"""Gradients that are zero whatever the contents are held against nobody; other zeros are.

Where every softmax has one key, no logit has a gradient: dq and dk of all contents are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnbench import Attention, Problem
from attnbench.execution import Execution
from attnbench.failure import Failed
from attnbench.inputs import make_inputs
from attnbench.layer.execution import LayerExecution
from attnbench.layer.inputs import make_layer_inputs
from attnbench.watch import watcher

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"batch": 32, "heads": 2, "head_dim": 16, "direction": "both"}


class OneKey(Attention):
    """Softmax over the largest logit alone, as top-k with k = 1."""

    name = "one-key"
    kind = "approximate"

    def finish(self, out: torch.Tensor) -> torch.Tensor:
        return out

    def build(self, problem: Problem, device: torch.device) -> Callable[..., torch.Tensor]:
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            largest, kept = (q @ k.mT).max(dim=-1, keepdim=True)
            values = v.gather(2, kept.expand(*kept.shape[:-1], v.shape[-1]))
            return self.finish(largest.softmax(dim=-1) * values)

        return attend


class Nothing(OneKey):
    """An output of zeros, for any contents."""

    def finish(self, out: torch.Tensor) -> torch.Tensor:
        return (0 * out).abs()  # no signs of zero that would differ


def watched(implementation: Attention, problem: Problem) -> None:
    """Warm up on some contents, and look closely at calls on others."""
    is_layer = problem.level == "layer"
    execution = (LayerExecution if is_layer else Execution)(implementation, problem, CPU)
    watch = watcher.Watch(execution, CPU)
    execution.load((make_layer_inputs if is_layer else make_inputs)(problem, 0, CPU))
    watch.loaded()
    for phase in ("warm-up", "measure"):
        watch.turn_begins(phase)
        execution.step()
        watch.turn_ended()
    watch.inspect()


@pytest.fixture(autouse=True)
def _new_contents_in_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_SHARE", 1e9)


@pytest.mark.parametrize("level", ["op", "layer"])
@pytest.mark.parametrize("seqlen", [1, 6])
def test_gradients_through_one_key_are_no_old_outputs(seqlen: int, level: str) -> None:
    watched(OneKey(), Problem.of(**SHAPE, level=level, seqlen=seqlen))


@pytest.mark.parametrize("level", ["op", "layer"])
def test_zeros_that_are_not_of_logits_are_old_outputs(level: str) -> None:
    with pytest.raises(Failed, match="out is that of other inputs"):
        watched(Nothing(), Problem.of(**SHAPE, level=level, seqlen=6))
