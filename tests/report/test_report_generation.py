"""Generations on the page, in the summary and in the frame; never among other kinds."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_records import record, samples, trained, write

from attnbench.record import Implementation, Record
from attnbench.report import load_frame, render
from attnbench.report.points import load_points
from attnbench.report.sweep import scopes
from attnbench.train.generation.figures import Generated
from attnbench.train.generation.spec import Generation

SPEC = Generation(batch=2, prompt=16, new=5)
VIEWS = ("verdicts", "throughput", "rate", "serving", "support")


def served(name: str, factor: float = 1.0, *, kind: str = "exact", **changes: Any) -> Record:
    """A made-up generation of 0.5 s, of which the prompt takes 0.1 s, times ``factor``."""
    part = Generated.model_validate(
        {
            "first": samples([0.1 * factor] * 3), "rest": samples([0.4 * factor] * 3),
            "between": samples([0.1 * factor] * 3), "gaps": 12,
            "agreement": {"ok": True if kind == "exact" else None, "reference": "naive",
                          "max_error": 1e-6, "ratio": 0.25, "places": 10, "reruns": 5,
                          "rule": "made up"},
            "memory": {"weights_bytes": 1000, "cache_counted_bytes": 2048, "cache_bytes": 2048,
                       "working_bytes": 1000, "method": "made up"},
            "parameters": 250, "flops": 10**6, "build_s": 1.0,
        }
    )  # fmt: skip
    told = {
        "kind": "generation", "suite": "generate", "title": "Served", "baseline": "naive",
        "implementation": Implementation(name=name, kind=kind, source_sha256="a" * 64),
        "problem": SPEC.to_json(), "problem_id": SPEC.id, "id": f"{name:0>16}",
        "generation": part if changes.get("status", "ok") == "ok" else None,
    }  # fmt: skip
    made = record([0.5 * factor] * 3, status=changes.get("status", "ok"))
    return Record.model_validate(made.model_copy(update=told | changes).model_dump())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    refused = served("linear", status="unsupported", reason="does not decode", samples=None)
    write(folder, [served("naive"), served("half", 2.0), refused, trained("naive"), record()])
    views = "".join(f'[[views]]\nview = "{view}"\n' for view in VIEWS)
    for view in ("throughput", "rate"):
        views = views.replace(f'"{view}"\n', f'"{view}"\nfigure = false\n')
    (folder / "plain.toml").write_text(views)
    return render([folder], folder / "out", report=str(folder / "plain.toml"))


def words(html: str, view: str) -> str:
    (found,) = re.findall(rf'<section id="[^"]*" class="view view-{view}".*?</section>', html, re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", found)).split())


def test_a_generation_has_its_times_in_its_own_table_and_in_no_other(rendered: Any) -> None:
    """Catches a whole generation that is shown as a step, or as a call."""
    html = rendered.page.read_text()
    told = words(html, "serving")
    assert "first token [95 %]" in told
    assert "naive 20.0 tokens/s [20.0, 20.0] baseline 100 ms" in told
    assert "half 10.00 tokens/s" in told or "half 10.0 tokens/s" in told
    assert "slower" in told
    assert "ok: 0.25 of the bound" in told
    assert "unsupported: does not decode" in told
    for view in ("throughput", "rate"):
        assert "half" not in words(html, view)


def test_the_summary_and_the_frame_tell_generations(rendered: Any, tmp_path: Path) -> None:
    text = rendered.markdown.read_text()
    assert "## Served: generation" in text
    frame = load_frame([write(tmp_path, [served("naive"), trained("naive")])])
    (row,) = [row for _, row in frame.iterrows() if row["record_kind"] == "generation"]
    assert row["tokens_per_s"] == pytest.approx(20.0)
    assert row["prefill_tokens_per_s"] == pytest.approx(320.0)
    assert row["first_token_s"] == pytest.approx(0.1)


def test_a_scope_has_one_kind(tmp_path: Path) -> None:
    records = [served("naive", suite="same"), trained("naive", suite="same")]
    found = scopes(load_points([write(tmp_path, records)]).points)
    assert sorted(scope.kind for scope in found) == ["generation", "training"]
