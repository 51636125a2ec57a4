"""Nsight Compute on one call: ``python -m attnbench.profiling.ncu TASK`` is what it watches.

``ncu`` counts only between the start and the stop of CUDA's profiler, so building,
compiling and warming up are left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from attnbench.errors import UserError

REPORT = "kernels.ncu-rep"
_TASK = "ncu-task.json"


class NcuFailed(Exception):
    """Nsight Compute ran and failed; the text is what it said."""


def find_ncu() -> str:
    """The path of ``ncu``.

    Raises:
        UserError: it is not installed.
    """
    found = shutil.which("ncu")
    if found is None:
        raise UserError("--ncu: there is no ncu on PATH (Nsight Compute, of the CUDA toolkit)")
    return found


def run_ncu(ncu: str, task: dict[str, Any], project: Path, folder: Path, timeout_s: float) -> Path:
    """Profile the task's contender under Nsight Compute; the report it wrote.

    Raises:
        NcuFailed: it could not, or wrote nothing.
    """
    told, report = folder / _TASK, folder / REPORT
    told.write_text(json.dumps({**task, "project": str(project)}))
    words = [
        ncu, "--profile-from-start", "off", "--set", "full", "--force-overwrite",
        "--target-processes", "all", "--export", str(report),
        sys.executable, "-P", "-m", "attnbench.profiling.ncu", str(told),
    ]  # fmt: skip
    try:
        ended = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NcuFailed(f"not done after {timeout_s:g} s; killed") from None
    finally:
        told.unlink()
    if ended.returncode or not report.is_file():
        said = (ended.stdout + ended.stderr).strip().splitlines()
        # Its own complaints begin so; what the profiled program prints lies around them.
        errors = [line for line in said if line.startswith("==ERROR==")]
        raise NcuFailed((errors or said or [f"exit code {ended.returncode}"])[-1])
    return report


def main(words: list[str]) -> None:
    """Build the contender of a task and call it once between start and stop."""
    task = json.loads(Path(words[0]).read_text())
    sys.path.append(task["project"])

    import torch

    from attnbench.problem import Problem
    from attnbench.profiling.collect import warm

    device = torch.device(task["device"])
    (told,) = task["contenders"]
    execution = warm(told, Problem.from_json(task["problem"]), device)
    execution.prepare()
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    execution.step()
    torch.cuda.synchronize(device)
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1:])
