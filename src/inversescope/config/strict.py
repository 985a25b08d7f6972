"""What all parts of the configuration have in common."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A model that refuses keys it does not know; a field's description stands beside its default, or below where it is long."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Pinned(Strict):
    """What lies in a local folder, or on the hub at one commit."""

    source: Literal["hub", "local"] = Field("local", description="Where it is.")
    revision: str | None = Field(None, description="Commit of the hub repository; required for source: hub.")

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.source == "hub" and not self.revision:
            raise ValueError("source: hub needs a pinned 'revision'")
        return self
