"""What a worker does with one problem: verify every contender, then time them together.

The order is fixed: build and verify each on one set of inputs; then load new contents into
the same memory, time in interleaved rounds, and verify what the last timed call returned;
then measure memory, and energy where it is asked for. A contender that fails drops out with
its status, the others go on.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from attnbench import cost, registry
from attnbench.attention import Attention
from attnbench.claim import Claim, claim_of
from attnbench.device import synchronize
from attnbench.distance import distances, weights_distance
from attnbench.execution import Execution
from attnbench.failure import Failed
from attnbench.inputs import AnyInputs, make_inputs
from attnbench.layer.inside import asked
from attnbench.level import execution_of, inputs_of, yardstick_of
from attnbench.measure import figures
from attnbench.measure.clock import Clock, clock_for
from attnbench.measure.copies import ExecutionCopies
from attnbench.measure.kernels import what_ran
from attnbench.measure.memory import measure_memory
from attnbench.measure.sampling import Taken
from attnbench.problem import Problem
from attnbench.record import Samples, TensorAccuracy, worst
from attnbench.rounds import Rounds
from attnbench.turns import Send
from attnbench.verify import Yardstick, explain, judge, passed
from attnbench.watch.surprise import Surprise
from attnbench.watch.watcher import Watch


@dataclass
class Contender:
    """One implementation with options, on its way through the phases."""

    key: str
    implementation: Attention
    claim: Claim
    running: Execution
    watch: Watch | None = None
    accuracy: dict[str, TensorAccuracy] = field(default_factory=dict)
    figures: dict[str, Samples | None] = field(default_factory=dict)  # as the record has them
    about: dict[str, Any] = field(default_factory=dict)  # further fields of the record
    sampled_s: float = 0.0  # in warm-up and rounds
    judge_s: float = 0.0  # what verifying it once has cost

    @property
    def watched(self) -> Watch:
        """The watch over it."""
        assert self.watch is not None
        return self.watch


class Group(Rounds[Contender]):
    """All contenders of one problem, in one worker process."""

    def __init__(self, task: dict[str, Any], send: Send) -> None:
        super().__init__(task, send)
        self.problem = Problem.from_json(task["problem"])
        self._yardsticks: dict[Problem, Yardstick] = {}  # for the inputs of one seed
        self._yardstick_seed: int | None = None

    def run(self) -> None:
        """Measure every contender; send a ``result`` for each."""
        self._reference_step()
        inputs = self._inputs(self.seed)
        if self._process == 0:
            self._prepare_truth(self.seed, inputs)
        for told in self._task["contenders"]:
            self._try(told["key"], self._build_and_verify, told, inputs)
        del inputs
        if self._ready:
            self._time()

    # ---- phases ----------------------------------------------------------------------

    def _build_and_verify(self, told: dict[str, Any], inputs: AnyInputs) -> None:
        self._step(told["key"], "import")
        implementation = registry.make(told)
        self._step(told["key"], "build")
        execution = execution_of(implementation, self.problem, self.device, self.seed)
        claim = claim_of(implementation, self.problem, is_apart=execution.is_apart)
        contender = Contender(told["key"], implementation, claim, execution)
        self._choices[contender.key] = execution.choices
        contender.watch = Watch(execution, self.device)
        self._step(contender.key, "verify")
        execution.load(inputs)
        contender.watch.loaded()
        execution.step()
        synchronize(self.device)
        if self._process == 0:
            judging = time.perf_counter()
            contender.accuracy = self._judge(contender, self.seed, inputs)
            contender.judge_s = time.perf_counter() - judging
        self._ready[contender.key] = contender

    def _time(self) -> None:
        """Interleaved rounds on fresh contents, then verification of the timed output."""
        seed = self.seed + 1
        self._reference_step()
        inputs = self._inputs(seed)
        self._prepare_truth(seed, inputs)
        self._try_all(self._load, seed, inputs)
        clock = clock_for(self.device, self.budget.cache)
        taken = self._sample_survivors(clock, self._copies)
        surprise = Surprise(self.problem, self.device)
        self._try_all(self._check_again, seed, inputs, taken, clock, surprise)
        taken.clear()  # graphs and copies hold memory
        self._try_all(self._inspect)

    def _load(self, key: str, seed: int, inputs: AnyInputs) -> None:
        self._step(key, "load")
        contender = self._ready[key]
        contender.running.load(inputs)
        if self.problem.dropout_p > 0:  # a truth for each call would cost more than the calls
            contender.watched.loaded()
        else:
            contender.watched.loaded(
                lambda got: self._compare(contender, seed, inputs, got), contender.judge_s
            )

    def _check_again(
        self,
        key: str,
        seed: int,
        inputs: AnyInputs,
        taken: dict[str, Taken],
        clock: Clock,
        surprise: Surprise,
    ) -> None:
        contender, own = self._ready[key], taken[key]
        self._step(key, "check again")
        again = self._judge(contender, seed, inputs)
        contender.accuracy = worst([contender.accuracy, again])
        if contender.implementation.kind == "approximate":
            contender.about |= self._given_up(contender, seed, inputs)
        assert own.timer is not None
        if (fault := own.timer.fault()) is not None:
            raise Failed("incorrect", f"what was timed ({own.timer.method}): {fault}")
        contender.watched.inspect()
        surprise.check(contender.watched, contender.running, clock, own)
        contender.sampled_s = own.warmup_s + own.spent_s
        contender.figures = {
            "samples": figures.headline(own, clock, self.budget),
            "host_samples": figures.host_time(own, clock, self.budget),
        }

    def _given_up(self, contender: Contender, seed: int, inputs: AnyInputs) -> dict[str, Any]:
        """What an approximate method costs by its own formula, and how far off it is."""
        implementation = contender.implementation
        p = self.problem
        cores = asked(p, is_apart=contender.running.is_apart)
        flops = sum(implementation.flops(core) for core in cores)
        ideal_bytes = sum(implementation.ideal_bytes(core) for core in cores)
        told: dict[str, Any] = {
            "flops": cost.around(flops, p, cost.flops),
            "ideal_bytes": cost.around(ideal_bytes, p, cost.ideal_bytes),
        }
        if self.problem.dropout_p == 0:
            yardstick = self._yardstick(self.problem, seed, inputs)
            found = distances(yardstick, contender.watched.results())
            told["distance"] = {name: d.model_dump() for name, d in found.items()}
        return told

    def _inspect(self, key: str) -> None:
        contender = self._ready[key]
        self._succeed(contender, self._untimed(contender) if self._process == 0 else {})

    def _untimed(self, contender: Contender) -> dict[str, Any]:
        """Fields of the result that come from passes of their own."""
        running = contender.running
        self._step(contender.key, "memory")
        memory = measure_memory(running, self.device)
        running.prepare()
        told: dict[str, Any] = {
            "memory": memory.model_dump(),
            "kernels": what_ran(running.step, self.device),
        }
        told |= self._energy(contender.key, running.step)
        if contender.implementation.kind == "approximate" and self.problem.level == "op":
            self._step(contender.key, "weights")  # last: it leaves other contents behind
            told["weights_tv"] = weights_distance(
                running, make_inputs(self.problem, self.seed, self.device)
            )
        self._guard.check()
        return told

    def _call(self, contender: Contender) -> Callable[[], None]:
        return contender.running.step

    def _turn_begins(self, contender: Contender, phase: str) -> None:
        contender.watched.turn_begins(phase)

    def _turn_ended(self, contender: Contender) -> None:
        contender.watched.turn_ended()

    def _copies(self, key: str, count: int) -> ExecutionCopies:
        return ExecutionCopies(self._ready[key].running, count)

    # ---- truth -----------------------------------------------------------------------

    def _judge(
        self, contender: Contender, seed: int, inputs: AnyInputs
    ) -> dict[str, TensorAccuracy]:
        """Compare the last step with the reference; raise ``Failed`` if it is wrong."""
        results = contender.watched.results()
        changed = contender.running.changed_input()
        if changed is not None:
            raise Failed("incorrect", f"it overwrote its input {changed}")
        accuracy = self._compare(contender, seed, inputs, results)
        contender.watched.trust(results)
        return accuracy

    def _compare(
        self,
        contender: Contender,
        seed: int,
        inputs: AnyInputs,
        results: Mapping[str, torch.Tensor],
    ) -> dict[str, TensorAccuracy]:
        claim = contender.claim
        if self.problem.dropout_p > 0:
            yardstick = yardstick_of(claim.problem, inputs, contender.running.keep_mask())
        else:
            yardstick = self._yardstick(claim.problem, seed, inputs)
        accuracy = judge(yardstick, results, approximate=not claim.is_exact)
        if not passed(accuracy):
            raise Failed("incorrect", contender.watched.name() or explain(accuracy))
        return accuracy

    def _inputs(self, seed: int) -> AnyInputs:
        return inputs_of(self.problem, seed, self.device)

    def _prepare_truth(self, seed: int, inputs: AnyInputs) -> None:
        """Compute what all contenders share; with dropout the truth is each one's own."""
        if self.problem.dropout_p == 0:
            self._yardstick(self.problem, seed, inputs)

    def _yardstick(self, problem: Problem, seed: int, inputs: AnyInputs) -> Yardstick:
        """Of one of the problems whose answers are claimed; those of an earlier seed are gone."""
        if self._yardstick_seed != seed:
            self._yardsticks, self._yardstick_seed = {}, seed
        if problem not in self._yardsticks:
            self._yardsticks[problem] = yardstick_of(problem, inputs)
        return self._yardsticks[problem]

    # ---- telling the parent ----------------------------------------------------------

    def _succeed(self, contender: Contender, untimed: dict[str, Any]) -> None:
        told = {name: part and part.model_dump() for name, part in contender.figures.items()}
        self._send(
            "result",
            who=contender.key,
            status="ok",
            choices=self._choices[contender.key],
            **told,
            **contender.about,
            **untimed,
            accuracy={name: a.model_dump() for name, a in contender.accuracy.items()},
            wall_s=self._phase_s(contender.key) + contender.sampled_s,
        )


def measure(task: dict[str, Any], send: Send) -> None:
    """Measure one problem's contenders and leave the process clean for the next."""
    _tidy()
    Group(task, send).run()
    if "torch._dynamo" in sys.modules:
        # Compiled variants of this problem must not count towards the next one's limit.
        torch._dynamo.reset()


def _tidy() -> None:
    """Collect what the last problem left, and look no more at what has come to stay.

    Modules are most of what there is to look at: each collection would take a tenth of a
    second, in the middle of somebody's samples.
    """
    gc.collect()
    gc.freeze()
