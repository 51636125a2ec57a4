"""torchrun's launcher in a process of its own: starts the ranks, and tells how each ended.

Run as ``python -m attnbench.train.ranks.agent FOLDER WORLD``. It dies with the worker that
started it, and the ranks die with it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from attnbench.worker import die_with_parent

REPORT = "ended.json"
"""In the folder of a job, once it is over: exit code by rank, of those that failed."""
LOGS = "logs"
_SHUTDOWN_S = 2  # between the end of one rank and that of those that do not go by themselves
_LOOPBACK = "127.0.0.1"


def main() -> None:
    """Run a job's ranks until all have ended, or one has failed."""
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    die_with_parent()
    # All ranks are on this machine: nothing has to find out its name in a network.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    ended = _launch(folder, world)
    (folder / f"{REPORT}.new").write_text(json.dumps(ended))
    (folder / f"{REPORT}.new").rename(folder / REPORT)


def _launch(folder: Path, world: int) -> dict[int, int]:
    """Exit code by rank, of those that failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / LOGS), redirects=Std.ALL),
        run_id="ranks",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{_LOOPBACK}:0",
        local_addr=_LOOPBACK,
        max_restarts=0,
        shutdown_timeout=_SHUTDOWN_S,
    )
    # -P: a random.py in the current folder is not the standard library's.
    module = ("-P", "-m", "attnbench.train.ranks.rank", str(folder))
    try:
        elastic_launch(config, sys.executable)(*module)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    return {}


if __name__ == "__main__":
    main()
