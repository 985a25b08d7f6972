"""Files that stages exchange: atomic writes, activations with their provenance, tables, checkpoints.

Nothing here unpickles: arrays are safetensors, tables parquet or CSV, everything else JSON. Arrays and parquet carry checksums, so
that a file with a flipped bit is refused, not read.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import http.client
import json
import math
import os
import struct
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from inversescope import __version__
from inversescope.errors import InputError

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
}
_DTYPES |= {"U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?"}
_ROWS_PER_CHECK = 1 << 16
_MORE_ROOM = "Free some space, or let data/ and results/ be links to a larger disk, and run again: what is finished stays"
_PERMISSION = "Give yourself permission to write there and run again: what is finished stays"
_REMEDIES = {
    errno.ENOSPC: _MORE_ROOM,
    errno.EDQUOT: _MORE_ROOM,
    errno.EACCES: _PERMISSION,
    errno.EROFS: _PERMISSION,
}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`, which takes its place only when the block ends without an error.

    The data is on disk before the rename, so that a killed job leaves the old file or the new one, never
    half of one.

    Raises:
        InputError: there is no room for it, or no permission to write.
    """
    path = Path(path)
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part{path.suffix}"):  # by a killed job
            left.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=f".part{path.suffix}", dir=path.parent
        )
        os.close(handle)
        part = Path(name)
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; a result is as readable as any other file of its owner.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        os.replace(part, path)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise InputError(
            f"{path} cannot be written ({os.strerror(error.errno)})", _REMEDIES[error.errno]
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def file_hash(path: str | Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(value: Any, path: str | Path) -> None:
    """Write a value as indented JSON, keys in the order given, NaN refused."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON ({error})", "Delete it and rerun the stage that writes it"
        ) from None


def write_activations(
    path: str | Path, z: np.ndarray | Sequence[np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Write one site's activations, a part at a time.

    Args:
        path: a `.safetensors` file.
        z: (N, d) or (N, P, d) activations, row i = prompt i, or their consecutive parts (at least one); stored as float32.
        meta: provenance (model, revision, site, tokenizer and prompt-file hash, ...); values are stored as
            text. The stored dtype and the package version are added.
    """
    parts = [z] if isinstance(z, np.ndarray) else z
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    texts = {"dtype": "float32", "package_version": __version__} | {
        key: str(value) for key, value in meta.items()
    }
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}
    blocks = (
        np.ascontiguousarray(rows[start : start + _ROWS_PER_CHECK], dtype="<f4")
        for rows in parts
        for start in range(0, len(rows), _ROWS_PER_CHECK)
    )
    _write_tensors(path, {"z": entry}, blocks, texts)


def read_activations(path: str | Path, mmap: bool = True) -> tuple[np.ndarray, dict[str, str]]:
    """Read one site's activations and their provenance, after checking that they are whole and finite.

    Args:
        path: a file of `write_activations`.
        mmap: map the file instead of copying it, so that sites larger than memory can be streamed.

    Returns:
        z, (N, d) or (N, P, d) float32 (read-only), and the metadata.

    Raises:
        InputError: if the file is missing, cut short or not activations, or if a row holds NaN or infinity.
    """
    remedy = "Delete it and rerun extract_activations"
    tensors, meta = _read_tensors(path, remedy, mmap)
    z = tensors.get("z")
    if z is None or z.dtype != np.float32 or z.ndim not in (2, 3):
        found = {name: f"{array.dtype}{list(array.shape)}" for name, array in tensors.items()}
        raise InputError(f"{path} holds {found} instead of 'z', float32 (N, d) or (N, P, d)", remedy)
    for start in range(0, len(z), _ROWS_PER_CHECK):
        block = z[start : start + _ROWS_PER_CHECK]
        # A sum is NaN or infinite if any term is; rows are looked at one by one only then (finite values
        # may overflow).
        if not math.isfinite(float(block.sum(dtype=np.float64))):
            bad = np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))
            if len(bad):
                raise InputError(
                    f"{path} holds NaN or infinity, first in row {start + bad[0]}",
                    "Check the target's weights and dtype (float16 overflows), then rerun extract_activations",
                )
    return z, meta


def check_provenance(
    meta: Mapping[str, str], source: str | Path = "the activations", **expected: Any
) -> None:
    """Compare what a file says it was made from with what is used now.

    Args:
        meta: metadata of `read_activations` (or of a checkpoint).
        source: the file, for the message.
        **expected: metadata key and the value that it must have.

    Raises:
        InputError: on the first key that is missing or differs.
    """
    for key, value in expected.items():
        if str(meta.get(key)) != str(value):
            raise InputError(
                f"{source}: {key.replace('_', ' ')} is '{meta.get(key, 'not recorded')}', "
                f"but this run uses '{value}'",
                "Delete it and rerun the stage that writes it, or restore the inputs that it was made from",
            )


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table, the same bytes for the same rows.

    Args:
        frame: rows; the index is dropped.
        path: `.parquet` (exact values), or `.csv` (floats with six significant digits).

    Raises:
        InputError: if the suffix is another one.
    """
    path = Path(path)
    with atomic_path(path) as part:
        if path.suffix == ".csv":
            frame.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
        elif path.suffix == ".parquet":
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
            pq.write_table(table, part, compression="zstd", write_page_checksum=True)
        else:
            raise InputError(
                f"{path} is neither a .parquet nor a .csv table", "Give it one of these suffixes"
            )


def read_table(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table of `write_table`.

    In a CSV only an empty field counts as missing: NaN in a column of numbers, "" in a column of text; the
    columns `layer` and `head` are integers (`Int64`, with missing values).

    Raises:
        InputError: if the file is missing, cut short, or lacks a column asked for.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path, columns=columns, page_checksum_verification=True).to_pandas()
        _refuse_cut_text(path)
        integers: Any = {"layer": "Int64", "head": "Int64"}
        frame = pd.read_csv(path, usecols=columns, dtype=integers, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise _missing(path) from None
    except (pa.ArrowException, ValueError, OSError) as error:  # Arrow tells of wrong checksums as OSError
        raise InputError(
            f"{path} cannot be read ({error})", "Delete it and rerun the stage that writes it"
        ) from None
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].fillna("")
    return frame


def _refuse_cut_text(path: Path) -> None:
    """A CSV that does not end in a whole line was cut short. (One that was cut between two lines cannot be told by itself.)"""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            raise ValueError("its last line is not whole")


def save_checkpoint(
    directory: str | Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Write a model's tensors and what describes them as `model.safetensors` and `meta.json`."""
    directory = Path(directory)
    checksum = _write_arrays(directory / "model.safetensors", tensors, {})
    write_json({**meta, "weights_crc32": checksum}, directory / "meta.json")


def load_checkpoint(directory: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors (writable copies) and the description that `save_checkpoint` wrote.

    Raises:
        InputError: if a file is missing, damaged or cut short, or the description is that of other tensors.
    """
    directory = Path(directory)
    remedy = "Delete it and rerun the stage that trains it"
    tensors, texts = _read_tensors(directory / "model.safetensors", remedy, mmap=False)
    meta = read_json(directory / "meta.json")
    if not isinstance(meta, dict) or meta.pop("weights_crc32", None) != texts.get("crc32"):
        raise InputError(f"{directory / 'meta.json'} does not describe the weights beside it", remedy)
    return tensors, meta


def save_state(path: str | Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write the state of a training, tensors and description, as one file: it is replaced as a whole or not at all."""
    _write_arrays(path, tensors, {"state": json.dumps(meta)})


def load_state(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors (writable copies) and the description that `save_state` wrote.

    Raises:
        InputError: if the file is missing, damaged or no such state.
    """
    remedy = "Delete it: the training begins anew"
    tensors, texts = _read_tensors(path, remedy, mmap=False)
    if "state" not in texts:
        raise InputError(f"{path} is not the state of a training", remedy)
    return tensors, json.loads(texts["state"])


def _write_arrays(path: str | Path, tensors: Mapping[str, np.ndarray], texts: dict[str, str]) -> str:
    """Write arrays as safetensors, the widest numbers first so that all are aligned; returns the checksum."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    arrays = [np.ascontiguousarray(tensors[name]) for name in names]
    kinds = {np.dtype(text): kind for kind, text in _DTYPES.items()}
    entries, offset = {}, 0
    for name, array in zip(names, arrays, strict=True):
        end = offset + array.nbytes
        kind = kinds[array.dtype]
        entries[name] = {"dtype": kind, "shape": list(np.shape(tensors[name])), "data_offsets": [offset, end]}
        offset = end
    return _write_tensors(path, entries, arrays, texts)


def _write_tensors(
    path: str | Path, entries: dict[str, Any], blocks: Iterable[np.ndarray], texts: Mapping[str, str]
) -> str:
    """Write a safetensors file block by block, its metadata in the order of their keys, with a checksum; returns this."""
    with atomic_path(path) as part, part.open("wb") as file:
        entries = {"__metadata__": dict(sorted(texts.items())), **entries}
        checksum = zlib.crc32(_canonical(entries))
        entries["__metadata__"]["crc32"] = "0" * 8  # as long as the one that takes its place
        file.write(_header(entries))
        for block in blocks:
            file.write(block.data)
            checksum = zlib.crc32(block.data, checksum)
        entries["__metadata__"]["crc32"] = f"{checksum:08x}"
        file.seek(0)
        file.write(_header(entries))
    return f"{checksum:08x}"


def _canonical(entries: Mapping[str, Any]) -> bytes:
    """What a header says, but for the checksum."""
    about = {key: value for key, value in entries.get("__metadata__", {}).items() if key != "crc32"}
    return json.dumps({**entries, "__metadata__": about}, sort_keys=True).encode()


def _header(entries: dict[str, Any]) -> bytes:
    """The beginning of a safetensors file: its length, then JSON filled up to a multiple of eight bytes."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read_tensors(path: str | Path, remedy: str, mmap: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose size agrees with its header."""
    path = Path(path)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _missing(path) from None
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise InputError(f"{path} is cut short ({size} bytes, less than its header)", remedy)
        try:
            header = json.loads(file.read(length))
            checksum = zlib.crc32(_canonical(header))
            meta = header.pop("__metadata__", {})
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            dtypes = {name: np.dtype(_DTYPES[entry["dtype"]]) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise InputError(f"{path} is not a safetensors file of arrays", remedy) from None
        if end != size:
            raise InputError(f"{path} is cut short or overlong ({size} bytes instead of {end})", remedy)
    data = np.memmap(path, mode="r") if mmap else np.fromfile(path, dtype=np.uint8)
    if "crc32" in meta and f"{zlib.crc32(data[8 + length :].data, checksum):08x}" != meta["crc32"]:
        raise InputError(f"{path} is damaged: its checksum is not that of its bytes", remedy)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        raw = data[8 + length + first : 8 + length + last]
        tensors[name] = np.asarray(raw).view(dtypes[name]).reshape(entry["shape"])
        if not mmap:
            tensors[name] = tensors[name].copy()
    return tensors, meta


def _missing(path: str | Path) -> InputError:
    return InputError(f"{path} does not exist", "Run the stage that writes it first")


def _plain(value: Any) -> Any:
    """Numpy numbers and arrays, and paths, as JSON can hold them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def download(url: str, remedy: str) -> bytes:
    """Fetch the content of an address.

    Args:
        url: the address.
        remedy: what to do where there is no network, for the error.

    Raises:
        InputError: it cannot be reached, or breaks off.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            content: bytes = reply.read()
            return content
    except (http.client.HTTPException, OSError) as error:
        raise InputError(f"{url} cannot be fetched ({error})", remedy) from error
