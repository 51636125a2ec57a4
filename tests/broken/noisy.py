"""Right implementations with bad habits that are nobody else's business."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, register


@register("noisy-prints")
def prints(q, k, v, problem):
    print('{"event": "done"}\n\x00\udcff'.encode(errors="replace"), "x" * 1000)
    print("garbage", file=sys.stderr)
    os.write(1, b"\xff\xfe{\n")
    return attend(q, k, v)


@register("noisy-closes-stdout")
class ClosesStdout(Attention):
    def build(self, problem, device):
        sys.stdout.close()
        os.close(1)
        return attend


@register("noisy-no-stderr")
class NoStderr(Attention):
    def build(self, problem, device):
        sys.stderr = None
        return attend


@register("noisy-reads-stdin")
def reads_stdin(q, k, v, problem):
    assert os.read(0, 100) == b"", "there is something to read"
    return attend(q, k, v)


@register("noisy-thread")
class Thread(Attention):
    """Leaves a thread behind that never ends."""

    def build(self, problem, device):
        threading.Thread(target=time.sleep, args=[3600]).start()
        return attend


@register("noisy-fork")
class Fork(Attention):
    """Its child returns into the harness, too."""

    def build(self, problem, device):
        os.fork()
        return attend


@register("noisy-child")
class Child(Attention):
    """Starts a process that would outlive everybody."""

    def build(self, problem, device):
        subprocess.Popen(["sleep", "3600"])
        return attend
