"""One rank of a training step: builds, learns and is timed with the others; tells what it saw.

Run by torchrun as ``python -m attnbench.train.ranks.rank FOLDER``. What it is to do lies in
the folder (``job.json``), and there it writes its events, a line each.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

from attnbench.train.ranks.events import JOB, Events, events_of
from attnbench.worker import die_with_parent, tell_where_on_death

_SPARE = 4  # times its own limit that a rank waits for others: whoever watches is first


def main() -> None:
    """Do this rank's part of a job; tell why, if it cannot."""
    die_with_parent()
    tell_where_on_death()
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    events = Events(events_of(folder, rank))
    events.send("begins", pid=os.getpid())
    job = json.loads((folder / JOB).read_text())
    sys.path += [path for path in job["sys_path"] if path not in sys.path]
    try:
        _work(job, rank, events)
    except BaseException as error:
        from attnbench.failure import classify

        failed = classify(error)
        events.send(
            "failed",
            status=failed.status,
            reason=failed.reason,
            log=failed.log,
            is_lost=_is_lost(error),
        )
        sys.stderr.write(f"{failed.log or failed.reason}\n")
        sys.stderr.flush()
        os._exit(1)  # leaving in order would wait for ranks that are gone
    events.send("ends")


def _work(job: dict[str, Any], rank: int, events: Events) -> None:
    import torch
    import torch.distributed as dist

    from attnbench.train.group import compiling
    from attnbench.train.ranks.work import Work
    from attnbench.train.step import products_of
    from attnbench.train.workload import Workload

    workload = Workload.from_json(job["problem"])
    device = torch.device(job["devices"][rank])
    limit = datetime.timedelta(seconds=_SPARE * job["timeout_s"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=limit, device_id=device)
        group = dist.new_group(backend="gloo", timeout=limit)
    else:
        torch.set_num_threads(job["threads"])
        dist.init_process_group("gloo", timeout=limit)
        group = dist.group.WORLD
    events.step("build")
    with products_of(workload), compiling(workload, 1):
        told = Work(job, workload, device, group, events).run()
    if rank == 0:
        events.send("result", told=told)
    dist.barrier(group=group)
    dist.destroy_process_group()


def _is_lost(error: BaseException) -> bool:
    """Whether this rank failed because another one has gone."""
    import torch.distributed as dist

    words = str(error).lower()
    named = ("gloo", "connection closed", "connection reset", "nccl")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(name in words for name in named)
    )


if __name__ == "__main__":
    main()
