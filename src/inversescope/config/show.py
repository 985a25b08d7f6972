"""`inversescope config show [KEY]`: the resolved configuration, and where each of its values comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from inversescope.config.entries import Entries, Origin, validated
from inversescope.config.expand import expand
from inversescope.config.load import read_layers
from inversescope.config.schema import Config, Settings
from inversescope.errors import InputError


def show(files: Sequence[Path | str], key: str = "") -> str:
    """The resolved configuration as YAML, or the part at a dotted key; a comment behind each value says where it is written,
    and one above what it is.

    `experiments.NAME` has all that the experiment may set for itself, as it sees it; `settings` may be left out of a key.

    Raises:
        InputError: the configuration is not valid, or there is no such key.
    """
    tree = expand(read_layers(files))
    config = validated(Config, tree)
    path, part = _find(_resolved(config), key)
    lines = list(_lines(part, tree, path, 0)) if isinstance(part, Mapping) else [_leaf(key, part, tree, path)]
    width = min(max(len(text) for text, _ in lines), 72)
    shown = [f"{text:<{width}}  # {place}" if place else text for text, place in lines]
    about = _about(path)
    return "\n".join([f"# {about}"] * bool(about) + shown)


def _resolved(config: Config) -> dict[str, Any]:
    """All values; of each experiment its view, with the variants that it runs."""
    values = config.model_dump(mode="json", exclude={"studied_variants", "study_variants"})
    for name, experiment in config.experiments.items():
        view = config.of(experiment.task, experiment.model)
        own = view.model_dump(mode="json", include=set(Settings.model_fields))
        run = [*view.studied_variants, *view.study_variants]
        values["experiments"][name]["settings"] = own | {"variants": {v: own["variants"][v] for v in run}}
    return values


def _find(values: dict[str, Any], key: str) -> tuple[tuple[str, ...], Any]:
    """Path and value of a dotted key; names may have dots themselves."""
    path: tuple[str, ...] = ()
    part: Any = values
    rest = key
    while rest:
        names = sorted(map(str, part), key=len, reverse=True) if isinstance(part, Mapping) else []
        name = next((name for name in names if f"{rest}.".startswith(f"{name}.")), None)
        leaf = name is not None and rest != name and not isinstance(part[name], Mapping)
        if (name is None or leaf) and isinstance(part, Mapping) and "settings" in part:
            name, rest = "settings", f"settings.{rest}"
        if name is None:
            there = ", ".join(map(str, part)) if isinstance(part, Mapping) else "nothing below"
            raise InputError(f"the configuration has no {key!r}", f"{'.'.join(path) or 'it'} has {there}")
        path, part, rest = (*path, name), part[name], rest[len(name) + 1 :]
    return path, part


def _about(path: tuple[str, ...]) -> str:
    """What the models say of a setting, or of a group of settings."""
    model: type[BaseModel] | None = Config
    about, is_name = "", False
    for key in path:
        if is_name:  # of an entry: variants.default
            is_name, about = False, (model and model.__doc__) or ""
            continue
        field = model.model_fields.get(key) if model else None
        if field is None:
            return ""
        is_name = get_origin(field.annotation) is dict
        kinds = [field.annotation, *get_args(field.annotation)]
        model = next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)
        about = " ".join((field.description or (model and model.__doc__) or "").split())
    return about


def _lines(
    values: Mapping[str, Any], tree: Entries, path: tuple[str, ...], depth: int
) -> Iterator[tuple[str, str]]:
    """The lines of a mapping, each with where its value comes from."""
    for key, value in values.items():
        text = f"{'  ' * depth}{_flow(key)}:"
        if isinstance(value, Mapping) and value:
            yield text, ""
            yield from _lines(value, tree, (*path, str(key)), depth + 1)
        else:
            yield _leaf(text[:-1], value, tree, (*path, str(key)))


def _leaf(name: str, value: Any, tree: Entries, path: tuple[str, ...]) -> tuple[str, str]:
    return f"{name}: {_flow(value)}", str(_origin(tree, path) or "default")


def _origin(tree: Entries, path: tuple[str, ...]) -> Origin | None:
    """Where exactly this value is written; what an experiment does not set for itself is the shared value."""
    part: Any = tree
    origin = None
    for key in path:
        if not isinstance(part, Entries) or key not in part:
            shared = path[:1] == ("experiments",) and path[2:3] == ("settings",)
            return _origin(tree, path[3:]) if shared else None
        origin, part = part.origins.get(key), part[key]
    return origin


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n...\n").removesuffix("\n")
