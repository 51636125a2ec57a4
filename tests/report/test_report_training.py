"""Training runs on the page and in the summary: each view, and never among single attentions."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_records import MACHINE, learned, record, trained, write

from attnbench import environment as environments
from attnbench.record import Record
from attnbench.report import load_frame, metrics, render
from attnbench.report.points import Point, load_points
from attnbench.report.style import looks
from attnbench.report.sweep import scopes
from attnbench.report.training_charts import MOST_STEPS
from attnbench.report.training_tables import Table, tables
from attnbench.report.training_text import mfu_cell, reached, texts
from attnbench.train.workload import Workload

GPT = Workload(model="gpt2-tiny", seqlen=64)
COPY = Workload(model="own-tiny", task="copy", target=0.99)
OPS_VIEWS = {"rate", "latency", "speedup", "winners", "memory", "error"}
RUN_VIEWS = {"throughput", "breakdown", "footprint", "parity", "quality"}
CEILINGS = {
    "measured": "2026-01-02T03:04:05+00:00",
    "matmul": {"float32": {"median": 1e10, "low": 1e10, "high": 1e10, "best": 1e10, "what": "N"}},
}
ONLY = 'title = "T"\n[[views]]\nview = "parity"\nfigure = {figure}\n'


def suite() -> list[Record]:
    """Two workloads; naive, a faster and a slower one, an approximate one, and failures."""
    approximate = learned((4.0, 3.6, 3.3), ok=None, metrics={"bits_per_character": 2.9})
    twice = [1.0, 1.1, 0.9, 1.0]
    return [
        trained("naive"),
        trained("quick", rounds=[0.5, 0.51, 0.5, 0.49]),
        trained("tied", rounds=twice, training=learned((4.0, 3.5 + 1e-6, 3.0))),
        trained("rough", kind="approximate", training=approximate, rounds=[2.0, 2.01, 1.99]),
        trained("refuses", status="unsupported", reason="does not do a learned bias"),
        trained("wrong", status="incorrect", reason="the loss is not finite in step 3"),
        trained("naive", COPY, training=learned(metrics={"token_accuracy": 0.995})),
        trained("rough", COPY, kind="approximate",
                training=learned(ok=None, metrics={"token_accuracy": 0.31, "perplexity": None})),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of single attentions and of training runs, by implementations of the same names."""
    folder = tmp_path_factory.mktemp("mixed")
    singles = [record(implementation=name, seqlen=n) for name in ("naive", "quick")
               for n in (128, 256)]  # fmt: skip
    write(folder, [*singles, *suite()])
    definition = folder / "plain.toml"
    views = "".join(f'[[views]]\nview = "{view}"\n' for view in sorted(
        OPS_VIEWS | RUN_VIEWS | {"verdicts", "support", "points", "reproduce"}
    ))  # fmt: skip
    drawn = {"rate", "latency", "speedup", "memory", "error", "throughput", "parity"}
    for view in drawn:
        views = views.replace(f'"{view}"\n', f'"{view}"\nfigure = false\n')
    definition.write_text(views, encoding="utf-8")
    rendered = render([folder], folder / "out", report=str(definition))
    return rendered.page.read_text(encoding="utf-8")


def data_of(html: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    told: dict[str, Any] = json.loads(found)
    return told


def scopes_of(html: str) -> dict[str, Any]:
    """The suites in the data of the page, by their kind."""
    return {scope["kind"]: scope for scope in data_of(html)["scopes"]}


def section(html: str, view: str) -> str:
    """The words of a view."""
    (found,) = re.findall(rf'<section id="[^"]*" class="view view-{view}".*?</section>', html, re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", found)).split())


def shown(folder: Path, records: list[Record], view: str) -> list[Table]:
    points = load_points([write(folder, records)]).points
    (scope,) = scopes(points)
    return tables(view, scope, looks(points))


def cells(table: Table, name: str) -> dict[str, str]:
    (row,) = [row for row in table.rows if row.look.name == name]
    return dict(zip(table.columns, row.cells, strict=True))


def point_of(folder: Path, one: Record, environment: dict[str, Any] | None = None) -> Point:
    """The point of a record, measured where ``environment`` says."""
    machines = () if environment is None else (environment,)
    if environment is not None:
        one = one.model_copy(update={"environment": environments.address(environment)})
    (point,) = load_points([write(folder, [one], "run.jsonl", *machines)]).points
    return point


# ---- apart from single attentions ----------------------------------------------------------


def test_no_run_of_training_is_in_a_chart_or_row_of_single_attentions(mixed: str) -> None:
    """Catches a page that ranks a training step among calls of an attention."""
    by_kind = scopes_of(mixed)
    assert set(by_kind) == {"attention", "training"}
    names = sorted(OPS_VIEWS | RUN_VIEWS | {"verdicts", "support", "points", "reproduce"})
    charts = {kind: {names[int(key.split("-")[0])] for key in scope["charts"]}
              for kind, scope in by_kind.items()}  # fmt: skip
    assert charts["attention"] <= OPS_VIEWS
    assert charts["training"] == RUN_VIEWS
    assert len(by_kind["attention"]["rows"]["id"]) == 4
    assert len(by_kind["training"]["rows"]["id"]) == 8
    assert not set(by_kind["attention"]["rows"]["id"]) & set(by_kind["training"]["rows"]["id"])
    for view in sorted(OPS_VIEWS - {"memory", "latency", "rate", "error"}):
        assert "gpt2-tiny" not in section(mixed, view)


def test_training_has_no_rate_in_flops_no_roofline_and_no_distance(tmp_path: Path) -> None:
    for point in load_points([write(tmp_path, suite())]).points:
        assert (point.flops, point.rate, point.place, point.ideal_bytes) == (None,) * 4
    frame = load_frame([tmp_path])
    assert frame["tflops"].isna().all()
    assert set(frame["record_kind"]) == {"training"}


def test_a_speed_up_is_of_the_baseline_of_the_same_kind_only(tmp_path: Path) -> None:
    """Catches a training run that is compared with a single attention's time."""
    alone = trained("quick", suite="quick", rounds=[0.5, 0.5, 0.5])
    single = record(implementation="naive", problem_id=alone.problem_id, baseline="naive")
    points = load_points([write(tmp_path, [single, alone])]).points
    assert {p.kind: p.speedup is None for p in points} == {"attention": False, "training": True}


# ---- each view -----------------------------------------------------------------------------


def test_throughput_tells_intervals_the_ratio_and_who_is_faster_slower_or_tied(
    tmp_path: Path,
) -> None:
    (table, _) = shown(tmp_path, suite(), "throughput")
    ratio = "against naive"
    assert cells(table, "naive")[ratio] == "baseline"
    assert cells(table, "quick")[ratio].startswith("2.00× [")
    assert cells(table, "quick")[ratio].endswith("] faster")
    assert cells(table, "rough")[ratio].endswith("] slower")
    assert cells(table, "tied")[ratio].endswith("] tie")
    assert re.match(r"512 tokens/s \[\d+, \d+\]", cells(table, "naive")["tokens/s [95 %]"])
    assert cells(table, "naive")["MFU full"] == "–", "no ceiling was measured"
    assert "no ceiling was measured" in table.note


def test_the_ratio_is_of_tokens_where_batches_differ(tmp_path: Path) -> None:
    """Catches a ratio of steps: twice the tokens in the same time is twice as fast."""
    largest = GPT.replace(batch=0)
    big = learned(tokens=1024, batch=16, batch_limit="memory")
    table = shown(
        tmp_path, [trained("naive", largest), trained("big", largest, training=big)], "throughput"
    )[0]
    assert cells(table, "big")["against naive"].startswith("2.00×")
    assert cells(table, "big")["batch"] == "16, largest that fits"


def test_mfu_is_a_share_of_the_measured_ceiling_and_effective_where_approximate(
    tmp_path: Path,
) -> None:
    environment = json.loads(json.dumps({**MACHINE, "ceilings": CEILINGS}))
    environment["ceilings"]["bandwidth"] = {}
    exact = point_of(tmp_path / "a", trained("naive"), environment)
    assert mfu_cell(exact, "full") == "14.0 %"
    assert mfu_cell(exact, "causal") == "12.0 %"
    rough = trained("rough", kind="approximate")
    approximate = point_of(tmp_path / "b", rough, environment)
    assert mfu_cell(approximate, "full") == "14.0 % effective"
    assert mfu_cell(approximate, "own") == "11.0 %"
    environment["identity"]["hardware"]["gpu"] = "NVIDIA H200"
    beside = point_of(tmp_path / "c", trained("naive"), environment)
    assert mfu_cell(beside, "full").startswith("14.0 % (")
    assert mfu_cell(beside, "full").endswith("% of datasheet)")


def test_a_teacher_is_in_no_mfu_and_told_beside_it(tmp_path: Path) -> None:
    environment = {**MACHINE, "ceilings": {**CEILINGS, "bandwidth": {}}}
    teacher = {"dense": 2 * 10**8, "attention_full": 2 * 10**8, "attention_causal": 10**8}
    counts = learned().flops.model_dump() | {"teacher": teacher}
    led = point_of(tmp_path / "a", trained(training=learned(flops=counts)), environment)
    assert mfu_cell(led, "full") == "14.0 %"
    assert mfu_cell(led, "causal") == "12.0 %"
    assert mfu_cell(led, "teacher") == "3.00 %"
    assert texts(led)["mfu"] == "full 14.0 %, causal 12.0 %, teacher 3.00 %"
    alone = point_of(tmp_path / "b", trained(), environment)
    assert "teacher" not in texts(alone)["mfu"]


def test_the_breakdown_tells_attentions_share_or_why_it_is_absent(tmp_path: Path) -> None:
    seconds = {"forward_s": 0.3, "backward_s": 0.6, "optimizer_s": 0.1}
    why = {"attention_absent": "the model is compiled", "method": "x"}
    absent = learned(breakdown=seconds | why)
    records = [trained("naive"), trained("other", training=absent)]
    (table,) = shown(tmp_path, records, "breakdown")
    assert cells(table, "naive")["attention"] == "25.0 % of a step"
    assert cells(table, "other")["attention"] == "not told: the model is compiled"
    assert cells(table, "naive")["together"] == "1.00 s"


def test_memory_is_told_by_part(tmp_path: Path) -> None:
    (table, _) = shown(tmp_path, suite(), "footprint")
    told = cells(table, "naive")
    assert told["activations"] == "1.00 MiB"
    assert told["peak"] == "2.00 MiB"
    assert told["learn"] == "900 of 1,000"


def test_parity_judges_exact_runs_and_tells_others_their_distance(tmp_path: Path) -> None:
    """Catches a table that passes or fails an approximate method."""
    (table, _) = shown(tmp_path, suite(), "parity")
    exact, approximate = cells(table, "tied"), cells(table, "rough")
    assert exact["parity"] == "ok"
    assert exact["nearest to the bound"] == "1.0e-06 of 4.0e-06 in step 1 (0.25)"
    assert exact["reruns"] == "5 of naive"
    assert approximate["parity"] == "not judged: approximate"
    assert approximate["largest deviation"] == "2.0e-06"
    assert approximate["nearest to the bound"] == "–"


def test_quality_stands_beside_speed_with_the_steps_to_the_target(tmp_path: Path) -> None:
    (text, copy) = shown(tmp_path, suite(), "quality")
    assert text.columns[0] == "bits a character"
    assert "steps to 99.0 % token accuracy" in copy.columns
    naive, rough = cells(copy, "naive"), cells(copy, "rough")
    assert naive["token accuracy"] == "99.5 %"
    assert naive["steps to 99.0 % token accuracy"] == "3"
    assert rough["steps to 99.0 % token accuracy"] == "not reached"
    assert rough["perplexity"] == "not finite"
    assert "tokens/s" in rough["tokens/s [95 %]"]


def test_a_target_below_is_reached_from_above(tmp_path: Path) -> None:
    workload = GPT.replace(target=2.6)
    point = point_of(tmp_path, trained("naive", workload))
    assert point.record.training is not None
    assert reached(point, point.record.training) == 3


def test_character_models_alone_are_no_verdict(mixed: str, tmp_path: Path) -> None:
    sentence = "nothing but character models"
    assert "A character model alone is never the verdict" in section(mixed, "quality")
    assert sentence not in section(mixed, "quality"), "copying is there as well"
    write(tmp_path, [trained("naive")])
    (tmp_path / "one.toml").write_text('[[views]]\nview = "quality"\n')
    page = render([tmp_path], tmp_path / "out", report=str(tmp_path / "one.toml"))
    assert sentence in section(page.page.read_text(), "quality")
    assert "Nothing but character models" in page.markdown.read_text()


def test_every_run_that_is_not_ok_has_its_reason_in_every_view(mixed: str) -> None:
    for view in sorted(RUN_VIEWS):
        words = section(mixed, view)
        assert "unsupported: does not do a learned bias" in words, view
        assert "incorrect: the loss is not finite in step 3" in words, view
    assert "the loss is not finite in step 3" in section(mixed, "support")
    rows = scopes_of(mixed)["training"]["rows"]
    for status, rate, loss in zip(rows["status"], rows["rate"], rows["loss"], strict=True):
        assert (rate is None) == (loss is None) == (status != "ok")


# ---- curves --------------------------------------------------------------------------------


def test_curves_lie_beside_the_references_of_the_same_workload(mixed: str) -> None:
    scope = scopes_of(mixed)["training"]
    names = [look["name"] for look in data_of(mixed)["looks"]]
    found = {
        (scope["panels"][panel]["title"], names[impl]): (loss, gap)
        for panel, impl, loss, gap in zip(
            *(scope["rows"][key] for key in ("panel", "impl", "loss", "gap")), strict=True
        )
    }
    titles = sorted({title for title, _ in found})
    text = next(t for t in titles if "gpt2-tiny" in t)
    assert found[text, "naive"] == ([[0, 4.0], [1, 3.5], [2, 3.0]], None), "it has no distance"
    assert found[text, "quick"][1] == [], "the same to the bit"
    assert found[text, "tied"][1] == [[1, pytest.approx(1e-6, rel=1e-3)]]
    assert found[text, "rough"][1] == [[1, pytest.approx(0.1)], [2, pytest.approx(0.3)]]


def test_long_curves_are_drawn_by_stretches_that_hide_no_distance(tmp_path: Path) -> None:
    """Catches thinning that skips the one step in which two curves are apart."""
    flat, spike = [1.0] * 1000, [1.0] * 1000
    spike[777] = 2.0
    records = [trained("naive", training=learned(flat)), trained("a", training=learned(spike))]
    write(tmp_path, records)
    (tmp_path / "one.toml").write_text(ONLY.format(figure="false"))
    html = render([tmp_path], tmp_path / "out", report=str(tmp_path / "one.toml")).page.read_text()
    rows = scopes_of(html)["training"]["rows"]
    assert all(len(loss) <= MOST_STEPS for loss in rows["loss"])
    (gap,) = [gap for gap in rows["gap"] if gap]
    assert gap == [[775, 1.0]]


def test_a_line_with_a_loss_that_is_no_number_is_left_out_and_told(tmp_path: Path) -> None:
    """JSON has no NaN: such a line was not written by a run, and must not stop the page."""
    path = write(tmp_path, [trained("naive"), trained("other")])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("[4.0,3.5,3.0]", "[4.0,NaN,3.0]")]))
    (tmp_path / "one.toml").write_text(ONLY.format(figure="false"))
    rendered = render([path], tmp_path / "out", report=str(tmp_path / "one.toml"))
    assert len(rendered.problems) == 1
    assert "run.jsonl:2: not strict JSON: NaN" in rendered.problems[0]
    assert len(scopes_of(rendered.page.read_text())["training"]["rows"]["id"]) == 1


def test_a_metric_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    seen = [{"step": s, "metrics": {"bits_per_character": v}}
            for s, v in ((1, 3.0), (2, None), (3, 2.0))]  # fmt: skip
    write(tmp_path, [trained("naive", training=learned(evaluations=seen))])
    (tmp_path / "one.toml").write_text('[[views]]\nview = "quality"\n')
    html = render([tmp_path], tmp_path / "out", report=str(tmp_path / "one.toml")).page.read_text()
    assert scopes_of(html)["training"]["rows"]["metric"] == [[[1, 3.0], [3, 2.0]]]


def test_nobody_who_is_ok_makes_a_page_of_reasons(tmp_path: Path) -> None:
    write(tmp_path, [trained("naive", status="oom", reason="no memory")])
    for view in sorted(RUN_VIEWS | {"verdicts", "support"}):
        (tmp_path / "one.toml").write_text(f'[[views]]\nview = "{view}"\n')
        page = render([tmp_path], tmp_path / "out", report=str(tmp_path / "one.toml"))
        assert "no memory" in page.page.read_text() or view == "verdicts"


def test_a_workload_of_a_newer_attnbench_keeps_its_record_and_is_told(tmp_path: Path) -> None:
    newer = trained("naive")
    newer = newer.model_copy(update={"problem": {**newer.problem, "curriculum": "yes"}})
    (tmp_path / "one.toml").write_text('[[views]]\nview = "throughput"\n')
    path = write(tmp_path, [newer])
    rendered = render([path], tmp_path / "out", report=str(tmp_path / "one.toml"))
    assert "no throughput" in rendered.problems[0]
    assert "curriculum" in rendered.problems[0]


# ---- scopes, figures, summary, tables ------------------------------------------------------


def test_each_workload_is_a_panel_and_what_is_usual_is_not_said(tmp_path: Path) -> None:
    (scope,) = scopes(load_points([write(tmp_path, suite())]).points)
    assert [panel.title for panel in scope.panels] == ["gpt2-tiny", "own-tiny"]
    assert scope.details(scope.panels[1])["target"] == 0.99
    assert scope.constants["steps"] == 100
    assert "optimizer" not in scope.constants


def test_throughput_and_loss_are_drawn_as_figures(tmp_path: Path) -> None:
    write(tmp_path, suite())
    for figure, names in (("true", {"train-tiny-parity.png", "train-tiny-parity.svg"}),
                          ("false", set())):  # fmt: skip
        (tmp_path / "one.toml").write_text(ONLY.format(figure=figure))
        rendered = render([tmp_path], tmp_path / figure, report=str(tmp_path / "one.toml"))
        assert {path.name for path in rendered.figures} == names


def test_the_summary_has_a_table_of_runs_and_none_of_their_medians(tmp_path: Path) -> None:
    write(tmp_path, suite())
    (tmp_path / "one.toml").write_text(ONLY.format(figure="false"))
    text = render([tmp_path], tmp_path / "out", report=str(tmp_path / "one.toml")).markdown
    words = text.read_text()
    part = words.split("## Tiny models: training", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in part.splitlines() if line.startswith("| gpt2-tiny")]
    assert [row.split(" | ")[1] for row in rows] == ["naive", "quick", "rough", "tied"]
    assert "not judged: approximate" in rows[2]
    assert "2.90 bits a character" in rows[2]
    assert "## Medians" not in words
    assert "does not do a learned bias" in words.split("## Not ok", 1)[1]


def test_the_frame_has_the_figures_of_runs_and_none_of_failures(tmp_path: Path) -> None:
    write(tmp_path, [*suite(), record(implementation="naive")])
    frame = load_frame([tmp_path])
    runs = frame[(frame["record_kind"] == "training") & (frame["task"] == "text")]
    naive = runs[runs["implementation"] == "naive"].iloc[0]
    assert naive["tokens_per_s"] == pytest.approx(512.0)
    assert naive["last_loss"] == 3.0
    assert naive["metric_bits_per_character"] == 2.5
    assert bool(naive["parity_ok"]) is True
    others = frame[(frame["implementation"] == "refuses") | (frame["record_kind"] != "training")]
    assert len(others) == 2
    assert others["tokens_per_s"].isna().all()


def test_the_leading_metric_is_the_one_that_the_task_itself_names() -> None:
    """Catches a page that judges a task by another metric than its early stopping does."""
    pytest.importorskip("torch")
    import torch

    from attnbench.train.data import make_task
    from attnbench.train.data.metrics import figures, label_totals, token_totals, with_bits

    logits, targets = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    tokens = token_totals(logits, targets)
    labels = label_totals(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    seen = {"copy": tokens, "mqar": tokens, "text": with_bits(tokens), "listops": labels}
    for name, totals in seen.items():
        task = make_task(Workload(task=name), 0)
        lead = metrics.leading(figures(totals))
        assert lead == task.metric, name
        assert metrics.metric(lead).maximize == task.maximize, name
