"""Types and values of a launch's arguments, as Triton finds them when the kernel is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from attnbench.errors import UserError, unknown


class Specialized(NamedTuple):
    """A launch as :class:`~attnbench.offline.case.Case` tells it."""

    signature: dict[str, str]
    constexprs: dict[str, Any]
    multiples_of_16: frozenset[str]


def specialize(kernel: Any, arguments: Mapping[str, Any], where: str) -> Specialized:
    """What Triton would compile: None and the integer 1 are constants, multiples of 16 are noted.

    Args:
        kernel: a ``triton.jit`` function.
        arguments: its arguments by name; tensors may be on any device.
        where: errors begin with it.

    Raises:
        UserError: an argument too many or too few, or a kernel that is interpreted.
    """
    from triton.runtime.jit import JITFunction, mangle_type

    if not isinstance(kernel, JITFunction):
        raise UserError(f"{where}: {type(kernel).__name__} is no triton.jit function")
    for name in arguments:
        if name not in kernel.arg_names:
            raise unknown("argument", name, kernel.arg_names, where)
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    multiples: set[str] = set()
    for parameter in kernel.params:
        name = parameter.name
        if name not in arguments and not parameter.has_default:
            raise UserError(f"{where}: the launch has no argument {name!r}")
        value = arguments.get(name, parameter.default)
        is_special = type(value) is int and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_special and value == 1):
            constexprs[name] = value
            continue
        signature[name] = parameter.annotation_type or mangle_type(value)
        if is_special and value % 16 == 0 and not parameter.do_not_specialize_on_alignment:
            multiples.add(name)
    return Specialized(signature, constexprs, frozenset(multiples))
