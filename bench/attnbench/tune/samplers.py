"""Who draws settings: Optuna's samplers, made anew for each trial.

A sampler's random numbers follow from the search's seed and the trial's number alone, so that
a search that was interrupted draws what it would have drawn otherwise.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from attnbench.errors import UserError
from attnbench.tune.table import Tune

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_MOST_STARTUP = 10  # random trials before a model is worth fitting: Optuna's own default
_LEAST_STARTUP = 4


def check_sampler(tune: Tune) -> None:
    """Whether what the sampler needs is installed.

    Raises:
        UserError: something is missing.
    """
    needed = ("optuna", "scipy") if tune.sampler == "gp" else ("optuna",)
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"sampler {tune.sampler} needs {name}: pip install 'attnbench[train]'")


def make_sampler(tune: Tune, number: int) -> BaseSampler:
    """The sampler of one trial. A grid is gone through by the search itself."""
    from optuna import samplers

    seed = seed_of(tune, number)
    startup = min(_MOST_STARTUP, max(_LEAST_STARTUP, tune.wanted // 4))
    if tune.sampler == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=startup)
    if tune.sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    return samplers.RandomSampler(seed=seed)


def seed_of(tune: Tune, number: int) -> int:
    """Of one trial's draws."""
    return int(np.random.SeedSequence([tune.seed, number]).generate_state(1)[0])
