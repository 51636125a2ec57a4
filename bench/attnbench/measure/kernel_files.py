"""The small files in which Linux tells about itself (``/proc``, ``/sys``), read at little cost."""

from __future__ import annotations

import os


def read(path: str) -> str:
    """A small file of the kernel's, whole. A third of what ``Path.read_text`` costs."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def read_or_none(path: str) -> str | None:
    """The same; None where there is no such file, or nobody may read it."""
    try:
        return read(path)
    except OSError:  # a process that has ended, a file that this machine does not have
        return None


def numbers(folder: str) -> list[int]:
    """The names in a folder that are numbers: processes, threads."""
    try:
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except OSError:
        return []


def core_list(text: str) -> list[int]:
    """Read the kernel's lists of cores.

    >>> core_list("0-2,5")
    [0, 1, 2, 5]
    """
    cores: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return cores
