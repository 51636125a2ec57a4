"""A package that may be installed: its version, what is lacking, and its functions.

Asking is cheap and imports nothing; ``load()`` imports.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from attnbench import Unsupported


@dataclass(frozen=True)
class Package:
    """One distribution.

    Attributes:
        distribution: what pip calls it.
        module: what is imported.
        least: oldest version that has what is used here, as numbers.
        install: command that installs it.
    """

    distribution: str
    module: str
    least: tuple[int, ...]
    install: str

    def version(self) -> str | None:
        """The version that is installed, or None."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def lacking(self) -> str | None:
        """What is missing, in words that follow "needs"; None if nothing is."""
        wanted = f"{self.distribution} ≥ {'.'.join(map(str, self.least))}"
        found = self.version()
        if found is None:
            return f"{wanted}, which is not installed ({self.install})"
        numbers = tuple(int(n) for n in re.findall(r"\d+", found.partition("+")[0]))
        if numbers < self.least:
            return f"{wanted}, found {found} ({self.install})"
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            return f"{wanted}: {found} is installed but has no module {self.module}"
        return None

    def load(self, module: str | None = None) -> ModuleType:
        """Import it, or one of its modules.

        Raises:
            Unsupported: it cannot be imported, with its own reason.
        """
        name = module or self.module
        try:
            return importlib.import_module(name)
        except Exception as error:  # a compiled library may fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unsupported(
                f"{self.distribution} {self.version()} is installed but {name} cannot be "
                f"imported: {type(error).__name__}: {reason}"
            ) from error

    def function(self, name: str, *keywords: str, module: str | None = None) -> Callable[..., Any]:
        """One of its functions or classes, which must take these keywords.

        Raises:
            Unsupported: this version has another signature.
        """
        found = getattr(self.load(module), name, None)
        if found is None:
            raise Unsupported(f"{self.distribution} {self.version()} has no {name}")
        parameters = inspect.signature(found).parameters
        if missing := [k for k in keywords if k not in parameters]:
            raise Unsupported(
                f"{name} of {self.distribution} {self.version()} takes no {', '.join(missing)}: "
                "this adapter is written for another version"
            )
        function: Callable[..., Any] = found
        return function
