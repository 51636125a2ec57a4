"""``pytest --benchmark``, run as users run it: a pytest of its own in a project of its own."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import UserError
from attnbench.export import export
from attnbench.export.pytest_fields import parameters
from attnbench.lock import device_lock
from attnbench.plan import Contender, Point
from attnbench.problem import Problem
from attnbench.pytest_run import SMOKE, in_pytest_words
from attnbench.pytest_suite import Playback, item_id
from attnbench.record import Record
from attnbench.registry import Entry, Source
from attnbench.settings import PRESETS
from attnbench.store import load
from attnbench.suite import load_suite

# The user's own tests have their own naming; and a warning of ours would be an error.
INI = """
[pytest]
python_functions = check_*
addopts = --strict-markers
filterwarnings = error
"""
SUITE = """
title = "Tiny"
impls = ["left", "right", "wrong", "absent", "crash", "sdpa-cudnn"]

[grid]
heads = 1
head_dim = 16
seqlen = [16, 24]
mask = "causal"

[measure]
min_rounds = 4
samples = 2
max_s = 0.02
warmup_s = 0
ceilings_s = 0
"""
IMPLS = """
import os
from torch.nn.functional import scaled_dot_product_attention
from attnbench import register

def attend(who, q, k, v, mask):
    with open("calls.txt", "a") as file:
        file.write(f"{who} {q.shape[2]}\\n")
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)

@register("left", mask_as="dense")
def left(q_BHMD, k_BGND, v_BGNE, problem, *, mask):
    return attend("left", q_BHMD, k_BGND, v_BGNE, mask)

@register("right", mask_as="dense")
def right(q_BHMD, k_BGND, v_BGNE, problem, *, mask):
    return attend("right", q_BHMD, k_BGND, v_BGNE, mask)

@register("wrong", mask_as="dense")
def wrong(q_BHMD, k_BGND, v_BGNE, problem, *, mask):
    return 1.25 * attend("wrong", q_BHMD, k_BGND, v_BGNE, mask)

@register("crash")
def crash(q_BHMD, k_BGND, v_BGNE, problem):
    print("last words", flush=True)
    os.abort()
"""
TEST = "def check_mine(): assert True\n"
NAME = "suites/tiny.toml::test_attention[{}-B1-H1-N{}-D16-float32-causal-forward]"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project: a suite, implementations (one that cannot be imported), a test."""
    return make_project(tmp_path)


def make_project(folder: Path) -> Path:
    files = {
        "pytest.ini": INI,
        "suites/tiny.toml": SUITE,
        "impls/mine.py": IMPLS,
        "impls/absent.py": "import no_such_module\n",
        "tests/test_mine.py": TEST,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


class Ran:
    """A finished pytest."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code = process.returncode
        self.text = process.stdout + process.stderr

    @property
    def counts(self) -> dict[str, int]:
        """``{"passed": 2, "skipped": 1}`` from the last line of the summary."""
        last = re.findall(r"^=* ?((?:\d+ [a-z]+,? ?)+) in [\d.]+s", self.text, re.MULTILINE)[-1]
        return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}


def _outside() -> dict[str, str]:
    """This environment, but for what tells a pytest that it is the worker of another."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}


def run(folder: Path, *words: str, env: dict[str, str] | None = None) -> Ran:
    """``pytest WORDS`` in a folder."""
    return Ran(
        subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
            cwd=folder,
            # One thread: on a busy machine two wait for each other longer than they work.
            env={**_outside(), "COLUMNS": "200", **(env or {})},
            capture_output=True,
            text=True,
            timeout=100,
        )
    )


def records_in(folder: Path) -> list[list[Record]]:
    """The records of each file below ``results``, in the order the files were made."""
    files = sorted((folder / "results").rglob("*.jsonl"), key=lambda f: (len(f.name), f.name))
    return [load([file]).records for file in files]


# ---- a whole run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A project in which ``pytest --benchmark`` was run once, saved, with reasons shown."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    options = ("--benchmark-save=base", "--benchmark-json=out.json", "-rs")
    return folder, run(folder, "--benchmark", *options)


@pytest.fixture(scope="module")
def report(measured: tuple[Path, Ran]) -> dict[str, Any]:
    """What that run wrote for ``--benchmark-json``."""
    data: dict[str, Any] = json.loads((measured[0] / "out.json").read_text())
    return data


def test_every_point_is_an_item_with_the_outcome_of_its_status(measured: tuple[Path, Ran]) -> None:
    _, ran = measured
    assert ran.counts == {"failed": 4, "passed": 4, "skipped": 4}, ran.text
    assert ran.code == 1
    assert "check_mine" not in ran.text  # with no path only the suites are run


def test_the_table_has_the_points_of_a_problem_together(measured: tuple[Path, Ran]) -> None:
    text = measured[1].text
    for seqlen in (16, 24):
        (table,) = re.findall(
            rf"-+ benchmark 'B1 H1 N{seqlen} D16 float32 causal forward': 2 tests -+\n"
            r"((?:.+\n)+)",
            text,
        )
        assert {"left", "right"} == set(re.findall(r"^test_attention\[(\w+)-", table, re.M))


def test_samples_arrive_bit_for_bit(measured: tuple[Path, Ran], report: dict[str, Any]) -> None:
    (records,) = records_in(measured[0])
    taken = {
        NAME.format(r.implementation.name, r.problem["seqlen_q"]): [
            t for process in r.samples.times_s for round_ in process for t in round_
        ]
        for r in records
        if r.samples is not None
    }
    assert len(taken) == 4
    assert taken == {b["fullname"]: b["stats"]["data"] for b in report["benchmarks"]}


def test_the_json_tells_parameters_interval_error_memory_and_machine(
    measured: tuple[Path, Ran], report: dict[str, Any]
) -> None:
    (records,) = records_in(measured[0])
    by_id = {record.id: record for record in records}
    for bench in report["benchmarks"]:
        record = by_id[bench["extra_info"]["id"]]
        assert record.samples is not None
        assert record.memory is not None
        assert bench["params"]["implementation"] == record.implementation.name
        assert bench["params"]["seqlen"] == record.problem["seqlen_q"]
        assert bench["params"]["mask"] == "causal"
        told = bench["extra_info"]
        assert told["samples"]["low_s"] == record.samples.low_s
        assert told["samples"]["high_s"] == record.samples.high_s
        assert sum(map(sum, told["samples"]["per_round"])) == bench["stats"]["rounds"]
        assert told["accuracy"]["out"]["max_abs"] == record.accuracy["out"].max_abs
        assert told["memory"]["peak_bytes"] == record.memory.peak_bytes
        assert told["flops"] == Problem.from_json(record.problem).flops()
    machine = report["machine_info"]["attnbench"]
    assert machine["hardware"]["device"] == "cpu"
    assert machine["software"]["torch"]


def test_an_export_of_the_records_says_the_same_as_the_run(
    measured: tuple[Path, Ran], report: dict[str, Any]
) -> None:
    (file,) = (measured[0] / "results").rglob("*.jsonl")
    exported = {
        b["fullname"]: b for b in json.loads(export("pytest-benchmark", [file]).data)["benchmarks"]
    }
    assert exported.keys() == {b["fullname"] for b in report["benchmarks"]}
    for bench in report["benchmarks"]:
        other = exported[bench["fullname"]]
        for field in ("name", "group", "params", "extra_info"):
            assert other[field] == bench[field], field


def test_a_wrong_answer_fails_with_the_error_figures_and_no_traceback(
    measured: tuple[Path, Ran],
) -> None:
    (failure,) = re.findall(
        r"_+ test_attention\[wrong-B1-H1-N16.*\n((?:.+\n|\n)+?)__", measured[1].text
    )
    assert failure.startswith("incorrect: out not normal")
    assert "relative L2 error 0.25" in failure
    assert re.search(r"^reproduce: attnbench run tiny --impls wrong --problem \w+ --fresh$",
                     failure, re.M)  # fmt: skip
    assert len(failure.strip().splitlines()) == 3
    assert "Traceback" not in measured[1].text
    assert ".py:" not in failure


def test_a_crash_fails_with_the_signal_and_the_last_words(measured: tuple[Path, Ran]) -> None:
    (failure,) = re.findall(
        r"_+ test_attention\[crash-B1-H1-N16.*\n((?:.+\n|\n)+?)__", measured[1].text
    )
    assert failure.startswith("crash: the worker process was killed by SIGABRT\n")
    assert "last words" in failure


def test_what_cannot_be_done_here_is_skipped_with_its_reason(measured: tuple[Path, Ran]) -> None:
    text = measured[1].text
    assert re.search(r"SKIPPED \[2\] suites/tiny.toml:\d+: unsupported: .*device cpu", text)
    assert re.search(r"SKIPPED \[2\] suites/tiny.toml:\d+: unavailable: .*no_such_module", text)


def test_contenders_of_a_problem_are_measured_in_interleaved_rounds(
    measured: tuple[Path, Ran],
) -> None:
    lines = (measured[0] / "calls.txt").read_text().splitlines()
    for seqlen in (16, 24):
        calls = [who for who, n in map(str.split, lines) if int(n) == seqlen and who != "wrong"]
        turns = [who for who, _ in itertools.groupby(calls)]
        # One after the other would be four turns: left, right to verify, left, right to time.
        assert len(turns) > 8


def test_records_are_kept_and_the_summary_says_how_to_render_them(
    measured: tuple[Path, Ran],
) -> None:
    folder, ran = measured
    (records,) = records_in(folder)
    assert sorted(r.status for r in records) == sorted(
        2 * ["ok", "ok", "incorrect", "crash", "unsupported", "unavailable"]
    )
    (file,) = re.findall(r"^page: +attnbench report (\S+)$", ran.text, re.M)
    assert load([folder / file]).records == records
    assert (folder / file).with_name(f"environment-{records[0].environment}.json").exists()


def test_a_selection_is_compared_grouped_and_measured_alone(measured: tuple[Path, Ran]) -> None:
    folder, _ = measured
    (folder / "calls.txt").unlink()
    words = ("--benchmark-compare", "--benchmark-group-by=param:seqlen")
    ran = run(folder, "--benchmark", "-k", "left or (right and N24)", *words)
    assert ran.code == 0, ran.text
    assert ran.counts == {"passed": 3, "deselected": 9}
    assert len(re.findall(r"causal-forward\] \(NOW\)", ran.text)) == 3
    assert len(re.findall(r"causal-forward\] \(0001_base\)", ran.text)) == 3
    assert "benchmark 'seqlen=16': 2 tests" in ran.text
    assert "benchmark 'seqlen=24': 4 tests" in ran.text
    assert "machine_info is different" not in ran.text
    calls = set((folder / "calls.txt").read_text().splitlines())
    assert calls == {"left 16", "left 24", "right 24"}  # nobody who was deselected
    first, second = records_in(folder)  # a file of its own: nothing is resumed or mixed
    assert len(second) == 3
    assert {r.id for r in second} < {r.id for r in first}


def test_named_tests_and_points_are_run_and_those_of_one_problem_together(project: Path) -> None:
    names = [NAME.format(who, 16) for who in ("left", "right")]
    ran = run(project, "--benchmark", "tests", *names, "--attn-set", "measure.min_rounds=8")
    assert ran.counts == {"passed": 3}, ran.text
    calls = (project / "calls.txt").read_text().splitlines()
    assert len(list(itertools.groupby(calls))) > 8


# ---- which points, without measuring ----------------------------------------------------------


def test_collect_only_lists_the_points_and_measures_nothing(project: Path) -> None:
    (project / "pyproject.toml").write_text("[project]\nname = 'not-a-suite'\n")
    words = ("--collect-only", "-q", "-k", "check_mine or (left and N16)")
    with device_lock("cpu"):  # to look disturbs nobody
        ran = run(project, "--benchmark", ".", *words)
    assert ran.code == 0, ran.text
    assert {NAME.format("left", 16), "tests/test_mine.py::check_mine"} < set(ran.text.splitlines())
    assert "2/13 tests collected" in ran.text
    assert not (project / "calls.txt").exists()
    assert not (project / "results").exists()


def test_a_project_without_suites_runs_quick(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(): pass\n")
    ran = run(tmp_path, "--benchmark", "--collect-only", "-q", "--attn-impls", "naive")
    assert ran.code == 0, ran.text
    names = [line for line in ran.text.splitlines() if "::" in line]
    assert (
        "attnbench/suites/quick.toml::test_attention[naive-B1-H4-N128-D64-float32-full-forward]"
        in names
    )
    assert all(
        name.startswith("attnbench/suites/quick.toml::test_attention[naive-") for name in names
    )


def test_builtin_suites_are_named_by_name_and_by_node_id(project: Path) -> None:
    name = "attnbench/suites/quick.toml::test_attention[naive-B1-H4-N128-D64-float32-full-forward]"
    ran = run(project, "--benchmark", "--collect-only", "-q", "tiny", name)
    assert ran.code == 0, ran.text
    assert "13 tests collected" in ran.text
    assert name in ran.text.splitlines()


def test_disabled_benchmarks_are_verified_and_leave_no_record(project: Path) -> None:
    ran = run(project, "--benchmark", "--benchmark-disable", "-k", "N16 and (left or wrong)")
    assert ran.counts == {"failed": 1, "passed": 1, "deselected": 10}, ran.text
    assert "incorrect: out not normal" in ran.text
    assert "Median" not in ran.text
    assert not (project / "results").exists()
    assert "left 16" in (project / "calls.txt").read_text().splitlines()


def test_without_benchmarks_neither_energy_nor_ceilings_are_measured(project: Path) -> None:
    path = project / "suites" / "tiny.toml"
    path.write_text(path.read_text() + "energy_s = 10\n")
    measure = load_suite(path, SMOKE).measure
    assert (measure.energy_s, measure.ceilings_s, measure.processes) == (0, 0, 1)


# ---- mistakes ---------------------------------------------------------------------------------


def test_a_bad_suite_and_a_bad_key_are_one_clear_line_each(project: Path) -> None:
    (project / "suites" / "bad.toml").write_text("titel = 'Typo'\n" + SUITE)
    ran = run(project, "--benchmark", "--attn-set", "sekqlen=3")
    assert ran.code == pytest.ExitCode.INTERRUPTED
    errors = dict(
        re.findall(r"_ ERROR collecting suites/(\w+).toml _+\n((?:[^_=].+\n)+)", ran.text)
    )
    assert errors["bad"].startswith("suites/bad.toml: unknown key 'titel'; allowed: title, ")
    assert errors["bad"].endswith("did you mean 'title'?\n")
    assert errors["tiny"].startswith("--attn-set: unknown key 'sekqlen'; ")
    assert [text.count("\n") for text in errors.values()] == [1, 1]
    assert not (project / "calls.txt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "tinny"], "unknown suite 'tinny'; .*did you mean 'tiny'"),
        (["--benchmark", "suites/nope.toml"], "file or directory not found: suites/nope.toml"),
        (["--benchmark", "--attn-impls", "lefft"],
         "--attn-impls: unknown implementation 'lefft'; .*did you mean 'left'"),
        (["--benchmark", "--attn-device", "tpu"], "--attn-device tpu: allowed: auto, cpu"),
        (["--benchmark", "--benchmark-cprofile=cumtime"], "--benchmark-cprofile cannot see into"),
        (["--attn-impls", "left"], "--attn-impls needs --benchmark"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_meant_ends_with_one_line(
    project: Path, words: Sequence[str], message: str
) -> None:
    ran = run(project, *words)
    assert ran.code == pytest.ExitCode.USAGE_ERROR
    assert re.search(f"^ERROR: {message}", ran.text, re.M), ran.text
    assert "Traceback" not in ran.text


def test_points_are_never_timed_in_parallel(project: Path) -> None:
    # pytest-xdist's -n sets its option "dist"; the refusal must not need it installed.
    (project / "conftest.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--many', dest='dist', default='load')\n"
    )
    ran = run(project, "--benchmark", "-p", "no:xdist")
    assert ran.code == pytest.ExitCode.USAGE_ERROR
    assert "points must not be timed in parallel; leave out -n" in ran.text


def test_options_that_do_not_reach_a_suite_are_told(project: Path) -> None:
    ran = run(project, "--benchmark", "--benchmark-min-rounds=9", "tests")
    assert ran.counts == {"passed": 1}, ran.text
    assert "--benchmark-min-rounds is for test functions" in ran.text


def test_without_pytest_benchmark_the_error_says_what_to_install(project: Path) -> None:
    only_ours = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    words = ("-p", "attnbench.pytest_plugin")
    ran = run(project, "--benchmark", *words, env=only_ours)
    assert ran.code == pytest.ExitCode.USAGE_ERROR
    assert ran.text.strip() == (
        "ERROR: --benchmark needs pytest-benchmark: pip install 'attnbench[pytest]'"
    )
    assert run(project, *words, env=only_ours).counts == {"passed": 1}
    ran = run(project, "--benchmark", "-p", "no:benchmark")
    assert "pytest-benchmark, which is turned off" in ran.text


def test_an_interrupted_run_leaves_no_worker_behind(project: Path) -> None:
    (project / "impls" / "hangs.py").write_text(
        "import os, time\nfrom attnbench import register\n"
        "@register('hangs')\n"
        "def hangs(q, k, v, problem):\n"
        "    open('pid.txt', 'w').write(f'{os.getpid()}\\n')\n"
        "    time.sleep(100)\n"
    )
    script = (  # a caller that goes on after pytest, so that the worker outlives no run
        "import os, pytest\n"
        "code = pytest.main(['--benchmark', '--attn-impls', 'hangs'])\n"
        "pid = open('pid.txt').read().strip()\n"
        "print('worker is there:', os.path.exists(f'/proc/{pid}'))\n"
        "raise SystemExit(code)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=project,
        env=_outside(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that runs tests in the background has SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        pid_file = project / "pid.txt"
        wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == pytest.ExitCode.INTERRUPTED, text
    assert "KeyboardInterrupt" in text
    assert "worker is there: False" in text


def wait_for(is_so: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


# ---- without --benchmark ----------------------------------------------------------------------


def test_without_the_option_a_pytest_run_is_the_same_as_without_attnbench(project: Path) -> None:
    (project / "conftest.py").write_text(
        "import sys\n"
        "def pytest_unconfigure():\n"
        "    heavy = {'torch', 'numpy', 'pydantic', 'rich'} & sys.modules.keys()\n"
        "    print('HEAVY', sorted(heavy))\n"
    )
    for words in (["-v"], ["-v", "suites", "tests"], ["-v", "suites/tiny.toml"]):
        ran, bare = (run(project, *words, *more) for more in ([], ["-p", "no:attnbench"]))
        assert "HEAVY []" in ran.text
        assert ran.code == bare.code
        assert _without_versions_and_times(ran.text) == _without_versions_and_times(bare.text)


def _without_versions_and_times(text: str) -> str:
    return re.sub(r"^plugins: .*$|in [\d.]+s", "", text, flags=re.M)


@pytest.mark.parametrize("option", ["action='store_true'", "default='no'"])
def test_a_project_keeps_a_benchmark_option_of_its_own(project: Path, option: str) -> None:
    (project / "conftest.py").write_text(
        f"def pytest_addoption(parser): parser.addoption('--benchmark', {option})\n"
        "def pytest_report_header(config): return f'theirs: {config.option.benchmark}'\n"
    )
    word = "--benchmark" if "store_true" in option else "--benchmark=yes"
    ran = run(project, word)
    assert ran.counts == {"passed": 1}, ran.text
    assert f"theirs: {'True' if 'store_true' in option else 'yes'}" in ran.text


# ---- parts ------------------------------------------------------------------------------------


def test_playback_gives_samples_back_to_the_last_bit() -> None:
    samples_s = [0.1, 1e-9 / 3, 7.123456789e-05, 123.456, 5e-324]
    playback, timed = Playback(), []
    playback.insert(samples_s)
    for _ in samples_s:
        playback.rewind()
        start = playback.measured_seconds()
        playback.play()
        timed.append(playback.measured_seconds() - start)
    assert timed == samples_s


def test_ids_tell_all_points_apart_and_hold_what_k_can_select() -> None:
    contender = Contender(
        Entry("mine", Source("project", "mine"), "mine.py", 1), (("block_m", 64),)
    )
    plain = Problem.of(seqlen=128)
    problems = [
        plain,
        *(plain.replace(**change) for change in (
            {"seqlen_q": 1, "decode": True}, {"seqlen_q": 1}, {"heads_kv": 2}, {"softcap": 30.0},
            {"dropout_p": 0.1}, {"scale": 1.0}, {"alibi": True}, {"inputs": "large"},
            {"head_dim_v": 32}, {"mask": "window:window=64"}, {"level": "layer"}, {"batch": 2},
            {"direction": "both"}, {"dtype": "bfloat16"},
        )),
    ]  # fmt: skip
    ids = [item_id(Point(contender, problem, "")) for problem in problems]
    assert len(set(ids)) == len(ids)
    assert all(text.isascii() and "[" not in text and "::" not in text for text in ids)
    assert ids[0] == "mine:block_m=64-B1-H8-N128-D64-float32-full-forward"
    assert ids[1] == "mine:block_m=64-B1-H8-N1x128-D64-float32-full-forward-decode"


def test_parameters_that_stand_for_two_numbers_tell_both(measured: tuple[Path, Ran]) -> None:
    record = records_in(measured[0])[0][0]
    problem = Problem.of(heads_q=8, heads_kv=2, seqlen_q=1, seqlen_k=64)
    told = parameters(record.model_copy(update={"problem": problem.to_json()}))
    assert (told["heads"], told["seqlen"], told["d_model"]) == ("8x2", "1x64", 512)
    assert (told["heads_kv"], told["seqlen_k"], told["mask"]) == (2, 64, "full")


def test_a_preset_is_what_the_run_measures_by(project: Path) -> None:
    words = ("--benchmark", "--attn-preset", "quick", "--attn-set", "measure.max_s=1e-9")
    ran = run(project, *words, "-k", "left and N16")
    assert ran.counts["passed"] == 1, ran.text
    (record,) = records_in(project)[-1]
    assert record.samples is not None
    assert len(record.samples.times_s[0]) == PRESETS["quick"]["min_rounds"]
    assert " --quick --set measure.max_s=1e-9 " in record.command


def test_options_in_messages_are_those_of_pytest() -> None:
    said = "--impls-dir x: no such folder; --set and --device, not sdpa--set or --settle"
    assert in_pytest_words(UserError(said)) == (
        "--attn-impls-dir x: no such folder; --attn-set and --attn-device, "
        "not sdpa--set or --settle"
    )
