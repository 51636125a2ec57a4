"""A search without a stopwatch: settings are made as ever, what they come to is planted.

The objective is tokens a second of a machine that does not exist: a product of what each key
does, best at one setting alone. A file counts what was measured, so that a second process can
be held against the first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.plan import Contender
from attnbench.record import point_id
from attnbench.registry import Entry, Source
from attnbench.spec import parse_spec
from attnbench.stats import Interval
from attnbench.train.workload import Workload
from attnbench.tune.journal import Journal, Trial
from attnbench.tune.outcome import Outcome
from attnbench.tune.resolve import Resolver, Setting
from attnbench.tune.search import Search
from attnbench.tune.table import Tune, read_tune

SPACE: Mapping[str, Any] = {
    "impl": ["slow", "fair", "quick", "odd"],
    "heads": [1, 2, 4, 8],
    "batch": [4, 8, 16],
    "precision": ["fp32", "bf16"],
}
_SPEED: Mapping[str, Mapping[Any, float]] = {
    "impl": {"slow": 0.4, "fair": 0.7, "quick": 1.0, "odd": 0.6},
    "heads": {1: 0.6, 2: 0.8, 4: 1.0, 8: 0.7},
    "batch": {4: 0.5, 8: 0.8, 16: 1.0},
    "precision": {"fp32": 0.7, "bf16": 1.0},
}
BEST = {"impl": "quick", "heads": 4, "batch": 16, "precision": "bf16"}
BEST_VALUE = 1000.0
START = Workload.of(task="copy", seqlen=16, batch=4, d_model=32)


def contenders(*specs: str) -> dict[str, Contender]:
    """Made up, by their specs."""
    found = {}
    for spec in specs or ("slow", "fair", "quick", "odd"):
        name, options = parse_spec(spec)
        entry = Entry(name, Source("project", name), f"{name}.py", 1, options=dict(options))
        found[spec] = Contender(entry, tuple(sorted(options.items())))
    return found


class Foresight:
    """Knows sizes by a formula, and who refuses what."""

    def __init__(self, refuses: Callable[[Workload, Contender], str | None] | None = None) -> None:
        self.asked = 0
        self._refuses = refuses

    def parameters(self, workloads: Sequence[Workload]) -> list[int | str]:
        """``layers · (4 d² + 2 d·d_ff)``, as of a model without embeddings."""
        self.asked += 1
        sizes: list[int | str] = []
        for w in workloads:
            d = w.d_model or 64
            sizes.append((w.layers or 2) * (4 * d * d + 2 * d * (w.d_ff or 4 * d)))
        return sizes

    def refusal(self, workload: Workload, contender: Contender) -> str | None:
        """What the test says."""
        return None if self._refuses is None else self._refuses(workload, contender)


def name(workload: Workload, contender: Contender) -> str:
    """The id of the record there would be."""
    return point_id(workload.id, contender.spec, None, "machine", 0)


def speed(setting: Setting) -> float:
    """Tokens a second."""
    told = {**setting.workload.to_json(), "impl": setting.contender.entry.name}
    value = BEST_VALUE
    for key, effects in _SPEED.items():
        value *= effects.get(told[key], 1.0)
    return value


def outcome(setting: Setting, value: float | None = None, **changes: Any) -> Outcome:
    """What it comes to, to 1 %."""
    value = speed(setting) if value is None else value
    told = {
        "status": "ok", "value": Interval(value, 0.995 * value, 1.005 * value),
        "figures": {"memory": 1e6, "loss": 2.0}, "record": setting.id,
    }  # fmt: skip
    return Outcome(**{**told, **changes})


class Silent:
    """Progress that is not shown."""

    def trial_begins(self, setting: Setting, tried: int) -> None:
        """Nothing."""

    def trial_done(self, trial: Trial) -> None:
        """Nothing."""


def tune_of(**changes: Any) -> Tune:
    """A checked table."""
    return read_tune(Path("planted.toml"), {"space": dict(SPACE), **changes})


def search_in(
    journal: Journal,
    tune: Tune,
    measure: Callable[[Setting], Outcome] = outcome,
    recall: Callable[[Setting], Outcome | None] = lambda setting: None,
    foresight: Foresight | None = None,
    start: Workload = START,
    specs: Sequence[str] = (),
) -> Search:
    """The real search, with what measures planted."""
    resolver = Resolver(tune, start, contenders(*specs), foresight or Foresight(), name)
    return Search(tune, journal, resolver, measure, recall, Silent())


def run(path: Path, tune: Tune, **changes: Any) -> Search:
    """A whole search, its journal closed."""
    with Journal(path, tune) as journal:
        search = search_in(journal, tune, **changes)
        search.run()
    return search


def main() -> None:
    """``planted.py JOURNAL LOG SAMPLER``: search slowly, writing down what is measured."""
    journal, log, sampler = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    tune = tune_of(sampler=sampler, trials=24)

    def measure(setting: Setting) -> Outcome:
        # As a record is: on disk before the journal is told.
        time.sleep(0.05)
        with log.open("a") as file:
            file.write(f"{setting.id}\n")
            file.flush()
            os.fsync(file.fileno())
        return outcome(setting)

    def recall(setting: Setting) -> Outcome | None:
        known = log.read_text().split() if log.exists() else []
        return outcome(setting) if setting.id in known else None

    with Journal(journal, tune) as opened:
        search = search_in(opened, tune, measure, recall)

        def stop(number: int, frame: object) -> None:
            search.stop_requested = True

        signal.signal(signal.SIGINT, stop)
        search.run()
    print(search.tried)


if __name__ == "__main__":
    main()
