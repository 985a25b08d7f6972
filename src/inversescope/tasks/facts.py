"""Fact tables in RAVEL's file format (Huang et al., 2024): read, checked, and brought from upstream or a local mirror.

A folder holds four JSON files an entity type: `ravel_{type}_entity_attributes.json` {entity: {attribute: value}},
`..._attribute_to_prompts.json` {attribute: [templates with one %s]}, `..._entity_to_split.json` and `..._prompt_to_split.json`
{entity or template: train, val or test}. Which types, attributes and templates there are is known from the files alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inversescope.errors import InputError
from inversescope.store import atomic_path, checked, fetch, write_json

SPLITS = ("train", "val", "test")
KINDS = ("entity_attributes", "attribute_to_prompts", "entity_to_split", "prompt_to_split")
SLOT = "%s"
#: The small table that comes with the package, for studies without a download.
EMBEDDED = Path(__file__).parent / "data" / "ravel"
#: SHA-256 of upstream's files at the pinned commit, as far as they are known, in sha256sum's format.
PINNED = Path(__file__).parent / "data" / "ravel_upstream.sha256"
ARCHIVE = "https://github.com/explanare/ravel/raw/e421fc9e132b3613b1d0020f856d539217fb30ca/data.tgz"
MANIFEST = "manifest.json"

_NAME = re.compile(rf"ravel_(\w+?)_({'|'.join(KINDS)})\.json")


@dataclass(frozen=True)
class Template:
    """A prompt with one `%s`, what it asks for, and its split."""

    text: str
    attribute: str
    split: str

    @property
    def parts(self) -> tuple[str, str]:
        """The text before the entity and the one after it."""
        before, _, after = self.text.partition(SLOT)
        return before, after


@dataclass(frozen=True)
class FactTable:
    """One entity type.

    Attributes:
        kind: its name, such as `city`.
        facts: entity -> attribute -> value ("" where it is unknown).
        split: entity -> split.
        templates: in the order of the file.
    """

    kind: str
    facts: dict[str, dict[str, str]]
    split: dict[str, str]
    templates: list[Template]

    @property
    def attributes(self) -> list[str]:
        """Attributes in the order of the templates."""
        return list(dict.fromkeys(template.attribute for template in self.templates))


def read_tables(folder: str | Path) -> list[FactTable]:
    """Read and check every entity type that a folder holds, in the order of their names.

    Raises:
        InputError: there is none, a file is missing or broken, a template has no or two `%s`, an entity or template is in two
            splits, in none, or in one that is unknown, or an entity lacks an attribute. The message names file and entry.
    """
    folder = Path(folder)
    found = [match for path in sorted(folder.glob("ravel_*.json")) if (match := _NAME.fullmatch(path.name))]
    kinds = sorted({match[1] for match in found})
    if not kinds:
        raise InputError(
            f"{folder} holds no files ravel_TYPE_entity_attributes.json",
            "run the rule fetch_ravel, or set ravel.mirror to a folder that holds them",
        )
    return [_read_table(folder, kind) for kind in kinds]


def _read_table(folder: Path, kind: str) -> FactTable:
    paths = {name: folder / f"ravel_{kind}_{name}.json" for name in KINDS}
    facts, prompts, entity_split, prompt_split = (_read_object(paths[name]) for name in KINDS)
    remedy = "mend the file, or leave the type out"
    templates = []
    at = paths["attribute_to_prompts"]
    for attribute, texts in prompts.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{at}: '{attribute}' is no list of templates", remedy)
        for text in texts:
            if text.count(SLOT) != 1:
                raise InputError(
                    f"{at}: template '{text}' of '{attribute}' has {text.count(SLOT)} %s instead of one",
                    remedy,
                )
            split = _split_of(text, prompt_split, paths["prompt_to_split"])
            templates.append(Template(text, attribute, split))
    splits = {entity: _split_of(entity, entity_split, paths["entity_to_split"]) for entity in facts}
    attributes = list(dict.fromkeys(template.attribute for template in templates))
    for entity, values in facts.items():
        for attribute in attributes:
            if not isinstance(values, dict) or not isinstance(values.get(attribute), str):
                raise InputError(
                    f"{paths['entity_attributes']}: '{entity}' has no value of '{attribute}'", remedy
                )
    return FactTable(kind, facts, splits, templates)


def _split_of(entry: str, splits: dict[str, Any], path: Path) -> str:
    split = splits.get(entry)
    if split not in SPLITS:
        found = "no split" if split is None else f"the split {split!r}"
        raise InputError(f"{path}: '{entry}' has {found}", f"give it one of {', '.join(SPLITS)}")
    return str(split)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object in which no key stands twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            values = " and ".join(repr(value) for key, value in pairs if key == twice[0])
            what = f"is in two splits, {values}" if path.stem.endswith("_to_split") else "stands there twice"
            raise InputError(f"{path}: '{twice[0]}' {what}", "leave one of the two entries")
        return dict(pairs)

    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", "an entity type has four: see docs/ravel.md") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})", "fetch it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object", "fetch it again")
    return values


def ambiguous_templates(tables: Sequence[FactTable]) -> dict[str, list[str]]:
    """Templates whose text stands for more than one attribute, of one type or of two: text -> `type:attribute`, sorted.

    Their label cannot be told from a prompt, so a task leaves them out.
    """
    found: dict[str, set[str]] = {}
    for table in tables:
        for template in table.templates:
            found.setdefault(template.text, set()).add(f"{table.kind}:{template.attribute}")
    return {text: sorted(labels) for text, labels in found.items() if len(labels) > 1}


def limited(table: FactTable, n_entities: int | None, n_templates: int | None) -> FactTable:
    """The same table with fewer entities, and fewer templates an attribute; each split keeps its share, at least one.

    Which ones are kept depends on a hash of their names alone.
    """

    def keep(names: list[str], splits: dict[str, str], number: int | None) -> set[str]:
        if number is None or number >= len(names):
            return set(names)
        kept: set[str] = set()
        for split in SPLITS:
            inside = sorted(
                (name for name in names if splits[name] == split),
                key=lambda name: hashlib.sha256(f"{table.kind} {name}".encode()).digest(),
            )
            kept.update(inside[: max(1, round(number * len(inside) / len(names)))])
        return kept

    entities = keep(list(table.facts), table.split, n_entities)
    templates: list[Template] = []
    for attribute in table.attributes:
        own = [template for template in table.templates if template.attribute == attribute]
        texts = keep([t.text for t in own], {t.text: t.split for t in own}, n_templates)
        templates += [template for template in own if template.text in texts]
    return FactTable(
        table.kind,
        {name: values for name, values in table.facts.items() if name in entities},
        {name: split for name, split in table.split.items() if name in entities},
        templates,
    )


# ----------------------------------------------------------------------------------------------------------------- fetching


def read_sums(path: Path) -> dict[str, str]:
    """File name -> SHA-256, from a file in sha256sum's format; folders in front of names are left out."""
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {Path(name.lstrip("* ")).name: digest for digest, name in lines}


def fetch_tables(
    destination: Path,
    mirror: Path | None,
    archive_sha256: str | None = None,
    url: str = ARCHIVE,
    types: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Bring the data set's files to a folder, from a local mirror or upstream's archive, checked by SHA-256.

    A file with a pinned sum (in the package, or in a `SHA256SUMS` of the mirror or of the folder above) must have it. Files
    of a mirror without a pinned sum are taken as they are, and recorded as such; of the archive they are refused, unless the
    archive itself was pinned by `archive_sha256`: an archive that holds entity types without sums is an error, unless `types` names
    those that are wanted. Nothing is written before the sums are checked.

    Returns:
        The manifest, which is written beside the files: where they come from, their sums, the entity types, and the
        templates that are ambiguous.

    Raises:
        InputError: there is nothing to fetch, a checksum differs, or the tables are not sound (see `read_tables`).
    """
    sums = read_sums(PINNED)
    if mirror is None:
        archive = fetch(url, archive_sha256, key="ravel.mirror")
        contents = _members(archive, archive_sha256, sums, url, types)
    elif not mirror.is_dir():
        raise InputError(f"the mirror {mirror} is no folder", "set ravel.mirror to one, or leave it out")
    else:
        for own in (mirror.parent / "SHA256SUMS", mirror / "SHA256SUMS"):
            sums |= read_sums(own) if own.is_file() else {}
        found = sorted(path for path in mirror.iterdir() if _NAME.fullmatch(path.name))
        contents = {path.name: path.read_bytes() for path in found}
    if not contents:
        raise InputError(f"{mirror or url} holds no ravel_TYPE_entity_attributes.json", "check ravel.mirror")
    files: dict[str, dict[str, Any]] = {}
    for name, content in contents.items():
        checked(content, sums.get(name), mirror / name if mirror else name)
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "pinned": name in sums}
    destination.mkdir(parents=True, exist_ok=True)
    for stale in destination.glob("ravel_*.json"):
        stale.unlink()
    # The mirror is checked where it lies, so that messages name the file that has to be mended.
    tables = read_tables(mirror) if mirror is not None else None
    for name, content in contents.items():
        with atomic_path(destination / name) as part:
            part.write_bytes(content)
    tables = tables or read_tables(destination)
    manifest = {
        "origin": url if mirror is None else "local mirror",
        "types": {
            t.kind: {"entities": len(t.facts), "attributes": t.attributes, "templates": len(t.templates)}
            for t in tables
        },
        "ambiguous_templates": ambiguous_templates(tables),
        "files": files,
    }
    write_json(manifest, destination / MANIFEST)
    return manifest


def _members(
    archive: bytes, pinned: str | None, sums: dict[str, str], url: str, types: Sequence[str] | None
) -> dict[str, bytes]:
    """Data files of upstream's archive by name; nothing is unpacked to disk."""
    digest = hashlib.sha256(archive).hexdigest()
    contents, unknown = {}, []
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:*") as tar:
            for member in tar:
                name = Path(member.name).name
                found = _NAME.fullmatch(name)
                if not member.isfile() or not found or (types and found[1] not in types):
                    continue
                if not pinned and name not in sums:
                    unknown.append(name)
                    continue
                handle = tar.extractfile(member)
                assert handle is not None
                contents[name] = handle.read()
    except tarfile.TarError as error:
        raise InputError(f"{url} is no archive ({error})", "check the address") from error
    if unknown:
        raise InputError(
            f"{url} holds {len(unknown)} files without a pinned SHA-256, such as {sorted(unknown)[0]}",
            f"name the entity types that are wanted in ravel.types, or pin the archive: ravel.archive_sha256: {digest}",
        )
    return contents
