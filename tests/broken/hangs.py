"""Implementations that never come back."""

from __future__ import annotations

import os
import time

from attnbench import register


@register("hangs-asleep")
def asleep(q, k, v, problem):
    print("good night", flush=True)
    time.sleep(3600)


@register("hangs-busy")
def busy(q, k, v, problem):
    while True:
        pass


@register("hangs-silent")
def silent(q, k, v, problem):
    """Closes all it can reach, the harness's own pipe among it, and stays."""
    os.closerange(3, 256)
    time.sleep(3600)
