"""Files that a corpus is read from: rows, templates of prompts, and what says the label of a prompt."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from inversescope.config.tasks import TextConfig, TextFeatureConfig
from inversescope.errors import InputError, first_line

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
        raise InputError(f"corpus {config.file} does not exist", "set text.file to the file of prompts")
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            frame = pq.read_table(path).to_pandas(ignore_metadata=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"corpus {config.file} is no Parquet file ({first_line(error)})", "mend it"
            ) from error
        return frame.set_index(np.arange(1, len(frame) + 1))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"corpus {config.file} is not UTF-8 ({error.reason})", "convert it") from error
    numbered = [(i, line.removesuffix("\r")) for i, line in enumerate(lines, 1) if line.strip()]
    if kind == "text":
        return pd.DataFrame(
            {"text": [line for _, line in numbered]}, index=[i for i, _ in numbered], dtype=object
        )
    records: list[dict[str, Any]] = []
    for number, line in numbered:
        where = f"corpus {config.file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error})", "write one object a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: no JSON object", "write one object a line")
        records.append(record)
    # As objects: a column with gaps must not turn whole numbers into fractions.
    return pd.DataFrame(records, index=[i for i, _ in numbered], dtype=object)


def labeller(name: str, feature: TextFeatureConfig, folder: str | None, root: Path) -> Labeller:
    """What says the label of a prompt: a pattern (None where it finds nothing) or a function."""
    if feature.pattern is not None:
        pattern = re.compile(feature.pattern)
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
