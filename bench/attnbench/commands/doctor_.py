"""``attnbench doctor``: what this machine is, what is missing for which purpose, what it proved."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnbench import environment as environments
from attnbench import selftest, shelves
from attnbench.commands import selftest_text
from attnbench.commands.opening import open_for
from attnbench.measure.sight import energy_sight, telemetry_sight
from attnbench.session import Session

_EXTRAS = {
    "report": ("altair", "jinja2", "matplotlib", "pandas", "vl_convert"),
    "pytest": ("pytest", "pytest_benchmark"),
    "xformers": ("xformers",),
}


def main(arguments: argparse.Namespace) -> int:
    """Print the environment, the checks and the last self-test; with ``--selftest`` a new one.

    Returns:
        1 if measuring or rendering cannot work, or the self-test that was asked for failed.
    """
    console = Console()
    is_proved = True
    # Without the self-test it only looks: nothing is measured.
    with open_for(arguments, lock=arguments.selftest) as session:
        table = Table(box=None, pad_edge=False, show_header=False)
        for section, values in _sections(session.environment).items():
            table.add_row(f"[bold]{section}[/]", "")
            for key, value in values.items():
                table.add_row(f"  {key}", escape(str(value)))
        console.print(table)
        folder = session.results_folder(arguments.results)
        checks = _checks(session)
        if arguments.selftest:
            is_proved = _selftest(console, session, folder)
        else:
            checks.append(_last_selftest(session, folder))
    console.print()
    for name, is_good, text in checks:
        mark = {True: "[green]ok     [/]", False: "[red]missing[/]", None: "[yellow]note   [/]"}
        console.print(f"{mark[is_good]} [bold]{name}[/] {escape(text)}", soft_wrap=True)
    return 0 if is_proved and all(is_good is not False for _, is_good, _ in checks) else 1


def _selftest(console: Console, session: Session, folder: Path) -> bool:
    """Prove the instrument, print the table, keep the result; whether nothing failed."""
    console.print()
    with console.status("self-test") as status:
        result = selftest.prove(session.pool, lambda check: status.update(f"self-test: {check}"))
    selftest_text.print_rows(console, result.rows)
    console.print(f"Self-test {escape(selftest_text.sentence(result))}", soft_wrap=True)
    kept = selftest.keep(session.environment, result, folder)
    console.print(f"Kept in {escape(str(kept))}", soft_wrap=True)
    return result.is_passed


def _last_selftest(session: Session, folder: Path) -> tuple[str, bool | None, str]:
    kept = selftest.latest(session.environment, folder)
    if kept is None:
        return "self-test", None, "none on this machine yet: attnbench doctor --selftest"
    return "self-test", True if kept.result.is_passed else None, selftest_text.sentence(kept.result)


def _sections(environment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = dict(environment["identity"])
    context = {k: v for k, v in environment["context"].items() if not isinstance(v, dict)}
    for key, value in environment["context"].items():
        if isinstance(value, dict):
            found[key] = value
    found["identity"] = {"machine": environments.machine_name(environment),
                         "id": environments.machine_id(environment), **context}  # fmt: skip
    return found


def _checks(session: Session) -> list[tuple[str, bool | None, str]]:
    """(what, good / bad / merely worth knowing, text) for everything that can be missing."""
    found: list[tuple[str, bool | None, str]] = []
    hardware = session.environment["identity"]["hardware"]
    gpu = hardware.get("gpu")
    found.append(
        ("GPU", True if gpu else None, gpu or "none that torch can use; measuring the CPU")
    )
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    found.append(
        ("C++ compiler", True if compiler else None,
         compiler or "none; torch.compile (flex) needs one on a CPU")
    )  # fmt: skip
    for extra, modules in _EXTRAS.items():
        absent = [m for m in modules if importlib.util.find_spec(m) is None]
        needed = extra == "report"
        is_good = True if not absent else (False if needed else None)
        text = f"no {', '.join(absent)}: pip install 'attnbench[{extra}]'" if absent else "there"
        found.append((f"extra {extra}", is_good, text))
    found += _sight(session)
    broken = [e for e in session.entries if e.reason is not None]
    usable = len(session.entries) - len(broken)
    found.append(("implementations", usable > 0, f"{usable} can be loaded"))
    found += [
        ("implementation", None, f"{e.name} unavailable: {e.file}:{e.line}: {e.reason}")
        for e in broken
    ]
    for kind in ("impls", "suites", "reports"):
        places = shelves.find(kind, session.project)
        found.append((f"shelf {kind}", bool(places), ", ".join(map(str, places)) or "none"))
    return found


def _sight(session: Session) -> list[tuple[str, bool | None, str]]:
    """What can be seen of the machine while something is measured."""
    gpu_uuid = environments.gpu_uuid(session.environment)
    seen = telemetry_sight(session.device, gpu_uuid)
    there = [signal for signal, why in seen.items() if why is None]
    found: list[tuple[str, bool | None, str]] = [
        ("telemetry", True if there else None, f"sees {', '.join(there) or 'nothing'}")
    ]
    reasons: dict[str, list[str]] = {}
    for signal, why in seen.items():
        if why is not None:
            reasons.setdefault(why, []).append(signal)
    found += [
        ("telemetry", None, f"cannot see {', '.join(signals)}: {why}")
        for why, signals in reasons.items()
    ]
    is_there, text = energy_sight(session.device, gpu_uuid)
    return [*found, ("energy", True if is_there else None, text if is_there else f"none: {text}")]
