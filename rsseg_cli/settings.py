"""Base class of settings, and the type of JSON values."""

from __future__ import annotations

from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Strict(BaseModel):
    """Base class of all settings: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
