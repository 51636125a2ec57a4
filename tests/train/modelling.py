"""What the tests of models share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from attnbench import Attention, ForwardBackward, Problem, implementation
from attnbench.layouts import to_layout
from attnbench.train.data import make_task
from attnbench.train.loss import loss_of
from attnbench.train.models.build import Built, build_model
from attnbench.train.roles import Task
from attnbench.train.workload import Workload

CPU = torch.device("cpu")
SHAPES = {"translation": {"seqlen": 64}, "images": {"seqlen": 17}, "pairs": {"seqlen": 17}}
MODELS = {
    "gpt2-tiny": "text",
    "llama-tiny": "text",
    "bert-tiny": "text",
    "t5-tiny": "translation",
    "bart-tiny": "translation",
    "vit-tiny": "images",
    "pair-tiny": "pairs",
}


def workload(model: str, task: str = "", **fields: Any) -> Workload:
    task = task or MODELS.get(model, "text")
    told: dict[str, Any] = {"seqlen": 16, "batch": 2, **SHAPES.get(task, {})}
    if model == "bert-tiny" and task == "text":
        told["objective"] = "masked-lm"
    return Workload.of(model=model, task=task, **{**told, **fields})


@functools.cache
def task_of(w: Workload) -> Task:
    return make_task(w, 0)


def built(w: Workload, attention: Attention | str, seed: int = 0, **options: Any) -> Built:
    if isinstance(attention, str):
        attention = implementation(attention, **options)
    return build_model(w, task_of(w), attention, CPU, seed)


def learned(model: Built, w: Workload, step: int = 1) -> dict[str, torch.Tensor]:
    """The loss of a batch and the gradient of every parameter, by name, in the model's dtype."""
    batch, dtype = task_of(w).batch(step), next(model.parameters()).dtype
    model.zero_grad()
    inputs = {k: x.to(dtype) if x.is_floating_point() else x for k, x in batch.inputs.items()}
    outputs = model(**inputs)
    loss = loss_of(w, outputs, batch)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


class Spy(Attention):
    """An implementation that keeps the problems it is asked for; naive does the work.

    Tests change its class attributes in subclasses.
    """

    name = "spy"
    features = Attention.features | {"bias", "dropout", "alibi", "softcap"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[Problem] = []

    def build(
        self, problem: Problem, device: torch.device
    ) -> Callable[..., torch.Tensor] | ForwardBackward:
        self.asked.append(problem)
        return implementation("naive").build(problem, device)


class Laid(Attention):
    """Naive attention, in another layout and with a backward of its own."""

    name = "laid"
    layout = "BSHD"
    is_wrong = False

    def build(self, problem: Problem, device: torch.device) -> ForwardBackward:
        inner = implementation("blockwise").build(problem, device)
        assert isinstance(inner, ForwardBackward)

        def forward(*tensors: torch.Tensor) -> tuple[torch.Tensor, Any]:
            assert all(x.is_contiguous() for x in tensors), "the layout promises it"
            out, saved = inner.forward(*(self._turned(x, problem) for x in tensors))
            return to_layout(out, self.layout), {"inner": saved, "note": 3}

        def backward(saved: Any, grad: torch.Tensor) -> Any:
            assert saved["note"] == 3
            gradients = inner.backward(saved["inner"], self._turned(grad, problem))
            dq, dk, dv = (to_layout(x, self.layout) for x in gradients)
            return dq, dv if self.is_wrong else dk, dv

        return ForwardBackward(forward, backward)

    def _turned(self, x: torch.Tensor, problem: Problem) -> torch.Tensor:
        if self.layout == "packed":
            x = x.reshape(problem.batch, -1, *x.shape[1:])
        return x.transpose(1, 2)
