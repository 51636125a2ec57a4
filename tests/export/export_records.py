"""What every format is given: two times, one of every status that has none, odd letters."""

from __future__ import annotations

from pathlib import Path

from made_records import record, write

from attnbench.record import STATUSES, Implementation

TIMED = ("triton", "sdpa:backend=math")
NOT_OK = tuple(status for status in STATUSES if status != "ok")
ODD = "it said <&\"'\x00\x1b[31m☃\ud800 and stopped\n"


def results(folder: Path) -> Path:
    """A record file with its environment: two ok, one of each other status."""
    told = [
        record([[1.0e-3, 1.1e-3, 0.9e-3], [1.0e-3, 1.2e-3, 1.0e-3]]),
        record(
            [[2e-3, 2.5e-3, 2e-3, 2e-3]],
            implementation="sdpa:backend=math",
        ).model_copy(
            update={
                "implementation": Implementation(name="sdpa", given={"backend": "math"}),
                "memory": None,
            }
        ),
        *(record(status=status, implementation=f"bad-{status}", log_tail=ODD) for status in NOT_OK),
    ]
    return write(folder, told)
