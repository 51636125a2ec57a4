"""What a plugin's exception means for its point: a status, a reason, a log."""

from __future__ import annotations

import traceback

import torch

from attnbench.attention import Unsupported
from attnbench.errors import in_words, message
from attnbench.execution import WrongOutput
from attnbench.guard import Meddling
from attnbench.record import Status

_LOG_LIMIT = 4000
_NO_MEMORY = "can't allocate memory"  # in the RuntimeError of torch's CPU allocator


class Failed(Exception):
    """A contender's own failure: what becomes of its point."""

    def __init__(self, status: Status, reason: str, log: str | None = None) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason
        self.log = log


def classify(error: BaseException) -> Failed:
    """The status and reason that an exception out of a plugin deserves."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, Unsupported):
        return Failed("unsupported", message(error) or "no reason given")
    if isinstance(error, WrongOutput):
        return Failed("incorrect", message(error))
    if isinstance(error, Meddling):
        return Failed("error", message(error))
    log = "".join(traceback.format_exception(error))[-_LOG_LIMIT:]
    is_oom = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if is_oom or _NO_MEMORY in message(error):
        return Failed("oom", f"out of memory: {message(error)}".rstrip(": "), log)
    return Failed("error", in_words(error), log)
