"""What the machine did meanwhile, and the share of the roofline: on the page, and never wrong."""

import copy
import json
import re

import pytest
from synthetic_records import ENVIRONMENT, environment_address, record, write_run

from attnbench.problem import Problem
from attnbench.record import Energy
from attnbench.report.definition import load_definition
from attnbench.report.page import page
from attnbench.report.points import current, load_points
from attnbench.report.strips import signals, strips
from attnbench.report.style import looks
from attnbench.report.sweep import scopes
from attnbench.report.tables import figures

PROBLEM = Problem.of(heads=8, head_dim=64, seqlen=1024)
RATE = {"median": 4e11, "low": 3.9e11, "high": 4.1e11, "best": 4.1e11, "what": "512×512×512 NN"}
CEILINGS = {
    "measured": "2026-01-02T03:04:05+00:00",
    "bandwidth": {"copy": {**RATE, "median": 3e10, "low": 3e10, "high": 3e10, "what": "1024 MiB"}},
    "matmul": {"float32": RATE},
    "absent": {"tf32": "RuntimeError: this device has no TF32"},
}
TELEMETRY = {
    "verdict": "disturbed",
    "notes": ["others used 0.9 of 2 cores (<b>python</b> 0.8)"],
    "duration_s": 3.98,
    "strip": {
        "t_s": [0.1, 0.2, 0.3, 0.4],
        "others_cores": [None, 0.5, 0.9, 0.9],
        "sm_clock_mhz": [1900, 1900, 900, 1900],
    },
}


def points_of(folder, records, ceilings=CEILINGS):
    environment = copy.deepcopy(dict(ENVIRONMENT)) | ({"ceilings": ceilings} if ceilings else {})
    address = environment_address(environment)
    named = [r.model_copy(update={"environment": address}) for r in records]
    return load_points([write_run(folder, named, environment=environment)])


def page_of(loaded):
    points, told = current(loaded.points)
    problems = (*loaded.problems, *told)
    definition = load_definition("default")
    return page(definition, scopes(points), looks(points), loaded.environments, problems)


def strips_of(telemetry):
    (scope,) = scopes([_point(telemetry)])
    return strips(scope)


def _point(telemetry):
    from attnbench.report.points import Point

    made = record("sdpa", PROBLEM, telemetry=telemetry)
    fields = {**PROBLEM.to_json(), "mask": "full"}
    return Point(made, fields, "machine", PROBLEM.label)


# ---- strips ------------------------------------------------------------------------------


def test_contenders_timed_together_share_one_strip(tmp_path):
    records = [record(name, PROBLEM, telemetry=TELEMETRY) for name in ("sdpa", "naive", "flex")]
    html = page_of(points_of(tmp_path, records))
    assert html.count('<svg class="strip"') == 2
    assert html.count("others used 0.9 of 2 cores") == 1
    assert "SM clock: 900 – 1900 MHz" in html
    assert "used by others: 0.500 – 0.900 cores" in html


def test_names_of_processes_are_text_and_not_markup(tmp_path):
    html = page_of(points_of(tmp_path, [record("sdpa", PROBLEM, telemetry=TELEMETRY)]))
    assert "&lt;b&gt;python&lt;/b&gt;" in html
    assert "<b>python</b>" not in html


def test_a_strip_is_drawn_in_its_box_and_bridges_what_is_missing():
    ((_, _, (strip,)),) = strips_of(TELEMETRY)
    path = strip.lines["others_cores"].path
    xy = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    assert len(xy) == 3
    assert xy == sorted(xy)
    assert all(0 <= x <= 120 and 0 <= y <= 22 for x, y in xy)
    assert xy[0][1] > xy[1][1], "more is higher up"
    ((_, _, (single,)),) = strips_of({"verdict": "clean", "strip": {"t_s": [1], "power_w": [500]}})
    assert single.lines["power_w"].path.endswith("H120")


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"verdict": 7},
        {"verdict": "clean", "strip": [1, 2]},
        {"verdict": "clean", "strip": {"t_s": None, "power_w": [1]}},
        {"verdict": "clean", "strip": {"t_s": [1, 2], "power_w": [1]}},
        {"verdict": "clean", "strip": {"t_s": [1, "2"], "power_w": [1, 2]}},
        {"verdict": "clean", "strip": {"t_s": [1], "power_w": ["500"]}},
        {"verdict": "clean", "notes": "text", "duration_s": "long"},
    ],
)
def test_telemetry_of_an_odd_shape_draws_nothing_and_breaks_nothing(odd, tmp_path):
    assert signals(strips_of(odd)) == []
    page_of(points_of(tmp_path, [record("sdpa", PROBLEM, telemetry=odd)]))


def test_records_without_telemetry_say_so(tmp_path):
    html = page_of(points_of(tmp_path, [record("sdpa", PROBLEM)]))
    assert "No record of this suite has telemetry." in html


# ---- roofline ----------------------------------------------------------------------------


def test_a_point_has_its_share_of_the_ceiling_it_was_measured_under(tmp_path):
    loaded = points_of(tmp_path, [record("sdpa", PROBLEM, rate=100.0)])
    (point,) = loaded.points
    assert point.place is not None
    assert point.place.share == pytest.approx(0.25)
    assert figures(point)["roofline"] == "25 % of float32 matmul rate"
    html = page_of(loaded)
    assert "25 % of float32 matmul rate" in html
    assert "400 GFLOPS [390, 410], 512×512×512 NN" in html
    assert "none: RuntimeError: this device has no TF32" in html


def test_without_ceilings_there_is_no_share(tmp_path):
    loaded = points_of(tmp_path, [record("sdpa", PROBLEM)], ceilings=None)
    assert loaded.points[0].place is None
    assert "roofline" not in figures(loaded.points[0])
    assert "ceilings: measured" not in page_of(loaded)


def test_the_page_says_what_disturbed_the_ceilings_and_shows_no_share_of_them(tmp_path):
    seen = {"verdict": "disturbed", "notes": ["others used 2 of 2 cores"]}
    loaded = points_of(tmp_path, [record("sdpa", PROBLEM)], {**CEILINGS, "telemetry": seen})
    assert "roofline" not in figures(loaded.points[0])
    assert "2026-01-02T03:04:05+00:00; others used 2 of 2 cores" in page_of(loaded)


def test_odd_remarks_on_the_ceilings_break_nothing(tmp_path):
    for odd in ("text", {"verdict": 1, "notes": 2}, None):
        page_of(points_of(tmp_path, [record("sdpa", PROBLEM)], {**CEILINGS, "telemetry": odd}))


def test_damaged_ceilings_are_told_and_are_not_fatal(tmp_path):
    loaded = points_of(tmp_path, [record("sdpa", PROBLEM)], ceilings={"bandwidth": 7, "matmul": 1})
    assert loaded.points[0].place is None
    (told,) = loaded.problems
    assert "cannot be read (ceilings: " in told
    assert json.dumps(told)


def test_joules_a_token_are_worked_out_on_load(tmp_path):
    energy = Energy(
        gross_j=2.0, gross_low_j=1.98, gross_high_j=2.02, idle_w=80.0, power_w=500.0,
        joules=[2.0], calls=500, method="a counter",
    )  # fmt: skip
    loaded = points_of(tmp_path, [record("sdpa", PROBLEM, energy=energy), record("naive", PROBLEM)])
    measured, bare = sorted(loaded.points, key=lambda p: p.record.energy is None)
    assert measured.joules_per_token == pytest.approx(2.0 / 1024)
    assert figures(measured)["energy"] == "2.00 J [1.98, 2.02], 1.95 mJ a token"
    assert bare.joules_per_token is None
    assert "energy" not in figures(bare)


def energy_told(tmp_path, **changes):
    energy = Energy(
        gross_j=2.0, gross_low_j=1.98, gross_high_j=2.02, idle_w=80.0, power_w=500.0,
        joules=[2.0], calls=500, method="a counter", **changes,
    )  # fmt: skip
    (point,) = points_of(tmp_path, [record("sdpa", PROBLEM, energy=energy)]).points
    return figures(point)["energy"]


def test_net_energy_stands_beside_gross_or_says_why_there_is_none(tmp_path):
    told = energy_told(tmp_path, net_j=1.7, net_low_j=1.67, net_high_j=1.73)
    assert told == "2.00 J [1.98, 2.02], 1.95 mJ a token; net 1.70 J [1.67, 1.73]"
    told = energy_told(tmp_path, net_absent="cannot be told from idling")
    assert told == "2.00 J [1.98, 2.02], 1.95 mJ a token; net: none: cannot be told from idling"


def test_energy_that_was_asked_for_in_vain_says_why_it_is_absent(tmp_path):
    loaded = points_of(tmp_path, [record("sdpa", PROBLEM, energy_absent="no RAPL counters")])
    assert figures(loaded.points[0])["energy"] == "none: no RAPL counters"
    assert "none: no RAPL counters" in page_of(loaded)
