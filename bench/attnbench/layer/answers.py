"""The tensors that a problem is answered with, by name: told without torch or numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TENSORS = ("out", "dq", "dk", "dv", "dx", "dmemory", "dwq", "dwk", "dwv", "dwo", "dtable")
"""Everything that an op or a layer may be asked for, in the order in which it is shown."""

LEARNED = ("learned", "relative")
"""Position encodings with a table of weights."""


def answers(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The tensors that a problem, given as its JSON fields, is answered with."""
    if fields.get("direction", "forward") == "forward":
        return ("out",)
    if fields.get("level", "op") == "op":
        return ("out", "dq", "dk", "dv")
    memory = ("dmemory",) * (fields.get("seqlen_q") != fields.get("seqlen_k"))
    table = ("dtable",) * (fields.get("position") in LEARNED)
    return ("out", "dx", *memory, "dwq", "dwk", "dwv", "dwo", *table)
