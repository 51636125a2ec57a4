"""Rounds: contenders that go through their phases in turns are timed together.

What the groups of a worker share that have a clock: the budget, interleaved rounds that go on
without the one who failed in them, and energy in a pass of its own.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from attnbench.failure import classify
from attnbench.measure import pinning
from attnbench.measure.clock import Clock
from attnbench.measure.energy import EnergyMeter
from attnbench.measure.sampling import Budget, Taken, sample
from attnbench.turns import Contender, Send, Turns

_now = time.monotonic  # bound at import: a plugin that patches time changes nothing


class Rounds(Turns[Contender]):
    """Contenders that are timed in interleaved rounds.

    Args:
        task: of the worker; names budget, seed and process too.
        send: tells the parent.
    """

    def __init__(self, task: dict[str, Any], send: Send) -> None:
        super().__init__(task, send)
        self.seed: int = task["seed"]
        self.budget = Budget(**task["budget"])
        self._process: int = task["process"]  # the first one does all but timing for the others
        self._energy_s: float = task["energy_s"]
        self._energy_meter: EnergyMeter | None = None

    @abstractmethod
    def _call(self, contender: Contender) -> Callable[[], Any]:
        """What is timed."""

    def _turn_begins(self, contender: Contender, phase: str) -> None:
        """A contender's calls are about to be made."""

    def _turn_ended(self, contender: Contender) -> None:
        """They were made; nothing else has been done since."""

    def _sample_survivors(
        self, clock: Clock, copies: Callable[[str, int], Any] | None = None
    ) -> dict[str, Taken]:
        """Sample everybody; one that fails while timed drops out and the rest start again."""
        with pinning.pinned() if self.device.type == "cpu" else contextlib.nullcontext():
            while self._ready:
                at_work = next(iter(self._ready))

                def announce(key: str, phase: str) -> None:
                    nonlocal at_work
                    at_work = key
                    self._step(key, phase)
                    self._turn_begins(self._ready[key], phase)

                def ended(key: str) -> None:
                    self._guard.check()
                    self._turn_ended(self._ready[key])

                calls = {key: self._call(contender) for key, contender in self._ready.items()}
                begin = _now()
                try:
                    seed = self.seed + self._process  # another order in each
                    taken = sample(calls, clock, self.budget, seed, announce, ended, copies)
                    self._send("sampled", begin=begin, end=_now())
                    return taken
                except BaseException as error:
                    failed = classify(error)
                del calls
                self._fail(at_work, failed)
        return {}

    def _energy(self, key: str, call: Callable[[], Any]) -> dict[str, Any]:
        """What the record tells of the energy of a call; nothing where none is asked for."""
        if not self._energy_s:
            return {}
        self._step(key, "energy")
        if self._energy_meter is None:
            self._energy_meter = EnergyMeter(self.device, self._energy_s)
        return self._energy_meter.measure(call)
