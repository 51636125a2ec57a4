"""A step taken apart: its FLOPs, the seconds and bytes of its parts, attention's share.

In passes of their own, never timed: they wait for the device, and the profiler slows them.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.profiler import profile

from attnbench.device import synchronize
from attnbench.measure.meters import events, mark, trace
from attnbench.record import Memory
from attnbench.train.figures import Breakdown, MemoryParts
from attnbench.train.models.bridge import Attends
from attnbench.train.step import Piece, Trainer

ATTENTION = "attention"
_STEPS = 5
_MARKED = f"attnbench::{ATTENTION}"
_BACKWARD = "autograd::engine::evaluate_function: "


def break_down(trainer: Trainer, pieces: Sequence[Piece]) -> Breakdown:
    """Seconds of the parts of a step; attention's share of it, layout conversions included."""
    parts = [_parts_s(trainer, pieces) for _ in range(_STEPS + 1)][1:]
    forward, backward, optimizer = (statistics.median(p) for p in zip(*parts, strict=True))
    share, absent = _attention_share(trainer, pieces)
    return Breakdown(
        forward_s=forward,
        backward_s=backward,
        optimizer_s=optimizer,
        attention_share=share,
        attention_absent=absent,
        method=f"perf_counter, device waited for between the parts, median of {_STEPS} steps",
    )


def memory_parts(trainer: Trainer, pieces: Sequence[Piece]) -> tuple[MemoryParts, Memory]:
    """Bytes of a step by what they are for; and as a record has the memory of any call.

    On a CPU only what torch allocates is seen.
    """
    held: list[torch.Tensor] = []

    def forward() -> None:
        held.append(trainer.forward(pieces[0]))

    def backward() -> None:
        trainer.backward(held.pop())

    def rest() -> None:
        for piece in pieces[1:]:
            trainer.backward(trainer.forward(piece))

    ahead, back, others, update = trace([forward, backward, rest, trainer.update], trainer.device)
    model, state = trainer.model, trainer.optimizer.state.values()
    standing = sum(_bytes(x) for x in (*model.parameters(), *model.buffers()))
    followed = sum(_bytes(x) for x in trainer.teachers)
    optimizer = sum(_bytes(x) for one in state for x in one.values() if torch.is_tensor(x))
    gradients = sum(_bytes(p) for p in trainer.parameters)
    level, peak = 0, 0
    for change in (ahead, back, others, update):
        peak = max(peak, level + change.peak_bytes)
        level += change.left_bytes
    method = (
        "torch.cuda.max_memory_allocated"
        if trainer.device.type == "cuda"
        else "torch profiler, sum of allocation events"
    )
    parts = MemoryParts(
        parameters_bytes=standing,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=max(0, ahead.left_bytes),
        peak_bytes=standing + followed + optimizer + peak,
        method=method + "; and the teacher's weights" * bool(followed),
    )
    memory = Memory(
        peak_bytes=peak,
        forward_peak_bytes=ahead.peak_bytes,
        saved_bytes=max(0, ahead.left_bytes),
        backward_peak_bytes=back.peak_bytes,
        method=method,
    )
    return parts, memory


def _bytes(x: torch.Tensor) -> int:
    """Of a tensor, or of this rank's part of one that several ranks share (a DTensor)."""
    x = getattr(x, "to_local", lambda: x)()
    return x.numel() * x.element_size()


def _parts_s(trainer: Trainer, pieces: Sequence[Piece]) -> tuple[float, float, float]:
    """Forward, backward, and the rest of one step."""
    seconds = [0.0, 0.0, 0.0]

    def timed(part: int, call: Callable[[], Any]) -> Any:
        synchronize(trainer.device)
        start = time.perf_counter()
        result = call()
        synchronize(trainer.device)
        seconds[part] += time.perf_counter() - start
        return result

    for piece in pieces:
        loss = timed(0, functools.partial(trainer.forward, piece))
        timed(1, functools.partial(trainer.backward, loss))
    timed(2, trainer.update)
    return seconds[0], seconds[1], seconds[2]


# ---- attention's share -----------------------------------------------------------------


@contextlib.contextmanager
def _marked(model: torch.nn.Module) -> Iterator[None]:
    """Within, each attention of a model is a span of the profile."""
    spans: list[Any] = []

    def enter(module: torch.nn.Module, inputs: Any) -> None:
        spans.append(mark(ATTENTION))
        spans[-1].__enter__()

    def leave(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        spans.pop().__exit__(None, None, None)

    places = [m for m in model.modules() if isinstance(m, Attends)]
    hooks = [h for m in places for h in (m.register_forward_pre_hook(enter),
                                         m.register_forward_hook(leave))]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _attention_share(trainer: Trainer, pieces: Sequence[Piece]) -> tuple[float | None, str | None]:
    """Attention's part of a step's time, forward and backward, or why it is not known."""
    if trainer.workload.compile:
        return None, "compiled as a whole: attention is fused with its neighbours"
    is_cuda = trainer.device.type == "cuda"
    how: dict[str, Any] = {"use_device": "cuda", "use_kineto": True} if is_cuda else {}
    with _marked(trainer.model), profile(**how) as profiler, mark("step"):
        trainer.step(pieces)
        synchronize(trainer.device)
    raw = [e for e in events(profiler) if e.duration_ns() > 0]
    spans = _attention_spans(raw)
    if not spans:
        return None, "the profiler saw no attention call"
    if is_cuda:
        return _device_share(raw, spans), None
    (whole,) = (e.duration_ns() for e in raw if e.name() == "attnbench::step")
    return min(1.0, sum(end - start for _, start, end in spans) / whole), None


def _attention_spans(raw: Sequence[Any]) -> list[tuple[int, int, int]]:
    """(thread, start, end) in ns of attention's forward calls and of their backward.

    Operators carry the number that autograd gave to their node; the node's evaluation in the
    backward carries it again.
    """
    forward = [(e.start_thread_id(), e.start_ns(), e.end_ns()) for e in raw if e.name() == _MARKED]
    numbers = {
        e.sequence_nr()
        for e in raw
        if e.sequence_nr() >= 0
        and not e.name().startswith(_BACKWARD)
        and any(t == e.start_thread_id() and a <= e.start_ns() < b for t, a, b in forward)
    }
    backward = [
        (e.start_thread_id(), e.start_ns(), e.end_ns())
        for e in raw
        if e.name().startswith(_BACKWARD) and e.sequence_nr() in numbers
    ]
    return forward + backward


def _device_share(raw: Sequence[Any], spans: Sequence[tuple[int, int, int]]) -> float | None:
    """Share of the kernels' time in those that were launched within the spans."""
    kernels = [e for e in raw if e.device_type().name == "CUDA" and not e.is_user_annotation()]
    own = {
        e.correlation_id()
        for e in raw
        if e.device_type().name == "CPU"
        and any(t == e.start_thread_id() and a <= e.start_ns() < b for t, a, b in spans)
    }
    total = sum(e.duration_ns() for e in kernels)
    inside = sum(e.duration_ns() for e in kernels if e.correlation_id() in own)
    return inside / total if total else None
