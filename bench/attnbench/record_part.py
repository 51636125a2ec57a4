"""The base of every part of a record: what a reader does with what it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Unknown fields are kept: a newer writer's line survives an older reader.

    A field that must be a number refuses NaN and infinity; in free-form values (telemetry,
    kernels, fields of a newer writer) they are written as null, which means not measured.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
