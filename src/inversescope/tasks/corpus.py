"""Files that a corpus is read from: rows, templates of prompts, and what says the label of a prompt."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import regex

from inversescope.config.tasks import TextConfig, TextFeatureConfig
from inversescope.errors import InputError, first_line
from inversescope.tasks.base import END_OF_TEXT, UNKNOWN

#: What no text holds: control characters but for tab and line feed, halves of surrogate pairs, byte-order marks.
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
Labeller = Callable[[str], str | None]

_SUFFIXES: dict[str, Literal["parquet", "jsonl", "text"]] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".txt": "text",
}


def inside(root: Path, name: str, key: str) -> Path:
    """A path of the configuration, resolved below the project's root, links included. Raises `InputError` if it leads out of it."""
    base = root.resolve()
    path = (base / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(base):
        raise InputError(f"{key} '{name}' leads out of the project", "name a relative path inside it")
    return path


def read_corpus(path: Path, config: TextConfig) -> pd.DataFrame:
    """Read the rows of a corpus; the index is the line (Parquet: the row) in the file, from 1.

    Raises:
        InputError: the file is missing, of an unknown format, or not of the one that it should be; names the line.
    """
    kind = config.format or _SUFFIXES.get(path.suffix)
    if kind is None:
        raise InputError(
            f"corpus {config.file} has no known suffix ({', '.join(_SUFFIXES)})", "set text.format"
        )
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"corpus {config.file} {found}", "set text.file to the file of prompts")
    if kind == "parquet":
        return _parquet_rows(path, config.file)
    numbered = [(i, line) for i, line in enumerate(_lines(path, config.file), 1) if line.strip()]
    if kind == "text":
        return pd.DataFrame(
            {"text": [line for _, line in numbered]}, index=[i for i, _ in numbered], dtype=object
        )
    records: list[dict[str, Any]] = []
    for number, line in numbered:
        where = f"corpus {config.file}, line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: no JSON ({error})", "write one object a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: no JSON object", "write one object a line")
        records.append(record)
    # As objects: a column with gaps must not turn whole numbers into fractions.
    return pd.DataFrame(records, index=[i for i, _ in numbered], dtype=object)


def _parquet_rows(path: Path, name: str) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        frame = pq.read_table(path).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"corpus {name} is no Parquet file ({first_line(error)})", "mend it") from error
    return frame.set_index(np.arange(1, len(frame) + 1))


def _lines(path: Path, name: str) -> list[str]:
    """Lines of a file in UTF-8, whatever the locale; a byte-order mark at its beginning is none of its text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"corpus {name} is not UTF-8 (line {line}: {error.reason})", "convert it to UTF-8"
        ) from error
    except OSError as error:
        raise InputError(
            f"corpus {name} cannot be read ({error.strerror})", "check its permissions"
        ) from error
    return text.split("\n")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return record


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


def labeller(name: str, feature: TextFeatureConfig, folder: str | None, root: Path) -> Labeller:
    """What says the label of a prompt: a pattern (None where it finds nothing) or a function."""
    if feature.pattern is not None:
        # Not Python's own expressions, whose words end at a combining mark, as in Hindi, Thai or decomposed French.
        pattern = regex.compile(feature.pattern)
        group: str | int = "label" if "label" in pattern.groupindex else 1

        def found(text: str) -> str | None:
            match = pattern.search(text)
            return None if match is None else match[group]

        return found
    assert feature.function is not None
    function = _function(name, feature.function, folder, root)
    which = f"function {feature.function} of feature '{name}'"

    def said(text: str) -> str:
        try:
            label = function(text)
        except Exception as error:  # whatever a stranger's function raises
            raise InputError(
                f"{which} fails on '{text[:80]}': {type(error).__name__}: {error}", "mend it"
            ) from error
        if not isinstance(label, str):
            raise InputError(f"{which} says {label!r} of '{text[:80]}'", "let it return the label, a string")
        return label

    return said


def _function(feature: str, named: str, folder: str | None, root: Path) -> Callable[[str], Any]:
    """The function `package.module:function` of this package, or of a module in the project's own folder; of no other place.

    Nothing is looked up on Python's path and nothing put there: what is run is this package, or lies in the project. Raises
    `InputError`.
    """
    dotted, name = named.split(":")
    remedy = "name a function of inversescope, or of a module in the folder text.functions, as package.module:function"
    if dotted.split(".")[0] == "inversescope":
        where = f"module {dotted}"
        try:
            module = importlib.import_module(dotted)
        except ImportError as error:
            raise InputError(f"feature '{feature}': {where} cannot be imported ({error})", remedy) from error
    else:
        if folder is None:
            raise InputError(f"feature '{feature}': {named} is not of this package", remedy)
        where = str(Path(folder, *dotted.split(".")).with_suffix(".py"))
        path = inside(root, where, f"function {named} of feature '{feature}':")
        spec = importlib.util.spec_from_file_location(f"inversescope_corpus.{dotted}", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise InputError(f"feature '{feature}': {where} does not exist", remedy)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a module of the user's may raise anything
            raise InputError(
                f"feature '{feature}': {where} cannot be run ({type(error).__name__}: {error})", "mend it"
            ) from error
    function = getattr(module, name, None)
    # Its own functions only: what a module imports is not for naming.
    if not inspect.isfunction(function) or function.__module__ != module.__name__:
        raise InputError(f"feature '{feature}': {where} defines no function {name}", remedy)
    return function
