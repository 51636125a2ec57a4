"""A worker process, seen from the parent: start, talk, watch, kill, read its last words.

The worker has a session of its own (Ctrl-C reaches the parent alone), dies with the
parent, writes what anybody prints to a log file, and talks in JSON lines: tasks on its
standard input, events on a pipe of its own. So nothing that a plugin prints, and no way
in which it dies, can confuse the conversation.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from attnbench.measure.high_water import FIXED_MALLOC
from attnbench.record import Status

Event = dict[str, Any]

_LOG_TAIL_BYTES = 4000
_POLL_S = 0.2
_START_S = 120.0  # for a worker to import torch and begin a task, before any plugin is at work
_LAST_BREATH_S = 2.0  # between a worker that talks no more and its end
_WRITE_S = 0.3  # for a worker to write down where it hangs

IMPORT_TIMEOUT_S = 120.0
"""For one plugin to be imported, while all are looked for."""
SIGNAL_WHERE = signal.SIGUSR1
"""Makes a worker write to its log what it is doing."""


class WorkerDied(Exception):
    """The worker is gone or was killed for hanging: status, reason and log tail."""

    def __init__(self, status: Literal["crash", "oom", "timeout"], reason: str, log: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason
        self.log = log


class Worker:
    """One worker process. Use as a context manager, or ``close`` it.

    Args:
        device: ``cpu`` or ``cuda:0``; sets the memory guard.
        project: folder whose modules a plugin may import.
    """

    def __init__(self, device: str, project: Path) -> None:
        self._log = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed by close()
            prefix="attnbench-worker-", suffix=".log"
        )
        self._oom_kills = oom_kills()
        read_end, write_end = os.pipe()
        self._events = read_end
        self._buffer = b""
        self._process = subprocess.Popen(
            # -P: a random.py in the current folder is not the standard library's.
            [sys.executable, "-P", "-m", "attnbench.worker", str(write_end), device, str(project)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[write_end],
            start_new_session=True,
            # Kineto, torch's profiler, would fill the log's tail with a line for every stage.
            env={
                "KINETO_LOG_LEVEL": "6",
                **FIXED_MALLOC,
                **os.environ,
                "PYTHONUNBUFFERED": "1",
            },
        )
        os.close(write_end)

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._process.pid

    def ask(self, task: Event, timeout_s: float) -> Iterator[Event]:
        """Send a task; yield its events up to the one called ``done``.

        Args:
            timeout_s: longest silence between two events. The first may take longer: the
                worker may have to start, and nobody else's code runs before it.

        Raises:
            WorkerDied: it crashed, was killed, or was silent for too long (then it is
                killed here).
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its death is told by the read below
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        event = self._next(max(timeout_s, _START_S))
        while event["event"] != "done":
            yield event
            event = self._next(timeout_s)

    def log_tail(self) -> str:
        """The last of what the worker and its plugins printed."""
        path = Path(self._log.name)
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def close(self) -> None:
        """Kill the worker and everything it started; idempotent."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _close(self._process.stdin)
        with contextlib.suppress(OSError):
            os.close(self._events)
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _next(self, timeout_s: float) -> Event:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            is_dead = self._process.poll() is not None  # asked first: it may have spoken since
            if left <= 0:
                self._end_hang()
                raise WorkerDied(
                    "timeout", f"no sign of life for {timeout_s:g} s; killed", self.log_tail()
                )
            if select.select([self._events], [], [], min(left, _POLL_S))[0]:
                data = os.read(self._events, 1 << 16)
                if not data:
                    raise self._obituary()
                self._buffer += data
            elif is_dead:  # a grandchild may hold the pipe open
                raise self._obituary()
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            event: Event = json.loads(line)
        except ValueError:  # a plugin wrote to a descriptor that is not its own
            reason = f"the worker sent something that is no event: {line[:80]!r}"
            raise WorkerDied("crash", reason, self.log_tail()) from None
        return event

    def _end_hang(self) -> None:
        """Have it write down where it hangs, then kill it."""
        self._process.send_signal(SIGNAL_WHERE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_WRITE_S)
        self._process.kill()
        self._process.wait()

    def _obituary(self) -> WorkerDied:
        try:
            code = self._process.wait(_LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            reason = "the worker process closed the pipe it talks through"
            return WorkerDied("crash", reason, self.log_tail())
        log = self.log_tail()
        if code >= 0:
            return WorkerDied("crash", f"the worker process exited with code {code}", log)
        name = signal_name(-code)
        if -code == signal.SIGKILL and oom_kills() > self._oom_kills:
            return WorkerDied("oom", "killed by the kernel: the machine ran out of memory", log)
        hint = " (kill -9 from outside)" if -code == signal.SIGKILL else ""
        return WorkerDied("crash", f"the worker process was killed by {name}{hint}", log)


def _close(file: IO[bytes] | None) -> None:
    if file is not None:
        with contextlib.suppress(BrokenPipeError):
            file.close()


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time ones have no names
        return f"signal {number}"


def oom_kills() -> int:
    """How often this machine's kernel has killed for want of memory since it booted."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
