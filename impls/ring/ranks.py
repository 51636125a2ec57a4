"""The processes of a ring, seen from the one that asks: started once, called often, ended.

They end with this process, because then their connection closes.
"""

from __future__ import annotations

import atexit
import pickle
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).with_name("rank.py")

_running: dict[tuple[Path, int, str], Ranks] = {}


class Ranks:
    """Some processes that answer calls together.

    Args:
        script: what each of them runs.
        world: how many.
        device: ``cpu``, or ``cuda``: then each has a GPU of its own, from the first on.
    """

    def __init__(self, script: Path, world: int, device: str) -> None:
        self.world = world
        self._store = tempfile.TemporaryDirectory(prefix="attnbench-ring-")
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(world):
            own, theirs = Pipe()
            place = device if device == "cpu" else f"{device}:{rank}"
            told = (str(rank), str(world), place, f"file://{self._store.name}/store")
            # -P: what lies beside the script is not the standard library's.
            command = [sys.executable, "-P", str(script), str(theirs.fileno()), *told]
            self._processes.append(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
            theirs.close()
            self._connections.append(own)

    def call(
        self, name: str, told: dict[str, Any], tensors: list[list[torch.Tensor]]
    ) -> list[list[torch.Tensor]]:
        """What each rank answers to a call with its own tensors; on the CPU.

        Raises:
            RuntimeError: a rank failed or died. All are ended then.
        """
        answers: dict[int, list[torch.Tensor]] = {}
        try:
            for connection, own in zip(self._connections, tensors, strict=True):
                text = pickle.dumps((name, told, [x.detach().cpu().contiguous() for x in own]))
                connection.send_bytes(text)
            while len(answers) < self.world:
                missing = [c for r, c in enumerate(self._connections) if r not in answers]
                for ready in wait(missing):
                    rank = next(r for r, c in enumerate(self._connections) if c is ready)
                    answers[rank] = self._answer(rank)
        except BaseException:
            self.end()
            raise
        return [answers[rank] for rank in range(self.world)]

    def _answer(self, rank: int) -> list[torch.Tensor]:
        try:
            answer = pickle.loads(self._connections[rank].recv_bytes())
        except (EOFError, ConnectionError):
            code = self._processes[rank].wait()
            raise RuntimeError(f"rank {rank} of {self.world} ended with exit code {code}") from None
        if isinstance(answer, str):
            raise RuntimeError(f"rank {rank} of {self.world}: {answer}")
        return answer  # type: ignore[no-any-return]

    def end(self) -> None:
        """Kill them; the next call of :func:`ranks` starts others."""
        for key in [k for k, ranks in _running.items() if ranks is self]:
            del _running[key]
        for process in self._processes:
            process.kill()
            process.wait()
        for connection in self._connections:
            connection.close()
        self._store.cleanup()


def ranks(world: int, device: torch.device) -> Ranks:
    """The processes of a ring of this size on this kind of device; started if there are none."""
    key = (SCRIPT, world, device.type)
    if key not in _running:
        _running[key] = Ranks(*key)
    return _running[key]


@atexit.register
def _end_all() -> None:
    for running in list(_running.values()):
        running.end()
