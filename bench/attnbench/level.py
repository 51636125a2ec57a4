"""What differs between the op and the layer level, chosen in one place.

Whoever verifies, measures or watches asks here for inputs, an execution, the truth and new
contents, and needs to know no more of levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch

from attnbench.attention import Attention
from attnbench.execution import Execution
from attnbench.inputs import AnyInputs, Inputs, make_inputs
from attnbench.layer.contents import draw_layer_signs
from attnbench.layer.execution import LayerExecution
from attnbench.layer.inputs import LayerInputs, make_layer_inputs
from attnbench.layer.verify import make_layer_yardstick
from attnbench.problem import Problem
from attnbench.verify import Yardstick, make_yardstick
from attnbench.watch import contents


class Part(Protocol):
    """Some of a problem, that stands for all of it; ``problem`` is the part as one of its own."""

    @property
    def problem(self) -> Problem: ...

    def of_inputs(self, inputs: Inputs) -> Inputs: ...

    def of_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...


class Everything:
    """The part of a layer: the gradients of its weights are sums over all there is."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def of_inputs(self, inputs: Inputs) -> Inputs:
        """All."""
        return inputs

    def of_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All."""
        return dict(tensors)


def inputs_of(problem: Problem, seed: int, device: torch.device) -> AnyInputs:
    """The inputs that the problem draws from a seed."""
    make = make_layer_inputs if problem.level == "layer" else make_inputs
    return make(problem, seed, device)


def execution_of(
    implementation: Attention, problem: Problem, device: torch.device, seed: int = 0
) -> Execution:
    """The implementation at work on the problem; errors as of ``Execution``."""
    cls = LayerExecution if problem.level == "layer" else Execution
    return cls(implementation, problem, device, seed)


def yardstick_of(
    problem: Problem, inputs: AnyInputs, keep_BHMN: torch.Tensor | None = None
) -> Yardstick:
    """Truth and allowance; arguments and errors as of ``make_yardstick``."""
    if problem.level == "layer":
        return make_layer_yardstick(problem, cast(LayerInputs, inputs), keep_BHMN)
    return make_yardstick(problem, cast(Inputs, inputs), keep_BHMN)


def signs_of(problem: Problem, device: torch.device, generator: torch.Generator) -> contents.Signs:
    """New contents whose truth follows from that of the old ones."""
    draw = draw_layer_signs if problem.level == "layer" else contents.draw_signs
    return draw(problem, device, generator)


def part_of(problem: Problem, generator: torch.Generator) -> Part:
    """What stands for the problem where all of it would cost too much."""
    if problem.level == "layer":
        return Everything(problem)
    return contents.draw_part(problem, generator)
