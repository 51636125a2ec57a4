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
def device_lock(device: str, unit: str | None = None) -> Iterator[None]:
    """Hold the device, or say who does. The lock goes with the process, however it ends.

    The lock files lie in ``ATTNBENCH_LOCK_DIR``, else in the system's temporary folder, and
    are everybody's: two users of a machine must not measure on one device either.

    Args:
        device: ``cpu`` or ``cuda:N``.
        unit: what tells the physical device from others (a GPU's UUID): ``cuda:0`` of two
            jobs with different CUDA_VISIBLE_DEVICES are two devices.

    Raises:
        UserError: another attnbench is measuring on the device.
    """
    folder = Path(os.environ.get("ATTNBENCH_LOCK_DIR", tempfile.gettempdir()))
    folder.mkdir(parents=True, exist_ok=True)
    name = (unit or device).replace(":", "-")
    with os.fdopen(_open(folder / f"attnbench-{name}.lock"), "r+") as file:
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


def _open(path: Path) -> int:
    """A descriptor of the file, which anybody may write, whoever made it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)  # without O_CREAT: Linux denies that on others' files in /tmp
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        os.fchmod(descriptor, 0o666)  # whatever the umask
        return descriptor
