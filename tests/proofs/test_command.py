"""The command that runs the proofs: what it refuses, how it ends, where it writes."""

from __future__ import annotations

import importlib.util
import json
import types
from pathlib import Path

import pytest
from proof import Machine, Proof, Row, marks, write_between_marks

from attnbench.errors import UserError

MACHINE = Machine("Imaginary Processor, 2 cores", 2, "0.1.0", "2.13.0", "3.11.7", "2026-01-02")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    path = Path(__file__).parent / "__main__.py"
    spec = importlib.util.spec_from_file_location("proofs_command", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for book in module.BOOKS:
        page = tmp_path / f"{book}.md"
        page.write_text((module.DOCS / page.name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    return module


def finds(command: types.ModuleType, monkeypatch: pytest.MonkeyPatch, is_kept: bool) -> None:
    """Make the command find this instead of measuring."""
    proofs = [
        Proof("overhead", "Time", [Row("share", "70 %", "≥ 70 %", is_kept)], part="overhead"),
        Proof("cuda", "Agreement", [], skipped="there is no GPU", part="agreement_cuda"),
    ]
    monkeypatch.setattr(command, "run", lambda arguments: (MACHINE, proofs))


@pytest.mark.parametrize(("is_kept", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_tells_whether_every_bound_is_kept(
    command: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_kept: bool,
    code: int,
) -> None:
    finds(command, monkeypatch, is_kept)
    result = tmp_path / "new" / "result.json"
    assert command.main(["instrument", "--json", str(result)]) == code
    assert json.loads(result.read_text())["proofs"][0]["rows"][0]["is_kept"] is is_kept
    printed = capsys.readouterr().out
    assert ("NOT KEPT" in printed) is not is_kept
    assert "there is no GPU" in printed


def test_only_on_request_is_the_page_written(
    command: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finds(command, monkeypatch, True)
    before = (command.DOCS / "instrument.md").read_text(encoding="utf-8")
    command.main(["instrument", "--json", str(tmp_path / "result.json")])
    assert (command.DOCS / "instrument.md").read_text(encoding="utf-8") == before
    command.main(["instrument", "--json", str(tmp_path / "result.json"), "--write-docs"])
    after = (command.DOCS / "instrument.md").read_text(encoding="utf-8")
    begin, end = marks("overhead")
    assert after.partition(begin)[0] == before.partition(begin)[0], "what was not run stays"
    assert "| share | 70 % | ≥ 70 % | kept |" in after.partition(begin)[2].partition(end)[0]
    begin, end = marks("agreement_cuda")
    assert "Not shown here: there is no GPU." in after.partition(begin)[2].partition(end)[0]


def test_what_cannot_be_measured_is_one_line(
    command: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(arguments: object) -> None:
        raise UserError("device cpu is being measured by another attnbench")

    monkeypatch.setattr(command, "run", run)
    assert command.main(["instrument", "--json", str(tmp_path / "result.json")]) == 2
    assert capsys.readouterr().err == "error: device cpu is being measured by another attnbench\n"
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["instrumnt"], "argument BOOK: invalid choice: 'instrumnt'"),
        (["instrument", "overhed"], "no proof 'overhed' in instrument; allowed: false_verdicts, "),
        (["families", "overhead"], "no proof 'overhead' in families; allowed: growth, rivals"),
        (["instrument", "--trials", "0"], "must be a whole number from 1, got '0'"),
        (["instrument", "--processes", "-1"], "must be a whole number from 1, got '-1'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: types.ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_every_page_has_a_place_for_each_result(command: types.ModuleType) -> None:
    for book, parts in command.BOOKS.items():
        for part in parts:
            write_between_marks(command.DOCS / f"{book}.md", part, "result")
