"""One measurement at a time on each device: two would spoil each other's figures."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnbench.errors import UserError


@contextmanager
def device_lock(device: str) -> Iterator[None]:
    """Hold the device, or say who does. The lock goes with the process, however it ends.

    The lock files lie in ``ATTNBENCH_LOCK_DIR``, else in the system's temporary folder.

    Raises:
        UserError: another attnbench is measuring on the device.
    """
    folder = Path(os.environ.get("ATTNBENCH_LOCK_DIR", tempfile.gettempdir()))
    path = folder / f"attnbench-{device.replace(':', '-')}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"device {device} is being measured by another attnbench (process {holder}); "
                "wait for it or stop it"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
