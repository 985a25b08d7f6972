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
import re
import struct
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from inversescope import __version__
from inversescope.errors import InputError

#: Stands in a header for the checksum until this is known.
_NO_CHECKSUM = "0" * 8
_CHECKSUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')
_ROWS_AT_ONCE = 1 << 16
_MORE_ROOM = "Free some space, or move the whole folder of the project to a larger disk, and run again: what is finished stays"
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


def identity(about: Mapping[str, Any]) -> str:
    """SHA-256 that tells a target model from any other: by its weights, configuration and tokenizer, and how they are run.

    Args:
        about: what target.json says. Files of the hub are those of the pinned revision.
    """
    files = about.get("sha256") or {name: about.get(name) for name in ("path", "revision")}
    told = [files, about.get("dtype") or "float32", bool(about.get("bos"))]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


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


class Rows(NamedTuple):
    """A float32 array as it is written: its shape, and its consecutive rows in parts."""

    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


def write_arrays(path: str | Path, arrays: Mapping[str, Rows], meta: Mapping[str, Any]) -> None:
    """Write float32 arrays as safetensors, a part at a time: the header first, then the rows.

    Args:
        path: a `.safetensors` file.
        arrays: name -> what is written.
        meta: values are stored as text. The stored dtype, the package version and a checksum are added.
    """
    texts = {"dtype": "float32", "package_version": __version__, "crc32": _NO_CHECKSUM}
    texts |= {key: str(value) for key, value in meta.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(texts.items()))}
    end = 0
    for name, rows in arrays.items():
        begin, end = end, end + 4 * math.prod(rows.shape)
        header[name] = {"dtype": "F32", "shape": rows.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # rows begin at a multiple of eight bytes
    head = struct.pack("<Q", len(text)) + text
    checksum, place = zlib.crc32(_CHECKSUM.sub(b"", head)), _CHECKSUM.search(head)
    assert place is not None
    with atomic_path(path) as part, part.open("wb") as file:
        file.write(head)
        for rows in arrays.values():
            for block in rows.parts:
                data = np.ascontiguousarray(block, dtype="<f4").data
                checksum = zlib.crc32(data, checksum)
                file.write(data)
        assert file.tell() == len(head) + end, "the rows are as many as their shapes say"
        file.seek(place.start(1))
        file.write(f"{checksum:08x}".encode())


def read_arrays(path: str | Path, remedy: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the arrays of `write_arrays` and their description, after checking that they are whole and finite.

    The file is mapped, not copied, so that arrays larger than memory can be streamed.

    Raises:
        InputError: if the file is missing, cut short or damaged, or if a row holds NaN or infinity.
    """
    header, _ = _header(path, remedy)
    meta = header.pop("__metadata__", {})
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise InputError(f"{path} holds {name} as {entry['dtype']} instead of float32", remedy)
    arrays = {name: map_array(path, name) for name in header}
    for z in arrays.values():
        for start in range(0, len(z), _ROWS_AT_ONCE):
            block = z[start : start + _ROWS_AT_ONCE]
            # A sum is NaN or infinite if any term is; rows are looked at one by one only then (finite values
            # may overflow).
            if not math.isfinite(float(block.sum(dtype=np.float64))):
                bad = np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))
                if len(bad):
                    raise InputError(
                        f"{path} holds NaN or infinity, first in row {start + bad[0]}",
                        "Check the target's weights and dtype (float16 overflows), then rerun extract_activations",
                    )
    return arrays, meta


def map_array(path: str | Path, name: str) -> np.ndarray:
    """Map one array of `write_arrays`, read-only, without the checks of `read_arrays`."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    begin = 8 + size + entry["data_offsets"][0]
    return np.asarray(np.memmap(path, "<f4", "r", begin, tuple(entry["shape"])))


def write_activations(
    path: str | Path, z: np.ndarray | Sequence[np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Write one site's activations.

    Args:
        path: a `.safetensors` file.
        z: (N, d) or (N, P, d) activations, row i = prompt i, or their consecutive parts (at least one); stored as float32.
        meta: provenance (model, revision, site, tokenizer and prompt-file hash, ...).
    """
    parts = [z] if isinstance(z, np.ndarray) else z
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    blocks = (
        rows[start : start + _ROWS_AT_ONCE] for rows in parts for start in range(0, len(rows), _ROWS_AT_ONCE)
    )
    write_arrays(path, {"z": Rows(shape, blocks)}, meta)


def read_activations(path: str | Path) -> tuple[np.ndarray, dict[str, str]]:
    """Read one site's activations and their provenance, after checking that they are whole and finite.

    Returns:
        z, (N, d) or (N, P, d) float32 (read-only, mapped), and the metadata.

    Raises:
        InputError: if the file is missing, cut short or not activations, or if a row holds NaN or infinity.
    """
    remedy = "Delete it and rerun extract_activations"
    arrays, meta = read_arrays(path, remedy)
    if set(arrays) != {"z"} or arrays["z"].ndim not in (2, 3):
        found = {name: f"F32{list(z.shape)}" for name, z in arrays.items()}
        raise InputError(f"{path} holds {found} instead of 'z', float32 (N, d) or (N, P, d)", remedy)
    return arrays["z"], meta


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


def write_table(frame: pd.DataFrame, path: str | Path, about: Mapping[str, str] | None = None) -> None:
    """Write a table, the same bytes for the same rows.

    Args:
        frame: rows; the index is dropped.
        path: `.parquet` (exact values), or `.csv` (floats with six significant digits).
        about: what a parquet table was made from, for `read_table` to compare.

    Raises:
        InputError: if the suffix is another one.
    """
    path = Path(path)
    with atomic_path(path) as part:
        if path.suffix == ".csv":
            frame.to_csv(part, index=False, float_format="%.6g", lineterminator="\n")
        elif path.suffix == ".parquet":
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(about)
            pq.write_table(table, part, compression="zstd", write_page_checksum=True)
        else:
            raise InputError(
                f"{path} is neither a .parquet nor a .csv table", "Give it one of these suffixes"
            )


def read_table(path: str | Path, columns: list[str] | None = None, **expected: str) -> pd.DataFrame:
    """Read a table of `write_table`.

    In a CSV only an empty field counts as missing: NaN in a column of numbers, "" in a column of text; the
    columns `layer` and `head` are integers (`Int64`, with missing values).

    Args:
        path: of the table.
        columns: those that are read; all if absent.
        **expected: what a parquet table must say of itself (`about` of `write_table`).

    Raises:
        InputError: if the file is missing, cut short, lacks a column asked for, or was made from something else.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=columns, page_checksum_verification=True)
            if expected:
                told = table.schema.metadata or {}
                check_provenance(
                    {key.decode(): value.decode() for key, value in told.items()}, path, **expected
                )
            return table.to_pandas()
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
    checksum = _save_tensors(directory / "model.safetensors", tensors, {})
    write_json({**meta, "weights_crc32": checksum}, directory / "meta.json")


def load_checkpoint(directory: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors (writable copies) and the description that `save_checkpoint` wrote.

    Raises:
        InputError: if a file is missing, damaged or cut short, or the description is that of other tensors.
    """
    directory = Path(directory)
    remedy = "Delete it and rerun the stage that trains it"
    tensors, texts = _load_tensors(directory / "model.safetensors", remedy)
    meta = read_json(directory / "meta.json")
    if not isinstance(meta, dict) or meta.pop("weights_crc32", None) != texts.get("crc32"):
        raise InputError(f"{directory / 'meta.json'} does not describe the weights beside it", remedy)
    return tensors, meta


def save_state(path: str | Path, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write the state of a training, tensors and description, as one file: it is replaced as a whole or not at all."""
    _save_tensors(Path(path), tensors, {"state": json.dumps(meta)})


def load_state(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors (writable copies) and the description that `save_state` wrote.

    Raises:
        InputError: if the file is missing, damaged or no such state.
    """
    remedy = "Delete it: the training begins anew"
    tensors, texts = _load_tensors(Path(path), remedy)
    if "state" not in texts:
        raise InputError(f"{path} is not the state of a training", remedy)
    return tensors, json.loads(texts["state"])


def _save_tensors(path: Path, tensors: Mapping[str, np.ndarray], texts: dict[str, str]) -> str:
    """Write a safetensors file with a checksum; returns this."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with atomic_path(path) as part:
        # Not `save_file`, which tells of a full disk otherwise than Python does.
        part.write_bytes(save(arrays, metadata={**texts, "crc32": _NO_CHECKSUM}))
        return _seal(part)


def _load_tensors(path: Path, remedy: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    meta: dict[str, str] = _header(path, remedy)[0].get("__metadata__", {})
    return load_file(path), meta


def _header(path: str | Path, remedy: str) -> tuple[dict[str, Any], int]:
    """What the header of a safetensors file says, and where its data begin, after checking that the file is whole."""
    try:
        with safe_open(path, "numpy"):  # compares the header with the file's size
            pass
    except FileNotFoundError:
        raise _missing(path) from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is cut short, overlong or not a safetensors file ({error})", remedy
        ) from None
    head, found, checksum = _checksum(path)
    if found is not None and found[1].decode() != checksum:
        raise InputError(f"{path} is damaged: its checksum is not that of its bytes", remedy)
    return json.loads(head[8:]), len(head)


def _seal(path: Path) -> str:
    """Put a file's checksum where its header has `_NO_CHECKSUM`; returns it."""
    _, place, checksum = _checksum(path)
    assert place is not None
    with path.open("rb+") as file:
        file.seek(place.start(1))
        file.write(checksum.encode())
    return checksum


def _checksum(path: str | Path) -> tuple[bytes, re.Match[bytes] | None, str]:
    """Header of a safetensors file, its place for a checksum, and the CRC-32 of the file without what stands there."""
    data = np.memmap(path, mode="r")
    head = data[: 8 + int.from_bytes(data[:8].tobytes(), "little")].tobytes()
    bare = _CHECKSUM.sub(b"", head)
    return head, _CHECKSUM.search(head), f"{zlib.crc32(data[len(head) :].data, zlib.crc32(bare)):08x}"


def _missing(path: str | Path) -> InputError:
    return InputError(f"{path} does not exist", "Run the stage that writes it first")


def _plain(value: Any) -> Any:
    """Numpy numbers and arrays, and paths, as JSON can hold them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def fetch(url: str, sha256: str | None, mirror: Path | None = None, key: str = "mirror") -> bytes:
    """Return the content of a file of somebody else's, from a local copy or from the network.

    Args:
        url: https address; the last part is the file's name.
        sha256: what its SHA-256 must be; None: not known.
        mirror: folder that holds a copy under the same name; nothing is downloaded then.
        key: of the configuration, that names the mirror, for errors.

    Raises:
        InputError: it is not in the mirror, cannot be reached, breaks off, or is not what was pinned.
    """
    name = url.rsplit("/", 1)[-1]
    if mirror is not None:
        if not (mirror / name).is_file():
            raise InputError(f"the mirror has no {mirror / name}", f"let {key} be a folder that holds it")
        return checked((mirror / name).read_bytes(), sha256, mirror / name)
    if not url.startswith("https://"):
        raise InputError(
            f"{url} is no https address", f"give one, or set {key} to a folder that holds the file"
        )
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return checked(reply.read(), sha256, url)
    except (http.client.HTTPException, OSError) as error:
        raise InputError(
            f"{url} cannot be fetched ({error})",
            f"set {key} to a folder that holds {name}, or try again with a network",
        ) from error


def checked(content: bytes, sha256: str | None, source: object) -> bytes:
    """Return content whose SHA-256 is the pinned one (None: whatever it is). Raises `InputError` naming the source if it is not."""
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise InputError(
            f"{source} has SHA-256 {found}, not the pinned {sha256}",
            "delete it if it was fetched in part, or pin the file that is meant",
        )
    return content
