"""What every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session", autouse=True)
def _own_lock_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that measure do not wait for, or disturb, a measurement outside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNBENCH_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))
        yield
