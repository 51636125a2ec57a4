"""``attnbench compare`` and ``export`` as a user meets them: words, files, exit codes, pipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from helpers import attnbench, command, environment
from made_records import machine, record, write

from attnbench import cli
from attnbench.report.markdown import LIMIT_BYTES


def times(factor: float = 1.0, seed: int = 0):
    return 1e-3 * factor * np.exp(0.002 * np.random.default_rng(seed).normal(size=(3, 8)))


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """64 got slower, 128 faster, 256 stayed, 512 broke, 1024 takes more memory."""
    base, new = [], []
    for seqlen, factor in ((64, 1.2), (128, 0.8), (256, 1.0), (512, 1.0), (1024, 1.0)):
        base.append(record(times(seed=seqlen), seqlen=seqlen, kernels=[{"name": "old"}]))
        new.append(record(times(factor, seqlen + 1), seqlen=seqlen, kernels=[{"name": "new"}]))
    new[3] = record(seqlen=512, status="incorrect", reason="wrong by | [a](b) <b> @you")
    memory = new[4].memory
    assert memory is not None
    new[4] = new[4].model_copy(update={"memory": memory.model_copy(update={"peak_bytes": 2**26})})
    return write(tmp_path / "base", base), write(tmp_path / "new", new)


def compare(*words: object) -> int:
    return cli.main(["compare", *map(str, words)])


def test_the_table_shows_what_needs_a_look_and_counts_the_rest(sides, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert compare(*sides) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if re.match(r"[A-Z]{3,} ", line)][:4] == [
        "NOT", "SLOWER", "SAME", "FASTER",
    ]  # fmt: skip
    text = "\n".join(lines)
    assert "N256" not in text  # the same, and nothing to say
    assert "failure: ok → incorrect: wrong by | [a](b) <b> @you" in text
    assert "memory: peak memory 16.0 MiB → 64.0 MiB, +300.0%" in text
    assert "5 points: 1 SLOWER, 1 FASTER, 2 SAME, 1 NOT COMPARABLE" in lines
    assert "kernels of triton changed on 4 points: −old, +new" in lines


def test_verbose_shows_every_point(sides, capsys) -> None:
    compare(*sides, "--verbose")
    assert "N256" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 160])
def test_verdicts_and_numbers_are_never_broken(sides, capsys, monkeypatch, columns) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    compare(*sides, "--verbose")
    table = capsys.readouterr().out.split("kernels of")[0].splitlines()
    assert max(map(len, table)) <= columns
    assert sum(bool(re.match(r"(SLOWER|FASTER|SAME) +\d\.\d{3} \[", line)) for line in table) == 4


def test_markdown_is_short_and_mentions_nobody(sides, tmp_path) -> None:
    out = tmp_path / "new folder" / "summary.md"
    assert compare(*sides, "--markdown", out) == 1
    text = out.read_text()
    assert text.startswith("# attnbench compare\n\n**3 regressions**\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert "<b>" not in text
    assert "@you" not in text


def test_markdown_of_many_long_points_fits_a_comment(tmp_path) -> None:
    seqlens = range(1, 151)
    long = {"implementation": "😀" * 300}
    failed = {"status": "oom", "reason": "😀" * 1000}
    base = write(tmp_path / "a", [record(seqlen=n, **long) for n in seqlens])
    new = write(tmp_path / "b", [record(seqlen=n, **long, **failed) for n in seqlens])
    out = tmp_path / "summary.md"
    compare(base, new, "--markdown", out)
    assert out.stat().st_size <= LIMIT_BYTES
    assert re.search(r"^1[0-4]\d more, less grave\.$", out.read_text(), re.MULTILINE)


def test_json_holds_every_point_and_no_nan(sides, tmp_path) -> None:
    out = tmp_path / "all.json"
    assert compare(*sides, "--json", out) == 1
    told = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert told["exit_code"] == 1
    assert told["counts"]["SLOWER"] == 1
    points = {p["problem"].split()[2]: p for p in told["points"]}
    assert len(points) == 5
    slower = points["N64"]
    assert slower["ratio"]["low"] < 1.2 < slower["ratio"]["high"]
    assert slower["base"]["median_s"] == pytest.approx(1e-3, rel=0.01)
    assert slower["kernels"] == {"gone": ["old"], "added": ["new"]}
    broken = points["N512"]
    assert (broken["ratio"], broken["new"]["median_s"]) == (None, None)
    assert broken["regressions"] == [
        {"kind": "failure", "text": "ok → incorrect: wrong by | [a](b) <b> @you"}
    ]


def test_the_files_are_written_whatever_becomes_of_the_reader(sides, tmp_path) -> None:
    """``attnbench compare | head -1`` under pipefail must fail for a regression, and only then."""
    for words, code in (((sides[0], sides[1]), 1), ((sides[0], sides[0]), 2)):
        out = tmp_path / f"{code}.json"
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run(
            command("compare", *words, "--json", out),
            stdout=writer, stderr=subprocess.PIPE, env=environment(), cwd=tmp_path, timeout=60,
        )  # fmt: skip
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (code, b"")
        assert out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.jsonl"], "compare needs BASE and NEW, or --history FOLDER; got 1 path"),
        ([], "compare needs BASE and NEW, or --history FOLDER; got 0 paths"),
        (["a", "b", "c"], "got 3 paths"),
        (["nothing.jsonl", "b"], "nothing.jsonl: no such file or folder of results"),
        (["a", "b", "--threshold", "5"], "must be a share such as 0.03 or 3%, got '5'"),
        (["a", "b", "--threshold", "nan"], "must be a share such as 0.03 or 3%"),
        (["a", "b", "--treshold", "5%"], "did you mean '--threshold'?"),
        (["--history", "h", "b"], "got 1 path"),  # never taken for a second history
        (["--history", "h", "--json", "x"], "--json is about BASE and NEW"),
        (["a", "b", "--json", "x", "--markdown", "x"], "cannot share a file"),
    ],
)
def test_mistakes_are_one_clear_line(words, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attnbench: error: ")
    assert said in line


def test_empty_files_have_nothing_to_compare(tmp_path, capsys) -> None:
    a, b = (write(tmp_path, [], f"{n}.jsonl") for n in "ab")
    assert compare(a, b) == 2
    assert "0 points: none" in capsys.readouterr().out


def test_the_same_file_twice_says_why_there_is_no_verdict(sides, capsys) -> None:
    assert compare(sides[0], sides[0].parent) == 2
    assert "NOT COMPARABLE 5 ×: the same measurement on both sides" in capsys.readouterr().out


def test_other_software_is_named_and_may_be_allowed(tmp_path, capsys) -> None:
    other = machine(torch="2.14.0")
    base = write(tmp_path / "a", [record(times())])
    new = write(tmp_path / "b", [record(times(1.5), environment=other)], "run.jsonl", other)
    assert compare(base, new) == 2
    assert "NOT COMPARABLE 1 ×: software.torch 2.13.0 → 2.14.0" in capsys.readouterr().out
    assert compare(base, new, "--across", "software.*") == 1


def test_the_threshold_can_be_given_in_percent(tmp_path) -> None:
    base, new = (write(tmp_path / n, [record(times(f))]) for n, f in (("a", 1.0), ("b", 1.08)))
    assert compare(base, new) == 1
    assert compare(base, new, "--threshold", "10%") == 0


def history(folder: Path, levels) -> Path:
    for day, level in enumerate(levels, start=1):
        told = record([level, level], time=f"2026-01-{day:02}T00:00:00+00:00")
        write(folder, [told], f"{day:02}.jsonl")
    return folder


def test_a_history_shows_its_steps_and_fails_nobody(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert compare("--history", history(tmp_path, [1.0] * 8 + [1.2] * 8)) == 0
    out = capsys.readouterr().out
    assert "2026-01-09T00:00:00+00:00" in out
    assert "1.20×" in out
    assert "history: 1 step in 1 of 1 series that are long enough" in out


def test_a_short_history_has_nothing_to_tell(tmp_path, capsys) -> None:
    assert compare("--history", history(tmp_path, [1.0] * 3)) == 2
    assert "0 steps in 0 of 1 series" in capsys.readouterr().out


def test_a_history_settles_what_single_processes_leave_open(tmp_path, capsys) -> None:
    rng = np.random.default_rng(3)
    past = history(tmp_path / "past", np.exp(0.002 * rng.normal(size=20)))
    base, new = (write(tmp_path / n, [record([[f] * 4])]) for n, f in (("a", 1.0), ("b", 1.035)))
    assert compare(base, new) == 0
    assert "or give a --history of equal runs" in capsys.readouterr().out
    assert compare(base, new, "--history", past) == 1


def test_help_and_comparing_import_nothing_heavy(sides, tmp_path) -> None:
    script = (
        "import sys; from attnbench.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'torch', 'pandas', 'altair', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, "compare", *map(str, sides)],
        capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "[]"


# ---- export ----------------------------------------------------------------------------


def test_a_document_goes_to_standard_output_and_the_rest_to_standard_error(sides, tmp_path) -> None:
    ended = attnbench("export", "junit", sides[1], cwd=tmp_path)
    assert ended.code == 0
    assert ET.fromstring(ended.out.encode()).get("tests") == "5"
    ended = attnbench("export", "bencher", sides[1], cwd=tmp_path)
    assert len(json.loads(ended.out)) == 4
    assert ended.err == "attnbench: without a time, left out: 1 incorrect\n"


def test_a_document_goes_to_a_file_in_a_new_folder(sides, tmp_path) -> None:
    out = tmp_path / "x" / "y.csv"
    assert cli.main(["export", "csv", str(sides[0]), "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["csvv", "x"], "did you mean 'csv'?"),
        (["csv", "x"], "x: no such file or folder of results"),
        (["parquet", "x"], "export parquet is binary: give it --out FILE"),
        (["csv"], "the following arguments are required: RESULT"),
    ],
)
def test_mistakes_of_export_are_one_clear_line(words, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
