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

from attnbench.record import Status

Event = dict[str, Any]

_LOG_TAIL_BYTES = 4000
_POLL_S = 0.2


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
    """

    def __init__(self, device: str) -> None:
        self._log = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed by close()
            prefix="attnbench-worker-", suffix=".log"
        )
        self._oom_kills = _oom_kills()
        read_end, write_end = os.pipe()
        self._events = read_end
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attnbench.worker", str(write_end), device],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[write_end],
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        os.close(write_end)

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._process.pid

    def ask(self, task: Event, timeout_s: float) -> Iterator[Event]:
        """Send a task; yield its events up to and including the one called ``done``.

        Args:
            timeout_s: longest silence between two events.

        Raises:
            WorkerDied: it crashed, was killed, or was silent for too long (then it is
                killed here).
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its death is told by the read below
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        while True:
            event = self._next(timeout_s)
            yield event
            if event["event"] == "done":
                return

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
            if left <= 0:
                self._process.kill()
                self._process.wait()
                raise WorkerDied(
                    "timeout", f"no sign of life for {timeout_s:g} s; killed", self.log_tail()
                )
            if select.select([self._events], [], [], min(left, _POLL_S))[0]:
                data = os.read(self._events, 1 << 16)
                if not data:
                    raise self._obituary()
                self._buffer += data
            elif self._process.poll() is not None:  # a grandchild may hold the pipe open
                raise self._obituary()
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: Event = json.loads(line)
        return event

    def _obituary(self) -> WorkerDied:
        code = self._process.wait()
        log = self.log_tail()
        if code >= 0:
            return WorkerDied("crash", f"the worker process exited with code {code}", log)
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL and _oom_kills() > self._oom_kills:
            return WorkerDied("oom", "killed by the kernel: the machine ran out of memory", log)
        hint = " (kill -9 from outside)" if -code == signal.SIGKILL else ""
        return WorkerDied("crash", f"the worker process was killed by {name}{hint}", log)


def _close(file: IO[bytes] | None) -> None:
    if file is not None:
        with contextlib.suppress(BrokenPipeError):
            file.close()


def _oom_kills() -> int:
    """How often this machine's kernel has killed for want of memory since it booted."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
