"""What a revision means to git, and a folder as it was at one."""

from __future__ import annotations

from pathlib import Path

import pytest
from versions import commit, git, write

from attnbench.errors import UserError
from attnbench.revisions import Revision, bring_out, is_shallow, is_tracked, resolve, work_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One commit with a shelf, and changes since."""
    top = tmp_path / "tree"
    write(top, mine="then\n", gone="gone\n")
    (top / "other.txt").write_text("other\n")
    (top / ".gitattributes").write_text("impls export-ignore\n")
    commit(top)
    (top / "impls" / "gone.py").unlink()
    write(top, mine="now\n", new="new\n")
    return top


def head(tree: Path) -> Revision:
    revision = resolve(tree, "HEAD")
    assert revision is not None
    return revision


def test_the_work_tree_is_found_from_any_folder_in_it(tree, tmp_path):
    assert work_tree(tree / "impls") == tree
    assert work_tree(tmp_path) is None


@pytest.mark.parametrize("name", ["HEAD", "main", "v1"])
def test_branches_and_tags_mean_a_commit(tree, name):
    git(tree, "tag", "-a", "v1", "-m", "one")
    revision = resolve(tree, name)
    assert revision is not None
    assert revision.commit == git(tree, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["nothing", "HEAD~7", "", "--help", "HEAD:impls"])
def test_what_is_no_commit_means_nothing(tree, name):
    assert resolve(tree, name) is None


def test_a_folder_comes_out_as_it_was(tree, tmp_path):
    """Though the repository keeps it out of its archives."""
    into = tmp_path / "into"
    into.mkdir()
    shelf = bring_out(head(tree), tree / "impls", into)
    assert shelf == into / "impls"
    assert {p.name: p.read_text() for p in shelf.iterdir()} == {
        "mine.py": "then\n",
        "gone.py": "gone\n",
    }
    assert [p.name for p in into.iterdir()] == ["impls"]


def test_the_whole_tree_may_be_the_shelf(tree, tmp_path):
    shelf = bring_out(head(tree), tree, tmp_path)
    assert shelf == tmp_path
    assert (shelf / "other.txt").read_text() == "other\n"


def test_a_folder_that_was_not_there_does_not_come_out(tree, tmp_path):
    (tree / "late").mkdir()
    assert bring_out(head(tree), tree / "late", tmp_path) is None


def test_bringing_out_changes_neither_index_nor_work_tree(tree, tmp_path):
    git(tree, "add", "impls/new.py")
    before = git(tree, "status", "--porcelain")
    bring_out(head(tree), tree / "impls", tmp_path)
    assert git(tree, "status", "--porcelain") == before
    assert (tree / "impls" / "mine.py").read_text() == "now\n"


def test_a_folder_that_git_does_not_know_is_not_tracked(tree):
    (tree / "installed").mkdir()
    (tree / "installed" / "file.py").touch()
    assert is_tracked(tree / "impls")
    assert not is_tracked(tree / "installed")


def test_a_shallow_clone_is_known(tree, tmp_path):
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{tree}", "shallow")
    assert is_shallow(tmp_path / "shallow")
    assert not is_shallow(tree)


def test_without_git_it_is_told(tree, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="git is not installed"):
        work_tree(tree)


def test_a_commit_that_is_not_there_is_told(tree, tmp_path):
    with pytest.raises(UserError, match="git ls-tree: fatal"):
        bring_out(Revision(tree, "0" * 40), tree / "impls", tmp_path)
