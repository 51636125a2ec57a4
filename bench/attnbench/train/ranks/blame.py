"""Which of several ranks is to blame when they fail, and in what words.

One that dies takes the others along: they lose a connection and raise, or torchrun ends them.
So the first cause is looked for by kind before it is looked for by time.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.failure import Failed
from attnbench.process import SIGNAL_WHERE, signal_name
from attnbench.record import Status

_TAIL_BYTES = 4000
_STACK_BYTES = 32_000  # of a log that ends with a stack, which begins with what matters
_WRITE_S = 0.5  # for ranks to write down where they are
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')
_WAITS = ("/torch/distributed/", "/torch/nn/parallel/", "/torch/autograd/graph.py")
_NO_CAUSE = (signal.SIGTERM, signal.SIGABRT)  # torchrun's, and that of a lost connection


@dataclass
class Seen:
    """What is known of some ranks.

    Attributes:
        world: how many there are.
        logs: torchrun's folder of what they print.
        agent_log: what torchrun's launcher prints.
        pids: of those that have begun.
        ready: those that have begun to work: no longer busy with imports.
        failures: last words by rank, as events.
        ended: ranks that have ended well.
        exits: exit code by rank, where not well.
    """

    world: int
    logs: Path
    agent_log: Path
    pids: dict[int, int] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    failures: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    exits: dict[int, int] = field(default_factory=dict)

    def take(self, rank: int, event: dict[str, Any]) -> None:
        """Note an event."""
        if event["event"] == "begins":
            self.pids[rank] = event["pid"]
        elif event["event"] == "step":
            self.ready.add(rank)
        elif event["event"] == "failed":
            self.failures[rank] = event
        elif event["event"] == "ends":
            self.ended.add(rank)

    @property
    def has_failed(self) -> bool:
        """Whether a rank said that it failed."""
        return bool(self.failures)

    def log(self, rank: int, most: int = _TAIL_BYTES) -> str:
        """The end of what a rank wrote to standard error."""
        found = sorted(self.logs.glob(f"*/attempt_0/{rank}/stderr.log"))
        return _tail(found[-1], most) if found else ""


def of(seen: Seen, *, is_oom: bool) -> Failed:
    """The first cause, of ranks of which not all have ended well."""
    killed = {r: -c for r, c in seen.exits.items() if c < 0 and -c not in _NO_CAUSE}
    raised = {r: e for r, e in seen.failures.items() if not e["is_lost"]}
    silent = {r: c for r, c in seen.exits.items() if c > 0 and r not in seen.failures}
    if killed:
        rank = min(killed)
        return _killed(seen, rank, killed[rank], is_oom=is_oom)
    if raised or not (silent or seen.exits):
        return _raised(raised or seen.failures, seen)
    if silent:
        rank = min(silent)
        reason = f"rank {rank} of {seen.world} exited with code {silent[rank]}"
        return Failed("crash", reason + _last_line(seen.log(rank)), seen.log(rank) or None)
    aborted = {r: -c for r, c in seen.exits.items() if -c == signal.SIGABRT}
    if aborted:
        rank = min(aborted)
        return _killed(seen, rank, aborted[rank], is_oom=False)
    return _raised(seen.failures, seen)


def hanging(seen: Seen, silent_s: float) -> Failed:
    """Who keeps the others waiting: who is in no call that waits for others.

    Asks all for their stacks; they must still be there.
    """
    for pid in seen.pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGNAL_WHERE)
    time.sleep(_WRITE_S)
    stacks = {r: _stack(seen.log(r, _STACK_BYTES)) for r in range(seen.world)}
    where = {rank: _innermost(stack) for rank, stack in stacks.items()}
    stuck = [r for r, at in where.items() if at and not any(w in at[0] for w in _WAITS)]
    named = stuck or list(where)
    words = "; ".join(f"rank {r} of {seen.world} {_at(where[r])}" for r in named)
    others = "; the others wait for it" if len(named) == 1 < seen.world else ""
    log = "\n".join(f"rank {r}:{s[: _TAIL_BYTES // seen.world]}" for r, s in stacks.items())
    return Failed("timeout", f"no sign of life for {silent_s:g} s: {words}{others}; killed", log)


def _killed(seen: Seen, rank: int, number: int, *, is_oom: bool) -> Failed:
    log = seen.log(rank)
    status: Status = "crash"
    hint = ""
    if number == signal.SIGKILL:
        hint = " (kill -9 from outside)"
        if is_oom:
            status, hint = "oom", " by the kernel: the machine ran out of memory"
    reason = f"rank {rank} of {seen.world} was killed by {signal_name(number)}{hint}"
    return Failed(status, reason + _last_line(log), log or None)


def _raised(failures: dict[int, dict[str, Any]], seen: Seen) -> Failed:
    """The earliest of what ranks said."""
    if not failures:
        log = _tail(seen.agent_log)
        return Failed("error", "torchrun ended without its ranks" + _last_line(log), log or None)
    rank, event = min(failures.items(), key=lambda item: item[1]["at"])
    status: Status = event["status"]
    # What an implementation says about itself is not one rank's.
    who = "" if status in ("unsupported", "incorrect") else f"rank {rank} of {seen.world}: "
    return Failed(status, f"{who}{event['reason']}", event["log"])


def _last_line(log: str) -> str:
    lines = log.strip().splitlines()
    return f"; its last line: {lines[-1].strip()[:200]}" if lines else ""


def _stack(log: str) -> str:
    """The last stack in a log, the innermost frame first; empty if there is none."""
    _, asked, stack = log.rpartition("(most recent call first):")
    return stack if asked else ""


def _innermost(stack: str) -> tuple[str, int, str] | None:
    """File, line and function of where a rank was; None if it did not say."""
    found = _FRAME.search(stack)
    return (found["file"], int(found["line"]), found["function"]) if found else None


def _at(where: tuple[str, int, str] | None) -> str:
    if where is None:
        return "does not say where it is"
    return f"is in {where[2]}, {Path(where[0]).name} line {where[1]}"


def _tail(path: Path, most: int = _TAIL_BYTES) -> str:
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read().decode(errors="replace").strip()
