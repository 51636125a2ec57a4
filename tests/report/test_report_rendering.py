"""Everything that a render writes: page, figures, Markdown."""

import re

import pytest
from synthetic_records import record, sweep, write_run

from attnbench.problem import Problem
from attnbench.report import render
from attnbench.report.markdown import LIMIT_BYTES, escape

PROBLEM = Problem.of(heads=8, head_dim=64, seqlen=128)
ONLY = """
title = "Plain"
[[views]]
view = "{view}"
"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return render([write_run(folder, sweep())], folder / "out")


def table(text, heading):
    """Rows of the Markdown table under a heading, as lists of cells."""
    part = text.split(heading, 1)[1].split("\n## ", 1)[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def test_a_render_writes_page_summary_and_a_png_and_svg_of_each_main_view(quick):
    names = sorted(path.name for path in quick.figures)
    views = ("error", "latency", "memory", "rate", "speedup")
    assert names == sorted(f"quick-{view}.{ext}" for view in views for ext in ("png", "svg"))
    for path in (quick.page, quick.markdown, *quick.figures):
        assert path.stat().st_size > 1000
    assert quick.problems == ()


def test_all_files_are_the_same_whatever_the_order_of_the_records(tmp_path, quick):
    again = render([write_run(tmp_path, sweep()[::-1])], tmp_path / "out")
    assert [p.name for p in again.figures] == [p.name for p in quick.figures]
    for one, other in zip(
        (again.page, again.markdown, *again.figures),
        (quick.page, quick.markdown, *quick.figures),
        strict=True,
    ):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_figures_name_every_implementation_and_panel(quick):
    svg = next(p for p in quick.figures if p.name == "quick-rate.svg").read_text(encoding="utf-8")
    for text in (
        "naive",
        "triton:block_m=64",
        "forward · float32 · full",
        "GFLOPS",
        ">128<",
        ">1k<",
    ):
        assert text in svg
    heat = next(p for p in quick.figures if p.name == "quick-speedup.svg").read_text()
    for text in ("OOM", "unsup.", "wrong", "no base", "1.00×"):
        assert text in heat


def test_names_are_never_read_as_formulas_or_markup(tmp_path):
    named = record("sdpa", PROBLEM).implementation.model_copy(update={"name": "a$b_{$\\frac<&>"})
    one = record("sdpa", PROBLEM).model_copy(update={"implementation": named})
    definition = tmp_path / "only.toml"
    definition.write_text(ONLY.format(view="latency"), encoding="utf-8")
    rendered = render([write_run(tmp_path, [one])], tmp_path / "out", report=str(definition))
    svg = next(p for p in rendered.figures if p.suffix == ".svg").read_text(encoding="utf-8")
    assert "a$b_{$\\frac&lt;&amp;&gt;" in svg


def test_a_view_that_nothing_was_measured_for_has_no_figure(tmp_path):
    records = [record("naive", PROBLEM, status="unsupported")]
    rendered = render([write_run(tmp_path, records)], tmp_path / "out")
    assert rendered.figures == ()
    assert "nobody" in rendered.markdown.read_text(encoding="utf-8")


def test_nothing_at_all_still_renders(tmp_path):
    rendered = render([write_run(tmp_path, [])], tmp_path / "out")
    assert "no records" in rendered.markdown.read_text(encoding="utf-8")
    assert rendered.figures == ()


# ---- Markdown ----------------------------------------------------------------------------------


def test_the_summary_has_verdicts_medians_failures_and_the_machine(quick):
    text = quick.markdown.read_text(encoding="utf-8")
    assert "Imaginary Processor 9000" in text
    assert "torch 2.13.0+cpu" in text
    verdicts = table(text, "fastest correct implementation")
    assert len(verdicts) == 8
    assert verdicts[0][:2] == ["forward · float32 · full", "1024"]
    medians = table(text, "## Medians")
    ok = [one for one in sweep() if one.status == "ok"]
    assert len(medians) == len(ok)
    assert all(re.fullmatch(r"[\d.]+ [µm]?s \[[\d.]+, [\d.]+\]", row[3]) for row in medians)
    failed = table(text, "## Not ok")
    assert {row[1] for row in failed} == {"incorrect", "oom", "crash", "timeout", "unsupported"}
    assert failed[0][1] == "incorrect"  # the gravest first
    assert "(figures/quick-rate.png)" in text


def test_the_summary_of_a_huge_run_stays_under_the_limit_and_says_what_it_left_out(tmp_path):
    problems = [Problem.of(heads=8, head_dim=64, seqlen=n) for n in range(1, 120)]
    records = [record(f"impl-{i}", p) for p in problems for i in range(8)]
    reasons = [letter * 100 for letter in "abcdefghijk"]
    records += [
        record(f"impl-{i}", p, status="error", suite="failing", reason=reason)
        for i in range(8)
        for p, reason in zip(problems, reasons, strict=False)
    ]
    definition = tmp_path / "only.toml"
    definition.write_text(ONLY.format(view="verdicts"), encoding="utf-8")
    rendered = render([write_run(tmp_path, records)], tmp_path / "out", report=str(definition))
    data = rendered.markdown.read_bytes()
    assert len(data) <= LIMIT_BYTES < 64 * 1024
    text = data.decode()
    assert len(table(text, "## Not ok")) == 50
    assert text.count("more in the page") == 2


def test_text_of_records_cannot_break_the_table_or_call_anybody():
    text = escape("a|b\n# c `d` <img> @somebody [x](y) *z*")
    assert "\n" not in text
    assert not re.search(r"(?<!\\)[|`*\[\]#]", text)
    assert "<" not in text
    assert "@somebody" not in text
