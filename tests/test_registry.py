"""Finding implementations: whatever a file does when imported, it is listed with a reason."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest
from helpers import HEALTHY

from attnbench.pool import WorkerPool, discover
from attnbench.registry import Entry, Source, blame, by_name, sources

TWICE = HEALTHY.format(name="twice") + HEALTHY.format(name="twice").replace("Right", "Again")

AT_IMPORT = {
    "aborts": "import os\nprint('last words', flush=True)\nos.abort()",
    "asks": "input('password? ')",
    "changes-dtype": "import torch\ntorch.set_default_dtype(torch.float64)",
    "exits": "import sys\nsys.exit(0)",
    "hangs": "import time\ntime.sleep(3600)",
    "interrupts": "raise KeyboardInterrupt",
    "no-such-module": "# a comment\nimport flash_attn_99",
    "null": "x = 1\0",
    "nothing": "x = 1",
    "patches-sdpa": "import torch.nn.functional as F\n"
    "F.scaled_dot_product_attention = lambda q, k, v, **_: v",
    "quits": "import os\nos._exit(0)",
    "raises": "def deep():\n    raise ValueError('two\\nlines')\n\ndeep()",
    "segfaults": "import ctypes\nctypes.string_at(0)",
    "syntax": "x = 1\ny = = 2\n",
    "unspeakable": "class E(Exception):\n    def __str__(self): raise TypeError\nraise E",
}


def write(folder: Path, **files: str) -> Path:
    """A folder with files of these names (``-`` for ``_``) and texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(dedent(text))
    return folder


def find(project: Path, *folders: Path, timeout_s: float = 60) -> dict[str, Entry]:
    """What a worker finds, by name, without the built-in ones."""
    with WorkerPool("cpu", project) as pool:
        found = discover(pool, project, folders, timeout_s)
    names = [entry.name for entry in found]
    assert len(names) == len(set(names)), "a name appears twice"
    return {entry.name: entry for entry in found if entry.source.origin != "built-in"}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Entry]:
    """All of them in one folder, with healthy ones before, between and after."""
    folder = tmp_path_factory.mktemp("bad")
    write(folder, **AT_IMPORT, **{n: HEALTHY.format(name=n) for n in ("a", "i", "z")})
    (folder / "dangling.py").symlink_to(folder / "gone")
    (folder / "folder.py").mkdir()
    return find(folder.parent, folder, timeout_s=8)


def test_every_file_that_fails_to_import_is_unavailable_and_the_healthy_are_there(
    bad: dict[str, Entry],
) -> None:
    assert set(bad) == {*AT_IMPORT, "a", "i", "z", "dangling", "folder"}
    assert {n for n, e in bad.items() if e.reason is None} == {"a", "i", "z"}


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("aborts", 0, "killed by SIGABRT"),
        ("asks", 1, "EOFError"),
        ("changes-dtype", 0, "default dtype from torch.float32 to torch.float64"),
        ("dangling", 0, "FileNotFoundError"),
        ("exits", 2, "SystemExit: 0"),
        ("folder", 0, "FileNotFoundError"),
        ("hangs", 0, "no sign of life for 8 s"),
        ("interrupts", 1, "KeyboardInterrupt"),
        ("no-such-module", 2, "ModuleNotFoundError: No module named 'flash_attn_99'"),
        ("nothing", 0, "registers no implementation (no @register call)"),
        ("null", 0, "null bytes"),
        ("patches-sdpa", 0, "changed F.scaled_dot_product_attention"),
        ("quits", 0, "exited with code 0"),
        ("raises", 2, "ValueError: two"),
        ("segfaults", 0, "killed by SIGSEGV"),
        ("syntax", 2, "SyntaxError: invalid syntax"),
        ("unspeakable", 3, "E: (and its message cannot be read: TypeError)"),
    ],
)
def test_the_reason_has_file_and_line(
    bad: dict[str, Entry], name: str, line: int, words: str
) -> None:
    entry = bad[name]
    assert words in (entry.reason or "")
    assert "\n" not in (entry.reason or "")
    assert Path(entry.file).name == f"{name}.py"
    assert entry.line == line


def test_a_name_registered_twice_works_once_and_says_where_the_other_is(tmp_path: Path) -> None:
    write(tmp_path / "impls", twice=TWICE, other=HEALTHY.format(name="naive"))
    found = find(tmp_path)
    assert found["twice"].reason is None
    assert found["twice"].summary == "Right."
    (second,) = (e for n, e in found.items() if n.startswith("twice ("))
    assert second.name == f"twice (twice.py:{second.line})"
    assert second.reason == "registers 'twice' twice, first in line 5"
    (taken,) = (e for n, e in found.items() if n.startswith("naive"))
    assert "the name 'naive' is taken by" in (taken.reason or "")
    assert "impls/naive.py" in (taken.reason or "")


def test_a_broken_file_does_not_hide_behind_a_working_one_of_its_name(tmp_path: Path) -> None:
    write(tmp_path / "impls", naive="import nowhere_99")
    found = find(tmp_path)
    (broken,) = found.values()
    assert broken.name == "naive (naive.py:1)"
    assert "nowhere_99" in (broken.reason or "")


def test_entries_of_one_name_in_equal_files_are_told_apart_by_folder() -> None:
    twins = [blame(Source("project", "x", path=f"/{d}/x.py"), "broken") for d in "ab"]
    good = Entry("x", Source("project", "x"), "/c/x.py", 3)
    names = [entry.name for entry in by_name([*twins, good])]
    assert names == ["x", "x (/b/x.py:0)", "x (x.py:0)"]


def test_a_folder_is_one_plugin_and_may_import_its_own_files(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "impls" / "big",
        __init__="from .kernel import attend\nfrom attnbench import register\n"
        "register('big')(lambda q, k, v, problem: attend(q, k, v))",
        kernel="from torch.nn.functional import scaled_dot_product_attention as attend",
    )
    (folder / "kernel.cu").write_text("// version 1")
    before = find(tmp_path)["big"]
    assert before.reason is None
    (folder / "kernel.cu").write_text("// version 2")
    assert find(tmp_path)["big"].source_sha256 != before.source_sha256


def test_a_plugin_may_import_its_project_but_the_project_shadows_nobody(tmp_path: Path) -> None:
    write(tmp_path, my_kernels="ANSWER = 42", random="raise SystemError", torch="x = 1")
    write(tmp_path / "impls", mine="import my_kernels, random\n" + HEALTHY.format(name="mine"))
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        found = find(tmp_path)
    finally:
        os.chdir(before)
    assert found["mine"].reason is None


def test_helpers_tests_and_hidden_files_are_no_plugins(tmp_path: Path) -> None:
    names = ("_helper", "test_mine", "conftest", "real")
    write(tmp_path / "impls", **{n: HEALTHY.format(name="x") for n in names})
    (tmp_path / "impls" / "notes.txt").write_text("nothing")
    (tmp_path / "impls" / "data").mkdir()
    found = [s.stem for s in sources(tmp_path) if s.origin == "project"]
    assert found == ["real"]


def test_a_copy_of_a_built_in_file_counts_once(tmp_path: Path) -> None:
    builtin = next(s for s in sources(tmp_path) if s.stem == "naive")
    write(tmp_path / "impls", naive=Path(builtin.path).read_text())
    assert [s for s in sources(tmp_path) if s.origin == "project"] == []


def test_an_entry_survives_the_way_from_the_worker() -> None:
    source = Source("package x 1", "x", entry_point="x.impl:X")
    entry = Entry("x", source, "x.py", 3, options={"block": 64, "fast": True}, features=("gqa",))
    assert Entry.from_json(entry.to_json()) == entry
