"""One implementation at work on one layer: the face of ``Execution``, around a whole layer.

An implementation of the op level is put inside :class:`MultiHeadAttention`; one of the
layer level is built as it is. The weights belong to what is loaded: they are drawn, given
new contents, checked for changes and have gradients, as the hidden states do.

Letters: B = batch, M = seqlen_q, N = seqlen_k, C = d_model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, cast

import torch

from attnbench.attention import Attention, Unsupported
from attnbench.building import build
from attnbench.execution import Execution
from attnbench.inputs import AnyInputs
from attnbench.layer.apart import one_by_one
from attnbench.layer.core import Core, as_core
from attnbench.layer.multi_head import MultiHeadAttention
from attnbench.problem import Problem

_STATES = ("x", "memory")


class Layer(Protocol):
    """What an implementation of the layer level builds: a ``torch.nn.Module`` that can

    - be called with x ``(B, M, C)`` and, if the lengths differ, memory ``(B, N, C)``, and
      returns ``(B, M, C)``, with zeros where there is padding;
    - name its weights: ``by_name`` takes one tensor for each of its parameters (data or
      gradients), and returns those as views, laid out as ``LayerInputs`` has them;
    - make a ``twin`` with parameters of its own.
    """

    def __call__(self, *states: torch.Tensor) -> torch.Tensor: ...

    def parameters(self) -> Any: ...

    def by_name(self, values: Sequence[torch.Tensor]) -> Mapping[str, torch.Tensor]: ...

    def twin(self) -> Self: ...


class LayerExecution(Execution):
    """One implementation, built into one layer on one device. See ``Execution``."""

    def __init__(
        self, implementation: Attention, problem: Problem, device: torch.device, seed: int = 0
    ) -> None:
        super().__init__(implementation, problem, device, seed)
        self._layout = "BHSD"  # what is inside has its layout made inside
        self._names = tuple(self._states_there()) + tuple(self._weights())

    def _build(self, device: torch.device, seed: int) -> Layer:
        p, implementation = self.problem, self.implementation
        if p.decode:
            raise Unsupported(
                "a decode step cannot be verified at level 'layer': its cache comes from no "
                "projection; measure it at level 'op'"
            )
        if implementation.level == "layer":
            self._own = build(implementation, p, device, seed)
            return cast(Layer, self._own)
        return self._around(self._inside(device, seed), device)

    def _inside(self, device: torch.device, seed: int) -> Core:
        """The implementation's attention: of all sequences at once where it keeps them apart."""
        p, implementation = self.problem, self.implementation
        try:
            _check_own_mask(implementation, p)
            self._own = build(implementation, p.core, device, seed)
        except Unsupported as refusal:
            if not p.padding:
                raise
            self._own = core = one_by_one(implementation, p, device, seed, refusal)
            self.is_apart = True
            return core
        return as_core(self._own, implementation.layout)

    def _around(self, core: Core, device: torch.device) -> Layer:
        return MultiHeadAttention(self.problem, core, device)

    @property
    def _plugins(self) -> Any:
        return self._own

    def twin(self) -> Self:
        """The same attention in a layer with weights and inputs of its own, of equal contents."""
        assert self._original is not None, "load first"
        twin = copy.copy(self)
        twin.built, twin._tensors = self.built.twin(), []
        twin.load(self._original)
        return twin

    # ---- what a layer has in place of q, k and v -------------------------------------

    def _states_there(self) -> Sequence[str]:
        """The names of the hidden states."""
        return _STATES[: 1 if self.problem.seqlen_q == self.problem.seqlen_k else 2]

    @property
    def _states(self) -> list[torch.Tensor]:
        return self._tensors[: len(self._states_there())]

    def _weights(self) -> Mapping[str, torch.Tensor]:
        return self.built.by_name([x.data for x in self.built.parameters()])  # type: ignore[no-any-return]

    def _place(self, inputs: AnyInputs) -> None:
        given = inputs.named()
        if not self._tensors:
            states = [torch.empty_like(given[name]) for name in self._states_there()]
            grad_out = torch.empty_like(given["grad_out"])
            self._tensors = [*states, *self._weights().values(), grad_out]
        for own, name in zip(self._tensors, (*self._names, "grad_out"), strict=True):
            own.data.copy_(given[name])

    @property
    def _leaves(self) -> Sequence[torch.Tensor]:
        return [*self._states, *self.built.parameters()]

    def _forward(self) -> None:
        self._out = self.built(*self._states)

    def _named_gradients(self) -> dict[str, torch.Tensor]:
        states = self._states_there()
        of_states, of_weights = self._gradients[: len(states)], self._gradients[len(states) :]
        gradients = {**dict(zip(states, of_states, strict=True)), **self.built.by_name(of_weights)}
        for name, own in zip(self._names, self._tensors, strict=False):
            self._check(f"d{name}", gradients[name], tuple(own.shape))
        return {f"d{name}": gradients[name] for name in self._names}

    def _out_shape(self) -> tuple[int, ...]:
        return tuple(self._tensors[0].shape)


def _check_own_mask(implementation: Attention, problem: Problem) -> None:
    """Refuse packed sequences for a method whose own mask takes them for one."""
    if problem.padding and implementation.kind == "approximate":
        core = problem.core
        if implementation.own_mask(core) not in (None, core.mask):
            raise Unsupported("its own mask is for one sequence, not for several")
