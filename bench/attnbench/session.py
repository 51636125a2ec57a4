"""A session: one device, held for one run, with all that is known about it.

Both doors (the command line and pytest) open one to discover implementations, name the
environment, find the file to resume, and measure.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench import environment as environments
from attnbench import pool as pools
from attnbench import selftest, store
from attnbench.errors import UserError
from attnbench.limits import Limits
from attnbench.lock import device_lock
from attnbench.measure.telemetry import Sampler
from attnbench.plan import Contender, Plan, choose, make_plan
from attnbench.process import IMPORT_TIMEOUT_S
from attnbench.registry import Entry
from attnbench.settings import Preset
from attnbench.suite import Suite


@dataclass
class Session:
    """An open session; see :func:`open_session`."""

    project: Path
    device: str
    pool: pools.WorkerPool
    entries: list[Entry]
    environment: dict[str, Any]

    def results_folder(self, results: Path | None = None) -> Path:
        """The folder of this machine: its records, and the environments beside them."""
        return (results or self.project / "results") / environments.machine_name(self.environment)

    def results_file(self, suite: Suite, results: Path | None = None, fresh: bool = False) -> Path:
        """The file of a suite's records on this machine.

        Runs of the same problems with the same settings on the same machine share a file
        and so resume each other. ``fresh`` names the next generation of that file; what
        was measured before stays where it is.
        """
        folder = self.results_folder(results)
        stem = f"{suite.name}-{suite.digest}-{environments.machine_id(self.environment)[:6]}"
        generation = 1
        while _generation(folder, stem, generation + 1).exists():
            generation += 1
        if fresh and _generation(folder, stem, generation).exists():
            generation += 1
        return _generation(folder, stem, generation)

    def limits(self, suite: Suite, folder: Path | None) -> Limits:
        """The device's ceilings, for a run of a suite whose records go to ``folder``.

        The environment notes the machine's last self-test, where the folder has one.
        """
        if folder is not None:
            self.environment = selftest.noted(self.environment, folder)
        return Limits(self.pool, self.environment, folder, suite.measure.ceilings_s)

    def contenders(self, suite: Suite, impls: Sequence[str] = ()) -> list[Contender]:
        """Who is to be measured: ``impls``, or else the suite's, with the options of ``--set``.

        The suite's ``kinds`` choose among its own; who asks for an implementation gets it.

        Raises:
            UserError: see :func:`attnbench.plan.choose`.
        """
        if impls:
            return choose(impls, self.entries, "--impls", suite.options, suite.kind)
        of_kind = [e for e in self.entries if e.kind in suite.kinds]
        return choose(suite.impls, of_kind, f"{suite.path}: impls", suite.options, suite.kind)

    def plan(
        self,
        suite: Suite,
        file: Path,
        impls: Sequence[str] = (),
        problems: Sequence[str] = (),
        shard: tuple[int, int] = (1, 1),
    ) -> Plan:
        """The points of a suite that ``file`` has no record of."""
        kept = store.load([file], suite.kind).records if file.exists() else []
        done = frozenset(record.id for record in kept)
        contenders = self.contenders(suite, impls)
        if suite.baseline:
            choose([suite.baseline], self.entries, f"{suite.path}: baseline")
        machine = environments.machine_id(self.environment)
        return make_plan(suite, contenders, self.device, machine, done, problems, shard)


@contextlib.contextmanager
def open_session(
    project: Path | None = None,
    device: str = "auto",
    impls_dirs: Sequence[Path] = (),
    *,
    lock: bool = True,
    import_timeout_s: float = IMPORT_TIMEOUT_S,
) -> Iterator[Session]:
    """Start a worker, settle the device, hold it, and find out who can be measured.

    Args:
        project: the user's project; None is the current folder.
        device: ``auto`` (a GPU if torch can use one), ``cpu``, ``cuda`` or ``cuda:N``.
        impls_dirs: further folders of implementations.
        lock: whether to hold the device and watch it; not needed only to look.
        import_timeout_s: longest time a plugin may take to be imported.

    Raises:
        UserError: the device is not there, or another attnbench holds it.
    """
    folder = (project or Path.cwd()).resolve()
    if not folder.is_dir():
        raise UserError(f"--project {project}: no such folder")
    for impls_dir in impls_dirs:
        if not impls_dir.is_dir():
            raise UserError(f"--impls-dir {impls_dir}: no such folder")
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(pools.WorkerPool(device, folder))
        known = pools.environment(pool)
        if "fault" in known:
            raise UserError(f"--device {device}: {known['fault']}")
        pool.device = known["identity"]["hardware"]["device"]
        if lock:
            gpu = known["context"].get("gpu", {})
            stack.enter_context(device_lock(pool.device, gpu.get("uuid")))
            sampler = Sampler(pool.device, gpu_uuid=environments.gpu_uuid(known))
            pool.watched_by(stack.enter_context(sampler))
        entries = pools.discover(pool, folder, impls_dirs, import_timeout_s)
        yield Session(folder, pool.device, pool, entries, known)


def reproduce(
    suite: str,
    *,
    device: str = "auto",
    project: Path | None = None,
    impls_dirs: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    preset: Preset | None = None,
    against: str | None = None,
) -> str:
    """The beginning of the command that measures a point again; a record adds the rest.

    Args:
        suite: its name or file.
        device, project, impls_dirs: as in :func:`open_session`.
        overrides, preset: as in :func:`attnbench.suite.load_suite`.
        against: the commit that both versions of the point were measured for.
    """
    words = ["attnbench", "run", suite]
    if preset is not None:
        words.append(f"--{preset}")
    for text in overrides:
        words += ["--set", text]
    for folder in impls_dirs:
        words += ["--impls-dir", str(folder)]
    if device != "auto":
        words += ["--device", device]
    if project is not None:
        words += ["--project", str(project)]
    if against is not None:
        words += ["--against", against]
    return shlex.join(words)


def _generation(folder: Path, stem: str, number: int) -> Path:
    return folder / (f"{stem}.jsonl" if number == 1 else f"{stem}.{number}.jsonl")
