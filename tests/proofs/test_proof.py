"""Intervals of shares, the printed result, and the page that keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from proof import Machine, Proof, Row, markdown, marks, to_json, wilson, write_between_marks

from attnbench.errors import UserError

MACHINE = Machine("Imaginary Processor, 2 cores", 2, "0.1.0", "2.13.0", "3.11.7", "2026-01-02")
KEPT = Proof("a", "First", [Row("share", "71 %", "≥ 70 %", True), Row("· rest", "29 %")])
BROKEN = Proof("b", "Second", [Row("share", "69 %", "≥ 70 %", False)], load=(0.5, 3.0))
BEGIN, END = marks("own")
SKIPPED = Proof("c", "Third", [], skipped="there is no GPU")


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 200, 0.0, 0.01885), (2, 200, 0.00275, 0.03573), (8, 10, 0.49016, 0.94331)],
)
def test_the_interval_of_a_share_is_wilsons(
    hits: int, trials: int, low: float, high: float
) -> None:
    assert wilson(hits, trials) == pytest.approx((low, high), abs=1e-5)


def test_no_trials_have_no_share() -> None:
    with pytest.raises(ValueError, match="no trials"):
        wilson(0, 0)


def test_a_proof_is_kept_if_every_bound_is() -> None:
    assert KEPT.is_kept
    assert not BROKEN.is_kept
    assert SKIPPED.is_kept


def test_the_page_tells_machine_load_and_what_was_not_kept() -> None:
    text = markdown(MACHINE, [KEPT, BROKEN, SKIPPED])
    assert "2026-01-02, Imaginary Processor, 2 cores, 2 threads; attnbench 0.1.0" in text
    assert "| share | 71 % | ≥ 70 % | kept |" in text
    assert "| share | 69 % | ≥ 70 % | **not kept** |" in text
    assert "load 0.5 before, 3.0 after" in text
    assert "Not shown here: there is no GPU." in text


def test_programs_read_the_same() -> None:
    data = json.loads(to_json(MACHINE, [BROKEN]))
    assert data["machine"]["torch"] == "2.13.0"
    assert data["proofs"][0]["rows"][0]["is_kept"] is False


def test_only_the_result_of_its_program_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    other = "\nold\n".join(marks("other"))
    page.write_text(f"before\n{other}\n{BEGIN}\nold\n{END}\nafter\n")
    write_between_marks(page, "own", "new\n")
    assert page.read_text() == f"before\n{other}\n{BEGIN}\nnew\n{END}\nafter\n"


@pytest.mark.parametrize(
    "text", ["nothing", f"{BEGIN}", f"{END} {BEGIN}", " ".join(marks("other"))]
)
def test_a_page_without_a_place_for_results_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match="no place for results"):
        write_between_marks(page, "own", "new")
    assert page.read_text() == text
