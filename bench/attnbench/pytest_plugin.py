"""``pytest --benchmark``: suites run under pytest, every point an item.

    pytest --benchmark                                  the project's own suites, or quick
    pytest --benchmark seqlen -k "sdpa and causal"      some points of a suite, by its name
    pytest --benchmark suites/mine.toml --benchmark-json out.json

The suites of a project are the files ``suites/*.toml`` in pytest's rootdir. Points are
measured anew by every run, as their suite's ``[measure]`` says, in a worker process, all
contenders of a problem together in interleaved rounds. The samples are handed to
pytest-benchmark as they were taken, so that its table, files, comparison and groups work.
The records go to a new file under ``results/``, which ``attnbench report`` renders. With
``--benchmark-disable`` points are verified, hardly timed, and not recorded.

pytest loads this module in every environment that has attnbench, whoever runs pytest
there. So it imports nothing but pytest, and without ``--benchmark`` does nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

_NEEDS = {  # options that mean nothing without --benchmark
    "attn_impls": "--attn-impls",
    "attn_impls_dir": "--attn-impls-dir",
    "attn_device": "--attn-device",
    "attn_set": "--attn-set",
    "attn_preset": "--attn-preset",
    "attn_results": "--attn-results",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options; ``--benchmark`` itself comes later."""
    group = parser.getgroup("attnbench", "attention benchmarks (attnbench)")
    group.addoption(
        "--attn-impls",
        action="append",
        metavar="GLOB",
        help="implementations instead of the suite's; NAME:key=value sets options",
    )
    group.addoption(
        "--attn-impls-dir",
        action="append",
        type=Path,
        metavar="DIR",
        help="a further folder of implementations; may be repeated",
    )
    group.addoption("--attn-device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    group.addoption(
        "--attn-set",
        action="append",
        metavar="KEY=VALUE",
        help="override a key of the grid, or measure.KEY, verify.KEY",
    )
    group.addoption(
        "--attn-preset",
        choices=("quick", "precise"),
        help="how well to measure, instead of what the suite says; --attn-set still wins",
    )
    group.addoption(
        "--attn-results", type=Path, metavar="DIR", help="for the records; default: results"
    )


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Generator[None, None, None]:
    """Add ``--benchmark`` after everybody else's options.

    The name is a common one: a project whose conftest.py has had its own ``--benchmark``
    keeps it, where adding ours first would break that project's every run.
    """
    yield
    if _is_free(parser, "--benchmark"):
        parser.getgroup("attnbench").addoption(
            "--benchmark",
            action="store_true",
            dest="attn_benchmark",
            help="run the suites named, the project's own, or quick; "
            "every point is a test for pytest-benchmark",
        )


def _is_free(parser: pytest.Parser, option: str) -> bool:
    try:
        _, unknown = parser.parse_known_and_unknown_args([option])
    except pytest.UsageError:  # somebody's, and it wants a value
        return False
    return option in unknown


def pytest_configure(config: pytest.Config) -> None:
    """Start a benchmark run if one is asked for and possible here.

    Raises:
        pytest.UsageError: an option without ``--benchmark``, no pytest-benchmark, or
            something that would spoil or evade the measurement.
    """
    if not config.getoption("attn_benchmark", False):
        for name, option in _NEEDS.items():
            if config.getoption(name, None) is not None:
                raise pytest.UsageError(f"{option} needs --benchmark")
        return
    _refuse_what_cannot_work(config)
    from attnbench.pytest_run import BenchmarkRun

    run = BenchmarkRun(config)
    config.pluginmanager.register(run, "attnbench-run")
    run.begin()


def _refuse_what_cannot_work(config: pytest.Config) -> None:
    if not hasattr(config.option, "benchmark_json"):  # pytest-benchmark's
        is_off = config.pluginmanager.is_blocked("benchmark")
        raise pytest.UsageError(
            "--benchmark needs pytest-benchmark, which is turned off (-p no:benchmark)"
            if is_off
            else "--benchmark needs pytest-benchmark: pip install 'attnbench[pytest]'"
        )
    in_parallel = config.getoption("dist", "no") != "no" or hasattr(config, "workerinput")
    if in_parallel:
        raise pytest.UsageError(
            "--benchmark: points must not be timed in parallel; leave out -n, or add -n 0"
        )
    if config.getoption("benchmark_cprofile"):
        raise pytest.UsageError(
            "--benchmark-cprofile cannot see into the worker process that --benchmark measures in"
        )
