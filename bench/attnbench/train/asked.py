"""What workloads and generations have in common: building, serialising and identity.

Both are frozen dataclasses whose fields are JSON values with defaults.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from attnbench.errors import unknown


@dataclass(frozen=True)
class Asked:
    """What a model is asked to do; the subclass has the fields, and checks them."""

    _NAME: ClassVar[str]  # in errors
    _KIND: ClassVar[str]  # of its points: a part of the id

    # ---- construction ----------------------------------------------------------------

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Build from loose fields.

        Raises:
            UserError: unknown field, or values that are invalid.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in fields:
            if key not in names:
                raise unknown(f"{cls._NAME} field", key, names)
        return cls(**fields)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls.of(**data)

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON values."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    # ---- identity --------------------------------------------------------------------

    @property
    def told(self) -> dict[str, Any]:
        """The fields that differ from their default."""
        fields = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in fields.items() if value != default}

    @property
    def id(self) -> str:
        """16 hex digits that stay the same across processes, machines and versions.

        Only fields that differ from their default enter the hash, so that a field added later
        does not rename what was there before.
        """
        text = json.dumps([self._KIND, self.told], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
