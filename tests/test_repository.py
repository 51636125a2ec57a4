"""House rules of the tree that are cheap to check."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

import attnbench

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ("bench", "impls", "suites", "reports", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".toml", ".j2", ".js", ".css")
    and not {"__pycache__", "out"} & set(path.parts)
]
PYTHON = [path for path in SOURCES if path.suffix == ".py"]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "entry",
    ["pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE", "CONTRIBUTING.md",
     "CHANGELOG.md", ".gitignore", ".ci/run", ".github/workflows/ci.yml",
     ".github/workflows/pages.yml", "bench/attnbench", "impls", "suites", "results", "reports",
     "tests"],
)  # fmt: skip
def test_the_house_is_complete(entry):
    path = ROOT / entry
    assert path.exists()
    assert any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0


@pytest.mark.parametrize("path", [p for p in PYTHON if "tests" not in p.parts], ids=name_of)
def test_a_module_is_one_room(path):
    assert len(path.read_text().splitlines()) <= 400


def test_nothing_is_left_unfinished():
    words = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]
    marks = re.compile(rf"\b({'|'.join(words)})\b")
    stub = re.compile(r"\braise NotImplementedError\b")  # the tests' broken plugins may
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if marks.search(line) or (stub.search(line) and "tests" not in path.parts)
    ]
    assert found == []


@pytest.mark.parametrize("path", [p for p in PYTHON if "impls" in p.parts], ids=name_of)
def test_built_in_implementations_use_only_the_public_api(path):
    """So that each of them is a template that a user can copy."""
    if "tests" in path.parts:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("attnbench.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attnbench"):
            assert node.module == "attnbench"
            assert {a.name for a in node.names} <= set(attnbench.__all__)


def test_the_public_names_have_a_home_and_are_sorted():
    assert set(attnbench._HOMES) | {"__version__"} == set(attnbench.__all__)
    assert sorted(attnbench.__all__) == attnbench.__all__


def test_ci_runs_lint_and_tests_from_any_folder():
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    for line in ("set -euo pipefail", "make lint", "make test"):
        assert line in text.splitlines()
    subprocess.run(["bash", "-n", script], check=True)


def test_make_help_tells_the_four_commands():
    run = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("make demo", "make test", "make lint", "make gpu"):
        assert target in run.stdout


def test_workflows_ask_for_no_more_than_they_need():
    for workflow in ("ci.yml", "pages.yml"):
        text = (ROOT / ".github" / "workflows" / workflow).read_text()
        assert "\npermissions:\n  contents: read\n" in text
        granted = re.findall(r"^\s+([a-z-]+): write$", text, flags=re.MULTILINE)
        assert granted == (["pages", "id-token"] if workflow == "pages.yml" else [])
