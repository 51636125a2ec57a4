"""Turns: contenders go through phases one by one, and one that fails leaves the others alone.

What a worker's groups share: before anything that can go wrong the parent is told who is at
work, whatever goes wrong becomes that contender's result, and nobody leaves anything changed
that others depend on.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

from attnbench.failure import Failed, classify
from attnbench.guard import Guard
from attnbench.spec import Value

Send = Callable[..., None]
Contender = TypeVar("Contender")


class Turns(Generic[Contender]):
    """The contenders of one task, and what becomes of them.

    Args:
        task: of the worker; names device and contenders.
        send: tells the parent.
    """

    def __init__(self, task: dict[str, Any], send: Send) -> None:
        self.device = torch.device(task["device"])
        self._task = task
        self._send = send
        self._alone = len(task["contenders"]) == 1
        self._guard = Guard()
        self._ready: dict[str, Contender] = {}  # those that have not failed
        self._choices: dict[str, dict[str, Value]] = {}  # of those that were built
        self._phases_s: dict[str, float] = {}  # each one's time in phases of its own, but sampling
        self._began = 0.0  # the phase that is under way

    def _step(self, key: str, phase: str) -> None:
        self._send("step", who=key, phase=phase)

    def _reference_step(self) -> None:
        """Nobody's own: the reference that all are held against is at work."""
        self._send("step", who=None, phase="reference")

    def _all_fail(self, error: Exception, what: str) -> None:
        """Everybody's result where ``what`` all depend on failed."""
        failed = classify(error)
        if failed.status != "unsupported":
            failed = Failed("error", f"{what} failed: {failed.reason}", failed.log)
        for told in self._task["contenders"]:
            self._fail(told["key"], failed)

    def _try_all(self, phase: Callable[..., None], *words: Any) -> None:
        for key in list(self._ready):
            self._try(key, phase, key, *words)

    def _try(self, key: str, phase: Callable[..., None], *words: Any) -> None:
        """Turn whatever goes wrong in a contender's phase into its result.

        SystemExit and KeyboardInterrupt too: they are the plugin's, a user's Ctrl-C does not
        reach this process.
        """
        self._began = time.perf_counter()
        try:
            phase(*words)
            self._guard.check_all()
            self._phases_s[key] = self._phase_s(key)
            return
        except BaseException as error:
            failed = classify(error)
        self._fail(key, failed)  # only here is nothing left that holds on to its tensors

    def _phase_s(self, key: str) -> float:
        """Its phases so far, the one under way included."""
        return self._phases_s.get(key, 0.0) + time.perf_counter() - self._began

    def _fail(self, key: str, failed: Failed) -> None:
        self._guard.restore()
        self._ready.pop(key, None)
        self._send(
            "result",
            who=key,
            status=failed.status,
            reason=failed.reason,
            log_tail=failed.log,
            choices=self._choices.get(key, {}),
            alone=self._alone,
        )
        self._release()

    def _release(self) -> None:
        """Give back the memory of what is gone."""
        gc.collect()
        if self.device.type == "cuda":
            # An illegal access leaves a context in which nobody's calls work: then this raises,
            # the worker is given up, and the others go on in a fresh one.
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
