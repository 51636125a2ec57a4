"""A compile check that lies beside the records is on their page."""

from __future__ import annotations

from pathlib import Path

from synthetic_records import sweep, write_run

from attnbench.offline import Compiled, Figures
from attnbench.offline.result import FILE, CompileCheck, Row
from attnbench.report import render
from attnbench.report.compile_checks import COLUMNS, find_checks

FIGURES = Figures(
    registers=168, spill_bytes=24, shared_bytes=167936, num_warps=12, tensor_memory_columns=None,
    occupancy=0.1875, limit="registers", instructions={"HGMMA": 48, "STL": 3},
    atomics_written=0, atomics_kept=0, atomics=0, loops_to_specialize=1, loops_specialized=1,
)  # fmt: skip


def row(case: str, figures: Figures | None, *faults: str) -> Row:
    compiled = Compiled(
        case=case, kernel="forward", target="sm_90", expects=(), spill_budget_bytes=0,
        num_warps=4, figures=figures, failure=None if figures else "no",
    )  # fmt: skip
    return Row(implementation="triton", compiled=compiled, faults=faults)


def test_the_page_has_the_table_of_the_check_beside_its_records(tmp_path: Path) -> None:
    file = write_run(tmp_path, sweep())
    rows = [row("<b>forward</b>", FIGURES), row("backward", None, "does not compile: no")]
    check = CompileCheck.of(rows, {}, "3.7.1", is_complete=False)
    check.write(file.parent / FILE)
    (view,) = find_checks([file])
    assert view.summary.startswith("2 kernels compiled for GPUs that need not be here, with")
    assert "Triton 3.7.1: 1 with faults (one of each kind" in view.summary
    assert dict(zip(COLUMNS, view.rows[0], strict=True)) == {
        "implementation": "triton", "case": "<b>forward</b>", "target": "sm_90",
        "registers": "168", "spills": "24 B", "shared memory": "164.0 KiB",
        "occupancy": "19% (registers)", "matrix instructions": "48 HGMMA", "verdict": "ok",
    }  # fmt: skip
    assert view.rows[1] == ("triton", "backward", "sm_90", *[""] * 5, "does not compile: no")
    page = render([file], tmp_path / "out").page.read_text(encoding="utf-8")
    assert view.summary in page
    assert "&lt;b&gt;forward&lt;/b&gt;" in page
    assert "<b>forward</b>" not in page


def test_without_a_check_or_with_a_damaged_one_there_is_no_table(tmp_path: Path) -> None:
    file = write_run(tmp_path, sweep())
    assert find_checks([tmp_path]) == []
    (file.parent / FILE).write_text('{"rows": 3}')
    assert find_checks([tmp_path, file]) == []
