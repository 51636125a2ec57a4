"""What the tests of the implementations share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from installed import install, on_cpu

__all__ = ["install", "on_cpu"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for one another make small shapes ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
