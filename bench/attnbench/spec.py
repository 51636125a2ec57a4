"""The short text form used for implementations with options and for masks.

``name:key=value,key=value`` — for example ``triton:block_m=64`` or ``window:window=256``.
Values are read as bool, int, float, else kept as text. One grammar, so that what a suite,
the command line and a record say about the same thing is the same string.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from attnbench.errors import UserError

Value = bool | int | float | str


def parse_value(text: str) -> Value:
    """Read one value: ``true``/``false``, an integer, a finite float, else the text itself."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text  # no option is NaN or infinite


def parse_spec(text: str) -> tuple[str, dict[str, Value]]:
    """Split ``name:key=value,…`` into the name and its options.

    Raises:
        UserError: when an option has no ``=``, no key, or is given twice.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Value] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"{text!r}: option {part!r} must look like key=value")
        if key in options:
            raise UserError(f"{text!r}: option {key!r} is given twice")
        options[key] = parse_value(value)
    return name.strip(), options


def format_spec(name: str, options: Mapping[str, Value]) -> str:
    """The inverse of :func:`parse_spec`, with keys sorted so that equal specs are equal text.

    Raises:
        UserError: a value that would not read back the same (a text with a comma, or one
            that looks like a number).
    """
    if not options:
        return name
    return f"{name}:{','.join(_word(name, key, options[key]) for key in sorted(options))}"


def _word(name: str, key: str, value: Value) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    again = parse_value(text)
    if "," in text or again != value or type(again) is not type(value):
        raise UserError(f"{name}: option {key}={value!r} has no text form that reads back the same")
    return f"{key}={text}"
