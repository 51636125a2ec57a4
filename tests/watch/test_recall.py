"""Who is faster on contents it has seen is told; who is disturbed by noise is not."""

from __future__ import annotations

import random

from attnbench.watch.recall import remembers


class Machine:
    """A clock over calls that take as long as they are said to."""

    name = "made up"
    resolution_s = 1e-6

    def __init__(self, new_s: float, seen_s: float, noise: float = 0.0, seed: int = 1) -> None:
        self._new_s, self._seen_s, self._noise = new_s, seen_s, noise
        self._random = random.Random(seed)
        self.is_new = True
        self.calls = 0

    def time(self, call: object, calls: int) -> float:
        self.calls += calls
        seconds = self._new_s if self.is_new else self._seen_s
        self.is_new = False
        return seconds * (1 + self._noise * self._random.expovariate(1))

    def synchronize(self) -> None:
        """Nothing."""

    def told(self, usual_s: float) -> str | None:
        def renew() -> None:
            self.is_new = True

        first_s = self.time(None, 1)
        return remembers(lambda: None, self, renew, lambda: None, first_s, usual_s, 5)


def test_a_call_that_is_as_fast_on_new_contents_is_not_made_again() -> None:
    honest = Machine(1e-3, 1e-3)
    assert honest.told(1e-3) is None
    assert honest.calls == 1


def test_remembering_is_told_with_both_times() -> None:
    told = Machine(1e-3, 1e-5).told(1e-5)
    assert told is not None
    assert "on inputs it has seen it takes 10.0 µs, on new ones 1000.0 µs" in told


def test_heavy_noise_and_a_slower_machine_than_before_accuse_nobody() -> None:
    for noise in (0.5, 5.0, 50.0):
        for seed in range(100):
            assert Machine(1e-3, 1e-3, noise, seed).told(1e-4) is None
