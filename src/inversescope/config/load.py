"""From YAML files to the configuration: layers are merged as they are written, then `base:` and `studies:` are expanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from inversescope.config.entries import Entries, fault, merge, read_entries, validated
from inversescope.config.expand import expand
from inversescope.config.schema import Config


def read_layers(files: Sequence[Path | str]) -> Entries:
    """YAML files in order, later ones laid over earlier ones, each over the files that it includes, as they are written.

    Raises:
        InputError: a file is not there or is no mapping, or files include each other.
    """
    values = Entries()
    for file in files:
        values = merge(values, _with_included(Path(file), ()))
    return values


def _with_included(file: Path, within: tuple[Path, ...]) -> Entries:
    """A file laid over those that it includes; its own entries come first."""
    own = read_entries(file)
    names = own.get("include", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise fault(own, ("include",), "needs a list of files, named from this one's folder")
    if file in within:
        raise fault(
            own, ("include",), "files include each other in a circle", "let one of them include nothing"
        )
    included = Entries()
    for name in names:
        included = merge(included, _with_included(file.parent / name, (*within, file)))
    return cast(Entries, merge(merge(own, included), own))


def parse_config(values: Mapping[str, Any]) -> Config:
    """The configuration that hand-written values stand for.

    Raises:
        InputError: a key is unknown, a value is out of range, a name stands for nothing; names file, line and key.
    """
    return validated(Config, expand(values))


def load_config(files: Sequence[Path | str]) -> Config:
    """The configuration of some files, later ones laid over earlier ones. Raises `InputError`, as `parse_config`."""
    return parse_config(read_layers(files))
