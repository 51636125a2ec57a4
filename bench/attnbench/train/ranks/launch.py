"""Ranks, seen from the worker: start them through torchrun, listen, end them, say what went wrong.

The ranks have sessions of their own (torchrun gives them these), die with their launcher,
and the launcher dies with the worker: nobody is left behind, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnbench.process import oom_kills
from attnbench.train.ranks import blame
from attnbench.train.ranks.agent import LOGS, REPORT
from attnbench.train.ranks.blame import Seen
from attnbench.train.ranks.events import JOB, Tail, events_of

_POLL_S = 0.05
_START_S = 120.0  # for torchrun to start all ranks, which import torch, and to join them
_SHARE = 0.8  # of the time that the worker itself may be silent: it has to be told apart
_GRACE_S = 10.0  # between the first failure and the report of how all have ended


def run_ranks(
    job: dict[str, Any], world: int, timeout_s: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Have ``world`` ranks do a job; what rank 0 tells at its end.

    Args:
        job: see ``work``; here ``timeout_s`` and ``sys_path`` are added.
        world: how many.
        timeout_s: after which the worker is ended if it is silent; ranks are ended before.
        say: told each phase of rank 0, and that it goes on.

    Raises:
        Failed: a rank died, hung or raised; the reason names it.
    """
    limit_s = _SHARE * timeout_s
    with tempfile.TemporaryDirectory(prefix="attnbench-ranks-") as name:
        folder = Path(name)
        text = json.dumps({**job, "timeout_s": timeout_s, "sys_path": sys.path})
        (folder / JOB).write_text(text)
        kills = oom_kills()
        with _agent(folder, world) as (agent, seen):
            result = _listen(agent, folder, seen, limit_s, say)
            if result is not None:
                return result
            if agent.poll() is None and not seen.has_failed:
                raise blame.hanging(seen, limit_s)
            _wait(agent, seen)
            seen.exits = _report(folder)
            raise blame.of(seen, is_oom=oom_kills() > kills)


@contextmanager
def _agent(folder: Path, world: int) -> Iterator[tuple[subprocess.Popen[bytes], Seen]]:
    """The launcher at work; afterwards nothing of it is left."""
    with open(folder / "agent.log", "wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-P", "-m", "attnbench.train.ranks.agent", str(folder), str(world)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    seen = Seen(world, folder / LOGS, folder / "agent.log")
    try:
        yield agent, seen
    finally:
        # The launcher first: it would see a rank die and report it.
        agent.kill()
        agent.wait()
        for rank in seen.pids.keys() - seen.ended:  # with whatever they have started
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(seen.pids[rank], signal.SIGKILL)


def _listen(
    agent: subprocess.Popen[bytes],
    folder: Path,
    seen: Seen,
    limit_s: float,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Until rank 0 has told its result and all have ended well; None if that will not be."""
    tails = [Tail(events_of(folder, rank)) for rank in range(seen.world)]
    result: dict[str, Any] | None = None
    began = heard = time.monotonic()
    while True:
        is_over = agent.poll() is not None  # asked first: they may have spoken since
        for rank, tail in enumerate(tails):
            for event in tail.lines():
                if not (event["event"] == "step" and rank):
                    heard = time.monotonic()
                seen.take(rank, event)
                if event["event"] == "step" and rank == 0:
                    say(event["phase"])
                if event["event"] == "result":
                    result = event["told"]
        if seen.has_failed:
            return None
        if is_over:
            return result if len(seen.ended) == seen.world else None
        now = time.monotonic()
        if len(seen.ready) < seen.world:
            if now - began > _START_S:
                return None
            if now - heard > 1:
                say("start ranks")
                heard = now
        elif now - heard > limit_s:
            return None
        time.sleep(_POLL_S)


def _wait(agent: subprocess.Popen[bytes], seen: Seen) -> None:
    """For the launcher to end the other ranks and to report; and hear what they said last."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        agent.wait(_GRACE_S)
    for rank in range(seen.world):
        for event in Tail(events_of(seen.logs.parent, rank)).lines():
            seen.take(rank, event)


def _report(folder: Path) -> dict[int, int]:
    """Exit code by rank, as the launcher saw them; empty if it could not tell."""
    path = folder / REPORT
    if not path.exists():
        return {}
    return {int(rank): code for rank, code in json.loads(path.read_text()).items()}
