"""One ``pytest --benchmark`` run: its session, its suites, and what it says at the end.

``BenchmarkRun`` is registered as a pytest plugin for the length of the run, so that none
of these hooks exists in a run without ``--benchmark``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from attnbench import __version__, shelves
from attnbench.conditions import before_start, closing_lines
from attnbench.errors import UserError
from attnbench.plan import choose
from attnbench.process import WorkerDied
from attnbench.pytest_suite import SuiteFile, SuiteRun
from attnbench.session import Session, open_session, reproduce
from attnbench.settings import Preset
from attnbench.suite import find_suite, kind_of, list_suites, load_suite

_BUILTIN = "attnbench/suites/"  # how node ids call the built-in shelf, wherever it is installed
SMOKE = (
    "measure.min_rounds=1", "measure.samples=1", "measure.max_s=1e-9", "measure.warmup_s=0",
    "measure.processes=1", "measure.energy_s=0", "measure.ceilings_s=0",
)  # fmt: skip
_NOT_OURS = {  # options of pytest-benchmark that say how test functions are measured
    "benchmark_min_rounds": ("--benchmark-min-rounds", 5),
    "benchmark_max_time": ("--benchmark-max-time", "1.0"),
}


class BenchmarkRun:
    """The plugin object of a run; owns the session and with it the worker process."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.project = project_folder(config)
        self.is_smoke = config.getoption("benchmark_disable") and not config.getoption(
            "benchmark_enable"
        )
        self._impls: list[str] = config.getoption("attn_impls") or []
        self._impls_dirs: list[Path] = config.getoption("attn_impls_dir") or []
        self._device: str = config.getoption("attn_device") or "auto"
        self._overrides: list[str] = config.getoption("attn_set") or []
        self._preset: Preset | None = config.getoption("attn_preset")
        self._results: Path | None = config.getoption("attn_results")
        self._session: Session | None = None
        self._stack = contextlib.ExitStack()
        self._suites: list[SuiteRun] = []
        self._note = ""

    def begin(self) -> None:
        """Settle which paths pytest collects.

        Raises:
            pytest.UsageError: an argument is neither a path nor a suite.
        """
        if self.config.getoption("file_or_dir"):
            self.config.args = [self._path_of(word) for word in self.config.args]
        else:
            self.config.args = [str(path) for path in self._default_suites()]
        if self.config.getoption("benchmark_compare"):
            self.open()  # pytest-benchmark compares machines before anything is collected

    # ---- which files -----------------------------------------------------------------

    def _default_suites(self) -> list[Path]:
        found = sorted((self.project / "suites").glob("*.toml"))
        own = [path for path in found if kind_of(path) == "attention"]
        self._note = (
            f"suites of this project: {', '.join(path.stem for path in own)}"
            if own
            else "suite quick, as this project has no suites/*.toml of its own"
        )
        return own or [find_suite("quick", self.project)]

    def _path_of(self, word: str) -> str:
        """An argument that is not a path may name a suite, as node ids do."""
        name, colons, rest = word.partition("::")
        if (self.config.invocation_params.dir / name).exists() or self.config.option.pyargs:
            return word
        if name.startswith(_BUILTIN):
            return f"{shelves.builtin('suites') / name.removeprefix(_BUILTIN)}{colons}{rest}"
        if "/" in name or "." in name:
            return word  # pytest says that there is no such file
        try:
            return f"{find_suite(name, self.project)}{colons}{rest}"
        except UserError as error:
            raise pytest.UsageError(str(error)) from error

    def _node_id(self, path: Path) -> str | None:
        """A node id that stays the same; None where pytest's own, below rootdir, is right."""
        builtin = shelves.builtin("suites")
        if path.parent == builtin and path.parent != self.project / "suites":
            return _BUILTIN + path.name
        return None if path.is_relative_to(self.config.rootpath) else path.as_posix()

    # ---- session ---------------------------------------------------------------------

    def open(self) -> Session:
        """The run's session: started when the first suite needs it.

        Raises:
            pytest.UsageError: no such device, it is in use, or no such implementation.
        """
        if self._session is None:
            is_look = self.config.getoption("collectonly")
            try:
                session = self._stack.enter_context(
                    open_session(self.project, self._device, self._impls_dirs, lock=not is_look)
                )
            except UserError as error:
                raise pytest.UsageError(in_pytest_words(error)) from error
            except WorkerDied as death:
                raise pytest.UsageError(f"{death.reason}\n{death.log}") from death
            try:
                choose(self._impls, session.entries)
            except UserError as error:
                raise pytest.UsageError(f"--attn-impls: {error}") from error
            self._session = session
        return self._session

    def load(self, path: Path) -> SuiteRun:
        """Read a suite and plan its points.

        Raises:
            pytest.Collector.CollectError: the suite cannot be meant.
        """
        try:
            run = self._plan(path)
        except UserError as error:
            raise pytest.Collector.CollectError(in_pytest_words(error)) from error
        self._suites.append(run)
        return run

    def _plan(self, path: Path) -> SuiteRun:
        session = self.open()
        overrides = [*self._overrides, *(SMOKE if self.is_smoke else ())]
        suite = load_suite(Path(os.path.relpath(path)), overrides, self._preset)
        if suite.kind != "attention":
            raise UserError(f"{suite.path}: a {suite.kind} suite; attnbench run measures it")
        file = session.results_file(suite, self._results, fresh=True)
        plan = session.plan(suite, file, self._impls)
        is_known = list_suites(self.project).get(suite.name) == path
        command = reproduce(
            suite.name if is_known else str(suite.path),
            device=self._device,
            impls_dirs=self._impls_dirs,
            overrides=self._overrides,
            preset=self._preset,
        )
        return SuiteRun(session, plan, None if self.is_smoke else file, command)

    # ---- hooks of pytest -------------------------------------------------------------

    def pytest_report_header(self) -> list[str]:
        """What will run, and which options of pytest-benchmark do not reach it."""
        lines = [f"attnbench: {__version__}, project {self.project}"]
        lines += [f"attnbench: {self._note}"] if self._note else []
        lines += ["attnbench: benchmarks are disabled: verifying only"] if self.is_smoke else []
        for name, (option, default) in _NOT_OURS.items():
            if str(self.config.getoption(name)) != str(default):
                lines.append(
                    f"attnbench: {option} is for test functions; a suite has its [measure], "
                    "which --attn-set measure.KEY=VALUE overrides"
                )
        return lines

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
        """A TOML file is a suite if it was named, or lies in a folder called suites."""
        if file_path.suffix != ".toml":
            return None
        is_named = parent.session.isinitpath(file_path)
        if not is_named and (
            file_path.parent.name != "suites" or kind_of(file_path) != "attention"
        ):
            return None  # other kinds are asked for by name, and then refused with the reason
        node_id = self._node_id(file_path)
        given: dict[str, Any] = {} if node_id is None else {"nodeid": node_id}
        suite = SuiteFile.from_parent(parent, path=file_path, **given)
        suite.load = self.load
        return suite

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Open the session here, where a fault of the whole run ends it with one line."""
        if isinstance(collector, SuiteFile):
            self.open()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Now it is settled who is measured together with whom."""
        for item in session.items:
            if isinstance(item.parent, SuiteFile) and item.get_closest_marker("skip") is None:
                item.parent.select(item)

    def pytest_report_collectionfinish(self) -> list[str]:
        """Before anything is measured: who else is at work on the machine."""
        if self._session is None:
            return []
        return [f"attnbench: {line}" for line in before_start(self._session.pool.sampler)]

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None, None, None]:
        """After the tables: where, and what is in which file."""
        try:
            return (yield)
        finally:
            files = [s.file for s in self._suites if s.file is not None and s.records]
            if self._session is not None and files:
                terminalreporter.section("attnbench")
                terminalreporter.line(f"measured on {self._session.device}, {self._machine()}")
                records = [r for suite in self._suites for r in suite.records.values()]
                for line in closing_lines(records):
                    terminalreporter.line(line)
                paths = [os.path.relpath(file) for file in files]
                terminalreporter.line(f"records: {', '.join(paths)}")
                terminalreporter.line(f"page:    attnbench report {' '.join(paths)}")

    def pytest_unconfigure(self) -> None:
        """End the worker, whatever ended the run."""
        for suite in self._suites:
            suite.close()
        self._stack.close()

    # ---- hooks of pytest-benchmark ---------------------------------------------------

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """Add what the worker runs on: the GPU, the driver, torch."""
        if self._session is not None:
            machine_info["attnbench"] = self._session.environment["identity"]

    def _machine(self) -> str:
        assert self._session is not None
        hardware = self._session.environment["identity"]["hardware"]
        return str(hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} threads")


def project_folder(config: pytest.Config) -> Path:
    """pytest's rootdir, or a folder near it if only that has suites or implementations.

    Without an ini file pytest makes up a rootdir from the paths that it is given, and takes
    the value in ``--option PATH`` for one: it can be ``suites`` itself, or far away.
    """
    for folder in (config.rootpath, config.invocation_params.dir, config.rootpath.parent):
        if (folder / "suites").is_dir() or (folder / "impls").is_dir():
            return folder
    return config.rootpath


def in_pytest_words(error: UserError) -> str:
    """The message with the options named as they are here: ``--set`` is ``--attn-set``."""
    return re.sub(r"(?<!\S)--(set|impls-dir|impls|device)\b", r"--attn-\1", str(error))
