"""How large the last-level cache is, and that a flush goes through twice as much memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnbench.measure import cache
from attnbench.measure.cache import host_flush, last_level_cache_bytes

MIB = 1 << 20


def machine(folder: Path, *instances: tuple[str, int, str, str, str]) -> Path:
    """A /sys/devices/system/cpu with caches: (cpu/index, level, type, size, shared with)."""
    for where, level, kind, size, shared in instances:
        index = folder / where.replace("/", "/cache/")
        index.mkdir(parents=True)
        told = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
        for name, value in told.items():
            (index / name).write_text(f"{value}\n")
    return folder


def test_all_instances_of_the_last_level_count_each_once(tmp_path: Path) -> None:
    cpus = machine(
        tmp_path,
        ("cpu0/index0", 1, "Data", "48K", "0"),
        ("cpu0/index1", 1, "Instruction", "32K", "0"),
        ("cpu0/index3", 3, "Unified", "96M", "0-1"),
        ("cpu1/index3", 3, "Unified", "96M", "0-1"),
        ("cpu2/index3", 3, "Unified", "98304K", "2-3"),
        ("cpu2/index2", 2, "Unified", "1G", "2"),
    )
    assert last_level_cache_bytes(cpus) == 192 * MIB


def test_a_machine_that_tells_little_or_nothing_is_taken_to_have_128_mib(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tmp_path / "none") == 128 * MIB
    cpus = machine(
        tmp_path,
        ("cpu0/index3", 3, "Unified", "32768K", "0-1"),
        ("cpu0/index4", 4, "Unified", "", "0-1"),
    )
    assert last_level_cache_bytes(cpus) == 128 * MIB


def test_a_flush_reads_and_writes_every_line_of_twice_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[torch.Tensor] = []
    zeros = torch.zeros

    def remember(size: int, dtype: torch.dtype) -> torch.Tensor:
        made.append(zeros(size, dtype=dtype))
        return made[-1]

    monkeypatch.setattr(cache, "last_level_cache_bytes", lambda: MIB)
    monkeypatch.setattr(torch, "zeros", remember)
    flush = host_flush()
    (buffer,) = made
    assert buffer.nbytes == 2 * MIB
    flush()
    flush()
    assert len(made) == 1, "allocated once"
    assert bool((buffer == 2).all())
