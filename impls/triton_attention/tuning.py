"""Times the configurations that a problem may run in, chooses the fastest, and remembers it.

Only ``build()`` comes here, so that nothing of it is ever in a timed call. What was chosen is
kept in a file of its own, found again by all that the choice depends on: the kernel's
source, Triton's version, the device, the problem and the candidates. A file that is torn,
or is of something else, counts as none and is written anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from attnbench import Inputs, Problem

from .config import KERNELS, Config, Kernel
from .dkdv import dkdv_kernel
from .dq import dq_kernel
from .forward import forward_kernel
from .launch import FusedAttention
from .specialized import specialized_kernel

Call = Callable[[], object]
Timer = Callable[[Sequence[Call]], Sequence[float]]
"""Seconds of each of some calls, by the same clock."""

FOLDER_VARIABLE = "ATTNBENCH_TUNING_DIR"
_SOURCES: Mapping[Kernel, tuple[Any, ...]] = {
    "forward": (forward_kernel, specialized_kernel),
    "dkdv": (dkdv_kernel,),
    "dq": (dq_kernel,),
}
_ROUNDS = 9
_WARM_UP_S = 0.02
_SAMPLE_S = 0.004  # long beside what a pair of events can tell


def tune(
    attention: FusedAttention,
    inputs: Inputs,
    bias_HMN: torch.Tensor | None = None,
    *,
    schedule: str = "auto",
    timer: Timer | None = None,
    folder: Path | None = None,
) -> None:
    """Let each kernel run in the fastest of its configurations from now on.

    Args:
        attention: whose ``choices`` will tell what was chosen.
        inputs: of its problem, on its device; q, k and v require gradients if the problem
            has a backward.
        bias_HMN: the learned bias, if the problem has one.
        schedule: of the forward, or ``auto`` for any.
        timer: :func:`time_on_device` unless given.
        folder: of the files; :func:`tuning_folder` unless given.

    Raises:
        Unsupported: the schedule cannot do the problem.
    """
    timer, folder = timer or time_on_device, folder or tuning_folder()

    def choose(kernel: Kernel, among: tuple[Config, ...]) -> Config:
        best = among[0]
        if len(among) > 1:
            made = _forward if kernel == "forward" else _backward
            run = functools.partial(made, attention, inputs, bias_HMN)
            best = _best(attention, run, kernel, among, timer, folder)
        attention.use(kernel, best, "tuned" if len(among) > 1 else "the only one")
        return best

    device = attention.device
    # Dropout draws a seed a call: the next one's must not depend on what was known already.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if attention.decode is None:
            offered = attention.offered("forward", schedule)
            by_descriptor = tuple(c for c in offered if c.schedule == "specialized")
            if by_descriptor:  # the strides of a call may need the best of the others
                every = attention.offered("forward")
                best = choose("forward", tuple(c for c in every if c not in by_descriptor))
                offered = by_descriptor if schedule != "auto" else (best, *by_descriptor)
            choose("forward", offered)
        if attention.problem.direction != "forward":
            for kernel in KERNELS[1:]:
                choose(kernel, attention.offered(kernel))


def tuning_folder() -> Path:
    """Where choices are kept: ``ATTNBENCH_TUNING_DIR``, or a folder of the user's cache."""
    told = os.environ.get(FOLDER_VARIABLE)
    return Path(told) if told else Path.home() / ".cache" / "attnbench" / "tuning"


def _best(
    attention: FusedAttention,
    run: Callable[[], Call],
    kernel: Kernel,
    offered: tuple[Config, ...],
    timer: Timer,
    folder: Path,
) -> Config:
    key = key_of(attention, kernel, offered)
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"
    known = _read(path, key)
    if known is not None:
        return next(config for config in offered if str(config) == known)
    seconds = _measure(attention, run(), kernel, offered, timer)
    best = min(seconds, key=lambda config: seconds[config])
    _write(path, {"key": key, "chosen": str(best),
                  "seconds": {str(c): s for c, s in seconds.items()}})  # fmt: skip
    return best


def key_of(attention: FusedAttention, kernel: Kernel, offered: Sequence[Config]) -> dict[str, Any]:
    """All that a choice depends on, as JSON has it."""
    p: Problem = attention.problem
    device = attention.device
    name = "interpreter"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    shape = ("batch", "heads_q", "heads_kv", "seqlen_q", "seqlen_k", "head_dim", "head_dim_v")
    return {
        "kernel": kernel,
        "source": [jitted.cache_key for jitted in _SOURCES[kernel]],
        "triton": version("triton"),
        "device": name,
        **{field: getattr(p, field) for field in (*shape, "dtype", "decode", "alibi", "bias")},
        "mask": str(p.mask),
        "softcap": p.softcap is not None,
        "dropout": p.dropout_p > 0,
        "precision": attention.constants["PRECISION"],
        "candidates": [str(config) for config in offered],
    }


# ---- files -------------------------------------------------------------------------------


def _read(path: Path, key: Mapping[str, Any]) -> str | None:
    """The choice that a file holds for a key, or None if there is none that can be read."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("key") != key:
        return None
    chosen = told.get("chosen")
    return chosen if chosen in key["candidates"] else None


def _write(path: Path, told: Mapping[str, Any]) -> None:
    """All of it or nothing, so that a reader never sees a part; a failure costs no result."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump(told, file, indent=1)
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
    except OSError as error:
        warnings.warn(f"tuning is not kept, the next build tunes again: {error}", stacklevel=2)


# ---- timing ------------------------------------------------------------------------------


def _measure(
    attention: FusedAttention,
    run: Call,
    kernel: Kernel,
    offered: Sequence[Config],
    timer: Timer,
) -> dict[Config, float]:
    """Seconds of a call in each configuration that the device can run at all."""
    calls: dict[Config, Call] = {}
    refusals: list[Exception] = []
    for config in offered:

        def call(config: Config = config) -> object:
            attention.use(kernel, config, "tuning")
            return run()

        try:
            call()  # compiles
        except (OutOfResources, CompilationError) as error:  # of one configuration, not of all
            refusals.append(error)
        else:
            calls[config] = call
    if not calls:
        raise refusals[0]
    return dict(zip(calls, timer(list(calls.values())), strict=True))


def _forward(attention: FusedAttention, inputs: Inputs, bias_HMN: torch.Tensor | None) -> Call:
    q_BHMD, k_BGND, v_BGNE = (x.detach() for x in inputs.qkv())
    return lambda: attention.forward(q_BHMD, k_BGND, v_BGNE, bias_HMN)


def _backward(attention: FusedAttention, inputs: Inputs, bias_HMN: torch.Tensor | None) -> Call:
    """All of the backward: what the other kernels take is the same for each candidate."""
    q_BHMD, k_BGND, v_BGNE = (x.detach() for x in inputs.qkv())
    out_BHME, lse_BHM = attention.forward(q_BHMD, k_BGND, v_BGNE, bias_HMN)
    seed = attention.seed
    return lambda: attention.backward(
        (q_BHMD, k_BGND, v_BGNE), out_BHME, lse_BHM, seed, inputs.grad_out_BHME, bias_HMN,
        wants_dbias=False,
    )  # fmt: skip


def time_on_device(calls: Sequence[Call]) -> list[float]:
    """Median seconds of each call on the current CUDA device.

    Rounds are interleaved, so that a clock that changes changes for all. A sample is of as
    many calls as take a few milliseconds, enough to hide what a launch costs the host.
    """
    repeats = [_repeats(call) for call in calls]
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(_ROUNDS):
        for place in range(len(calls)):
            index = (turn + place) % len(calls)  # nobody is always behind the same one
            samples[index].append(_seconds(calls[index], repeats[index]))
    return [statistics.median(own) for own in samples]


def _repeats(call: Call) -> int:
    """Calls of a sample, after calls that warm caches and clocks up."""
    once = _seconds(call, 1)
    _seconds(call, max(1, round(_WARM_UP_S / once)))
    return max(1, round(_SAMPLE_S / _seconds(call, 3)))


def _seconds(call: Call, repeats: int) -> float:
    """A call, by events around several."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / repeats
