"""How ranks and the worker that has started them talk: a job, and lines that files grow by.

Files, because torchrun's launcher stands between them and hands nothing on; and because what a
rank has said stays there when it dies.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

JOB = "job.json"
"""What the ranks are to do, in the folder that they share."""


def events_of(folder: Path, rank: int) -> Path:
    """Where a rank writes its events."""
    return folder / f"rank{rank}.jsonl"


class Events:
    """What a rank tells, line by line."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115

    def send(self, event: str, **told: Any) -> None:
        """Write one event, and when it was."""
        line = {"event": event, "at": time.monotonic(), **told}
        self._file.write(json.dumps(line) + "\n")  # a loss may be no number
        self._file.flush()

    def step(self, phase: str) -> None:
        """Begin a phase, or show that it still goes on."""
        self.send("step", phase=phase)


class Tail:
    """The lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._rest = path, 0, b""

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines that have come since."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        self._at += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in whole]
