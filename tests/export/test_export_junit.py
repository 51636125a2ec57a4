"""JUnit XML: the shape that Jenkins' and Ant's schemas ask for, which other readers accept."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from export_records import results
from made_records import record, write

from attnbench.export import export

ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    "testcase": {"name", "classname", "time"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
    "system-out": set(),
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "error", "skipped", "system-out"},
}


def tree(path: Path) -> ET.Element:
    return ET.fromstring(export("junit", [path]).data)


def test_every_element_and_attribute_is_one_that_readers_know(tmp_path: Path) -> None:
    root = tree(results(tmp_path))
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.keys()) <= ATTRIBUTES[element.tag], element.tag
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())


def test_every_point_is_a_case_and_its_status_what_junit_calls_it(tmp_path: Path) -> None:
    cases = tree(results(tmp_path)).findall("testsuite/testcase")
    found = {
        case.get("classname", "").rpartition(".")[2]: [
            child.tag for child in case if child.tag != "system-out"
        ]
        for case in cases
    }
    assert found == {
        "triton": [],
        "sdpa": [],
        "bad-incorrect": ["failure"],
        "bad-unsupported": ["skipped"],
        "bad-unavailable": ["skipped"],
        "bad-oom": ["error"],
        "bad-timeout": ["error"],
        "bad-crash": ["error"],
        "bad-error": ["error"],
    }


def test_counts_and_times_are_those_of_the_cases(tmp_path: Path) -> None:
    root = tree(results(tmp_path))
    (suite,) = root
    counted = {name: len(suite.findall(f"testcase/{tag}")) for name, tag in (
        ("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))}  # fmt: skip
    assert {name: int(suite.get(name, "")) for name in counted} == counted
    assert counted == {"failures": 1, "errors": 4, "skipped": 2}
    assert root.get("tests") == suite.get("tests") == "9"
    assert float(suite.get("time", "")) == 9 * 1.25
    assert suite.get("timestamp") == "2026-01-02T03:04:05"  # ISO 8601 without a zone


def test_a_case_that_did_not_measure_shows_no_figure(tmp_path: Path) -> None:
    for case in tree(results(tmp_path)).iter("testcase"):
        out = case.findtext("system-out", "")
        assert ("median" in out) == (len(case) == 1)
        assert not re.search(r"\bnan\b|median 0", out, re.IGNORECASE)


def test_letters_that_xml_cannot_hold_do_not_break_it(tmp_path: Path) -> None:
    root = tree(results(tmp_path))
    (error,) = root.findall("testsuite/testcase/[@classname='attnbench.quick.bad-crash']/error")
    assert error.get("message") == "crash: because of crash"
    assert "it said <&\"'��[31m☃" in (error.text or "")


def test_suites_are_apart_and_a_time_that_was_not_taken_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, [record(), record(suite="full", wall_s=None, time="yesterday")])
    quick, full = tree(path)
    assert (quick.get("name"), full.get("name")) == ("quick", "full")
    assert full[0].get("time") is None
    assert full.get("timestamp") == "yesterday"


def test_names_are_unique_in_a_suite(tmp_path: Path) -> None:
    cases = tree(results(tmp_path)).findall("testsuite/testcase")
    assert len({(c.get("classname"), c.get("name")) for c in cases}) == len(cases)
