"""The watch over one contender between its timed calls: what it returned, when, from where.

A plugin is taken to know this code. So the moments of inspection, the contents and the
number of calls before one are drawn from the operating system's noise, not from the
suite's seed, and an inspected call looks like any other. Watching may cost a tenth of the
time at work; what it adds to a timed call is nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from attnbench.device import synchronize
from attnbench.execution import Execution
from attnbench.failure import Failed
from attnbench.level import signs_of
from attnbench.watch import building, lingering, poison
from attnbench.watch.contents import Signs, expect_noise

Results = Mapping[str, torch.Tensor]
Verify = Callable[[Results], object]

_SHARE = 0.1  # of the time at work that renewing and inspecting may take
_CHANCE = 0.5  # that a turn is inspected, where time allows
_MOST_CALLS = 2  # before an inspected output
_MARKS = 64  # elements of a result by which it is known again
_EARLY = "returned before its work was done: the output was written after that"
_LATE_S = 0.5  # how long a wrong output is looked at again
_GLANCE_S = 0.05  # the same, where nothing hints at it
_TRIES = 3  # for memory that was given out to be poisoned memory
_MAY_VANISH = ("dq", "dk", "dwq", "dwk")  # where a softmax has one key, no logit has a gradient

_now = time.perf_counter
_sleep = time.sleep


def noise() -> torch.Generator:
    """A generator that nobody can foresee."""
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "big"))


class Watch:
    """Watches one execution. Results are in BHSD, by name, as if no sign had been changed.

    Raises (all methods): ``Failed`` with a reason that names what was found.
    """

    def __init__(self, execution: Execution, device: torch.device) -> None:
        self._execution = execution
        self._device = device
        self._streams = lingering.StreamCheck(device) if device.type == "cuda" else None
        self._threads = lingering.Threads()
        self._noise = noise()
        self._verify: Verify = lambda results: None
        self._signs: Signs | None = None
        self._contents = 0  # which contents are loaded, counted
        self._seen: dict[bytes, int] = {}  # marks of a result → the contents it belongs to
        self._is_last_call = False  # it was made on poison, and its memory is still looked at
        self._raw: Results = {}  # what is under inspection, as it was returned
        p = execution.problem
        columns = p.batch * p.heads_kv * min(p.head_dim, p.head_dim_v)
        self._has_columns = columns >= _MARKS // 2  # else signs may agree by chance
        self._right: Results | None = None  # verified on these inputs, whatever their signs
        self._worked_s = self._spent_s = 0.0
        self._inspection_s = 0.0  # what one costs, as far as is known
        self._turn: tuple[str, float] | None = None
        self._built = building.look()

    def loaded(
        self, verify: Verify = lambda results: None, inspection_s: float | None = None
    ) -> None:
        """Other inputs have been loaded; ``verify`` raises ``Failed`` for wrong results.

        ``inspection_s`` is what one inspection costs, if that is known.
        """
        self._threads.begin()
        expect_noise(self._execution.loaded)
        self._verify, self._signs, self._right = verify, None, None
        self._contents += 1
        if inspection_s is not None:
            self._inspection_s = inspection_s

    # ---- around the turns ------------------------------------------------------------

    def turn_begins(self, phase: str) -> None:
        """The contender's calls in ``phase`` (``warm-up`` or ``measure``) are about to begin."""
        if self._may_spend(0.0):
            start = _now()
            self._renew()
            self._spent_s += _now() - start
        self._built = building.look()
        self._threads.begin()
        self._turn = (phase, _now())

    def turn_ended(self) -> None:
        """They are over: nothing was compiled meanwhile, and perhaps the output is inspected."""
        if self._turn is None:
            return
        (phase, began), self._turn = self._turn, None
        self._worked_s += _now() - began
        self._threads.end()
        if phase == "warm-up":
            self.results()
            self.remember()  # wrong or right: it may come back when it is out of date
            return
        if (news := building.news(self._built)) is not None:
            raise Failed("error", f"built code inside the timed part ({news}): do it in build()")
        if (
            self._may_spend(self._inspection_s)
            and float(torch.rand(1, generator=self._noise)) < _CHANCE
        ):
            start = _now()
            self.inspect()
            self._inspection_s = _now() - start
            self._spent_s += self._inspection_s

    def _may_spend(self, more_s: float) -> bool:
        return self._spent_s + more_s <= _SHARE * self._worked_s

    # ---- inspection ------------------------------------------------------------------

    def inspect(self) -> None:
        """Verify what the last timed call left, then what some more leave on new contents."""
        self.results()
        self._expect_right(self._raw)
        if (changed := self._execution.changed_input()) is not None:
            raise Failed("incorrect", f"it overwrote its input {changed}")
        self._renew()
        more = int(torch.randint(_MOST_CALLS, (1,), generator=self._noise))
        self._threads.begin()
        for _ in range(more):
            self._poison()
            self._execution.step()
        self._threads.end()
        self.look_at_one_call()

    def look_at_one_call(self, step: Callable[[], None] | None = None) -> None:
        """Call once on poisoned memory; expect a right output at the moment it returns.

        Args:
            step: makes the call, if it is to be timed as well.
        """
        taken, late = self._call_on_poison(step or self._execution.step)
        self._is_last_call = True
        try:
            self._expect_right(taken)
        except Failed as failed:
            if self._changes_after(taken):
                raise Failed("incorrect", _EARLY + (f" ({late})" if late else "")) from None
            raise failed
        finally:
            self._is_last_call = False
        if late is not None and (
            self._streams is None or self._streams.again(self._execution.step)
        ):
            raise Failed("error", f"still computing after it returned ({late})")

    def _call_on_poison(
        self, step: Callable[[], None], kept: Sequence[torch.Tensor] = ()
    ) -> tuple[Results, str | None]:
        """A copy of what one call returned, made at once, and who was still at work then."""
        self._poison(kept)
        taken: dict[str, torch.Tensor] = {}

        def take() -> None:
            taken.update({name: x.clone() for name, x in self._execution.results().items()})

        if self._streams is not None:
            return taken, self._streams.step(step, take)
        others = self._threads.of_others()
        self._threads.begin()
        step()
        take()
        self._threads.end()
        thread = lingering.thread_at_work(others)
        return taken, None if thread is None else f"thread {thread!r}"

    def results(self) -> Results:
        """What the last call returned; ``name`` and ``remember`` are about these.

        A clock that replays a recorded call leaves no result on these contents: then one is made.
        """
        if not self._execution.has_result:
            self._execution.step()
        self._threads.end()
        self._raw = self._execution.results()
        return self._unsigned(self._raw)

    def name(self) -> str | None:
        """What is behind a wrong result, in words, if it is one of the known tricks."""
        changed = self._execution.changed_input()
        return (
            (changed and f"it overwrote its input {changed}")
            or self._still_written()
            or poison.unwritten(self._raw)
            or self._behind(self.old_output())
        )

    def old_output(self) -> str | None:
        """Which result is that of other contents, in words; None if none is.

        One that has a single sign for all of it is as it was for half of all contents; a
        gradient through logits that is zero may be so for all of them.
        """
        signs = {} if self._signs is None else self._signs.by_name
        for name, x in self._raw.items():
            if name in signs and bool((signs[name] == signs[name].flatten()[0]).all()):
                continue
            if name in _MAY_VANISH and not bool(x.any()):
                continue
            if self._seen.get(_marks(name, x), self._contents) != self._contents:
                return f"returned the output of an earlier call ({name} is that of other inputs)"
        return None

    def trust(self, results: Results) -> None:
        """The results are right: what is equal to them need not be verified again."""
        self._right = {name: x.clone() for name, x in results.items()}
        self.remember()

    def remember(self) -> None:
        """The results belong to the contents that are loaded now, if they are new."""
        for name, x in self._raw.items():
            self._seen.setdefault(_marks(name, x), self._contents)

    def _still_written(self) -> str | None:
        """Says so if the wrong result changes by itself; look_at_one_call sees to that alone."""
        if self._is_last_call:
            return None
        wait_s = _GLANCE_S if poison.unwritten(self._raw) is None else _LATE_S
        taken = {name: x.clone() for name, x in self._raw.items()}
        return _EARLY if self._changes_after(taken, wait_s) else None

    def _behind(self, old: str | None) -> str | None:
        """What one more call gives away, where the one before was not prepared for it.

        Memory that was never written may hold an old output by chance. So where one was
        seen (``old`` says it), it is kept out of reach and only free memory is poisoned:
        who keeps outputs does not hit upon it, who writes nothing does.
        """
        if self._is_last_call:
            return old
        with contextlib.suppress(Exception):  # it is wrong already; this only looks for words
            for _ in range(_TRIES):
                kept = self._execution.returned if old else []
                taken = self._call_on_poison(self._execution.step, kept)[0]
                if (left := poison.unwritten(taken)) is not None:
                    return _EARLY if self._changes_after(taken) else left
        return old

    def _expect_right(self, raw: Results) -> None:
        self._raw, results, right = raw, self._unsigned(raw), self._right
        if right is None or not all(torch.equal(x, right[name]) for name, x in results.items()):
            self._verify(results)
            if self._has_columns and (fault := self.old_output()) is not None:
                raise Failed("incorrect", fault)  # where no limit tells: approximate, dropout
            self.trust(results)
        self.remember()

    def _changes_after(self, taken: Results, wait_s: float = _LATE_S) -> bool:
        """Whether the memory behind a wrong output is still being written."""
        synchronize(self._device)
        until = _now() + wait_s
        while True:
            now = self._execution.results()
            if not all(_same(x, taken[name]) for name, x in now.items()):
                return True
            if _now() > until:
                return False
            _sleep(1e-3)

    # ---- contents and memory ---------------------------------------------------------

    def _renew(self) -> None:
        """New contents in the same memory, whose truth follows from the old ones' truth."""
        new = signs_of(self._execution.problem, self._device, self._noise)
        self._execution.change_signs(new.by_name)
        self._signs = new
        self._contents += 1

    def _unsigned(self, results: Results) -> dict[str, torch.Tensor]:
        """Without signs, or with them: the same thing."""
        return dict(results) if self._signs is None else self._signs.apply(results)

    def _poison(self, kept: Sequence[torch.Tensor] = ()) -> None:
        """What is ``kept`` by the caller is neither spoilt nor handed out again."""
        returned = self._execution.returned
        if not kept:
            poison.spoil(returned, self._execution.loaded.values())
        self._execution.forget_last()
        poison.free_blocks(returned)


def _marks(name: str, x: torch.Tensor) -> bytes:
    """A few elements by which a result is known again: an odd step visits all columns."""
    flat = x.detach().flatten()
    some = flat[:: flat.numel() // _MARKS | 1].double().cpu()
    return name.encode() + some.numpy().tobytes()


def _same(x: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, NaN for NaN."""
    return bool(((x == other) | (x.isnan() & other.isnan())).all())
