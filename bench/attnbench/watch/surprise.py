"""A last, unannounced draw: contents that have nothing to do with those that were timed.

Whoever recognises the signs that ``contents`` changes has still never seen these. Their
reference would cost as much as the first one, so one batch entry and one key head, drawn
by chance, stand for all.
"""

from __future__ import annotations

import statistics
from typing import cast

import torch

from attnbench.claim import claim_of
from attnbench.execution import Execution
from attnbench.failure import Failed
from attnbench.inputs import AnyInputs, Inputs
from attnbench.level import inputs_of, part_of, yardstick_of
from attnbench.measure.clock import Clock
from attnbench.measure.sampling import Taken
from attnbench.problem import Problem
from attnbench.verify import Yardstick, explain, judge, passed
from attnbench.watch.recall import remembers
from attnbench.watch.watcher import Results, Watch, noise


class Surprise:
    """One draw for all contenders of a problem."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self._problem = problem
        self._device = device
        self._noise = noise()
        self._part = part_of(problem, self._noise)
        self._inputs = self._draw()
        self._yardsticks: dict[Problem, Yardstick] = {}

    def check(self, watch: Watch, execution: Execution, clock: Clock, taken: Taken) -> None:
        """Time and verify a contender on contents that it has never seen.

        Raises:
            Failed: it is wrong there, or faster on what it has seen.
        """
        execution.load(self._inputs)
        watch.loaded(lambda results: self._verify(watch, execution, results))
        call, first = execution.step, []
        watch.look_at_one_call(lambda: first.append(clock.time(call, 1)))
        present = self._inputs

        def renew() -> None:
            nonlocal present
            present = self._draw()
            execution.load(present)

        usual_s = statistics.median(t for round_ in taken.rounds for t in round_)
        calls = taken.calls_per_sample * len(taken.rounds[0])
        told = remembers(
            call, clock, renew, lambda: execution.load(present), first[0], usual_s, calls
        )
        if told is not None:
            raise Failed("error", told)

    def _draw(self) -> AnyInputs:
        seed = int(torch.randint(2**62, (1,), generator=self._noise))
        return inputs_of(self._problem, seed, self._device)

    def _verify(self, watch: Watch, execution: Execution, results: Results) -> None:
        claim = claim_of(execution.implementation, self._part.problem, is_apart=execution.is_apart)
        part = self._part.of_tensors(results)
        truth = self._truth(claim.problem, execution)
        accuracy = judge(truth, part, approximate=not claim.is_exact)
        if not passed(accuracy):
            raise Failed("incorrect", watch.name() or f"on new inputs: {explain(accuracy)}")

    def _truth(self, problem: Problem, execution: Execution) -> Yardstick:
        """Of the part, by what is claimed; with dropout it is each contender's own."""
        inputs = self._part.of_inputs(cast(Inputs, self._inputs))
        if self._problem.dropout_p > 0:
            keep = execution.keep_mask()
            part = None if keep is None else self._part.of_tensors({"keep": keep})["keep"]
            return yardstick_of(problem, inputs, part)
        if problem not in self._yardsticks:
            self._yardsticks[problem] = yardstick_of(problem, inputs)
        return self._yardsticks[problem]
