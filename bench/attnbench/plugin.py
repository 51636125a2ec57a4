"""The public plugin API: what an implementation of attention has to say about itself.

The shortest plugin is one decorated function::

    import torch
    from attnbench import register

    @register("mine", masks=("full", "causal"))
    def mine(q_BHMD, k_BGND, v_BGNE, problem):
        return torch.nn.functional.scaled_dot_product_attention(
            q_BHMD, k_BGND, v_BGNE,
            is_causal=problem.mask.is_causal, enable_gqa=True, scale=problem.softmax_scale,
        )

The class form subclasses :class:`Attention` and has a ``build()`` for everything slow:
compiling, autotuning, allocating, drawing learned projections. What ``build()`` returns is
what is verified and timed.

An implementation that cannot do a problem raises :class:`Unsupported` with a reason that a
person can act on. One that quietly does something else is wrong, and will be found out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from attnbench.errors import UserError, unknown
from attnbench.masks import MASKS
from attnbench.problem import DTYPES, Problem
from attnbench.spec import Value

if TYPE_CHECKING:
    import torch

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
    "layer": "the layer level (projections)",
}
"""What a problem may ask for beyond plain attention, and how to say it to a person."""

USUAL_FEATURES = frozenset({"backward", "gqa", "cross", "head_dim_v", "scale", "decode"})
"""What an implementation is taken to do unless it says otherwise."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Unsupported(Exception):
    """This implementation cannot do this problem here; the text says why."""


@dataclass(frozen=True)
class ForwardBackward:
    """What ``build()`` returns when the backward is the implementation's own code.

    Attributes:
        forward: ``(q, k, v) → (out, saved)``; ``saved`` is handed to the backward as it is.
        backward: ``(saved, grad_out) → (dq, dk, dv)``.
    """

    forward: Callable[[Any, Any, Any], tuple[Any, Any]]
    backward: Callable[[Any, Any], tuple[Any, Any, Any]]


class Attention:
    """An implementation of attention. Subclass it, or decorate a function with ``register``.

    Class attributes:
        kind: ``exact``, or ``approximate`` for methods that give up accuracy.
        layout: how q, k, v and the output are laid out: ``BHSD`` (batch, heads, seqlen,
            dim), ``BSHD``, or ``packed`` (batch·seqlen, heads, dim). Inputs arrive that
            way and contiguous; converting is not part of the timed call.
        features: names of :data:`FEATURES` it can do.
        masks, dtypes, devices: names it can do, or None for any.
        options: its settings with their defaults; a suite may sweep them
            (``mine:block=64``), and an instance finds them in ``self.options``.
        version: of the library behind it, if any.
        source: paper or address it follows.

    An instance belongs to one set of options; ``build`` may be called for many problems.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[Kind] = "exact"
    layout: ClassVar[Layout] = "BHSD"
    features: ClassVar[frozenset[str]] = USUAL_FEATURES
    masks: ClassVar[tuple[str, ...] | None] = None
    dtypes: ClassVar[tuple[str, ...] | None] = None
    devices: ClassVar[tuple[str, ...] | None] = None
    options: Mapping[str, Value] = {}
    version: ClassVar[str | None] = None
    source: ClassVar[str | None] = None

    def __init__(self, **options: Value) -> None:
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
        for feature in sorted(problem.features - self.features):
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

        With dropout the callable may carry a method ``keep_mask()`` that returns the
        boolean ``(B, H, M, N)`` mask its last call used; dropout is verified through it.
        """
        raise Unsupported(f"{self.name} has no build()")

    def exact_options(self, problem: Problem) -> Mapping[str, Value] | None:
        """For approximate methods: the options that make it equal to dense attention.

        None if there are none. The battery turns this knob and expects the exact answer.
        """
        return None

    def flops(self, problem: Problem) -> int:
        """FLOPs this method needs; approximate methods override it with their formula."""
        return problem.flops()


@dataclass(frozen=True)
class Declaration:
    """One ``register`` call: what was declared, where, and what is wrong with it."""

    name: str
    cls: type[Attention]
    module: str
    file: str
    line: int
    fault: str | None = None


declared: list[Declaration] = []
"""Every ``register`` call of this process, in order. The registry reads it."""


def register(
    name: str,
    *,
    kind: Kind = "exact",
    layout: Layout = "BHSD",
    features: Iterable[str] | None = None,
    masks: tuple[str, ...] | None = None,
    dtypes: tuple[str, ...] | None = None,
    devices: tuple[str, ...] | None = None,
    mask_as: MaskForm | None = None,
    version: str | None = None,
    source: str | None = None,
) -> Callable[[Function], Function]:
    """Declare an implementation: a decorator for a function or an ``Attention`` subclass.

    A function takes ``(q, k, v, problem)`` and returns the output. Its keyword-only
    parameters are its options, their defaults the default values. With ``mask_as`` it has
    one more keyword parameter, ``mask``, which holds the problem's mask in that form, made
    once and outside the timed call: ``dense`` is a boolean ``(M, N)`` tensor (None for a
    full mask), ``additive`` a bias in the problem's dtype, ``mask_mod`` FlexAttention's
    function.

    A class keeps what it says in its own attributes; the keywords here are for functions.

    A wrong declaration does not raise: the implementation is listed as unavailable, with
    file, line and reason, and everything else goes on.
    """
    told = {
        "kind": kind, "layout": layout, "masks": masks, "dtypes": dtypes, "devices": devices,
        "version": version, "source": source,
        "features": USUAL_FEATURES if features is None else frozenset(features),
    }  # fmt: skip

    def decorate(target: Function) -> Function:
        fault = None
        if isinstance(target, type):
            cls = target if issubclass(target, Attention) else Attention
            if cls is Attention:
                fault = f"class {target.__name__} must subclass attnbench.Attention"
            elif any(v is not None for k, v in told.items() if k not in _DEFAULTED) or mask_as:
                fault = "a class declares masks, dtypes, … as attributes, not in register()"
            else:
                cls.name = name
        else:
            cls = _class_of_function(name, target, told, mask_as)
            fault = _fault_of_function(target, mask_as)
        file, line = _where(target)
        declared.append(
            Declaration(name, cls, target.__module__, file, line, fault or _fault(name, cls))
        )
        return target

    return decorate


_DEFAULTED = ("kind", "layout", "features")
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")


def _class_of_function(
    name: str, function: Callable[..., Any], told: Mapping[str, Any], mask_as: MaskForm | None
) -> type[Attention]:
    """Wrap a function in the class form, so that the harness knows only one form."""
    parameters = inspect.signature(function).parameters.values()
    options = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "mask"
    }

    def build(self: Attention, problem: Problem, device: torch.device) -> Callable[..., Any]:
        keywords: dict[str, Any] = dict(self.options)
        if mask_as is not None:
            keywords["mask"] = _mask_in_form(problem, mask_as, device)

        def call(q: Any, k: Any, v: Any) -> Any:
            return function(q, k, v, problem, **keywords)

        return call

    body = {**told, "name": name, "options": options, "build": build, "__doc__": function.__doc__}
    return type(name, (Attention,), body)


def _mask_in_form(problem: Problem, form: MaskForm, device: torch.device) -> Any:
    mask, lengths = problem.mask, (problem.seqlen_q, problem.seqlen_k)
    if form == "mask_mod":
        return mask.mask_mod(*lengths, device)
    if mask.kind == "full":
        return None
    if form == "dense":
        return mask.dense(*lengths, device)
    return mask.additive(*lengths, problem.torch_dtype, device)


def _fault_of_function(function: Callable[..., Any], mask_as: MaskForm | None) -> str | None:
    """What is wrong with a function's signature, if anything."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != 4:
        names = ", ".join(p.name for p in positional)
        return f"the function must take (q, k, v, problem), takes ({names})"
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "the function must name its options: *args and **kwargs are not allowed"
    keyword = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if mask_as is not None and mask_as not in get_args(MaskForm):
        return str(unknown("mask_as", mask_as, get_args(MaskForm)))
    if (mask_as is not None) != ("mask" in keyword):
        return "mask_as= and a keyword-only parameter 'mask' belong together"
    for option, parameter in keyword.items():
        if option != "mask" and not isinstance(parameter.default, (bool, int, float, str)):
            return f"option {option!r} needs a default that is a number, a text or a bool"
    return None


def _fault(name: str, cls: type[Attention]) -> str | None:
    """What is wrong with a declaration, in words; None if nothing is."""
    if not name or not set(name) <= _NAME_LETTERS:
        return f"name {name!r} must be made of a–z, 0–9, '.', '_' and '-'"
    for what, value, allowed in (
        ("kind", (cls.kind,), get_args(Kind)),
        ("layout", (cls.layout,), get_args(Layout)),
        ("feature", cls.features, tuple(FEATURES)),
        ("mask", cls.masks or (), tuple(MASKS)),
        ("dtype", cls.dtypes or (), tuple(DTYPES)),
    ):
        for entry in value:
            if entry not in allowed:
                return str(unknown(what, entry, allowed))
    for method, wanted in (("supports", 2), ("build", 2), ("flops", 1)):
        try:
            inspect.signature(getattr(cls, method)).bind(None, *[None] * wanted)
        except TypeError as error:
            return f"{method}() has the wrong signature: {error}"
    if cls.build is Attention.build:
        return "the class has no build()"
    return None


def _read_option(name: str, key: str, value: Value, default: Value) -> Value:
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(
            f"{name}: option {key} must be of type {type(default).__name__}, got {value!r}"
        )
    return value


def _where(target: Any) -> tuple[str, int]:
    try:
        return inspect.getsourcefile(target) or "?", inspect.getsourcelines(target)[1]
    except (OSError, TypeError):
        return "?", 0
