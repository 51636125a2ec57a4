"""Model FLOPs of one training step: what has to be computed, by the conventions of the field.

Products count two a multiply-add; softmax, norms and activations are not counted. The sum
has two parts, which MFU puts together in two ways:

* outside attention, each product with a weight: forward, gradient of the weight, gradient of
  the input, each where it is needed. Where everything learns that is ``6N`` a token, N being
  the parameters that take part in products (a table that is only looked up does not; one that
  is tied to the head does);
* attention: three times the forward's 2·pairs·(D + E) a head. ``full`` counts all pairs, as
  nanoGPT, torchtitan and PaLM do (12·L·H·Q·T a token, arXiv 2204.02311, appendix B);
  ``causal`` exactly the pairs that the mask keeps, as llm.c and Megatron do. The backward
  counts twice the forward: recomputation is the implementation's own affair, and so is that
  of checkpointing.

An approximate method is told by its own formula, too. Its share of a peak by the others'
count is an *effective* one.

A teacher's forward (distillation) is in the time of a step and not in its model FLOPs: MFU
counts what the trained model has to compute (PaLM's "model FLOPs", which leave out whatever an
implementation chooses to run beside), so that a student with a dear
teacher has a low one. What the teacher computes is counted by itself (``ModelFlops.teacher``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from attnbench.attention import Attention
from attnbench.problem import Problem
from attnbench.train import attentions
from attnbench.train.figures import ModelFlops, Parameters, TeacherFlops
from attnbench.train.models.bridge import Attends
from attnbench.train.models.finetune import LowRank
from attnbench.train.roles import Batch
from attnbench.train.step import Trainer


class _Products:
    """Counts the products with weights of what a model runs, backward included."""

    def __init__(self) -> None:
        self.flops = 0

    def watch(self, model: torch.nn.Module) -> list[RemovableHandle]:
        """Count what a model multiplies from now on; hooks to be removed."""
        places = _places(model)
        hooks = [
            module.register_forward_hook(self.add)
            for module in model.modules()
            if _multiplies(module)
            and not isinstance(module, LowRank)  # its weight is that of the layer under it
            and not _is_inside(module, places)
        ]
        return hooks + [
            module.register_forward_hook(self.add_low_rank)
            for module in model.modules()
            if isinstance(module, LowRank)
        ]

    def add(self, module: torch.nn.Module, inputs: Sequence[object], output: object) -> None:
        """A forward hook of a module with a matrix for a weight."""
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        assert isinstance(output, torch.Tensor)
        rows = output.numel() // _outputs_of(module, weight)
        self._multiplied(weight, rows, _needs_gradient(inputs))

    def add_low_rank(self, module: LowRank, inputs: Sequence[object], output: object) -> None:
        """A forward hook of LoRA's addition; the layer under it is a module of its own."""
        assert isinstance(output, torch.Tensor)
        rows = output.numel() // module.up_Or.shape[0]
        self._multiplied(module.down_rI, rows, _needs_gradient(inputs))
        self._multiplied(module.up_Or, rows, module.down_rI.requires_grad)

    def _multiplied(self, weight: torch.Tensor, rows: int, needs_input: bool) -> None:
        """Forward, gradient of the weight, gradient of the input: each where it is needed."""
        self.flops += 2 * weight.numel() * rows * (1 + weight.requires_grad + needs_input)


class _Teacher:
    """Counts the forward of a model that does not learn."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._products, self._calls = _Products(), list[Problem]()
        self.hooks = self._products.watch(model)
        self.hooks += [
            place.register_forward_hook(self._note, with_kwargs=True) for place in _places(model)
        ]

    def _note(
        self, place: torch.nn.Module, tensors: Any, told: Mapping[str, Any], out: object
    ) -> None:
        q_BHMD, k_BGND, v_BGNE = tensors
        batch, heads_q, seqlen_q, head_dim = q_BHMD.shape
        called = Problem.of(
            batch=batch, heads_q=heads_q, heads_kv=k_BGND.shape[1], seqlen_q=seqlen_q,
            seqlen_k=k_BGND.shape[2], head_dim=head_dim, head_dim_v=v_BGNE.shape[3],
            mask=told["mask"],
        )  # fmt: skip
        self._calls.append(called)

    def counted(self, parts: int) -> TeacherFlops:
        """Of a step of so many parts, one of which was run."""
        return TeacherFlops(
            dense=parts * self._products.flops,
            attention_full=parts * sum(p.replace(mask="full").flops() for p in self._calls),
            attention_causal=parts * sum(p.flops() for p in self._calls),
        )


def _needs_gradient(inputs: Sequence[object]) -> bool:
    return isinstance(inputs[0], torch.Tensor) and inputs[0].requires_grad


def count_step(
    attention: Attention, make: Callable[[Attention], Trainer], batch: Batch
) -> ModelFlops:
    """The FLOPs of a step, by running one forward.

    Args:
        attention: who attends; it is wrapped, and of no other use afterwards.
        make: makes the trainer to count in: not compiled, nothing recomputed.
        batch: of a step, on the CPU.
    """
    calls: list[Problem] = []
    learns: list[bool] = []  # whether a backward goes through that attention

    def note(problem: Problem, run: Callable[[], Any]) -> Any:
        calls.append(problem)
        return run()

    products, trainer = _Products(), make(attentions.around(attention, note))
    calls.clear()  # of the model's own preparation
    pieces = trainer.put(batch)
    teacher = None if trainer.teacher is None else _Teacher(trainer.teacher)
    hooks = [
        place.register_forward_hook(lambda module, inputs, out: learns.append(out.requires_grad))
        for place in _places(trainer.model)
    ]
    hooks += products.watch(trainer.model)
    trainer.forward(pieces[0])
    for hook in (*hooks, *(teacher.hooks if teacher else ())):
        hook.remove()
    times = [3 if learn else 1 for learn in learns]
    forward = list(zip([p.replace(direction="forward") for p in calls], times, strict=True))
    parts, own = len(pieces), None
    if attention.kind == "approximate":
        own = parts * sum(n * attention.flops(p) for p, n in forward)
    return ModelFlops(
        dense=parts * products.flops,
        attention_full=parts * sum(n * p.replace(mask="full").flops() for p, n in forward),
        attention_causal=parts * sum(n * p.flops() for p, n in forward),
        attention_own=own,
        teacher=teacher.counted(parts) if teacher else None,
    )


def parameters_of(model: torch.nn.Module) -> Parameters:
    """How many numbers a model holds; ``parameters()`` names tied ones once."""
    tables = {
        id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)
    }
    return Parameters(
        total=sum(p.numel() for p in model.parameters()),
        embedding=sum(tables.values()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _places(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [m for m in model.modules() if isinstance(m, Attends)]


def _multiplies(module: torch.nn.Module) -> bool:
    """Whether a module multiplies by a weight: Linear, convolutions, GPT-2's Conv1D."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, torch.nn.Parameter) and weight.dim() >= 2
    return is_matrix and not isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))


def _is_inside(module: torch.nn.Module, places: Sequence[torch.nn.Module]) -> bool:
    """Whether a module belongs to an attention method, whose products are attention's."""
    return any(module is inner for place in places for inner in place.modules())


def _outputs_of(module: torch.nn.Module, weight: torch.Tensor) -> int:
    """How many outputs share one pass over the weight."""
    if isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
        return weight.shape[0]
    return weight.shape[-1]  # transformers' Conv1D: its weight is (inputs, outputs)
