"""What an implementation of attention is: the class that every plugin is, in the end.

Third parties meet these names through ``attnbench.plugin``, which also declares plugins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attnbench.errors import UserError, unknown
from attnbench.problem import Level, Problem
from attnbench.spec import Value

if TYPE_CHECKING:
    import torch

    from attnbench.masks import Mask
    from attnbench.offline import Case

Kind = Literal["exact", "approximate"]
Layout = Literal["BHSD", "BSHD", "packed"]
MaskForm = Literal["dense", "additive", "mask_mod"]

FEATURES: Mapping[str, str] = {
    "backward": "gradients",
    "gqa": "heads_kv < heads_q",
    "cross": "seqlen_q ≠ seqlen_k",
    "head_dim_v": "head_dim_v ≠ head_dim",
    "scale": "a scale other than 1/√head_dim",
    "decode": "a decode step on a KV cache",
    "dropout": "dropout",
    "softcap": "softcap",
    "alibi": "ALiBi",
    "bias": "a learned bias on the logits",
}
"""What a problem may ask for beyond plain attention, and how to say it to a person."""

USUAL_FEATURES = frozenset({"backward", "gqa", "cross", "head_dim_v", "scale", "decode"})
"""What an implementation is taken to do unless it says otherwise."""


class Unsupported(Exception):
    """This implementation cannot do this problem here; the text says why."""


@dataclass(frozen=True)
class ForwardBackward:
    """What ``build()`` returns when the backward is the implementation's own code.

    Attributes:
        forward: ``(q, k, v) → (out, saved)``; ``saved`` is handed to the backward as it is.
        backward: ``(saved, grad_out) → (dq, dk, dv)``.

    With a bias (``problem.bias``) the forward takes ``(q, k, v, bias)`` and the backward
    returns ``(dq, dk, dv, dbias)``.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], tuple[Any, ...]]


class Attention:
    """An implementation of attention. Subclass it, or decorate a function with ``register``.

    Class attributes:
        kind: ``exact``, or ``approximate`` for methods that give up accuracy.
        layout: how q, k, v and the output are laid out: ``BHSD`` (batch, heads, seqlen,
            dim), ``BSHD``, or ``packed`` (batch·seqlen, heads, dim). Inputs arrive that
            way and contiguous (but the cache of a decode step is a view, and verification
            tries other strides); converting is not part of the timed call.
        level: ``op``: attends, and is put inside a layer where one is asked for. ``layer``:
            is a whole layer, with projections of its own, and can be nothing else.
        features: names of :data:`FEATURES` it can do.
        masks, dtypes, devices: names it can do, or None for any.
        options: its settings with their defaults; a suite may sweep them
            (``mine:block=64``), and an instance finds them in ``self.options``.
        simulators: options that, when true or not 0, run it in a simulator, or in any way in
            which its times are no timings, each with the words that label it
            (``{"interpret": "in Triton's interpreter"}``). It is verified as ever, but nothing
            shows its times or compares them with real ones.
        version: of the library behind it, if any.
        source: paper or address it follows.

    An instance belongs to one set of options; ``build`` may be called for many problems.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[Kind] = "exact"
    layout: ClassVar[Layout] = "BHSD"
    level: ClassVar[Level] = "op"
    features: ClassVar[frozenset[str]] = USUAL_FEATURES
    masks: ClassVar[tuple[str, ...] | None] = None
    dtypes: ClassVar[tuple[str, ...] | None] = None
    devices: ClassVar[tuple[str, ...] | None] = None
    options: Mapping[str, Value] = {}
    simulators: ClassVar[Mapping[str, str]] = {}
    version: ClassVar[str | None] = None
    source: ClassVar[str | None] = None

    def __init__(self, /, **options: Value) -> None:
        """Take options over the defaults.

        Raises:
            UserError: unknown option, or a value of another type than the default.
        """
        defaults = type(self).options
        for key, value in options.items():
            if key not in defaults:
                raise unknown("option", key, defaults, where=self.name)
            options[key] = _read_option(self.name, key, value, defaults[key])
        self.options = {**defaults, **options}

    def supports(self, problem: Problem, device: torch.device) -> None:
        """Return if the problem can be done on the device; raise ``Unsupported`` if not.

        The base class compares the problem with the declared features, masks, dtypes and
        devices. Override it for finer reasons, and call ``super().supports(…)`` first.
        """
        if self.level == "layer" and problem.level == "op":
            raise Unsupported("is a whole layer with its projections: level = 'layer'")
        for feature in sorted(problem.features.difference(self.features)):
            raise Unsupported(f"does not do {FEATURES[feature]}")
        for what, value, allowed in (
            ("mask", problem.mask.kind, self.masks),
            ("dtype", problem.dtype, self.dtypes),
            ("device", device.type, self.devices),
        ):
            if allowed is not None and value not in allowed:
                raise Unsupported(f"does not do {what} {value} (does: {', '.join(allowed)})")

    def build(self, problem: Problem, device: torch.device) -> Callable[..., Any] | ForwardBackward:
        """Do everything slow, once, and return the callable that will be timed.

        The callable takes ``(q, k, v)`` in this implementation's layout and returns the
        output in the same layout and the problem's dtype. It must be differentiable by
        autograd if ``backward`` is among the features; code with a backward of its own
        returns a :class:`ForwardBackward` instead. A ``torch.nn.Module`` is welcome: its
        parameters are what a training run will learn.

        With a bias (``problem.bias``) each call has a fourth argument, ``(H, M, N)`` in the
        problem's dtype, and a gradient of it too. Of level ``layer``, what is returned is a
        :class:`attnbench.layer.execution.Layer`.

        With dropout the callable may carry a method ``keep_mask()`` that returns the
        boolean ``(B, H, M, N)`` mask its last call used; dropout is verified through it.

        What is returned may carry ``choices``, a mapping of names to text, numbers or
        booleans: what ``build()`` chose for itself, such as the configuration that autotuning
        found. It is read once, kept with the result, and is no part of the point's identity.
        """
        raise Unsupported(f"{self.name} has no build()")

    def build_sequences(
        self, problems: Sequence[Problem], device: torch.device
    ) -> Sequence[Callable[..., Any] | ForwardBackward]:
        """What ``build()`` returns, for the sequences of one padded batch, the longest first.

        A layer with padding asks for packed sequences under a document mask. Where that is
        ``Unsupported``, each sequence is asked for by itself, ``own_mask()``, ``flops()`` and
        ``ideal_bytes()`` too: its problem has a batch of 1, its own length, and the mask of
        the layer. Those of equal length are built once (with dropout, each by itself), and
        called one after the other. Override it where lengths share what is learned.
        """
        return [self.build(problem, device) for problem in problems]

    def exact_options(self, problem: Problem) -> Mapping[str, Value] | None:
        """For approximate methods: the options that make it equal to dense attention.

        None if there are none. The battery turns this knob and expects the exact answer.
        Of sequences that are asked for by themselves the longest decides.
        """
        return None

    @classmethod
    def compile_cases(cls) -> Iterable[Case]:
        """Triton kernels for ``attnbench compile-check``: see :mod:`attnbench.offline`.

        The most telling first: by default only the first case of each kernel, set of
        expectations and targets is compiled. A class without kernels of its own offers none.
        """
        return ()

    def own_mask(self, problem: Problem) -> Mask | None:
        """For sparse methods: the mask of the pairs that it computes instead of the problem's.

        Its result is then verified as the exact answer under that mask, gradients included,
        and its distance from the problem's own answer is recorded. None: it has no such
        mask, and as an approximate method makes no claim about its error.
        """
        return None

    def flops(self, problem: Problem) -> int:
        """FLOPs this method needs: those of its own mask, or what its formula says.

        Approximate methods without a mask override it. Matrix products count two a
        multiply-add, as in ``Problem.flops``.
        """
        return self._solved(problem).flops()

    def ideal_bytes(self, problem: Problem) -> int:
        """Fewest bytes this method must move; approximate methods may override it too."""
        return self._solved(problem).ideal_bytes()

    def _solved(self, problem: Problem) -> Problem:
        mask = self.own_mask(problem)
        return problem if mask is None else problem.replace(mask=mask)


def _read_option(name: str, key: str, value: Value, default: Value) -> Value:
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(
            f"{name}: option {key} must be of type {type(default).__name__}, got {value!r}"
        )
    return value
