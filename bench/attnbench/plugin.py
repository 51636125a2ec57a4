"""The public plugin API: what an implementation of attention has to say about itself.

The shortest plugin is one decorated function::

    from torch.nn.functional import scaled_dot_product_attention
    from attnbench import register

    @register("mine", mask_as="dense")
    def mine(q_BHMD, k_BGND, v_BGNE, problem, *, mask):
        return scaled_dot_product_attention(
            q_BHMD, k_BGND, v_BGNE, attn_mask=mask, enable_gqa=True, scale=problem.softmax_scale
        )

The class form subclasses :class:`Attention` and has a ``build()`` for everything slow:
compiling, autotuning, allocating, drawing learned projections. What ``build()`` returns is
what is verified and timed.

An implementation that cannot do a problem raises :class:`Unsupported` with a reason that a
person can act on. One that quietly does something else is wrong, and will be found out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from attnbench import faults
from attnbench.attention import (
    FEATURES,
    USUAL_FEATURES,
    Attention,
    ForwardBackward,
    Kind,
    Layout,
    MaskForm,
    Unsupported,
)
from attnbench.errors import UserError
from attnbench.problem import Problem

if TYPE_CHECKING:
    import torch

__all__ = [
    "FEATURES",
    "USUAL_FEATURES",
    "Attention",
    "Declaration",
    "ForwardBackward",
    "Kind",
    "Layout",
    "MaskForm",
    "Unsupported",
    "declared",
    "register",
]

Function = TypeVar("Function", bound=Callable[..., Any])


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
    kind: Kind | None = None,
    layout: Layout | None = None,
    features: Collection[str] | None = None,
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

    A class keeps what it says in its own attributes; the keywords here are for functions,
    where they mean what :class:`Attention` says of its attributes.

    A wrong declaration does not raise: the implementation is listed as unavailable, with
    file, line and reason, and everything else goes on.
    """
    told = {
        "kind": kind, "layout": layout, "features": features, "masks": masks, "dtypes": dtypes,
        "devices": devices, "version": version, "source": source,
    }  # fmt: skip
    told = {word: value for word, value in told.items() if value is not None}

    def decorate(target: Function) -> Function:
        if isinstance(target, type):
            cls, fault = _from_class(name, target, [*told, *["mask_as"] * (mask_as is not None)])
        else:
            cls, fault = _from_function(name, target, told, mask_as)
        _declare(name, cls, fault, sys._getframe(1))
        return target

    if callable(name):  # a bare @register: the name is the function itself
        reason = 'register needs a name: @register("my-name")'
        _declare(getattr(name, "__name__", "?"), Attention, reason, sys._getframe(1))
        return name
    return decorate


def _declare(name: object, cls: type[Attention], fault: str | None, frame: FrameType) -> None:
    """Note a declaration, and where it stands: the frame that called or applied register."""
    module = str(frame.f_globals.get("__name__", "?"))
    file, line = frame.f_code.co_filename, frame.f_lineno
    declared.append(Declaration(str(name), cls, module, file, line, fault))


def _from_class(name: str, cls: type[Any], told: list[str]) -> tuple[type[Attention], str | None]:
    """The class with its name, or the fault that keeps it out."""
    fault = faults.of_name(name)
    if not issubclass(cls, Attention):
        fault = f"class {cls.__name__} must subclass attnbench.Attention"
    elif told:
        fault = f"a class declares {', '.join(told)} as attributes, not in register()"
    for other in declared:
        if other.cls is cls and not fault:
            fault = (
                f"class {cls.__name__} is registered as {other.name!r} already "
                f"(line {other.line}); subclass it for another name"
            )
    fault = fault or faults.of_class(cls)
    if fault:
        return Attention, fault
    cls.name = name
    return cls, None


def _from_function(
    name: str, function: Callable[..., Any], told: Mapping[str, Any], mask_as: MaskForm | None
) -> tuple[type[Attention], str | None]:
    """The function in the class form, so that the harness knows only one form."""
    words = {word: getattr(Attention, word) for word in faults.WORDS} | dict(told)
    fault = faults.of_name(name) or faults.of_words(words)
    fault = fault or faults.of_function(function, mask_as)
    if fault:
        return Attention, fault
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

    body = {
        **words, "name": name, "features": frozenset(words["features"]), "options": options,
        "build": build, "__doc__": function.__doc__, "__module__": function.__module__,
    }  # fmt: skip
    return type(name, (Attention,), body), None


def _mask_in_form(problem: Problem, form: MaskForm, device: torch.device) -> Any:
    mask, lengths = problem.mask, (problem.seqlen_q, problem.seqlen_k)
    if form == "mask_mod":
        return mask.mask_mod(*lengths, device)
    if mask.kind == "full":
        return None
    if form == "dense":
        return mask.dense(*lengths, device)
    try:
        return mask.additive(*lengths, problem.torch_dtype, device)
    except UserError as error:
        raise Unsupported(str(error)) from None
