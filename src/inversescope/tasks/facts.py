"""Fact tables in RAVEL's file format (Huang et al., 2024): read, checked, and brought from upstream, a local mirror or the hub.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inversescope.config.tasks import CorpusConfig
from inversescope.errors import InputError
from inversescope.store import atomic_path, checked, fetch, write_json
from inversescope.tasks.corpus import check_text
from inversescope.tasks.facts_hub import contents_of

SPLITS = ("train", "val", "test")
KINDS = ("entity_attributes", "attribute_to_prompts", "entity_to_split", "prompt_to_split")
SLOT = "%s"
#: The small table that comes with the package, for studies without a download.
EMBEDDED = Path(__file__).parent / "data" / "ravel"
#: SHA-256 of upstream's files at the pinned commit, as far as they are known, in sha256sum's format.
PINNED = Path(__file__).parent / "data" / "ravel_upstream.sha256"
ARCHIVE = "https://github.com/explanare/ravel/raw/e421fc9e132b3613b1d0020f856d539217fb30ca/data.tgz"
MANIFEST = "manifest.json"

_NAME = re.compile(rf"ravel_(.+?)_({'|'.join(KINDS)})\.json")


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
        valueless: attributes with templates that are left out, since no entity has a value.
    """

    kind: str
    facts: dict[str, dict[str, str]]
    split: dict[str, str]
    templates: list[Template]
    valueless: list[str] = field(default_factory=list)

    @property
    def unknown(self) -> int:
        """How many values of attributes are not known of an entity."""
        return sum(not value for values in self.facts.values() for value in values.values())

    @property
    def attributes(self) -> list[str]:
        """Attributes in the order of the templates."""
        return list(dict.fromkeys(template.attribute for template in self.templates))


def read_tables(folder: str | Path, types: Sequence[str] | None = None) -> list[FactTable]:
    """Read and check entity types of a folder, in the order of their names: all, or those asked for and no other file.

    Raises:
        InputError: there is none or one is missing, a file is missing or broken, a template has no or two `%s`, an entity or
            template is in two splits, in none, or in one that is unknown, a value is no string, or none is known, or a character is
            no text. The message names file and entry.
    """
    folder = Path(folder)
    names = data_files((path.name for path in folder.glob("ravel_*.json")), types)
    return tables_of(_contents(folder, names), str(folder), types)


def _contents(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror})", "fetch it again") from error


def data_files(names: Iterable[str], types: Sequence[str] | None) -> list[str]:
    """Those of some file names that are of the data set, and of the types asked for; sorted."""
    found = {name: match[1] for name in names if (match := _NAME.fullmatch(name))}
    return sorted(name for name, kind in found.items() if types is None or kind in types)


def tables_of(contents: Mapping[str, bytes], where: str, types: Sequence[str] | None) -> list[FactTable]:
    """The tables that files hold: name -> content, and where they lie; raises what `read_tables` does."""
    kinds = sorted({match[1] for name in contents if (match := _NAME.fullmatch(name))})
    if not kinds:
        asked = f" of {', '.join(types)}" if types else ""
        raise InputError(
            f"{where} holds no files ravel_TYPE_entity_attributes.json{asked}",
            "run the rule fetch_ravel, set ravel.mirror to a folder that holds them, or check ravel.types",
        )
    if missing := sorted(set(types or ()) - set(kinds)):
        known = f"of ravel.types it has {', '.join(kinds) or 'none'}: check the names"
        raise InputError(f"{where} has no entity type '{missing[0]}'", known)
    return [_table_of(contents, where, kind) for kind in kinds]


def _table_of(contents: Mapping[str, bytes], where: str, kind: str) -> FactTable:
    names = {part: f"ravel_{kind}_{part}.json" for part in KINDS}
    paths = {part: f"{where}/{name}" for part, name in names.items()}
    facts, prompts, entity_split, prompt_split = (
        _object(contents.get(names[part]), paths[part]) for part in KINDS
    )
    remedy = "mend the file, or name the types that are wanted in ravel.types"
    at = paths["entity_attributes"]
    for entity, values in facts.items():
        if not isinstance(values, dict) or any(not isinstance(v, str | None) for v in values.values()):
            raise InputError(f"{at}: a value of '{entity}' is no string", remedy)
        for text in (entity, *values.values()):
            check_text(text or "", f"{at}: {text!r}")
    known = {attribute for values in facts.values() for attribute, value in values.items() if value}
    templates = []
    at = paths["attribute_to_prompts"]
    for attribute, texts in prompts.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{at}: '{attribute}' is no list of templates", remedy)
        for text in dict.fromkeys(texts) if attribute in known else ():
            check_text(text, f"{at}: {text!r}")
            if text.count(SLOT) != 1:
                raise InputError(
                    f"{at}: template '{text}' of '{attribute}' has {text.count(SLOT)} %s instead of one",
                    remedy,
                )
            split = _split_of(text, prompt_split, paths["prompt_to_split"])
            templates.append(Template(text, attribute, split))
    if not templates:
        raise InputError(f"{at}: of no attribute with a template an entity has a value", remedy)
    splits = {entity: _split_of(entity, entity_split, paths["entity_to_split"]) for entity in facts}
    attributes = dict.fromkeys(template.attribute for template in templates)
    return FactTable(
        kind,
        {entity: {name: values.get(name) or "" for name in attributes} for entity, values in facts.items()},
        splits,
        templates,
        [attribute for attribute in prompts if attribute not in known],
    )


def _split_of(entry: str, splits: dict[str, Any], path: str) -> str:
    split = splits.get(entry)
    if split not in SPLITS:
        found = "no split" if split is None else f"the split {split!r}"
        raise InputError(f"{path}: '{entry}' has {found}", f"give it one of {', '.join(SPLITS)}")
    return str(split)


def _object(content: bytes | None, path: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice; `content` of None is a file that is missing."""
    if content is None:
        raise InputError(f"{path} does not exist", "an entity type has four: see docs/ravel.md")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            values = " and ".join(repr(value) for key, value in pairs if key == twice[0])
            in_splits = path.endswith("_to_split.json")
            what = f"is in two splits, {values}" if in_splits else "stands there twice"
            raise InputError(f"{path}: '{twice[0]}' {what}", "leave one of the two entries")
        return dict(pairs)

    try:
        values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})", "fetch it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object", "fetch it again")
    return values


def ambiguous_templates(tables: Sequence[FactTable]) -> dict[str, list[str]]:
    """Templates that a prompt does not tell: text -> the `type:attribute` that it stands for, sorted.

    They stand for more than one attribute, of one type or of two; or two of them give one prompt, with an entity each ("%s is in"
    and "%s in", of "Ys" and "Ys is"). A task leaves them out.
    """
    found: dict[str, set[str]] = {}
    for table in tables:
        for template in table.templates:
            found.setdefault(template.text, set()).add(f"{table.kind}:{template.attribute}")
    told = [
        (*template.parts, template.text, table.facts)
        for table in tables
        for template in table.templates
        if len(found[template.text]) == 1
    ]
    told.sort(key=lambda one: one[0])
    alike = {text for number in range(len(told)) for text in _alike(told, number)}
    return {text: sorted(labels) for text, labels in found.items() if len(labels) > 1 or text in alike}


def _alike(told: Sequence[tuple[str, str, str, Mapping[str, Any]]], number: int) -> Iterator[str]:
    """A template and later ones that give a prompt of its; told: beginnings, in order, ends, texts and entities of all."""
    before, after, text, entities = told[number]
    for begin, end, other, others in told[number + 1 :]:
        if not begin.startswith(before):
            return  # as do all that follow
        if not (after.endswith(end) or end.endswith(after)):
            continue
        for entity in entities:
            prompt = before + entity + after
            fits = prompt.startswith(begin) and prompt.endswith(end)
            if fits and prompt[len(begin) : len(prompt) - len(end)] in others:
                yield from (text, other)
                break


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
        table.valueless,
    )


# ----------------------------------------------------------------------------------------------------------------- fetching


def read_sums(path: Path) -> dict[str, str]:
    """File name -> SHA-256, from a file in sha256sum's format; folders in front of names are left out."""
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {Path(name.lstrip("* ")).name: digest for digest, name in lines}


def copy_tables(
    destination: Path, copy: CorpusConfig, root: Path, types: Sequence[str] | None = None
) -> dict[str, Any]:
    """Bring the data set from its copy on the hub to a folder, as the files of upstream's archive; returns the manifest.

    No file has a sum that is pinned: the revision says what they hold.

    Raises:
        InputError: the copy cannot be had, or the tables are not sound (see `read_tables`).
    """
    contents, several = contents_of(copy, root, types)
    told = {"origin": copy.path, "revision": copy.revision, "ambiguous_entities": several}
    return _written(destination, contents, {}, tables_of(contents, copy.path, types), told)


def fetch_tables(
    destination: Path,
    mirror: Path | None,
    archive_sha256: str | None = None,
    types: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Bring the data set's files to a folder, from a local mirror or upstream's archive, checked by SHA-256.

    A file with a pinned sum (in the package, or in a `SHA256SUMS` of the mirror or of the folder above) must have it. Files
    of a mirror without a pinned sum are taken as they are, and recorded as such; of the archive they are refused, unless the
    archive itself was pinned by `archive_sha256`: an archive that holds entity types without sums is an error, unless `types` names
    those that are wanted. With `types` no file of another type is read. Nothing is written before sums and tables are checked.

    Returns:
        The manifest, which is written beside the files: where they come from, their sums, the entity types, and the
        templates that are ambiguous.

    Raises:
        InputError: there is nothing to fetch, a checksum differs, or the tables are not sound (see `read_tables`).
    """
    sums = read_sums(PINNED)
    if mirror is None:
        archive = fetch(ARCHIVE, archive_sha256, key="ravel.mirror")
        contents = _members(archive, archive_sha256, sums, types)
    elif not mirror.is_dir():
        raise InputError(f"the mirror {mirror} is no folder", "set ravel.mirror to one, or leave it out")
    else:
        for own in (mirror.parent / "SHA256SUMS", mirror / "SHA256SUMS"):
            sums |= read_sums(own) if own.is_file() else {}
        names = data_files((path.name for path in mirror.iterdir()), types)
        contents = _contents(mirror, names)
    if not contents and types is None:
        raise InputError(
            f"{mirror or ARCHIVE} holds no ravel_TYPE_entity_attributes.json", "check ravel.mirror"
        )
    for name, content in contents.items():
        checked(content, sums.get(name), mirror / name if mirror else name)
    # Checked where they come from, so that messages name what has to be mended, and nothing half-fetched is left.
    tables = tables_of(contents, str(mirror or ARCHIVE), types)
    return _written(destination, contents, sums, tables, {"origin": "local mirror" if mirror else ARCHIVE})


def _written(
    destination: Path,
    contents: Mapping[str, bytes],
    sums: Mapping[str, str],
    tables: Sequence[FactTable],
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """Write files and their manifest, which is returned; told: where they come from."""
    destination.mkdir(parents=True, exist_ok=True)
    for stale in (destination / MANIFEST, *destination.glob("ravel_*.json")):
        stale.unlink(missing_ok=True)
    for name, content in contents.items():
        with atomic_path(destination / name) as part:
            part.write_bytes(content)
    manifest = {
        **told,
        "types": {
            t.kind: {
                "entities": len(t.facts),
                "attributes": t.attributes,
                "templates": len(t.templates),
                "attributes_without_values": t.valueless,
                "unknown_values": t.unknown,
            }
            for t in tables
        },
        "ambiguous_templates": ambiguous_templates(tables),
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "pinned": name in sums}
            for name, content in contents.items()
        },
    }
    write_json(manifest, destination / MANIFEST)
    return manifest


def _members(
    archive: bytes, pinned: str | None, sums: dict[str, str], types: Sequence[str] | None
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
        raise InputError(f"{ARCHIVE} is no archive ({error})", "check the address") from error
    if unknown:
        raise InputError(
            f"{ARCHIVE} holds {len(unknown)} files without a pinned SHA-256, such as {sorted(unknown)[0]}",
            f"name the entity types that are wanted in ravel.types, or pin the archive: ravel.archive_sha256: {digest}",
        )
    return contents
