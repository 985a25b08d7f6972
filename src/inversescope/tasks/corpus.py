"""Corpora: data sets of the hub at a pinned revision, and local ones. `datasets` reads them all; what is no text is refused here.

A data set of the hub is copied once, by a rule that fetches: the columns that are read, as a Parquet file with a manifest. All
other jobs read the copy. Folders that `datasets` saved are mapped into memory, files are read in batches.

`datasets` guesses types where a file has none: in JSON lines it takes "2020-01-01" for a time, and writes a column of numbers and
strings as JSON; in CSV files it makes 1 of "001" and nothing of "NA". So it reads the lines of these, and what a line means is
decided here, strictly.
"""

from __future__ import annotations

import csv
import glob
import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from inversescope.config.tasks import COPIED, CorpusConfig
from inversescope.errors import InputError, first_line
from inversescope.progress import waiting
from inversescope.store import atomic_path, file_hash, read_json, write_json
from inversescope.tasks.base import END_OF_TEXT, UNKNOWN

#: What no text holds: control characters but for tab and line feed, halves of surrogate pairs, byte-order marks.
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
#: Rows that are held at a time while a corpus is read.
BATCH = 10_000
#: The copy of a data set of the hub, and what it is.
COPY, MANIFEST = COPIED
_SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv", ".txt": "text"}
#: What tells one data set of the hub from another.
_TOLD = {"path", "revision", "configuration", "split", "rows"}
_AGAIN = "run the rule that fetches it, or set source: local and path to a copy of yours"
#: The line of a row, or its number, and what it holds.
Records = Iterator[tuple[int, Mapping[str, Any]]]


def inside(root: Path, name: str, key: str) -> Path:
    """A path of the configuration, resolved below the project's root, links included. Raises `InputError` if it leads out of it."""
    base = root.resolve()
    path = (base / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(base):
        raise InputError(f"{key} '{name}' leads out of the project", "name a relative path inside it")
    return path


def read_corpus(
    config: CorpusConfig, path: Path, columns: Sequence[str] | None = None, key: str = "path"
) -> pd.DataFrame:
    """Read the rows of a corpus, each value as it is stored; the index is the line (of tables the row), from 1.

    Args:
        path: the local file or folder; of a data set of the hub, the copy that `copy_corpus` made.
        columns: those that are read; all if absent.
        key: of the configuration that names the corpus, for errors.

    Raises:
        InputError: it is missing, of an unknown format, not of the one that it should be, or lacks a column; names the line.
    """
    places = None if columns is None else config.places(columns)
    reader = _READERS[_kind(config, path, key, places)]
    found = list(islice(reader(config, path, places), config.rows))
    records = [record for _, record in found]
    if records and places is not None:
        _tops(places.values(), dict.fromkeys(chain.from_iterable(records)), config.named)
        records = [{name: _value(record, at) for name, at in places.items()} for record in records]
    # As objects: a column with gaps must not turn whole numbers into fractions.
    return pd.DataFrame(records, index=[line for line, _ in found], dtype=object)


def copy_corpus(
    config: CorpusConfig, columns: Sequence[str], folder: Path, echo: Callable[[str], None]
) -> dict[str, Any]:
    """Copy what is read of a data set of the hub: these columns, as a Parquet file with a manifest beside it, which is returned.

    The whole file is hashed here, once. Who reads it compares the manifest and the size, and Parquet's checksums of what is read.

    Raises:
        InputError: the data set cannot be had, lacks a column, or is empty.
    """
    places, n_rows = config.places(columns), 0
    with (
        waiting(f"fetching {config.named}", echo),
        loading(config),
        atomic_path(folder / COPY) as part,
    ):
        tables = _tables(_hub, config, Path(config.path), places)
        first = next(tables, None)
        if first is None:
            raise InputError(f"{config.named} has no rows", "check its configuration and split")
        with pq.ParquetWriter(part, first.schema, write_page_checksum=True) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                n_rows += len(table)
    about = config.model_dump(mode="json", include=_TOLD)
    copied = folder / COPY
    manifest = {
        **about,
        "n_rows": n_rows,
        "columns": places,
        "n_bytes": copied.stat().st_size,
        "sha256": file_hash(copied),
    }
    write_json(manifest, folder / MANIFEST)
    return manifest


def configurations(config: CorpusConfig, root: Path) -> list[str]:
    """Names of a data set's configurations. Raises `InputError` if it cannot be had."""
    from datasets import get_dataset_config_names

    with loading(config):
        return list(get_dataset_config_names(_place(config, root), revision=config.revision))


def rows_by_split(config: CorpusConfig, root: Path) -> Iterator[tuple[str, Records]]:
    """Each split of a data set with several, and its rows. Raises `InputError` if it cannot be had."""
    from datasets import get_dataset_split_names

    place = _place(config, root)
    with loading(config):
        names = get_dataset_split_names(place, config.configuration, revision=config.revision)
    for name in names:
        one = config.model_copy(update={"split": name})
        yield name, _rows(_hub if config.source == "hub" else _folder, one, Path(place), None)


def _place(config: CorpusConfig, root: Path) -> str:
    """What a data set is called by `datasets`: its name on the hub, or its folder inside the project."""
    return config.path if config.source == "hub" else str(inside(root, config.path, "path"))


def _kind(config: CorpusConfig, path: Path, key: str, places: Mapping[str, str] | None) -> str:
    """How a corpus is read. Raises `InputError` if it is not there, or if nobody knows."""
    if config.source == "hub":
        _check_copy(config, path, places or {})
        return "parquet"
    kind = config.format or ("folder" if path.is_dir() else _SUFFIXES.get(path.suffix))
    if not path.exists() or (path.is_dir() and kind != "folder"):
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{config.named} {found}", f"set {key} to the file of prompts")
    if kind is None:
        raise InputError(f"{config.named} has no known suffix ({', '.join(_SUFFIXES)})", "set its format")
    return kind


def _check_copy(config: CorpusConfig, path: Path, places: Mapping[str, str]) -> None:
    """Refuse a copy that is absent, was made of another data set, lacks a column, or is of another size than was written."""
    told = path.parent / MANIFEST
    if not path.is_file() or not told.is_file():
        raise InputError(f"{config.named} was not fetched: {path} and its manifest do not exist", _AGAIN)
    manifest, wanted = read_json(told), config.model_dump(mode="json", include=_TOLD)
    if {name: manifest.get(name) for name in wanted} != wanted:
        raise InputError(f"{path} was made of another data set than {config.named}", _AGAIN)
    for name, place in places.items():
        if manifest.get("columns", {}).get(name) != place:
            raise InputError(
                f"{path} was made without the column '{name}' ({place} of {config.named})", _AGAIN
            )
    if manifest.get("n_bytes") != path.stat().st_size:
        raise InputError(f"{path} is not the file that {told} vouches for", _AGAIN)


# --------------------------------------------------------------------------------------------------------------- by `datasets`


@contextmanager
def loading(config: CorpusConfig, copy: Path | None = None) -> Iterator[None]:
    """Keep `datasets` from drawing bars and writing logs; what it raises becomes one error that names the corpus, or the copy."""
    import datasets

    level, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the hub, file systems and readers raise a dozen unrelated types
        reason = f"({type(error).__name__}: {first_line(error)})"
        if config.source == "local":
            raise InputError(
                f"{config.named} cannot be read {reason}", "mend it, or check its permissions"
            ) from error
        if copy is not None:
            raise InputError(f"{copy} cannot be read {reason}", _AGAIN) from error
        remedy = "check its path, revision, configuration and split; or copy it into the project and set source: local"
        raise InputError(f"{config.named} cannot be had {reason}", remedy) from error
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def _hub(config: CorpusConfig, path: Path) -> Any:
    """A data set of the hub: some rows are streamed; the whole is downloaded to the hub's cache and mapped into memory."""
    from datasets import load_dataset

    if path.exists():
        remedy = "set source: local, or rename the folder"
        raise InputError(f"{config.named} has the name of a folder that is here", remedy)
    how = {"revision": config.revision, "split": config.split, "streaming": config.rows is not None}
    data = load_dataset(config.path, config.configuration, **how)
    return data if config.rows is None else data.take(config.rows)


def _folder(config: CorpusConfig, path: Path) -> Any:
    """A folder: one that `save_to_disk` wrote, mapped into memory, or a copy of a repository of the hub, read in batches."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        with tempfile.TemporaryDirectory() as cache:  # for a lock alone: nothing is kept
            how = {"split": config.split, "streaming": True, "cache_dir": cache}
            return load_dataset(str(path), config.configuration, **how)
    data = load_from_disk(path)
    return data[config.split] if isinstance(data, DatasetDict) else data


def _file(kind: str, config: CorpusConfig, path: Path) -> Any:
    """A file, read in batches; of Parquet with checksums these are compared."""
    from datasets import Dataset
    from pyarrow.dataset import ParquetFragmentScanOptions

    checked = {"fragment_scan_options": ParquetFragmentScanOptions(page_checksum_verification=True)}
    with tempfile.TemporaryDirectory() as cache:  # as above
        how = {"streaming": True, "cache_dir": cache, **(checked if kind == "parquet" else {})}
        return getattr(Dataset, f"from_{kind}")(str(path), **how)


def _tables(
    opened: Callable[[CorpusConfig, Path], Any],
    config: CorpusConfig,
    path: Path,
    places: Mapping[str, str] | None,
) -> Iterator[pa.Table]:
    """Batches of rows, of no other columns than are asked for."""
    if opened is not _hub and glob.has_magic(str(path)):
        raise InputError(
            f"{config.named} lies at {path}: `datasets` takes *, ? and [ in a path for a pattern",
            "rename the file or the folder",
        )
    with loading(config, None if opened is _hub else path):
        for table in opened(config, path).with_format("arrow").iter(batch_size=BATCH):
            if places is not None:
                table = table.select(_tops(places.values(), table.column_names, config.named))
            for field in table.schema:
                if isinstance(field.type, pa.BaseExtensionType):
                    raise InputError(
                        f"{config.named}: column '{field.name}' holds values of several types ({field.type})",
                        "let a column hold strings, or whole numbers, and not both",
                    )
            yield table


def _rows(
    opened: Callable[[CorpusConfig, Path], Any],
    config: CorpusConfig,
    path: Path,
    places: Mapping[str, str] | None,
) -> Records:
    """Rows of a table, from 1."""
    tables = _tables(opened, config, path, places)
    return enumerate(chain.from_iterable(table.to_pylist() for table in tables), 1)


def _lines(config: CorpusConfig, path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file in UTF-8, whatever the locale, from 1; a byte-order mark at its beginning is none of its text."""
    try:
        for number, row in _rows(partial(_file, "text"), config, path, None):
            yield number, row["text"].removeprefix("\ufeff") if number == 1 else row["text"]
    except InputError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as found:
                    what = f"{config.named} is not UTF-8 (line {number}: {found.reason})"
                    raise InputError(what, "convert it to UTF-8") from found


# ----------------------------------------------------------------------------------------------------------- what a line means


def _text(config: CorpusConfig, path: Path, places: Mapping[str, str] | None) -> Records:
    return ((number, {"text": line}) for number, line in _lines(config, path) if line.strip())


def _jsonl(config: CorpusConfig, path: Path, places: Mapping[str, str] | None) -> Records:
    for number, line in _lines(config, path):
        if not line.strip():
            continue
        where = f"{config.named}, line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: no JSON ({error})", "write one object a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: no JSON object", "write one object a line")
        yield number, record


def _csv(config: CorpusConfig, path: Path, places: Mapping[str, str] | None) -> Records:
    """Cells are strings as they stand there. An empty one is missing: CSV does not tell the two apart."""
    header: list[str] = []
    rows = csv.reader((f"{line}\n" for _, line in _lines(config, path)), strict=True)
    try:
        for row in rows:
            where = f"{config.named}, line {rows.line_num}"
            if not header:
                header = row
                if twice := [name for name in header if header.count(name) > 1]:
                    raise InputError(f"{where}: column '{twice[0]}' stands there twice", "rename one of them")
            elif row and len(row) != len(header):
                remedy = "put cells that hold a comma in quotes"
                raise InputError(f"{where}: {len(row)} cells, but the header has {len(header)}", remedy)
            elif row:
                yield rows.line_num, {name: cell or None for name, cell in zip(header, row, strict=True)}
    except csv.Error as error:
        raise InputError(f"{config.named}, line {rows.line_num}: no CSV ({error})", "mend it") from error


_READERS: dict[str, Callable[[CorpusConfig, Path, Mapping[str, str] | None], Records]] = {
    "parquet": partial(_rows, partial(_file, "parquet")),
    "folder": partial(_rows, _folder),
    "jsonl": _jsonl,
    "csv": _csv,
    "text": _text,
}


def _tops(places: Collection[str], known: Collection[str], where: str) -> list[str]:
    """Columns that hold some places, of those that are known. Raises `InputError` if there is none."""
    tops = {place: place if place in known else place.split(".")[0] for place in places}
    for place, top in tops.items():
        if top not in known:
            told = ", ".join(map(str, known)) or "none"
            raise InputError(f"{where} has no column '{place}'", f"its columns are: {told}")
    return list(dict.fromkeys(tops.values()))


def _value(record: Mapping[str, Any], place: str) -> Any:
    """What a record holds in a column or, at a.b, in the field b of the column a; None if nothing."""
    if place in record:
        return record[place]
    value: Any = record
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return record


def is_text(text: str) -> bool:
    """Whether all of it is text, for every tokenizer."""
    return not _NO_TEXT.search(text) and END_OF_TEXT not in text and UNKNOWN not in text


def check_text(text: str, where: str) -> None:
    """Refuse characters that are no text, and tokens with a meaning of their own. Raises `InputError`."""
    if odd := _NO_TEXT.search(text):
        raise InputError(
            f"{where} holds the character U+{ord(odd[0]):04X}, which is no text",
            "remove it: a control character, half of a surrogate pair, or a byte-order mark",
        )
    for token in (END_OF_TEXT, UNKNOWN):
        if token in text:
            raise InputError(
                f"{where} holds {token}, which tokenizers take for a mark of theirs", "remove it"
            )


def as_strings(values: Sequence[Any], lines: Sequence[int], where: str, column: str) -> list[str]:
    """A column's values as they stand in prompts: all strings, or all whole numbers.

    Args:
        values: N of them, none missing; lines: where each stands; where: in which file.

    Raises:
        InputError: a value is of another type than the first or of one that can be written in several ways, has a character that is
            no text, or differs from another one in its Unicode normal form only; names the lines.
    """
    first: dict[str, int] = {}
    for line, value in zip(lines, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(
                f"{where}, line {line}: column '{column}' holds {value!r}, a {type(value).__name__}",
                "use columns of strings or of whole numbers: write it as it should stand in the prompt",
            )
        if isinstance(value, str) != isinstance(values[0], str):
            raise InputError(
                f"{where}, line {line}: column '{column}' holds {value!r}, but line {lines[0]} {values[0]!r}",
                "let a column hold strings, or whole numbers, and not both",
            )
        first.setdefault(str(value), line)
    forms: dict[str, str] = {}
    for text, line in first.items():
        check_text(text, f"{where}, line {line}: column '{column}'")
        form = unicodedata.normalize("NFC", text)
        if (twin := forms.setdefault(form, text)) != text:
            raise InputError(
                f"{where}, lines {first[twin]} and {line}: column '{column}' holds '{form}' in two Unicode normal forms, "
                "which look alike but differ",
                "bring the file into one form: unicodedata.normalize('NFC', text)",
            )
    return [str(value) for value in values]
