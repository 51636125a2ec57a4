"""``attnbench profile``: one command, a folder of files, and one clear line for what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import HEALTHY, attnbench, command, environment

from attnbench import cli
from attnbench.commands import opening
from attnbench.errors import UserError
from attnbench.session import Session, open_session
from attnbench.suite import one_problem

TROUBLE = """
import os, time
from attnbench import Unsupported, register

@register("picky")
def picky(q, k, v, problem):
    raise Unsupported("only on Tuesdays")

@register("crashes")
def crashes(q, k, v, problem):
    os.abort()

@register("hangs")
def hangs(q, k, v, problem):
    time.sleep(600)

@register("wrong-shape")
def wrong_shape(q, k, v, problem):
    return q[..., :1].clone()
"""
SMALL = ["--set", "heads=2", "--set", "seqlen=64", "--set", "head_dim=8"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    project = tmp_path_factory.mktemp("project")
    (project / "impls").mkdir()
    (project / "impls" / "healthy.py").write_text(HEALTHY.format(name="healthy"))
    (project / "impls" / "trouble.py").write_text(TROUBLE)
    (project / "impls" / "broken.py").write_text("import nothing_of_this_name\n")
    with open_session(project, "cpu", lock=False) as opened:
        yield opened


@pytest.fixture
def profile(session: Session, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process, in the session that is open already."""

    @contextmanager
    def already_open(*words: Any, **more: Any) -> Iterator[Session]:
        yield session

    monkeypatch.setattr(opening, "open_session", already_open)
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *words: cli.main(["profile", *words])


def folders(session: Session) -> list[Path]:
    return sorted(p for p in session.project.glob("results/*/profiles/*") if p.is_dir())


def test_the_files_are_written_named_and_explained(
    profile: Any, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile("healthy", *SMALL, "--set", "direction=both") == 0
    told = capsys.readouterr().out
    (folder,) = folders(session)
    assert {"trace.json.gz", "kernels.csv", "memory.csv"} <= set(os.listdir(folder))
    for name in os.listdir(folder):
        assert str(folder / name) in told
    assert "https://ui.perfetto.dev" in told
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in told


@pytest.mark.parametrize(
    ("name", "more", "line"),
    [
        ("picky", [], "picky: unsupported: only on Tuesdays"),
        ("crashes", [], "crashes: crash: the worker process was killed by SIGABRT"),
        ("hangs", ["--timeout", "1"], "hangs: timeout: no sign of life for 1 s; killed"),
        ("wrong-shape", [], "wrong-shape: incorrect: out has shape (1, 2, 64, 1)"),
        ("broken", [], "broken: unavailable: "),
    ],
)
def test_an_implementation_that_cannot_be_profiled_is_one_line_and_exit_1(
    name: str, more: list[str], line: str, profile: Any, session: Session,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = folders(session)
    assert profile(name, *SMALL, *more) == 1
    told = capsys.readouterr()
    (said,) = [text for text in (told.out + told.err).splitlines() if "on cpu: " not in text]
    assert said.startswith(line)
    assert folders(session) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["helthy"], "did you mean 'healthy'?"),
        (["sdpa*"], "name one"),
        (["healthy", "--set", "seqln=4"], "unknown key 'seqln'"),
        (["healthy", "--set", "mask=diagonal"], "diagonal"),
        (["healthy", "--set", "seqlen=[16, 32]"], "describes 2 problems"),
        (["healthy", "--set", "measure.max_s=1"], "here is nothing to sample"),
        (["healthy", "--ncu"], "ncu"),
    ],
)
def test_what_cannot_be_meant_is_exit_2(
    words: list[str], message: str, profile: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    assert profile(*words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert message in told


def test_ncu_on_a_cpu_is_refused(
    profile: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "ncu").write_text("#!/bin/sh\n")
    (tmp_path / "ncu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert profile("healthy", "--ncu") == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_a_problem_is_named_as_in_a_suites_grid() -> None:
    assert one_problem([]).direction == "forward"
    problem = one_problem(["preset=llama-3-8b", "seqlen=256", "dtype=bfloat16"])
    assert (problem.heads_q, problem.heads_kv, problem.seqlen_k) == (32, 8, 256)
    assert (problem.dtype, problem.mask.kind) == ("bfloat16", "causal")
    assert one_problem(["d_model=96", "heads=4"]).head_dim == 24
    with pytest.raises(UserError, match="unknown preset 'lama'"):
        one_problem(["preset=lama"])


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "impls").mkdir()
    (tmp_path / "impls" / "trouble.py").write_text(TROUBLE)
    words = command("profile", "hangs", "--device", "cpu")
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("results/*/profiles/.hangs*")):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err == "attnbench: interrupted\n"
    assert os.listdir(next(tmp_path.glob("results/*/profiles"))) == [".gitignore"]


@pytest.mark.slow
def test_the_page_links_a_profile_and_does_not_embed_it(tmp_path: Path) -> None:
    pytest.importorskip("altair")
    (tmp_path / "tiny.toml").write_text(
        'title = "Tiny"\nimpls = ["naive"]\n[grid]\nheads = 2\nseqlen = 64\nhead_dim = 8\n'
        "[measure]\nmax_s = 0.02\nmin_rounds = 2\n"
    )
    run = ["run", "tiny.toml", "--device", "cpu", "--no-report"]
    assert attnbench(*run, cwd=tmp_path).code == 0
    ended = attnbench("profile", "naive", *SMALL, "--device", "cpu", cwd=tmp_path)
    assert ended.code == 0, ended.text
    assert attnbench("report", "results", cwd=tmp_path).code == 0
    page = tmp_path / "reports" / "out" / "results" / "index.html"
    (folder,) = (p for p in tmp_path.glob("results/*/profiles/*") if p.is_dir())
    for file in folder.iterdir():
        address = f"../../../{file.relative_to(tmp_path)}"
        assert f'href="{address}"' in page.read_text()
        assert (page.parent / address).resolve() == file.resolve()
