"""Projects outside this tree: their own ``impls/``, and packages with an entry point."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import HEALTHY, attnbench, write_suite


def records(project: Path) -> dict[str, dict[str, object]]:
    (file,) = project.glob("results/*/*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return {record["implementation"]["name"]: record for record in found}


def test_a_projects_own_implementation_is_verified_and_measured_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "impls").mkdir()
    (tmp_path / "impls" / "mine.py").write_text(HEALTHY.format(name="mine"))
    (tmp_path / "suites").mkdir()
    write_suite(tmp_path / "suites", ("mine", "naive"), name="ours", direction="both")
    ended = attnbench("run", "ours", cwd=tmp_path)
    assert ended.code == 0, ended.text
    found = records(tmp_path)
    assert {name: r["status"] for name, r in found.items()} == {"mine": "ok", "naive": "ok"}
    assert found["mine"]["implementation"]["origin"] == "project"  # type: ignore[index]
    assert set(found["mine"]["accuracy"]) == {"out", "dq", "dk", "dv"}  # type: ignore[call-overload]
    assert list(tmp_path.glob("reports/out/*/ours/index.html"))


def test_a_folder_named_on_the_command_line_counts_too(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(HEALTHY.format(name="mine"))
    suite = write_suite(tmp_path, ("mine",))
    ended = attnbench("run", suite, "--no-report", "--impls-dir", "elsewhere", cwd=tmp_path)
    assert ended.code == 0, ended.text
    assert records(tmp_path)["mine"]["status"] == "ok"


def test_an_installed_packages_implementation_is_found_by_its_entry_point(tmp_path: Path) -> None:
    site = tmp_path / "site"
    package = site / "fast_attention"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(HEALTHY.format(name="fast"))
    info = site / "fast_attention-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fast-attention\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[attnbench.impls]\nfast = fast_attention.plugin\n")
    project = tmp_path / "project"
    project.mkdir()
    suite = write_suite(project, ("fast", "sdpa-math"))
    env = {"PYTHONPATH": str(site)}
    ended = attnbench("run", suite, "--no-report", cwd=project, env=env)
    assert ended.code == 0, ended.text
    found = records(project)
    assert {name: r["status"] for name, r in found.items()} == {"fast": "ok", "sdpa-math": "ok"}
    origin = found["fast"]["implementation"]["origin"]  # type: ignore[index]
    assert origin == "package fast-attention 1.2"


def test_a_package_that_cannot_be_imported_is_listed_and_stops_nobody(tmp_path: Path) -> None:
    info = tmp_path / "site" / "gone-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[attnbench.impls]\ngone = gone_attention\n")
    env = {"PYTHONPATH": str(tmp_path / "site")}
    ended = attnbench("list", cwd=tmp_path, env=env)
    assert ended.code == 0, ended.text
    (line,) = [line for line in ended.out.splitlines() if line.startswith("gone")]
    assert "unavailable" in line
    assert "No module named 'gone_attention'" in line
    assert any(line.startswith("naive") for line in ended.out.splitlines())
