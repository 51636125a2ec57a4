"""What tests of generation share: a tiny one, its attentions, a group in this process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tiny import BUDGET

from attnbench import registry
from attnbench.train.generation.spec import Generation

SPEAKERS = Path(__file__).parent / "speakers"


def generation(**fields: Any) -> Generation:
    """Two layers, a prompt of eight tokens, four new ones, two sequences."""
    told = {"model": "llama-tiny", "d_model": 32, "batch": 2, "prompt": 8, "new": 4}
    return Generation.of(**{**told, **fields})


@functools.cache
def entries() -> dict[str, registry.Entry]:
    """Built-in implementations, and those of this folder."""
    return {e.name: e for e in registry.discover(registry.sources(None, [SPEAKERS]))}


def group_task(of: Generation, *names: str, **changes: Any) -> dict[str, Any]:
    """What a worker is told."""
    contenders = [{"key": n, "entry": entries()[n].to_json(), "options": {}} for n in names]
    return {
        "do": "generate", "device": "cpu", "problem": of.to_json(), "seed": 0, "budget": BUDGET,
        "energy_s": 0.0, "process": 0, "contenders": contenders, **changes,
    }  # fmt: skip


def run_group(of: Generation, *names: str, **changes: Any) -> dict[str, dict[str, Any]]:
    """Generate in this process; each contender's result."""
    from attnbench.train.generation.group import generate

    results: dict[str, dict[str, Any]] = {}

    def send(event: str, **told: Any) -> None:
        if event == "result":
            assert told["who"] not in results, f"{told['who']} has two results"
            results[told["who"]] = told

    generate(group_task(of, *names, **changes), send)
    return results
