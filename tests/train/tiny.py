"""What tests of training share: a tiny workload, its attentions, a group in this process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from attnbench import registry
from attnbench.attention import Attention
from attnbench.settings import Measure
from attnbench.train.workload import Workload

LEARNERS = Path(__file__).parent / "learners"
BUDGET = Measure(
    max_s=1e-9, min_rounds=2, samples=1, warmup_s=0.0, warmup_cap_s=0.01, ceilings_s=0.0
).budget()


def workload(**fields: Any) -> Workload:
    """Two layers, 16 tokens, four sequences, a few steps."""
    told = {"task": "copy", "seqlen": 16, "batch": 4, "steps": 8, "warmup": 2, "d_model": 32}
    return Workload.of(**{**told, **fields})


@functools.cache
def entries() -> dict[str, registry.Entry]:
    """Built-in implementations, and those of this folder."""
    return {e.name: e for e in registry.discover(registry.sources(None, [LEARNERS]))}


def attention(name: str, **options: Any) -> Attention:
    """An implementation by name."""
    return registry.load(entries()[name])(**options)


def group_task(of: Workload, *names: str, **changes: Any) -> dict[str, Any]:
    """What a worker is told."""
    contenders = [{"key": n, "entry": entries()[n].to_json(), "options": {}} for n in names]
    return {
        "do": "train", "device": "cpu", "problem": of.to_json(), "seed": 0, "budget": BUDGET,
        "energy_s": 0.0, "process": 0, "timeout_s": 60.0, "contenders": contenders, **changes,
    }  # fmt: skip


def run_group(of: Workload, *names: str, **changes: Any) -> dict[str, dict[str, Any]]:
    """Train in this process; each contender's result."""
    from attnbench.train.group import train

    results: dict[str, dict[str, Any]] = {}

    def send(event: str, **told: Any) -> None:
        if event == "result":
            assert told["who"] not in results, f"{told['who']} has two results"
            results[told["who"]] = told

    train(group_task(of, *names, **changes), send)
    return results
