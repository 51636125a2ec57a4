"""Tricks of implementations that know how they are measured, beyond those of ``cheats``."""

from __future__ import annotations

import ctypes
import hashlib
import threading
import time

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, ForwardBackward, register


def digest(*tensors):
    whole = hashlib.blake2b()
    for x in tensors:
        whole.update(x.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.digest()


# ---- outputs of earlier calls ------------------------------------------------------------


class Remembering(Attention):
    """Keeps outputs by a key made of the inputs; hands out copies, which nobody can spoil."""

    features = frozenset()
    work = 1

    def build(self, problem, device):
        known = {}

        def call(q, k, v):
            key = self.key(q, k, v)
            if key not in known:
                for _ in range(self.work):  # slow enough for a digest to pay
                    known[key] = attend(q, k, v)
            return known[key].clone()

        return call


@register("trick-by-few-elements")
class ByFewElements(Remembering):
    def key(self, q, k, v):
        return tuple(float(x.flatten()[::97].abs().sum()) for x in (q, k, v))


@register("trick-by-all-contents")
class ByAllContents(Remembering):
    """Always right: only its time gives it away."""

    work = 60

    def key(self, q, k, v):
        return digest(q, k, v)


@register("trick-by-contents-but-signs")
class ByContentsButSigns(Attention):
    """Knows how contents are renewed, and puts the signs into the remembered output itself."""

    features = frozenset()

    def build(self, problem, device):
        known = {}

        def call(q, k, v):
            key = digest(q.abs(), k.abs(), v.abs())
            sign = v[:, :, :1].sign()
            if key not in known:
                for _ in range(60):
                    known[key] = attend(q, k, v) * sign
            return known[key] * sign

        return call


@register("trick-now-and-then")
class NowAndThen(Attention):
    """Computes in every tenth call of those that nobody can expect to be looked at."""

    features = frozenset()

    def build(self, problem, device):
        state = {"calls": 0, "out": None}

        def call(q, k, v):
            state["calls"] += 1
            if state["calls"] < 4 or state["calls"] % 10 == 0:
                state["out"] = attend(q, k, v)
            return state["out"].clone()

        return call


@register("trick-gradients-beforehand")
class GradientsBeforehand(Attention):
    """The untimed forward makes the gradients, for it has seen where grad_out is."""

    def build(self, problem, device):
        seen = []

        def gradients(q, k, v, grad_out):
            with torch.enable_grad():
                leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
                return torch.autograd.grad(attend(*leaves), leaves, grad_out)

        def forward(q, k, v):
            early = gradients(q, k, v, seen[0]) if seen else None
            return attend(q, k, v), (q, k, v, early)

        def backward(saved, grad_out):
            q, k, v, early = saved
            seen[:] = [grad_out]
            return gradients(q, k, v, grad_out) if early is None else [x.clone() for x in early]

        return ForwardBackward(forward, backward)


# ---- before the work is done -------------------------------------------------------------


class Late(Attention):
    """Returns memory that a thread fills later."""

    features = frozenset()
    early = 2  # calls in which it waits for the thread

    def build(self, problem, device):
        calls = 0

        def call(q, k, v):
            nonlocal calls
            calls += 1
            out = torch.empty_like(q)

            def fill():
                time.sleep(0.002)
                out.copy_(attend(q, k, v))

            self.start(fill, wait=calls <= self.early)
            return out

        return call

    def start(self, fill, wait):
        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        if wait:
            thread.join()


@register("late-thread")
class InThread(Late):
    pass


@register("late-raw-thread")
class InRawThread(Late):
    """A thread that the threading module does not know of."""

    def start(self, fill, wait):
        import _thread

        done = _thread.allocate_lock()
        done.acquire()

        def run():
            fill()
            done.release()

        _thread.start_new_thread(run, ())
        if wait:
            done.acquire()


@register("late-burner")
class Burner(Attention):
    """The output is there, but the work of the call goes on."""

    features = frozenset()

    def build(self, problem, device):
        def burn():
            while time.thread_time() < 1.0:
                sum(range(1000))

        burner = None

        def call(q, k, v):
            nonlocal burner
            if burner is None or not burner.is_alive():  # one is enough for any machine
                burner = threading.Thread(target=burn, daemon=True, name="burner")
                burner.start()
            return attend(q, k, v)

        return call


# ---- memory that was not written ---------------------------------------------------------


class AfterThree(Attention):
    """Honest in the first calls, when it is verified."""

    features = frozenset()

    def build(self, problem, device):
        calls = 0

        def call(q, k, v):
            nonlocal calls
            calls += 1
            return attend(q, k, v) if calls < 3 else self.trick(q, k, v)

        return call


@register("trick-unwritten")
class Unwritten(AfterThree):
    """Hopes to be handed the memory of the output before."""

    def trick(self, q, k, v):
        return torch.empty_like(q)


@register("trick-same-buffer")
class SameBuffer(Attention):
    """One buffer for all calls, the last row of which is written only at first."""

    features = frozenset()

    def build(self, problem, device):
        buffer = None

        def call(q, k, v):
            nonlocal buffer
            out = attend(q, k, v)
            if buffer is None:
                buffer = out.clone()
            buffer[:, :, :-1] = out[:, :, :-1]
            return buffer

        return call


# ---- inputs ------------------------------------------------------------------------------


@register("trick-spoils-inputs-later")
class SpoilsInputsLater(AfterThree):
    def trick(self, q, k, v):
        k.data[0, 0, 0, 0] += 1
        return attend(q, k, v)


@register("trick-uniform-weights")
def uniform_weights(q, k, v, problem):
    """Right for zeros and constants, whose weights are all the same."""
    return v.mean(dim=2, keepdim=True).repeat(1, 1, q.shape[2], 1)


@register("trick-short-cut", features=("backward",))
def short_cut(q, k, v, problem):
    """Looks for contents of low entropy, where it would take a short cut; none ever come."""
    for x in (q, k, v):
        if x.unique().numel() < x.numel() // 8:
            raise RuntimeError("took the short cut")
    return attend(q, k, v)


# ---- tensors that are not what they seem -------------------------------------------------


class Mine(torch.Tensor):
    pass


@register("trick-subclass")
def subclass(q, k, v, problem):
    return attend(q, k, v).as_subclass(Mine)


@register("trick-parameter")
def parameter(q, k, v, problem):
    return torch.nn.Parameter(attend(q, k, v))


@register("trick-functional")
def functional(q, k, v, problem):
    return torch._to_functional_tensor(attend(q, k, v))


@register("trick-expanded")
def expanded(q, k, v, problem):
    return attend(q, k, v)[:, :, :1].expand_as(q)


@register("trick-overlapping")
def overlapping(q, k, v, problem):
    out = attend(q, k, v).contiguous()
    return out.as_strided(out.shape, (1, 2, 3, 1))


@register("trick-no-memory")
def no_memory(q, k, v, problem):
    out = attend(q, k, v).clone()
    out.untyped_storage().resize_(0)
    return out


@register("trick-zero-tensor")
def zero_tensor(q, k, v, problem):
    return torch._efficientzerotensor(tuple(q.shape), dtype=q.dtype)


@register("trick-lazy-copy")
def lazy_copy(q, k, v, problem):
    return torch._lazy_clone(attend(q, k, v))


@register("trick-lazy-sign")
def lazy_sign(q, k, v, problem):
    return torch._neg_view(-attend(q, k, v))


@register("trick-sparse")
def sparse(q, k, v, problem):
    return attend(q, k, v).to_sparse()


# ---- precision ---------------------------------------------------------------------------


@register("trick-float16", dtypes=("float32",))
def in_float16(q, k, v, problem):
    return attend(q.half(), k.half(), v.half()).float()


@register("trick-bfloat16", dtypes=("float32",))
def in_bfloat16(q, k, v, problem):
    return attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()


@register("trick-bfloat16-later")
class BFloat16Later(AfterThree):
    """Precise while it is verified."""

    dtypes = ("float32",)

    def trick(self, q, k, v):
        return attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()


# ---- timers and the harness itself -------------------------------------------------------


@register("trick-cuda-event")
class CudaEvent(Attention):
    def build(self, problem, device):
        torch.cuda.Event = object
        torch.cuda.synchronize = lambda device=None: None
        return attend


@register("trick-event-time")
class EventTime(Attention):
    """The class stays what it was; what its events tell does not."""

    def build(self, problem, device):
        true = torch.cuda.Event.elapsed_time
        torch.cuda.Event.elapsed_time = lambda self, other: true(self, other) / 2
        torch.cuda.CUDAGraph.replay = lambda self: None
        return attend


@register("trick-host-clock")
class PatchedHostClock(Attention):
    def build(self, problem, device):
        from attnbench.measure import clock

        clock.HostClock.time = lambda self, call, calls: 1e-9
        return attend


@register("trick-judge")
class PatchedJudge(Attention):
    def build(self, problem, device):
        from attnbench import workgroup

        workgroup.passed = lambda accuracy: True
        return lambda q, k, v: v.clone()


@register("trick-equal")
class PatchedEqual(Attention):
    def build(self, problem, device):
        torch.equal = lambda a, b: True
        return attend


@register("trick-clone")
class PatchedClone(Attention):
    def build(self, problem, device):
        torch.Tensor.clone = lambda self, **words: self
        return attend


class Mode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@register("trick-mode")
class LeavesMode(Attention):
    """Has a say in every operation of the harness from now on."""

    def build(self, problem, device):
        Mode().__enter__()
        return attend


# ---- compiling while timed ---------------------------------------------------------------


@register("trick-compiles-late")
class CompilesLate(AfterThree):
    def trick(self, q, k, v):
        torch._dynamo.reset()
        return torch.compile(attend, backend="eager")(q, k, v)


@register("trick-loads-late")
class LoadsLate(AfterThree):
    """Loads a library, as a freshly built extension is loaded."""

    def trick(self, q, k, v):
        import _ctypes

        handle = ctypes.CDLL("libresolv.so.2")._handle
        _ctypes.dlclose(handle)
        return attend(q, k, v)


@register("trick-kernel-late")
class KernelLate(AfterThree):
    """Compiles a Triton kernel, or as good as: calls what triton calls after it has."""

    def trick(self, q, k, v):
        import triton

        triton.knobs.runtime.jit_post_compile_hook(key="", repr="", fn=None, compile={})
        return attend(q, k, v)

    def build(self, problem, device):
        import triton.runtime.autotuner  # noqa: F401

        return super().build(problem, device)


@register("trick-tunes-late")
class TunesLate(KernelLate):
    def trick(self, q, k, v):
        from triton.runtime.autotuner import Autotuner

        tuner = Autotuner.__new__(Autotuner)
        tuner.do_bench = None
        try:
            tuner._bench(config=None)
        except Exception:  # it cannot: there is no GPU
            return attend(q, k, v)
        return attend(q, k, v)
