"""One implementation that finds another by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import HEALTHY

import attnbench
from attnbench.errors import UserError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with implementations of its own."""
    (tmp_path / "impls").mkdir()
    (tmp_path / "impls" / "broken.py").write_text("raise ValueError('not today')")
    (tmp_path / "impls" / "mine.py").write_text(HEALTHY.format(name="mine"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_built_in_one_comes_with_its_options(project: Path) -> None:
    found = attnbench.implementation("blockwise", block=32)
    assert (found.name, found.options) == ("blockwise", {"block": 32})
    assert type(attnbench.implementation("blockwise")) is type(found)


def test_one_of_the_project_is_found_past_one_that_fails_to_import(project: Path) -> None:
    assert attnbench.implementation("mine").name == "mine"


def test_a_name_that_nobody_has_is_a_users_error(project: Path) -> None:
    with pytest.raises(UserError, match="no implementation 'nobody' here"):
        attnbench.implementation("nobody")


def test_an_option_that_it_has_not_is_a_users_error(project: Path) -> None:
    with pytest.raises(UserError, match="unknown option 'blocks'"):
        attnbench.implementation("blockwise", blocks=3)
