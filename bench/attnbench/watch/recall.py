"""Is a call faster on contents that it has seen? Then it is timed while it remembers.

Within a round the contents stay as they are. An implementation that keeps its outputs by
a digest of all its inputs is always right, and computes only in the first call after a
change. It gives itself away by that call's time: it is compared with the timed samples,
and only if it looks long, new and repeated contents are timed in turn, in the same state of
the caches, until the shortest of each agree. Noise only ever adds time, so that the
shortest of an honest implementation do agree in the end; where a machine is so busy that
they do not, new contents must have taken longer in nearly every pair before it is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from attnbench.measure.clock import Call, Clock

_FACTOR = 1.5  # as long as this, a call on new contents is not suspicious
_REPEATS = 10  # calls on the same contents, at most, as in a round
_FEW_TURNS = 3
_MIN_TURNS = 20
_NEARLY_ALL = 0.9  # of the turns; of two times that differ by noise alone, half
_MIN_S = 0.5
_MAX_TURNS = 200

_now = time.perf_counter


def remembers(
    call: Call,
    clock: Clock,
    renew: Callable[[], None],
    repeat: Callable[[], None],
    first_s: float,
    usual_s: float,
    calls: int,
) -> str | None:
    """Say in words if new contents take longer than repeated ones; None if they do not.

    Args:
        call: the timed call.
        clock: that took the samples.
        renew: writes contents that were never there before.
        repeat: writes the present contents once more.
        first_s: what the first call on new contents took.
        usual_s: median of the samples.
        calls: on the same contents in a round.
    """
    if first_s <= _FACTOR * usual_s:
        return None
    new: list[float] = []
    seen: list[float] = []
    start = _now()
    while len(new) < _MAX_TURNS:
        renew()
        new.append(clock.time(call, 1))
        for _ in range(max(1, min(calls, _REPEATS))):
            repeat()
            last_s = clock.time(call, 1)
        seen.append(last_s)
        if len(new) >= _FEW_TURNS and min(new) <= _FACTOR * min(seen):
            return None
        if len(new) >= _MIN_TURNS and _now() - start > _MIN_S:
            break
    longer = sum(n > _FACTOR * s for n, s in zip(new, seen, strict=True))
    if longer < _NEARLY_ALL * len(new):
        return None
    return (
        "returned the output of an earlier call: on inputs it has seen it takes "
        f"{min(seen) * 1e6:.1f} µs, on new ones {min(new) * 1e6:.1f} µs"
    )
