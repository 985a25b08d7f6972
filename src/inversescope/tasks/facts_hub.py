"""RAVEL's copy on the hub, brought into the four JSON files an entity type that `tasks.facts` reads.

There a type has two configurations, with the splits train, val and test: `{type}_entity` with a row an entity, whose columns are
its name, an ID, a URL and its attributes; and `{type}_prompt` with a row a template (`Template`, `Attribute`). Prompts about one
entity alone (`Entity`) are none of RAVEL's templates and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inversescope.config.tasks import CorpusConfig
from inversescope.errors import InputError
from inversescope.tasks.corpus import configurations, rows_by_split

_ENTITY, _PROMPT = "_entity", "_prompt"
#: Columns of an entity that are no attributes.
_TOLD = ("ID", "URL")
#: Other names of splits.
_SPLITS = {"validation": "val"}
Row = Mapping[str, Any]


def contents_of(
    copy: CorpusConfig, root: Path, types: Sequence[str] | None
) -> tuple[dict[str, bytes], list[str]]:
    """Files of the data set by name, as upstream's archive has them, and names that stand for several entities (`type:name`).

    What such a name is asked about has no answer, so it is left out.

    Raises:
        InputError: the data set cannot be had, a type is not in it, or a row is not as it should be.
    """
    known = [name.removesuffix(_ENTITY) for name in configurations(copy, root) if name.endswith(_ENTITY)]
    if missing := [kind for kind in types or () if kind not in known]:
        raise InputError(
            f"{copy.path} has no entity type '{missing[0]}'", f"it has {', '.join(known) or 'none'}"
        )
    files: dict[str, bytes] = {}
    several: list[str] = []
    for kind in types or known:
        templates, template_split = _templates(copy, root, kind)
        facts, entity_split, own = _entities(copy, root, kind, list(templates))
        several += [f"{kind}:{name}" for name in own]
        parts = {
            "entity_attributes": facts,
            "attribute_to_prompts": templates,
            "entity_to_split": entity_split,
            "prompt_to_split": template_split,
        }
        for part, values in parts.items():
            files[f"ravel_{kind}_{part}.json"] = json.dumps(values, indent=2, ensure_ascii=False).encode()
    return files, several


def _of_all_splits(copy: CorpusConfig, root: Path, configuration: str) -> Iterator[tuple[str, str, Row]]:
    """Where a row is, its split, and the row."""
    one = copy.model_copy(update={"configuration": configuration})
    for split, rows in rows_by_split(one, root):
        for number, row in rows:
            yield f"{copy.path}, {configuration}, {split}, row {number}", _SPLITS.get(split, split), row


def _templates(copy: CorpusConfig, root: Path, kind: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Templates of each attribute, and the split of each."""
    found: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for where, split, row in _of_all_splits(copy, root, kind + _PROMPT):
        text, attribute = (_text(row, column, where) for column in ("Template", "Attribute"))
        if not attribute or row.get("Entity"):
            continue
        if splits.setdefault(text, split) != split:
            raise InputError(f"{where}: '{text}' is in two splits", "use source: upstream")
        if text not in found.setdefault(attribute, []):
            found[attribute].append(text)
    return found, splits


def _entities(
    copy: CorpusConfig, root: Path, kind: str, attributes: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, str], list[str]]:
    """Attributes of each entity, its split, and names that stand for several entities."""
    facts: dict[str, dict[str, str]] = {}
    splits: dict[str, str] = {}
    several: set[str] = set()
    for where, split, row in _of_all_splits(copy, root, kind + _ENTITY):
        names = [column for column in row if column not in (*attributes, *_TOLD)]
        column = copy.columns.get(kind) or (names[0] if len(names) == 1 else None)
        if column is None:
            told = f"{where}: {', '.join(names) or 'no column'} may be the name of the {kind}"
            raise InputError(told, f"say which column it is in ravel.hub.columns: {{{kind}: COLUMN}}")
        name = _text(row, column, where)
        values = {attribute: _text(row, attribute, where) for attribute in attributes if attribute in row}
        if facts.setdefault(name, values) != values or splits.setdefault(name, split) != split:
            several.add(name)
    for name in several:
        del facts[name], splits[name]
    return facts, splits, sorted(several)


def _text(row: Row, column: str, where: str) -> str:
    """A value as text, "" if there is none. Raises `InputError` if it could be written in several ways."""
    if column not in row:
        raise InputError(
            f"{where}: there is no column '{column}'", "check ravel.hub, or use source: upstream"
        )
    value = row[column]
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    remedy = "use source: upstream, whose values are strings"
    raise InputError(f"{where}: '{column}' is {value!r}, a {type(value).__name__}", remedy)
