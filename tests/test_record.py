"""Records: what a line may say, and that a number which was not measured is never there."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from attnbench.problem import Problem
from attnbench.record import (
    SCHEMA,
    STATUSES,
    Implementation,
    Memory,
    Record,
    Samples,
    Status,
    TensorAccuracy,
    finite,
    point_id,
    schema_major,
)

FORWARD = Problem.of(heads=2, seqlen=8)
BOTH = FORWARD.replace(direction="both")
GOOD = TensorAccuracy(ok=True, max_abs=1e-7)
BAD = TensorAccuracy(ok=False, verdict="not normal")


def samples(**changes):
    told = {
        "clock": "host", "times_s": [[[2.0, 3.0], [2.5]]], "median_s": 2.5, "low_s": 2.0,
        "high_s": 3.0, "converged": True,
    }  # fmt: skip
    return Samples(**(told | changes))


def record(status="ok", problem=FORWARD, **changes):
    told = {
        "id": "0123456789abcdef", "suite": "quick", "time": "2026-01-01T00:00:00+00:00",
        "attnbench": "0.1.0", "implementation": Implementation(name="naive"),
        "problem": problem.to_json(), "problem_id": problem.id, "device": "cpu",
        "environment": "e" * 16, "status": status,
    }  # fmt: skip
    if status == "ok":
        told |= {"samples": samples(), "accuracy": {"out": GOOD}}
    else:
        told["reason"] = "because"
    return Record(**(told | changes))


# ---- status and figures ----------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_has_a_record_that_reads_back(status):
    before = record(status)
    line = before.to_line()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert Record.model_validate(json.loads(line)) == before
    assert json.loads(line)["schema_version"] == SCHEMA


def test_the_list_of_statuses_is_the_type():
    assert set(STATUSES) == set(Status.__args__)


@pytest.mark.parametrize("status", [s for s in STATUSES if s != "ok"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": samples()}, "must not carry samples"),
        ({"reason": None}, "needs a reason"),
        ({"reason": ""}, "needs a reason"),
    ],
)
def test_what_was_not_measured_has_a_reason_and_no_times(status, changes, says):
    with pytest.raises(ValidationError, match=f"status {status} {says}"):
        record(status, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": None}, "status ok needs samples"),
        ({"accuracy": {}}, "status ok needs the accuracy of out"),
        ({"accuracy": {"out": BAD}}, "status ok, but the accuracy of out is not"),
        ({"accuracy": {"dq": GOOD}}, "status ok needs the accuracy of out"),
        ({"accuracy": {"out": GOOD, "dq": BAD}}, "status ok, but the accuracy of dq is not"),
        ({"problem": BOTH}, "status ok needs the accuracy of dq"),
        (
            {"problem": BOTH, "accuracy": {"out": GOOD, "dq": GOOD, "dk": GOOD}},
            "status ok needs the accuracy of dv",
        ),
        ({"status": "fine"}, "Input should be 'ok', 'incorrect'"),
    ],
)
def test_ok_means_measured_and_verified_in_every_tensor(changes, says):
    with pytest.raises(ValidationError, match=says):
        record(**changes)


def test_a_backward_that_was_verified_is_ok():
    four = dict.fromkeys(("out", "dq", "dk", "dv"), GOOD)
    assert record(problem=BOTH, accuracy=four).status == "ok"


def test_an_incorrect_point_keeps_its_accuracy():
    assert record("incorrect", accuracy={"out": BAD}).accuracy["out"].verdict == "not normal"


def test_a_tensor_is_not_ok_without_an_error_that_was_measured():
    with pytest.raises(ValidationError, match="cannot be ok without a measured error"):
        TensorAccuracy(ok=True)
    assert TensorAccuracy(ok=False).max_abs is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"times_s": []}, "at least one"),
        ({"times_s": [[[]]]}, "at least one"),
        ({"times_s": [[[0.0, 2.5]]]}, "positive seconds"),
        ({"times_s": [[[-1.0]]]}, "positive seconds"),
        ({"median_s": 9.0}, "inside its interval"),
        ({"low_s": 2.6}, "inside its interval"),
        ({"low_s": 0.0}, "above zero"),
        ({"low_s": -1.0}, "above zero"),
        ({"calls_per_sample": 0}, "calls_per_sample must be at least 1"),
        ({"warmup_s": -1.0}, "warmup_s not negative"),
    ],
)
def test_impossible_samples_are_refused(changes, says):
    with pytest.raises(ValidationError, match=says):
        samples(**changes)


def test_a_point_that_failed_carries_no_figure_of_either_clock():
    for name in ("samples", "host_samples"):
        with pytest.raises(ValidationError, match="must not carry samples"):
            record("error", **{name: samples()})


def test_both_figures_read_back():
    both = record(host_samples=samples(cache="cold", method="perf_counter_ns, synchronized"))
    read = Record.model_validate_json(both.to_line())
    assert read.host_samples == both.host_samples
    assert read.samples.cache is None, "an older record does not say"


# ---- never NaN -------------------------------------------------------------------------

NOT_NUMBERS = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda x: samples(times_s=[[[x]]]),
        lambda x: samples(high_s=x),
        lambda x: samples(warmup_s=x),
        lambda x: TensorAccuracy(ok=False, max_abs=x),
        lambda x: TensorAccuracy(ok=False, rel_l2=x),
        lambda x: TensorAccuracy(ok=False, row_rel=x),
        lambda x: TensorAccuracy(ok=False, quantiles={"0.5": x}),
        lambda x: TensorAccuracy(ok=False, naive_max_abs=x),
        lambda x: Implementation(name="a", options={"share": x}),
        lambda x: Memory(peak_bytes=x),
        lambda x: record(wall_s=x),
    ],
)
def test_a_figure_is_never_nan_or_infinite(make, value):
    with pytest.raises(ValidationError):
        make(value)


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_free_form_values_that_are_no_numbers_are_written_as_null(value):
    told = {"watts": value, "deep": [{"clock": value}]}
    line = record(telemetry=told, kernels=[told], a_field_of_tomorrow=told).to_line()
    again = json.loads(line, parse_constant=pytest.fail)
    for field in (again["telemetry"], again["kernels"][0], again["a_field_of_tomorrow"]):
        assert field == {"watts": None, "deep": [{"clock": None}]}


def test_what_was_not_measured_is_null_and_not_zero():
    written = json.loads(record("oom").to_line())
    assert written["samples"] is None
    assert written["memory"] is None
    assert written["wall_s"] is None
    assert json.loads(record(memory=Memory()).to_line())["memory"]["peak_bytes"] is None


def test_finite_lets_numbers_pass_and_nothing_else():
    assert [finite(x) for x in (1.5, 0.0, -2.0)] == [1.5, 0.0, -2.0]
    assert [finite(x) for x in (None, *NOT_NUMBERS)] == [None] * 4


# ---- text ------------------------------------------------------------------------------


def test_any_text_fits_in_one_line_of_utf8():
    nasty = 'line\nbreak \r\n  \x00 tab\t “quotes" × \U0001f600'
    before = record("crash", log_tail=nasty)
    line = before.to_line()
    assert line.encode().count(b"\n") == 1
    assert Record.model_validate_json(line.encode()).log_tail == nasty


def test_bytes_that_were_no_utf8_do_not_cost_the_record():
    """os.fsdecode and surrogateescape leave lone surrogates, which UTF-8 cannot hold."""
    log = b"caf\xe9".decode("utf-8", "surrogateescape")
    line = record("crash", log_tail=log, telemetry={"path": log}).to_line()
    assert json.loads(line.encode())["log_tail"] == "caf?"


# ---- versions --------------------------------------------------------------------------


def test_unknown_fields_of_a_newer_minor_survive_reading_and_writing():
    data = json.loads(record().to_line())
    data |= {"schema_version": "1.7.0", "carbon": {"grams": 3}}
    for part in ("implementation", "samples"):
        data[part]["colour"] = "blue"
    data["accuracy"]["out"]["colour"] = "blue"
    again = json.loads(Record.model_validate(data).to_line())
    assert again == data


def test_a_line_of_the_first_form_takes_the_defaults_of_fields_added_since():
    minimal = {
        "schema_version": "1.0.0", "id": "a", "suite": "s", "time": "t", "attnbench": "0",
        "implementation": {"name": "n"}, "problem": {}, "problem_id": "p", "device": "cpu",
        "status": "unsupported", "reason": "r", "environment": "e",
    }  # fmt: skip
    assert Record.model_validate(minimal).kernels == []


@pytest.mark.parametrize(
    ("version", "major"),
    [("1.0.0", 1), ("2.3", 2), (1, 1), ("", None), ("v1", None), (None, None), ("²", None)],
)
def test_the_major_number_of_a_schema(version, major):
    assert schema_major({"schema_version": version}) == major
    assert schema_major({}) is None


# ---- identity --------------------------------------------------------------------------


def test_point_ids_never_change():
    """A resumed sweep finds what it has measured by these."""
    assert point_id("p", "naive", None, "m", 0) == "c98507367edb4caf"
    assert point_id("p", "triton:block=64", "abc", "m", 7) == "58d88378737a384c"


def test_whatever_makes_a_point_another_point_changes_its_id():
    ids = [
        point_id(*told)
        for told in (
            ("p", "naive", "s", "m", 0), ("P", "naive", "s", "m", 0), ("p", "sdpa", "s", "m", 0),
            ("p", "naive", "S", "m", 0), ("p", "naive", "s", "M", 0), ("p", "naive", "s", "m", 1),
            ("p", "naive", None, "m", 0), ("pn", "aive", "s", "m", 0),
        )
    ]  # fmt: skip
    assert len(set(ids)) == len(ids)


def test_the_spec_is_what_was_asked_for_and_options_are_what_was_used():
    who = Implementation(name="x", given={"b": 2}, options={"a": 1, "b": 2})
    assert who.spec == "x:b=2"


def test_options_keep_their_types():
    options = {"flag": True, "whole": 1, "real": 1.0, "text": "1"}
    line = record(implementation=Implementation(name="x", options=options)).to_line()
    again = Record.model_validate_json(line).implementation.options
    assert {k: (type(v), v) for k, v in again.items()} == {
        k: (type(v), v) for k, v in options.items()
    }


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        record().status = "error"
