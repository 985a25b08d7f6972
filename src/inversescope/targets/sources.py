"""Where the files of a target model lie: trained here, a folder, or a repository of the hub at a pinned revision.

A published checkpoint (`targets.published`) and a GGUF file (`targets.quantised`) are imported once; what is written is a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from inversescope.device import device, on_cpu
from inversescope.errors import InputError, first_line
from inversescope.store import file_hash, read_json
from inversescope.targets.files import (
    CONFIG,
    CONFIG_CHECKS,
    TOKENIZER_CHECKS,
    Folder,
    check_files,
    check_loaded,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # seconds of imports, for those who load a model alone

#: Bytes of a file that is hashed whenever its model is loaded, at most.
LARGE = 1 << 30
_RERUN = "Delete it and rerun the stage that writes it"
_MEND = "Mend the model, or set 'path' to another"
_CHANGED = "Put back what it was, or run fetch_target again and all that reads the model"


@dataclass(frozen=True)
class Location:
    """Files of a model.

    Args:
        path: a folder, or a repository of the hub.
        revision: commit of the repository; None: `path` is a folder.
        remedy: what to do if it cannot be loaded.
        changed: what to do if it is no longer what it was.
        file: the GGUF file in the folder that holds all of the model; its weights are dequantised.
    """

    path: str
    revision: str | None
    remedy: str
    changed: str = _CHANGED
    file: str | None = None

    def check(self) -> Folder:
        """The folder of the model's configuration, if its files are what they say. Raises `InputError` as `check_files` does."""
        if self.revision is None:
            return check_files(self.path)
        file = self._tried(lambda: hf_hub_download(self.path, CONFIG, revision=self.revision))
        return check_files(Path(file).parent, CONFIG_CHECKS)

    def model(self, dtype: str = "float32", device_map: str | None = None) -> PreTrainedModel:
        """Load the model from safetensors onto the device, in evaluation mode: exactly the weights that its files hold.

        Args:
            dtype: of the weights.
            device_map: `auto` spreads the model over the GPUs that this process sees, whichever of them is its device.

        Raises:
            InputError: it cannot be loaded, or files and configuration are not those of one model.
        """
        spread = device_map is not None and not on_cpu()
        options: dict[str, Any] = {"device_map": device_map} if spread else {}
        if self.file is None:
            self.check()
            options |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
        options |= {"dtype": getattr(torch, dtype), "output_loading_info": True}
        with quiet(self.revision is None):
            model, info = self._load(AutoModelForCausalLM, **options)
        check_loaded(self.file or self.path, type(model).__name__, info)
        model = model.eval().requires_grad_(False)
        return model if spread or on_cpu() else model.to(device())

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the fast tokenizer of tokenizer.json, but for truncation, padding and dropout. Raises `InputError` if there is none.

        What transformers makes itself for a type of model may differ from the file.
        """
        if self.file is None and self.revision is None:
            check_files(self.path, TOKENIZER_CHECKS)
        tokenizer = self._load(AutoTokenizer if self.file else PreTrainedTokenizerFast)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(f"{self.path} has no fast tokenizer", "Use a model with tokenizer.json")
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        if getattr(tokenizer.backend_tokenizer.model, "dropout", None):
            # Of BPE: for training, it splits the same text in another way each time.
            tokenizer.backend_tokenizer.model.dropout = None
        return tokenizer

    def _load(self, kind: Any, **options: Any) -> Any:
        where: dict[str, Any] = {"revision": self.revision} if self.revision else {"local_files_only": True}
        where |= {"gguf_file": self.file} if self.file else {}
        return self._tried(
            lambda: kind.from_pretrained(self.path, trust_remote_code=False, **where, **options)
        )

    def _tried(self, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except Exception as error:
            # Hub, file and safetensors layers raise a dozen unrelated types; what the reader can do is the same.
            at = f" at revision {self.revision}" if self.revision else ""
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{self.path}{at} cannot be loaded ({reason})", self.remedy) from error


def repository(path: str, revision: str) -> Location:
    """A repository of the hub."""
    remedy = "Set 'source: local' and 'path' to a folder that holds it, or HF_HOME to a cache that does"
    return Location(path, revision, remedy)


def download(path: str, revision: str, files: Sequence[str]) -> None:
    """Bring files of a repository of the hub into its cache, by name or pattern. Raises `InputError` if that fails."""
    repository(path, revision)._tried(
        lambda: snapshot_download(path, revision=revision, allow_patterns=list(files))
    )


def folder_or_repository(path: str, revision: str | None) -> Location:
    """A model of somebody else's: a repository of the hub if there is a revision, else a folder."""
    return Location(path, None, _MEND) if revision is None else repository(path, revision)


def _saved(directory: Path, about: Mapping[str, Any]) -> Location:
    return Location(str(directory / (about.get("path") or ".")), None, _RERUN, _RERUN)


def _elsewhere(directory: Path, about: Mapping[str, Any]) -> Location:
    return folder_or_repository(str(about["path"]), about["revision"] if about["source"] == "hub" else None)


#: `source` in target.json -> where the files are.
SOURCES: dict[str, Callable[[Path, Mapping[str, Any]], Location]] = {
    "trained": _saved,
    "gguf": _saved,
    "local": _elsewhere,
    "hub": _elsewhere,
}


def locate(directory: Path, about: Mapping[str, Any]) -> Location:
    """Find the files of a model.

    Args:
        directory: holds target.json.
        about: what stands there: name, source, path, revision, and the SHA-256 of files, where they are vouched for.

    Raises:
        InputError: the source is unknown, or a file is not the one that target.json vouches for.
    """
    source = about.get("source", "trained")
    if source not in SOURCES:
        raise InputError(
            f"{directory / 'target.json'} names the source '{source}'", f"Use one of {', '.join(SOURCES)}"
        )
    location = SOURCES[source](directory, {**about, "source": source})
    vouched = directory / "target.json"
    written = vouched.stat().st_mtime if vouched.is_file() else 0.0
    for name, recorded in (about.get("sha256") or {}).items():
        file = Path(location.path) / name
        if not file.is_file():
            raise InputError(f"{file} is not there, but {vouched} vouches for it", location.changed)
        if not _is_same(file, recorded, written):
            raise InputError(f"{file} is not the file that {vouched} vouches for", location.changed)
    return location


def _is_same(file: Path, recorded: str, written: float) -> bool:
    """Whether a file has the hash that was recorded at a time; a large one is read again only if it was changed or moved since."""
    about = file.stat()
    untouched = about.st_size > LARGE and max(about.st_mtime, about.st_ctime) < written
    return untouched or file_hash(file) == recorded


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder, a target's (with target.json) or any, or from the hub at a pinned revision.

    Raises:
        InputError: it cannot be loaded.
    """
    if (Path(path) / "target.json").is_file():
        return locate(Path(path), read_json(Path(path) / "target.json")).tokenizer()
    remedy = "Set a local path that holds tokenizer.json, or HF_HOME to a cache that does"
    return Location(str(path), revision, remedy).tokenizer()


@contextmanager
def quiet(yes: bool = True) -> Iterator[None]:
    """Hide progress bars of steps that take no time."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    if yes:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if yes and shown:
            bars.enable_progress_bar()
