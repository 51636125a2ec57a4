"""OpenMP's threads have cores of their own while sampling, and are let go afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attnbench.measure import pinning

MASK = os.sched_getaffinity(0)


@pytest.fixture
def team() -> Iterator[list[int]]:
    """The CPUs of two threads; other tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    planned = pinning.plan({})
    if isinstance(planned, str):
        pytest.skip(f"cannot pin here: {planned}")
    yield planned
    torch.set_num_threads(before)


def cores(folder: Path, *siblings: str) -> Path:
    """CPUs with the siblings of each."""
    for cpu, shared in enumerate(siblings):
        (folder / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(shared + "\n")
    return folder


def masks_of_threads() -> list[set[int]]:
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]


def test_whole_cores_go_before_their_siblings_and_the_last_before_the_first(
    tmp_path: Path,
) -> None:
    cpus = cores(tmp_path, "0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")
    assert pinning.choose(range(8), 4, cpus) == [7, 6, 5, 4]
    assert pinning.choose(range(8), 6, cpus) == [7, 6, 5, 4, 3, 2]
    assert pinning.choose([0, 1, 4], 2, cpus) == [4, 1], "0 is a sibling of 4"


def test_cores_that_are_not_described_are_cores(tmp_path: Path) -> None:
    assert pinning.choose([3, 5], 2, tmp_path) == [5, 3]


def test_more_threads_than_cpus_are_left_alone(tmp_path: Path) -> None:
    assert pinning.choose([0, 1], 3, tmp_path) == "3 threads, but only 2 CPUs are allowed"


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"])
def test_what_the_user_has_settled_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "false")
    assert pinning.plan() == f"{name} is set"
    assert pinning.describe() == f"not pinned: {name} is set"
    with pinning.pinned():
        assert os.sched_getaffinity(0) == MASK


def test_the_team_is_bound_inside_and_free_again_after(team: list[int]) -> None:
    torch.randn(1 << 20).add_(1)  # the team is there
    with pinning.pinned():
        bound = [mask for mask in masks_of_threads() if len(mask) == 1]
        assert sorted(bound) == sorted({cpu} for cpu in team[1:])
    assert all(mask == MASK for mask in masks_of_threads())


@pytest.mark.usefixtures("team")
def test_threads_that_a_plugin_starts_while_it_is_sampled_may_run_everywhere() -> None:
    seen: list[set[int]] = []
    with pinning.pinned():
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
    assert seen == [MASK]


def test_one_thread_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert pinning.plan({}) == "there is one thread"


@pytest.mark.usefixtures("team")
def test_threads_are_let_go_after_a_failure_too() -> None:
    with pytest.raises(LookupError), pinning.pinned():
        raise LookupError
    assert all(mask == MASK for mask in masks_of_threads())
