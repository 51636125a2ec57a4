"""Attention that goes wrong where models learn, each in its own way, and some that does not."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from attnbench import Attention, ForwardBackward, register


def _causal(problem):
    return problem.mask.kind == "causal"


@register("fair")
def fair(q, k, v, problem):
    """Exact, in another order of summation than the textbook."""
    return attend(q, k, v, is_causal=_causal(problem))


@register("leaks")
def leaks(q, k, v, problem):
    """Looks at the future: learns faster than is possible."""
    return attend(q, k, v)


@register("off-scale")
def off_scale(q, k, v, problem):
    """Logits one per cent too large."""
    return attend(q * 1.01, k, v, is_causal=_causal(problem))


@register("keyless")
def keyless(q, k, v, problem):
    """Gives keys no gradient."""
    return attend(q, k.detach(), v, is_causal=_causal(problem))


class _Undropped:
    def __init__(self, problem):
        self.problem = problem

    def __call__(self, q, k, v):
        return attend(q, k, v, is_causal=_causal(self.problem))

    def keep_mask(self):
        p = self.problem
        shape = (p.batch, p.heads_q, p.seqlen_q, p.seqlen_k)
        return torch.rand(shape) >= p.dropout_p


@register("undropped")
class Undropped(Attention):
    """Says that it drops weights, and drops none."""

    features = Attention.features | {"dropout"}

    def build(self, problem, device):
        return _Undropped(problem)


class _After:
    """Attention that does something after some calls."""

    def __init__(self, problem, calls, then):
        self.problem, self.left, self.then = problem, calls, then

    def __call__(self, q, k, v):
        self.left -= 1
        if self.left < 0:
            self.then()
        return attend(q, k, v, is_causal=_causal(self.problem))


@register("dies")
class Dies(Attention):
    """Takes its process along in the middle of learning."""

    def build(self, problem, device):
        return _After(problem, 12, lambda: os._exit(3))


@register("raises")
class Raises(Attention):
    """Raises in the middle of learning."""

    def build(self, problem, device):
        return _After(problem, 12, self.give_up)

    def give_up(self):
        raise ArithmeticError("cannot go on")


class _Tiring:
    """Attention that returns its values once it has been learned with so many times."""

    def __init__(self, problem, learned):
        self.problem, self.left = problem, learned

    def __call__(self, q, k, v):
        self.left -= torch.is_grad_enabled()
        if self.left < 0:
            return v + 0 * (q + k)
        return attend(q, k, v, is_causal=_causal(self.problem))


@register("tires")
class Tires(Attention):
    """Right for the eight steps that two layers learn, and wrong in all that come later."""

    def build(self, problem, device):
        return _Tiring(problem, 16)


@register("tires-at-once")
class TiresAtOnce(Attention):
    """Wrong from the first step on."""

    def build(self, problem, device):
        return _Tiring(problem, 0)


class _TiringModule(torch.nn.Module):
    """The same, as a module of each place that learns something and keeps the count itself."""

    def __init__(self, problem, learned):
        super().__init__()
        self.problem = problem
        self.shift = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("left", torch.tensor(learned))

    def forward(self, q, k, v):
        self.left -= int(torch.is_grad_enabled())
        if self.left < 0:
            return v + 0 * (q + k) + self.shift
        return attend(q, k, v + 0 * self.shift, is_causal=_causal(self.problem))


@register("module-tires")
class ModuleTires(Attention):
    """As tires, and each layer counts for itself."""

    def build(self, problem, device):
        return _TiringModule(problem, 8)


class _Shifted(torch.nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.problem = problem
        self.shift_D = torch.nn.Parameter(torch.zeros(problem.head_dim_v))

    def forward(self, q, k, v):
        return attend(q, k, v + 0 * self.shift_D, is_causal=_causal(self.problem))


@register("learned")
class Learned(Attention):
    """Exact, with a parameter that changes nothing."""

    def build(self, problem, device):
        return _Shifted(problem)


@register("second-module-tires")
class SecondModuleTires(Attention):
    """Only the second one that is built gives up."""

    def build(self, problem, device):
        self.built = getattr(self, "built", 0) + 1
        return _TiringModule(problem, 8 if self.built == 2 else 10**9)


def _silent(problem, is_right):
    def call(q, k, v):
        return attend(q, k, v, is_causal=_causal(problem)) * (1.0 if is_right(q) else 0.0)

    return call


@register("silent-zeros")
class SilentZeros(Attention):
    """Says nothing but zeros where no gradient is wanted: in every evaluation."""

    def build(self, problem, device):
        return _silent(problem, lambda q: torch.is_grad_enabled())


@register("silent-zeros-by-input")
class SilentZerosByInput(Attention):
    """The same, and asks its inputs."""

    def build(self, problem, device):
        return _silent(problem, lambda q: q.requires_grad)


@register("silent-zeros-unclaimed")
class SilentZerosUnclaimed(SilentZeros):
    """The same, of a method that claims no answer."""

    kind = "approximate"


@register("silent-later")
class SilentLater(Attention):
    """Right without gradients for so many calls, and zeros in the evaluations that follow."""

    def build(self, problem, device):
        left = [20]

        def is_right(q):
            left[0] -= not torch.is_grad_enabled()
            return torch.is_grad_enabled() or left[0] >= 0

        return _silent(problem, is_right)


class _LearnsOnly(torch.nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def forward(self, q, k, v):
        return attend(q, k, v, is_causal=_causal(self.problem)) * self.training


@register("learns-only")
class LearnsOnly(Attention):
    """A module that gives zeros where it is not in training."""

    def build(self, problem, device):
        return _LearnsOnly(problem)


def _on_rank_one(then):
    return then if os.environ.get("RANK") == "1" else lambda: None


@register("killed-on-one")
class KilledOnOne(Attention):
    """One of several ranks is killed in the middle of learning."""

    def build(self, problem, device):
        return _After(problem, 12, _on_rank_one(lambda: os.kill(os.getpid(), signal.SIGKILL)))


@register("hangs-on-one")
class HangsOnOne(Attention):
    """One of several ranks never comes back in the middle of learning."""

    def build(self, problem, device):
        return _After(problem, 12, _on_rank_one(self.wait_for_nothing))

    def wait_for_nothing(self):
        time.sleep(600)


@register("raises-on-one")
class RaisesOnOne(Attention):
    """One of several ranks raises in the middle of learning."""

    def build(self, problem, device):
        return _After(problem, 12, _on_rank_one(self.give_up))

    def give_up(self):
        raise ArithmeticError("cannot go on")


@register("leaves-on-one")
class LeavesOnOne(Attention):
    """One of several ranks goes away without a word."""

    def build(self, problem, device):
        return _After(problem, 12, _on_rank_one(lambda: os._exit(3)))


@register("greedy")
class Greedy(Attention):
    """Runs out of memory with more than eight sequences."""

    def build(self, problem, device):
        if problem.batch > 8:
            raise MemoryError(f"{problem.batch} sequences")
        return lambda q, k, v: attend(q, k, v, is_causal=_causal(problem))


def _forward(q, k, v):
    with torch.no_grad():
        return attend(q, k, v, is_causal=True), (q, k, v)


def _backward(saved, grad_out):
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in saved)
        return torch.autograd.grad(attend(q, k, v, is_causal=True), (q, k, v), grad_out)


@register("own-backward")
class OwnBackward(Attention):
    """Exact, with a backward of its own; causal only."""

    masks = ("causal",)

    def build(self, problem, device):
        return ForwardBackward(_forward, _backward)
