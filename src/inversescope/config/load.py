"""From YAML files to the configuration: layers are merged as they are written, then `base:` and `studies:` are expanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inversescope.config.entries import Entries, merge, read_entries, validated
from inversescope.config.expand import expand
from inversescope.config.schema import Config


def read_layers(files: Sequence[Path | str]) -> Entries:
    """YAML files in order, later ones laid over earlier ones, as they are written."""
    values = Entries()
    for file in files:
        values = merge(values, read_entries(file))
    return values


def parse_config(values: Mapping[str, Any]) -> Config:
    """The configuration that hand-written values stand for.

    Raises:
        InputError: a key is unknown, a value is out of range, a name stands for nothing; names file, line and key.
    """
    return validated(Config, expand(values))


def load_config(files: Sequence[Path | str]) -> Config:
    """The configuration of some files, later ones laid over earlier ones. Raises `InputError`, as `parse_config`."""
    return parse_config(read_layers(files))
