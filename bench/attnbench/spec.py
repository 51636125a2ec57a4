"""The short text form used for implementations with options and for masks.

``name:key=value,key=value`` — for example ``triton:block_m=64`` or ``window:window=256``.
Values are read as bool, int, float, else kept as text. One grammar, so that what a suite,
the command line and a record say about the same thing is the same string.
"""

from __future__ import annotations

from collections.abc import Mapping

from attnbench.errors import UserError

Value = bool | int | float | str


def parse_value(text: str) -> Value:
    """Read one value: ``true``/``false``, an integer, a float, else the text itself."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text.strip()


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
    """The inverse of :func:`parse_spec`, with keys sorted so that equal specs are equal text."""
    if not options:
        return name
    words = (f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())
    return f"{name}:{','.join(sorted(words))}"
