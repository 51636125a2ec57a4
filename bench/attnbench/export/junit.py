"""JUnit XML: one test case a point, for the test views of CI servers.

Follows the strictest of the schemas around (Jenkins' ``junit-10.xsd``): figures are in
``system-out``, because a test case has no properties there.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from attnbench.export import Exported
from attnbench.export.points import Named, load_points
from attnbench.record import Record
from attnbench.train.derived import tokens_per_s

_ELEMENTS = {  # statuses that are not ok, by what JUnit calls them
    "incorrect": "failure",
    "unsupported": "skipped",
    "unavailable": "skipped",
    "oom": "error",
    "timeout": "error",
    "crash": "error",
    "error": "error",
}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(results: Sequence[Path]) -> Exported:
    """Every point; incorrect is a failure, unsupported is skipped, the rest an error."""
    loaded = load_points(results)
    suites: dict[str, list[Named]] = {}
    for point in loaded.points:
        suites.setdefault(point.record.suite, []).append(point)
    root = ET.Element("testsuites", {"name": "attnbench", **_counts(loaded.points)})
    for name, points in suites.items():
        told = {
            "name": _text(name),
            **_counts(points),
            "skipped": str(sum(_ELEMENTS.get(p.record.status) == "skipped" for p in points)),
            "timestamp": _timestamp(min(p.record.time for p in points)),
        }
        element = ET.SubElement(root, "testsuite", told)
        for point in points:
            _case(element, point)
    ET.indent(root, " ")
    data = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return Exported(data + b"\n", loaded.problems)


def _counts(points: Sequence[Named]) -> dict[str, str]:
    found = Counter(_ELEMENTS.get(p.record.status, "ok") for p in points)
    seconds = sum(p.record.wall_s or 0.0 for p in points)
    return {
        "tests": str(len(points)),
        "failures": str(found["failure"]),
        "errors": str(found["error"]),
        "time": f"{seconds:.3f}",
    }


def _timestamp(time: str) -> str:
    """UTC without its name, because the schemas know no time zones."""
    try:
        when = datetime.datetime.fromisoformat(time)
    except ValueError:
        return _text(time)
    if when.tzinfo is not None:
        when = when.astimezone(datetime.UTC).replace(tzinfo=None)
    return when.isoformat(timespec="seconds")


def _case(suite: ET.Element, point: Named) -> None:
    record = point.record
    case = ET.SubElement(
        suite,
        "testcase",
        name=_text(point.words),
        classname=_text(f"attnbench.{record.suite}.{record.implementation.name}"),
    )
    if record.wall_s is not None:
        case.set("time", f"{record.wall_s:.3f}")
    kind = _ELEMENTS.get(record.status)
    if kind is not None:
        reason = f"{record.status}: {record.reason}"
        told = ET.SubElement(case, kind, type=record.status, message=_text(reason))
        told.text = _text(record.log_tail or reason)
    ET.SubElement(case, "system-out").text = _text("\n".join(_lines(record)))


def _lines(record: Record) -> list[str]:
    lines = [f"device {record.device}, environment {record.environment}"]
    if record.samples is not None:
        s = record.samples
        if record.implementation.simulated is not None:
            lines.append(f"ran {record.implementation.simulated}: no timing")
        lines.append(f"median {s.median_s:.6e} s, 95 % interval {s.low_s:.6e} to {s.high_s:.6e} s")
    rate = tokens_per_s(record)
    if rate is not None and record.implementation.simulated is None:
        lines.append(f"{rate.median:.6g} tokens/s, 95 % interval {rate.low:.6g} to {rate.high:.6g}")
    if record.memory is not None and record.memory.peak_bytes is not None:
        lines.append(f"peak memory {record.memory.peak_bytes} bytes")
    return [*lines, f"reproduce: {record.command}"] if record.command else lines


def _text(text: str) -> str:
    """Text without the characters that XML cannot hold: a log may have any."""
    return _NOT_XML.sub("�", text)
