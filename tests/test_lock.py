"""One holder a device; the lock goes with the process, however it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench.errors import UserError
from attnbench.lock import device_lock

HOLD = """
import sys, time
from attnbench.lock import device_lock
with device_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNBENCH_LOCK_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``cuda:1``."""
    words = [sys.executable, "-c", HOLD, "cuda:1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_holder_is_refused_and_told_the_process(holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(UserError, match=rf"device cuda:1 .*\(process {holder.pid}\)") as caught,
        device_lock("cuda:1"),
    ):
        pytest.fail("two hold the device")
    assert "\n" not in str(caught.value)


def test_another_device_is_free(holder: subprocess.Popen[str]) -> None:
    with device_lock("cuda:0"), device_lock("cpu"):
        assert holder.poll() is None


def test_the_lock_goes_with_a_killed_process(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with device_lock("cuda:1"):
        pass


def test_the_lock_is_free_again_after_use_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), device_lock("cpu"):
        raise ZeroDivisionError
    with device_lock("cpu"), pytest.raises(UserError), device_lock("cpu"):
        pytest.fail("two hold the device")
    with device_lock("cpu"):
        pass


def test_the_process_told_is_the_last_holder_not_one_before(folder: Path) -> None:
    (folder / "attnbench-cpu.lock").write_text("123456789")
    told = re.escape(f"(process {os.getpid()})")
    with device_lock("cpu"), pytest.raises(UserError, match=told), device_lock("cpu"):
        pytest.fail("two hold the device")


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock() -> None:
    with device_lock("cpu"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with device_lock("cpu"):
            assert child.poll() is None
    finally:
        child.communicate()


def test_the_lock_is_of_the_physical_device_whatever_its_number(folder: Path) -> None:
    with (
        device_lock("cuda:0", "GPU-1"),
        device_lock("cuda:0", "GPU-2"),
        pytest.raises(UserError, match="device cuda:1 "),
        device_lock("cuda:1", "GPU-1"),
    ):
        pytest.fail("two hold the device")


def test_another_users_umask_does_not_lock_us_out(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with device_lock("cpu"):
            (file,) = folder.iterdir()
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666


def test_a_folder_that_is_not_there_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBENCH_LOCK_DIR", str(folder / "new"))
    with device_lock("cpu"):
        assert (folder / "new").is_dir()
