"""What makes runs comparable is told apart from what is only worth knowing."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from attnbench import environment as environments

KNOWN: dict[str, Any] = {
    "identity": {
        "hardware": {"device": "cpu", "cpu": "Fast(R) CPU @ 3.0GHz", "cores": 4, "threads": 2},
        "software": {"torch": "2.13.0", "triton": None},
    },
    "context": {"git": {"commit": "abc", "dirty": False}, "os": "Linux"},
}


def changed(*path: str, to: Any) -> dict[str, Any]:
    copied = copy.deepcopy(KNOWN)
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return copied


# ---- identity ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [("context", "os"), ("context", "git"), ("context", "gpu")])
def test_the_context_does_not_change_the_machine_but_its_file(path: tuple[str, ...]) -> None:
    other = changed(*path, to="another")
    assert environments.machine_id(other) == environments.machine_id(KNOWN)
    assert environments.address(other) != environments.address(KNOWN)


@pytest.mark.parametrize(
    "path",
    [
        ("identity", "hardware", "cpu"),
        ("identity", "hardware", "threads"),
        ("identity", "hardware", "driver"),
        ("identity", "software", "torch"),
    ],
)
def test_hardware_and_software_make_another_machine(path: tuple[str, ...]) -> None:
    other = changed(*path, to="another")
    assert environments.machine_id(other) != environments.machine_id(KNOWN)
    assert environments.address(other) != environments.address(KNOWN)


def test_the_order_of_keys_means_nothing() -> None:
    turned = json.loads(json.dumps(KNOWN), object_pairs_hook=lambda p: dict(reversed(p)))
    assert list(turned) != list(KNOWN)
    assert environments.machine_id(turned) == environments.machine_id(KNOWN)
    assert environments.address(turned) == environments.address(KNOWN)


def test_a_machine_is_named_by_its_gpu_else_by_its_cpu_fit_for_a_folder() -> None:
    assert environments.machine_name(KNOWN) == "cpu-fast-r-cpu-3-0ghz"
    with_gpu = changed("identity", "hardware", "gpu", to="NVIDIA H200 / SXM ")
    assert environments.machine_name(with_gpu) == "nvidia-h200-sxm"


# ---- files -------------------------------------------------------------------------------


def test_an_environment_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    name = environments.save(KNOWN, folder)
    assert environments.load(folder, name) == KNOWN
    assert [f.name for f in folder.iterdir()] == [f"environment-{name}.json"]


def test_a_file_is_named_by_its_content_so_that_each_stays(tmp_path: Path) -> None:
    other = changed("context", "os", to="another")
    names = [environments.save(e, tmp_path) for e in (KNOWN, other, copy.deepcopy(KNOWN))]
    assert names[0] == names[2] != names[1]
    assert len(list(tmp_path.iterdir())) == 2
    assert environments.load(tmp_path, names[0]) == KNOWN
    assert environments.load(tmp_path, names[1]) == other


def test_a_file_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    name = environments.save(KNOWN, tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat()
    environments.save(KNOWN, tmp_path)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert environments.address(json.loads(path.read_text())) == name


@pytest.mark.parametrize("text", [None, "[1, 2]"])
def test_an_environment_that_is_not_there_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "environment-0.json").write_text(text)
    assert environments.load(tmp_path, "0") is None


# ---- this machine ------------------------------------------------------------------------


def test_this_machine_is_described_in_plain_json_and_always_the_same() -> None:
    described = environments.describe("cpu")
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    again = environments.describe("cpu")
    assert environments.machine_id(again) == environments.machine_id(described)


def test_threads_are_part_of_the_identity() -> None:
    import torch

    threads = torch.get_num_threads()
    before = environments.describe("cpu")["identity"]["hardware"]
    try:
        torch.set_num_threads(threads + 1)
        after = environments.describe("cpu")["identity"]["hardware"]
    finally:
        torch.set_num_threads(threads)
    assert (before["threads"], after["threads"]) == (threads, threads + 1)


def test_the_commit_is_that_of_the_current_folder_and_says_if_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(
            ["git", *who, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environments.describe("cpu")["context"]["git"] is None
    git("init", "-q")
    file = tmp_path / "f"
    file.write_text("1")
    git("add", "f")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("records land here")
    assert environments.describe("cpu")["context"]["git"] == {"commit": commit, "dirty": False}
    file.write_text("2")
    assert environments.describe("cpu")["context"]["git"] == {"commit": commit, "dirty": True}
