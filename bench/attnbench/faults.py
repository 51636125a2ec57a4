"""What can be wrong with a declaration, in words: checked before anything of it is called.

Each check returns a reason, or None if nothing is wrong. None raises: a plugin that lies
about itself is listed as unavailable, and everything else goes on.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from attnbench.attention import FEATURES, Attention, Kind, Layout, MaskForm
from attnbench.errors import unknown
from attnbench.masks import MASKS
from attnbench.problem import DTYPES, Level

WORDS = ("kind", "layout", "features", "masks", "dtypes", "devices", "version", "source")
"""What an implementation says about itself, by attribute or by keyword of ``register``."""

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_METHODS = {"supports": 2, "build": 2, "exact_options": 1, "flops": 1}
"""Arguments that each method is called with, besides ``self``."""


def of_name(name: object) -> str | None:
    """A name must be fit for the command line, file names and ``name:key=value``."""
    if not isinstance(name, str) or not name or not set(name) <= _NAME_LETTERS:
        return f"name {name!r} must be made of a–z, 0–9, '.', '_' and '-'"
    return None


def of_words(told: Mapping[str, Any]) -> str | None:
    """Kind, layout, features, masks, dtypes, devices, version and source."""
    for what, choices in (("kind", get_args(Kind)), ("layout", get_args(Layout))):
        if told[what] not in choices:
            return str(unknown(what, told[what], choices))
    return (
        _of_names("features", told["features"], FEATURES)
        or _of_names("masks", told["masks"], MASKS)
        or _of_names("dtypes", told["dtypes"], DTYPES)
        or _of_names("devices", told["devices"], None)
        or _of_text("version", told["version"])
        or _of_text("source", told["source"])
    )


def of_function(function: Callable[..., Any], mask_as: MaskForm | None) -> str | None:
    """A function must take (q, k, v, problem), and its options by keyword with a default."""
    if not callable(function):
        return f"register() decorates a function or a class, got {function!r}"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        return f"the function's parameters cannot be read: {error}"
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "the function must name its parameters: *args and **kwargs are not allowed"
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    if len(positional) != 4:
        return f"the function must take (q, k, v, problem), takes ({', '.join(positional)})"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return "the function must return its output: async and yield are not allowed"
    if mask_as is not None and mask_as not in get_args(MaskForm):
        return str(unknown("mask_as", mask_as, get_args(MaskForm)))
    keyword = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if (mask_as is not None) != ("mask" in keyword):
        return "mask_as= and a keyword-only parameter 'mask' belong together"
    keyword.pop("mask", None)
    return of_options(keyword)


def of_options(options: object) -> str | None:
    """Options are words with a default that tells their type and can be written down."""
    if not isinstance(options, Mapping):
        return f"options must be a table of names and defaults, got {options!r}"
    for key, default in options.items():
        if not isinstance(key, str) or not key.isidentifier():
            return f"option {key!r} must be a plain word"
        if type(default) not in (bool, int, float, str):
            return f"option {key!r} needs a default that is a number, a text or a bool"
        if isinstance(default, float) and not math.isfinite(default):
            return f"option {key!r} needs a finite default, got {default!r}"
    return None


def of_class(cls: type[Attention]) -> str | None:
    """A class must declare itself rightly, take its options, and have a build()."""
    fault = of_words({word: getattr(cls, word) for word in WORDS}) or of_options(cls.options)
    if cls.level not in get_args(Level):
        fault = fault or str(unknown("level", cls.level, get_args(Level)))
    if fault := fault or _of_simulators(cls.simulators, cls.options):
        return fault
    if cls.build is Attention.build:
        return "the class has no build()"
    for method, arguments in _METHODS.items():
        try:
            inspect.signature(getattr(cls, method)).bind(None, *[None] * arguments)
        except (TypeError, ValueError) as error:
            return f"{method}() has the wrong signature: {error}"
    try:
        inspect.signature(cls.__init__).bind(None, **cls.options)
    except (TypeError, ValueError) as error:
        return f"__init__() must take the options as keywords: {error}"
    return None


def _of_simulators(simulators: Any, options: Mapping[str, Any]) -> str | None:
    """Options that can be off, each with its label: else a simulator's times look real."""
    if not isinstance(simulators, Mapping):
        return f"simulators must be a mapping of options to labels, got {simulators!r}"
    for name, words in simulators.items():
        if not isinstance(options.get(name), int):  # a bool is one
            return f"simulators: {name!r} is no option that is true or false, or a whole number"
        if not isinstance(words, str) or not words.strip():
            return f"simulators: {name!r} needs a label, got {words!r}"
    return None


def _of_names(what: str, names: Any, allowed: Iterable[str] | None) -> str | None:
    """Names are a collection of texts (a lone text would be read letter by letter)."""
    if names is None and what != "features":
        return None
    if not isinstance(names, (tuple, list, set, frozenset)):
        return f"{what} must be a tuple of names, got {names!r}"
    for name in names:
        if not isinstance(name, str):
            return f"{what} must be a tuple of names, got {names!r}"
        if allowed is not None and name not in allowed:
            return str(unknown(what.removesuffix("s"), name, allowed))
    return None


def _of_text(what: str, text: Any) -> str | None:
    return None if text is None or isinstance(text, str) else f"{what} must be a text, got {text!r}"
