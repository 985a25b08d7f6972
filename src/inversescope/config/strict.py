"""What all parts of the configuration have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A model that refuses keys it does not know; a field's description stands beside its default, or below where it is long."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
