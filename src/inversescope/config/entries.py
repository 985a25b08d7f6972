"""YAML mappings that know where each of their keys stands, so that errors and `config show` can say it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from inversescope.errors import InputError

Model = TypeVar("Model", bound=BaseModel)
REMEDY = "see config/schema.json for what it may hold"


class Origin(NamedTuple):
    """Where a value is written: file, line, and the `base` that it was taken over from, if any."""

    file: str
    line: int
    base: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" (base {self.base})" if self.base else "")


class Entries(dict[Any, Any]):
    """A mapping, and the origin of each key that was read from a file."""

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        super().__init__(values or {})
        self.origins: dict[Any, Origin] = dict(getattr(values, "origins", {}))

    def put(self, key: Any, value: Any, origin: Origin | None) -> None:
        """Set a key together with where it comes from."""
        self[key] = value
        self.origins.pop(key, None)
        if origin is not None:
            self.origins[key] = origin

    def inherited(self, base: str, leave_out: Sequence[str] = ()) -> Entries:
        """The same entries, as another one takes them over by `base: NAME`."""
        result = Entries()
        for key, value in self.items():
            if key not in leave_out:
                origin = self.origins.get(key)
                if origin is not None and not origin.base:
                    origin = Origin(origin.file, origin.line, base)
                result.put(key, value.inherited(base) if isinstance(value, Entries) else value, origin)
        return result


def merge(base: Mapping[Any, Any], delta: Mapping[Any, Any]) -> Any:
    """Lay a mapping over another, key by key, the way Snakemake layers configuration files. Lists are replaced."""
    located = isinstance(base, Entries) or isinstance(delta, Entries)
    result: dict[Any, Any] = Entries(base) if located else dict(base)
    for key, value in delta.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            value = merge(result[key], value)
        if isinstance(result, Entries):
            result.put(key, value, getattr(delta, "origins", {}).get(key))
        else:
            result[key] = value
    return result


def origin_of(tree: Any, path: Sequence[Any]) -> Origin | None:
    """Where the deepest key of a path that is written anywhere stands."""
    found = None
    for key in path:
        if not isinstance(tree, Mapping) or not isinstance(key, Hashable) or key not in tree:
            break
        found = getattr(tree, "origins", {}).get(key, found)
        tree = tree[key]
    return found


def fault(tree: Any, path: Sequence[Any], message: str, remedy: str = REMEDY) -> InputError:
    """The error of a value of the configuration: names the file and line where it is written, and its key."""
    where = origin_of(tree, path) or "the configuration"
    key = ".".join(map(str, path)) or "(top level)"
    return InputError(f"{where}: {key}: {message}", remedy)


def section(tree: Any, *path: str) -> Entries:
    """The mapping at a path of the configuration; empty if it is absent.

    Raises:
        InputError: something on the way, or at the end, is not a mapping.
    """
    value = tree
    for depth, key in enumerate(path, 1):
        if key not in value:
            return Entries()
        value = value[key]
        if not isinstance(value, Mapping):
            found = {"NoneType": "nothing", "list": "a list"}.get(type(value).__name__, repr(value))
            raise fault(tree, path[:depth], f"needs a mapping (lines of 'key: value'), found {found}")
    return value if isinstance(value, Entries) else Entries(value)


class Misplaced(ValueError):
    """A fault that a validator finds further down: `path` leads there from the validated model."""

    def __init__(self, path: tuple[Any, ...], message: str, remedy: str = REMEDY) -> None:
        super().__init__(message)
        self.path, self.remedy = path, remedy


def validated(model: type[Model], tree: Any, path: tuple[Any, ...] = ()) -> Model:
    """The part of a configuration at `path` as a pydantic model; the first fault becomes one clear `InputError`."""
    part = tree
    for key in path:
        part = part[key]
    try:
        return model.model_validate(part)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        where = (*path, *first["loc"])
        if isinstance(cause, Misplaced):
            raise fault(tree, (*where, *cause.path), str(cause), cause.remedy) from error
        if first["type"] == "extra_forbidden":
            key = ".".join(map(str, where))
            place = origin_of(tree, where) or "the configuration"
            raise InputError(
                f"{place}: unknown key {key!r}", "check its spelling in config/schema.json"
            ) from error
        raise fault(tree, where, first["msg"].removeprefix("Value error, ")) from error


class _Loader(yaml.SafeLoader):
    """YAML's safe types, mappings as `Entries`; a key that stands twice is refused."""

    file = ""

    def entries(self, node: yaml.MappingNode) -> Entries:
        """A mapping with the lines of its keys."""
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is no word", key_node.start_mark)
            if key in lines:
                raise InputError(
                    f"{self.file}:{line}: key {key!r} stands twice, first in line {lines[key]}",
                    "keep one of them",
                )
            lines[key] = line
        self.flatten_mapping(node)
        result = Entries()
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            origin = Origin(self.file, key_node.start_mark.line + 1)
            result.put(key, self.construct_object(value_node, deep=True), origin)
        return result


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.entries)


def read_entries(file: Path | str) -> Entries:
    """One configuration file.

    Raises:
        InputError: it is missing, not UTF-8, not YAML, no mapping, or a key stands in it twice.
    """
    path = Path(file)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"configuration file {file} does not exist", "check --config / --configfile"
        ) from None
    except OSError as error:
        raise InputError(f"configuration file {file} cannot be read: {error.strerror}", "check it") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{line} is not UTF-8 text", "save the file as UTF-8") from None
    loader = _Loader(text)
    loader.file = str(file)
    try:
        values = loader.get_single_data()
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise InputError(f"{where} is not valid YAML: {problem or error}", "mend the file") from None
    finally:
        loader.dispose()
    if values is None:
        return Entries()
    if not isinstance(values, Entries):
        kind = "a list" if isinstance(values, list) else repr(values)
        raise InputError(f"{file}:1 needs a mapping (lines of 'key: value'), found {kind}", "mend the file")
    return values
