"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]

# Before torch is imported, and for every process that a test starts: threads that wait for one
# another on a machine that several test processes share make small shapes ten times slower.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_lock_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that measure do not wait for, or disturb, a measurement outside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNBENCH_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))
        yield
