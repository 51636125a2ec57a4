"""A setting as a suite: what to paste where it is to be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attnbench.settings import Measure
from attnbench.spec import Value


def as_suite(
    title: str, spec: str, workload: Mapping[str, Value], measure: Measure, baseline: str = ""
) -> str:
    """A suite that measures the setting again, beside the baseline.

    Args:
        title: of the suite.
        spec: the implementation with its options.
        workload: fields that differ from their default.
        measure: how to measure; what is not the default is said.
        baseline: who stands beside it; nobody if empty.
    """
    impls = list(dict.fromkeys(name for name in (baseline, spec) if name))
    lines = [f"title = {_toml(title)}", 'kind = "training"']
    lines += [f"baseline = {_toml(baseline)}"] if baseline else []
    lines += [f"impls = {_toml(impls)}", "", "[[points]]"]
    # A point needs a key: the model has one whatever it is.
    lines += [f"{key} = {_toml(value)}" for key, value in {"model": "own-tiny", **workload}.items()]
    changed = {
        key: value
        for key, value in measure.model_dump().items()
        if value != type(measure).model_fields[key].default
    }
    if changed:
        lines += ["", "[measure]", *(f"{key} = {_toml(value)}" for key, value in changed.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Scalars and lists of TOML are those of JSON, here: no dates, no null."""
    return json.dumps(value, ensure_ascii=False)
