"""Plain data: what a record holds, and settings that are checked as they are made."""

from __future__ import annotations

from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Strict(BaseModel):
    """Base of every settings class: an unknown key is an error, a made object does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
