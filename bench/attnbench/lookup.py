"""One implementation by its name: for implementations that leave the solving to another.

A method that only changes a problem (a sparse one that puts its own mask in it) may hand
it on. It does so openly: by name, with the other's own refusals.
"""

from __future__ import annotations

from attnbench import registry
from attnbench.attention import Attention
from attnbench.errors import UserError
from attnbench.spec import Value


def implementation(name: str, **options: Value) -> Attention:
    """The implementation that a session in this folder would find by this name.

    Imports sources in their order (built-in, the project's, installed packages) until one
    registers the name: slow the first time, so call it in ``supports()`` or ``build()``.

    Args:
        name: as in ``attnbench list``.
        options: its options.

    Raises:
        UserError: nothing that can be imported registers it, or an option is wrong.
    """
    for source in registry.sources():
        cls = registry.registered(source, name)
        if cls is not None:
            return cls(**options)
    raise UserError(f"there is no implementation {name!r} here (see attnbench list)")
