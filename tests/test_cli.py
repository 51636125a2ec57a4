"""The command line as a user meets it: exit codes, one-line errors, nothing heavy too early."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BROKEN, HEALTHY, attnbench, command, write_suite
from rich.console import Console

from attnbench import __version__
from attnbench.cli import main
from attnbench.commands import render, run_
from attnbench.suite import load_suite

HEAVY = ("torch", "pandas", "numpy", "matplotlib", "altair", "rich")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "impls").mkdir()
    (tmp_path / "impls/mine.py").write_text(HEALTHY.format(name="mine"))
    write_suite(tmp_path, ["mine"], direction="forward")
    return tmp_path


# ---- nothing is measured for a mistake -------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("runn quick", "did you mean 'run'?"),
        ("run quick --impl x", "did you mean '--impls'?"),
        ("run quick --quikc", "unrecognized arguments"),
        ("run quikc", "unknown suite 'quikc'"),
        ("run quikc", "did you mean 'quick'?"),
        ("run quick --set seqlne=3", "did you mean 'seqlen'?"),
        ("run quick --set seqlen", "seqlen"),
        ("run quick --shard 3/2", "must look like i/n"),
        ("run quick --import-timeout nan", "must be a positive number of seconds"),
        ("run quick --project /nowhere", "--project /nowhere: no such folder"),
        ("run quick --impls-dir /nowhere", "--impls-dir /nowhere: no such folder"),
        ("list impl", "did you mean 'impls'?"),
        ("verify naive --timeout 0", "must be a positive number of seconds"),
        ("report /nowhere", "/nowhere: no such file or folder"),
    ],
)
def test_a_mistake_is_one_line_that_helps_and_exit_code_2(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("attnbench: error: ")
    assert err.count("\n") == 1, "more than a line"
    assert told in err


def test_an_unknown_implementation_is_told_with_the_nearest(project: Path) -> None:
    ended = attnbench("run", "tiny.toml", "--impls", "mien", cwd=project)
    assert (ended.code, ended.out) == (2, "")
    assert "unknown implementation 'mien'" in ended.err
    assert "did you mean 'mine'?" in ended.err
    assert not (project / "results").exists()


def test_a_gpu_that_is_not_there_is_refused(project: Path) -> None:
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    ended = attnbench("run", "tiny.toml", "--device", "cuda", cwd=project, env=no_gpu)
    assert (ended.code, ended.out) == (2, "")
    assert "--device cuda" in ended.err
    assert "allowed: auto, cpu" in ended.err


def test_debug_shows_where_a_mistake_was_found() -> None:
    with pytest.raises(ValueError, match="unknown suite 'quikc'"):
        main(["run", "quikc", "--debug"])


# ---- exit codes of what is done --------------------------------------------------------


def test_done_and_all_well_is_0(project: Path) -> None:
    ended = attnbench("run", "tiny.toml", "--no-report", cwd=project)
    assert ended.code == 0, ended.text
    assert "1 points: 1 ok." in ended.out


def test_done_and_something_wrong_is_1(project: Path) -> None:
    words = ["--impls", "mine", "--impls", "wrong-factor", "--impls-dir", BROKEN, "--no-report"]
    ended = attnbench("run", "tiny.toml", *words, cwd=project)
    assert ended.code == 1, ended.text
    assert "1 ok, 1 incorrect" in ended.out


def test_verify_fails_a_wrong_implementation_and_passes_a_right_one(project: Path) -> None:
    words = ["--impls-dir", BROKEN, "--case", "seqlen-1*"]
    assert attnbench("verify", "mine", *words, cwd=project).code == 0
    ended = attnbench("verify", "mine", "wrong-factor", *words, cwd=project)
    assert ended.code == 1, ended.text
    assert "wrong-factor" in ended.out


def test_verify_tells_why_nothing_is_supported(project: Path) -> None:
    words = ["window:window=-1", "window:window=4", "--case", "seqlen-1*"]
    ended = attnbench("verify", *words, cwd=project)
    assert ended.code == 0, ended.text
    (line,) = [line for line in ended.out.splitlines() if "unsupported in all" in line]
    assert line.startswith("window:window=-1 ")
    assert line.endswith("mask window: window must be positive, got -1")


def test_verify_ends_where_a_plugin_kills_every_worker(project: Path) -> None:
    ended = attnbench("verify", "dies-in-init", "--impls-dir", BROKEN, cwd=project)
    assert ended.code == 1, ended.text
    assert "SIGABRT" in ended.text


def test_a_dry_run_tells_points_and_time_and_measures_nothing(project: Path) -> None:
    ended = attnbench("run", "tiny.toml", "--dry-run", cwd=project)
    assert ended.code == 0
    assert "1 points to measure, about" in ended.out
    assert "    mine" in ended.out
    assert not (project / "results").exists()


def test_what_can_run_is_listed_with_what_cannot_and_why(project: Path) -> None:
    (project / "impls/broken.py").write_text("import nothing_of_that_name\n")
    for name, body in {
        "half-only": "dtypes = ('float16', 'bfloat16')",
        "no-backward": (
            "def supports(self, problem, device):\n"
            "        if problem.direction != 'forward':\n"
            "            raise Unsupported('has no backward')"
        ),
        "nowhere": "devices = ('cuda',)",
        "full-only": "masks = ('full',)\n    options = {'order': 'a,b'}",
        "decode-only": (
            "def supports(self, problem, device):\n"
            "        if not problem.decode:\n"
            "            raise Unsupported('does a decode step')"
        ),
    }.items():
        (project / f"impls/{name.replace('-', '_')}.py").write_text(
            "from attnbench import Attention, Unsupported, register\n"
            f"@register('{name}')\n"
            "class Mine(Attention):\n"
            f"    'One of mine.'\n    {body}\n"
            "    def build(self, problem, device):\n        return lambda q, k, v: v\n"
        )
    ended = attnbench("list", cwd=project, env={"COLUMNS": "250"})
    assert ended.code == 0
    here = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    assert "unavailable" in here["broken"]
    assert "nothing_of_that_name" in ended.out
    assert " fp32 bf16 fp16 " in here["mine"]
    assert " bf16 fp16 " in here["half-only"]
    assert "fp32" not in here["half-only"]
    assert " forward fp32 bf16 fp16 " in here["no-backward"]
    assert " no " in here["nowhere"]
    assert "does not do device cpu" in here["nowhere"]
    assert " full mask: fp32 bf16 fp16 " in here["full-only"]
    assert " decode: forward fp32 bf16 fp16 " in here["decode-only"]
    assert " layer: fp32 bf16 fp16 " in here["mha"]
    assert "options: order=a,b; from: project" in ended.out, "also what no command line can say"


def test_a_projects_suites_are_listed_beside_ours(project: Path) -> None:
    (project / "suites").mkdir()
    (project / "tiny.toml").rename(project / "suites/tiny.toml")
    ended = attnbench("list", "suites", cwd=project)
    assert ended.code == 0
    assert {"tiny", "quick", "full"} <= {line.split()[0] for line in ended.out.splitlines()}


def test_a_reader_that_has_read_enough_ends_it_quietly(project: Path) -> None:
    writer = subprocess.Popen(
        command("list", "suites"), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    writer.wait()


# ---- quick answers ---------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"], ["runn"]])
def test_help_and_mistakes_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom attnbench.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines()[-1] == "[]"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"attnbench {__version__}\n"


def test_runs_in_other_places_have_pages_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    monkeypatch.setattr(render, "page", lambda _, files, out, **__: rendered.append(out))
    suite = load_suite(write_suite(tmp_path))
    others = (tmp_path / "tried/night", tmp_path / "kept/night", Path("/elsewhere/night"), tmp_path)
    for place in (None, tmp_path / "results", *others):
        asked = argparse.Namespace(project=tmp_path, results=place, no_report=False)
        file = (place or tmp_path / "results") / "machine/tiny-1.jsonl"
        run_.show_page(Console(), asked, suite, file)
    out = tmp_path / "reports/out"
    assert rendered == [
        out / folder / "machine/tiny"
        for folder in ("", "", "tried/night", "kept/night", "elsewhere/night", tmp_path.name)
    ]
