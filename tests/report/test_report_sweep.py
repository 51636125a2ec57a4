"""The axis is what really varies, and no line joins two different problems."""

import pytest
from synthetic_records import record, write_run

from attnbench.problem import Problem
from attnbench.report.points import load_points
from attnbench.report.sweep import scopes

BASE = {"heads": 8, "head_dim": 64, "seqlen": 256}


def split(tmp_path, problems, suite="mine", axis="auto", **changes):
    records = [
        record(name, Problem.of(**fields), suite=suite, **changes)
        for fields in problems
        for name in ("naive", "sdpa")
    ]
    points = load_points([write_run(tmp_path, records)]).points
    return scopes(points, axis)


def only(found):
    assert len(found) == 1
    return found[0]


def vary(**fields):
    """Problems that differ in one field."""
    ((field, values),) = fields.items()
    return [BASE | {field: value} for value in values]


DECODE = [{"heads": 8, "seqlen_q": 1, "seqlen_k": n, "decode": True} for n in (64, 256)]
HEADS = [{"seqlen": 256, "heads": h, "d_model": 512} for h in (4, 8, 16)]
WINDOWS = ("window:window=128", "window:window=16")


@pytest.mark.parametrize(
    ("problems", "field", "label", "kind", "values"),
    [
        (vary(seqlen=(512, 128, 2048)), "seqlen_q", "seqlen", "log", (128, 512, 2048)),
        (vary(heads=(2, 4, 8)), "heads_q", "heads", "log", (2, 4, 8)),
        (vary(head_dim=(64, 96, 128)), "d_model", "d_model", "linear", (512, 768, 1024)),
        (vary(heads_kv=(1, 2, 8)), "heads_kv", "heads_kv", "log", (1, 2, 8)),
        (vary(batch=(1, 2, 3)), "batch", "batch", "linear", (1, 2, 3)),
        (vary(mask=WINDOWS), "window", "window", "log", (16, 128)),
        (vary(dropout_p=(0.0, 0.1)), "dropout_p", "dropout", "linear", (0.0, 0.1)),
        (vary(dtype=("bf16", "fp32")), "dtype", "dtype", "ordinal", ("float32", "bfloat16")),
        (HEADS, "heads_q", "heads", "log", (4, 8, 16)),
        (DECODE, "seqlen_k", "seqlen_k", "log", (64, 256)),
    ],
)
def test_the_axis_is_the_field_that_varies(tmp_path, problems, field, label, kind, values):
    scope = only(split(tmp_path, problems))
    assert (scope.axis.field, scope.axis.label, scope.axis.kind) == (field, label, kind)
    assert scope.axis.values == values
    assert len(scope.panels) == 1


def test_a_suite_named_after_a_field_shows_that_field(tmp_path):
    problems = [{"seqlen": 256, "heads": h, "head_dim": 64} for h in (4, 8, 16)]
    assert only(split(tmp_path, problems, suite="d_model")).axis.field == "d_model"
    assert only(split(tmp_path / "b", problems, suite="heads")).axis.field == "heads_q"


def test_a_definition_may_choose_the_axis_where_that_field_varies(tmp_path):
    problems = [BASE | {"seqlen": n, "heads": h} for n in (128, 256) for h in (4, 8)]
    assert only(split(tmp_path, problems)).axis.field == "seqlen_q"
    assert only(split(tmp_path / "b", problems, axis="heads_q")).axis.field == "heads_q"
    assert only(split(tmp_path / "c", problems, axis="batch")).axis.field == "seqlen_q"


def test_panels_keep_apart_all_that_varies_besides_the_axis(tmp_path):
    problems = [
        BASE | {"seqlen": n, "dtype": t, "mask": m, "direction": d, "heads": h}
        for n in (128, 256)
        for t in ("bf16", "fp32")
        for m in ("causal", "full")
        for d in ("backward", "forward")
        for h in (4, 8)
    ]
    scope = only(split(tmp_path, problems))
    assert len(scope.panels) == 16
    for panel in scope.panels:
        rest = {
            tuple((k, v) for k, v in p.fields.items() if k not in ("seqlen_q", "seqlen_k"))
            for p in panel.points
        }
        assert len(rest) == 1
    assert scope.panels[0].title == "forward · float32 · full · heads\u00a04"
    assert scope.panels[-1].title == "backward · bfloat16 · causal · heads\u00a08"


def test_a_sweep_that_keeps_tokens_constant_is_one_line_along_seqlen(tmp_path):
    problems = [BASE | {"seqlen": n, "batch": 4096 // n} for n in (256, 1024, 4096)]
    scope = only(split(tmp_path, problems))
    assert scope.axis.field == "seqlen_q"
    assert len(scope.panels) == 1


def test_a_list_of_models_is_read_by_shape_from_little_to_much_work(tmp_path):
    problems = [
        {"heads": 32, "heads_kv": 8, "head_dim": 128, "seqlen": 512, "mask": "causal"},
        {"heads": 12, "head_dim": 64, "seqlen": 1024, "mask": "causal"},
        {"heads": 16, "head_dim": 64, "seqlen": 197, "mask": "causal"},
    ]
    scope = only(split(tmp_path, problems))
    assert scope.axis.field == "shape"
    assert scope.axis.values == ("H16 N197 D64", "H12 N1024 D64", "H32/8 N512 D128")
    assert len(scope.panels) == 1


def test_masks_are_never_joined_even_where_the_shape_would_tell_them_apart(tmp_path):
    problems = [BASE | {"seqlen": 128, "mask": "full"}, BASE | {"seqlen": 256, "mask": "causal"}]
    scope = only(split(tmp_path, problems))
    assert {panel.facets["mask"] for panel in scope.panels} == {"full", "causal"}


def test_one_problem_has_an_axis_too(tmp_path):
    scope = only(split(tmp_path, [BASE]))
    assert scope.axis.field == "shape"
    assert scope.axis.values == ("B1 H8 N256 D64",)
    assert scope.x(scope.points[0]) == "B1 H8 N256 D64"


def test_suites_and_devices_are_scopes_of_their_own(tmp_path):
    for suite in ("one", "two"):
        for device in ("cuda:0", "cuda:1"):
            one = record("sdpa", Problem.of(**BASE), suite=suite, device=device)
            write_run(tmp_path, [one], name=f"{suite}-{device}.jsonl")
    found = scopes(load_points([tmp_path]).points)
    assert [(s.suite, s.device) for s in found] == [
        ("one", "cuda:0"), ("one", "cuda:1"), ("two", "cuda:0"), ("two", "cuda:1"),
    ]  # fmt: skip


def test_constants_say_what_the_charts_do_not(tmp_path):
    problems = [BASE | {"seqlen": n, "heads_kv": 2, "dtype": "bf16"} for n in (128, 256)]
    told = only(split(tmp_path, problems)).constants
    assert told == {
        "direction": "forward", "dtype": "bfloat16", "mask": "full", "batch": 1, "heads_q": 8,
        "heads_kv": 2, "head_dim": 64,
    }  # fmt: skip
