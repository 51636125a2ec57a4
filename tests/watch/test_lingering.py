"""Work that goes on after a call: threads by their CPU clocks, streams by the device's end."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from attnbench.watch import lingering

LATE_S = 0.02


class FakeCuda:
    """A device that finishes its current stream at once, and everything a while later."""

    def __init__(self, late_s: float) -> None:
        self.late_s = late_s
        self.order: list[str] = []
        self._is_busy = False

    def call(self) -> None:
        self.order.append("call")
        self._is_busy = True

    def synchronize(self, device: object = None) -> None:
        if self._is_busy:
            time.sleep(self.late_s)
        self._is_busy = False

    def record(self) -> None:
        self.order.append("event")


def streams(monkeypatch: pytest.MonkeyPatch, late_s: float) -> tuple[FakeCuda, str | None]:
    fake = FakeCuda(late_s)

    class Event:
        record = staticmethod(fake.record)

        def synchronize(self) -> None:
            """The current stream is empty."""

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    check = lingering.StreamCheck(torch.device("cuda:0"))
    told = check.step(fake.call, lambda: fake.order.append("copy"))
    order, fake.order = fake.order, []
    assert check.again(fake.call) == (told is not None)
    fake.order = order
    return fake, told


def test_work_on_another_stream_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, told = streams(monkeypatch, LATE_S)
    assert told is not None
    assert told.endswith("µs on another stream than the current one")
    assert fake.order == ["call", "event", "copy"]


def test_a_device_that_is_done_with_its_stream_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "_STREAM_S", LATE_S)  # this machine may be busy
    assert streams(monkeypatch, 0.0)[1] is None


def test_a_thread_that_computes_is_named_and_one_that_waits_is_not() -> None:
    end = threading.Event()
    threading.Thread(target=end.wait, name="waiting", daemon=True).start()
    assert lingering.thread_at_work() is None

    def compute() -> None:
        while not end.is_set():
            sum(range(1000))

    worker = threading.Thread(target=compute, name="computing", daemon=True)
    worker.start()
    found = [lingering.thread_at_work() for _ in range(5)]
    end.set()
    worker.join()
    assert "computing" in found  # not each time on a machine that lets it starve
    assert "waiting" not in found


def test_the_pool_that_spins_after_a_parallel_region_is_not_at_work() -> None:
    x = torch.randn(300, 300)
    for _ in range(20):
        x @ x
        assert lingering.thread_at_work() is None
