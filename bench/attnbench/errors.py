"""The one way to tell a user that their input is wrong, and the helpers that phrase it.

A ``UserError`` is a single clear line: what was wrong, where, what is allowed, and the
nearest valid name. The command line prints it and exits with code 2; a traceback appears
only with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 500  # letters of somebody else's message


class UserError(ValueError):
    """A mistake in the user's input, told in one line."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest valid name, or nothing if none is near."""
    near = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(what: str, name: object, allowed: Iterable[object], where: str = "") -> UserError:
    """The error for a name that is not among the allowed ones.

    >>> str(unknown("dtype", "float31", ["float16", "float32"]))
    "unknown dtype 'float31'; allowed: float16, float32; did you mean 'float32'?"
    """
    names = [str(a) for a in allowed]
    prefix = f"{where}: " if where else ""
    return UserError(
        f"{prefix}unknown {what} {name!r}; allowed: {', '.join(names) or 'none'}"
        f"{suggest(str(name), names)}"
    )


def message(error: BaseException) -> str:
    """What somebody else's exception says: its first line, printable, and not endless."""
    try:
        lines = str(error).splitlines()
    except Exception as worse:
        lines = [f"(and its message cannot be read: {type(worse).__name__})"]
    line = next((line.strip() for line in lines if line.strip()), "")
    text = "".join(letter if letter.isprintable() else "?" for letter in line)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def in_words(error: BaseException) -> str:
    """``Type: message`` of somebody else's exception.

    >>> in_words(ZeroDivisionError("division by zero"))
    'ZeroDivisionError: division by zero'
    """
    return f"{type(error).__name__}: {message(error)}".rstrip(": ")
