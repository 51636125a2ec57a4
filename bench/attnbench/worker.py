"""The worker process: does what may crash, hang or run out of memory.

Run as ``python -m attnbench.worker EVENT_FD DEVICE PROJECT``. Reads one task a line from
what is standard input at first, writes events to EVENT_FD. Before each thing that can go
wrong it says who is at work, so that the parent knows whom to blame.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from attnbench.process import SIGNAL_WHERE

Send = Callable[..., None]
_PR_SET_PDEATHSIG = 1
_MEMORY_SHARE = 0.9  # of what is available now; the rest keeps the machine alive


def main() -> None:
    """Serve tasks until there are no more."""
    event_fd, device, project = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    die_with_parent()
    tell_where_on_death()
    if device == "cpu":  # a CUDA context needs far more address space than memory
        _limit_memory()
    sys.path.append(project)  # a plugin may import its project, which may not shadow anybody
    tasks = _take_stdin()
    events, pid = os.fdopen(event_fd, "wb"), os.getpid()

    def send(event: str, **data: Any) -> None:
        if os.getpid() != pid:  # a plugin forked, and its child came back to here
            os._exit(1)
        line = json.dumps({"event": event, **data}, allow_nan=False, ensure_ascii=False)
        events.write(line.encode(errors="replace") + b"\n")  # plugins' texts may be no UTF-8
        events.flush()

    for line in tasks:
        task = json.loads(line)
        try:
            _TASKS[task["do"]](task, send)
        except Exception as error:  # a fault of attnbench itself, not of a plugin
            traceback.print_exc()
            send("failure", reason=f"{type(error).__name__}: {error}")
        send("done")


def _discover(task: dict[str, Any], send: Send) -> None:
    """Import every source not in ``skip`` and send what was found."""
    from attnbench import registry

    if task["sources"] is None:
        project = Path(task["project"]) if task["project"] else None
        found = registry.sources(project, [Path(p) for p in task["impls_dirs"]])
    else:
        found = [registry.Source(**source) for source in task["sources"]]
    skip = {tuple(s) for s in task["skip"]}
    wanted = [s for s in found if (s.path, s.entry_point) not in skip]

    def announce(source: registry.Source) -> None:
        send("importing", source=vars(source))

    entries = registry.discover(wanted, announce)
    send("entries", entries=[e.to_json() for e in entries])


def _environment(task: dict[str, Any], send: Send) -> None:
    """Settle which device is meant and describe it, or say why there is none."""
    import torch

    from attnbench.environment import describe

    wanted = task["device"]
    name, _, index = wanted.partition(":")
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        wanted = "cuda:0" if usable else "cpu"
    elif name == "cuda" and (index.isdecimal() or not index):
        wanted = f"cuda:{index or 0}"
        if int(index or 0) >= usable:
            fault = f"torch {torch.__version__} sees {usable} usable GPUs here; allowed: auto, cpu"
            return send("environment", environment={"fault": fault})
    elif wanted != "cpu":
        return send("environment", environment={"fault": "allowed: auto, cpu, cuda, cuda:N"})
    if wanted == "cpu":
        _limit_memory()
    send("environment", environment=describe(wanted))


def _probe(task: dict[str, Any], send: Send) -> None:
    from attnbench.inquiry import probe

    probe(task, send)


def _measure(task: dict[str, Any], send: Send) -> None:
    from attnbench.workgroup import measure

    measure(task, send)


def _train(task: dict[str, Any], send: Send) -> None:
    from attnbench.train.group import train

    train(task, send)


def _generate(task: dict[str, Any], send: Send) -> None:
    from attnbench.train.generation.group import generate

    generate(task, send)


def _count(task: dict[str, Any], send: Send) -> None:
    from attnbench.train.foresee import count

    count(task, send)


def _foresee(task: dict[str, Any], send: Send) -> None:
    from attnbench.train.foresee import foresee

    foresee(task, send)


def _battery(task: dict[str, Any], send: Send) -> None:
    from attnbench.inquiry import battery

    battery(task, send)


def _ceilings(task: dict[str, Any], send: Send) -> None:
    from attnbench.inquiry import ceilings

    ceilings(task, send)


def _profile(task: dict[str, Any], send: Send) -> None:
    from attnbench.profiling.collect import collect

    collect(task, send)


def _picture_reference(task: dict[str, Any], send: Send) -> None:
    from attnbench.pictures.weights import reference_weights

    reference_weights(task, send)


def _picture(task: dict[str, Any], send: Send) -> None:
    from attnbench.pictures.weights import method_weights

    method_weights(task, send)


def _selftest(task: dict[str, Any], send: Send) -> None:
    from attnbench.measure.selftest import selftest

    selftest(task, send)


def _list_cases(task: dict[str, Any], send: Send) -> None:
    from attnbench.offline.workers import list_cases

    list_cases(task, send)


def _compile_case(task: dict[str, Any], send: Send) -> None:
    from attnbench.offline.workers import compile_one

    compile_one(task, send)


_TASKS: dict[str, Callable[[dict[str, Any], Send], None]] = {
    "discover": _discover,
    "environment": _environment,
    "probe": _probe,
    "measure": _measure,
    "train": _train,
    "generate": _generate,
    "count": _count,
    "foresee": _foresee,
    "battery": _battery,
    "ceilings": _ceilings,
    "profile": _profile,
    "picture-reference": _picture_reference,
    "picture": _picture,
    "selftest": _selftest,
    "list-cases": _list_cases,
    "compile-case": _compile_case,
}


def _take_stdin() -> IO[str]:
    """The stream of tasks, out of reach of a plugin that reads standard input."""
    tasks = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return tasks


def die_with_parent() -> None:
    """A killed parent must not leave a worker behind that keeps the device busy."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it died before the line above
        sys.exit("the parent is gone")


def tell_where_on_death() -> None:
    """Write the Python stack to the log on a fatal signal, and before a hang is ended."""
    faulthandler.enable()
    faulthandler.register(SIGNAL_WHERE)


def _limit_memory() -> None:
    """Make an allocation that cannot be had fail, instead of inviting the kernel's killer.

    A limit that the user has set already (``ulimit -d``) is kept where it is lower.
    """
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    limit = int(available * _MEMORY_SHARE)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


if __name__ == "__main__":
    main()
