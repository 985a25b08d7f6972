"""Where the files of a target model lie: trained here, a folder, or a repository of the hub at a pinned revision.

A published checkpoint (`targets.published`) and a GGUF file (`targets.quantised`) are imported once; what is written is a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from inversescope.errors import InputError, first_line
from inversescope.store import file_hash, read_json

_RERUN = "Delete it and rerun the stage that writes it"


@dataclass(frozen=True)
class Location:
    """Files of a model.

    Args:
        path: a folder, or a repository of the hub.
        revision: commit of the repository; None: `path` is a folder.
        remedy: what to do if it cannot be loaded.
        saved: whether tokenizer.json was written here and is read as it stands. Of others transformers may replace parts by the
            family's own.
        file: the GGUF file in the folder that holds all of the model; its weights are dequantised.
    """

    path: str
    revision: str | None
    remedy: str
    saved: bool = False
    file: str | None = None

    def model(self, dtype: str = "float32", device_map: str | None = None) -> PreTrainedModel:
        """Load the model from safetensors, in evaluation mode. Raises `InputError` if it cannot be loaded."""
        options: dict[str, Any] = {} if self.file else {"use_safetensors": True}
        options |= {"device_map": device_map} if device_map else {}
        with quiet(self.revision is None):
            model = self._load(AutoModelForCausalLM, dtype=getattr(torch, dtype), **options)
        return model.eval().requires_grad_(False)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the fast tokenizer. Raises `InputError` if there is none."""
        tokenizer = self._load(PreTrainedTokenizerFast if self.saved else AutoTokenizer)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(f"{self.path} has no fast tokenizer", "Use a model with tokenizer.json")
        return tokenizer

    def _load(self, kind: Any, **options: Any) -> Any:
        where: dict[str, Any] = {"revision": self.revision} if self.revision else {"local_files_only": True}
        where |= {"gguf_file": self.file} if self.file else {}
        try:
            return kind.from_pretrained(self.path, trust_remote_code=False, **where, **options)
        except Exception as error:
            # Hub, file and safetensors layers raise a dozen unrelated types; what the reader can do is the same.
            at = f" at revision {self.revision}" if self.revision else ""
            raise InputError(
                f"{self.path}{at} cannot be loaded ({first_line(error)})", self.remedy
            ) from error


def repository(path: str, revision: str) -> Location:
    """A repository of the hub."""
    remedy = "Set 'source: local' and 'path' to a folder that holds it, or HF_HOME to a cache that does"
    return Location(path, revision, remedy)


def _saved(directory: Path, about: Mapping[str, Any]) -> Location:
    return Location(str(directory / (about.get("path") or ".")), None, _RERUN, saved=True)


def _folder(directory: Path, about: Mapping[str, Any]) -> Location:
    return Location(str(about["path"]), None, _RERUN)


def _hub(directory: Path, about: Mapping[str, Any]) -> Location:
    return repository(str(about["path"]), str(about["revision"]))


#: `source` in target.json -> where the files are.
SOURCES: dict[str, Callable[[Path, Mapping[str, Any]], Location]] = {
    "trained": _saved,
    "gguf": _saved,
    "local": _folder,
    "hub": _hub,
}


def locate(directory: Path, about: Mapping[str, Any]) -> Location:
    """Find the files of a model.

    Args:
        directory: holds target.json.
        about: what stands there: name, source, path, revision, and the SHA-256 of files, where they are vouched for.

    Raises:
        InputError: the source is unknown, there is no model, or a file is not the one that target.json vouches for.
    """
    source = about.get("source", "trained")
    if source not in SOURCES:
        raise InputError(
            f"{directory / 'target.json'} names the source '{source}'", f"Use one of {', '.join(SOURCES)}"
        )
    location = SOURCES[source](directory, about)
    if location.revision is None and not (Path(location.path) / "config.json").is_file():
        raise InputError(
            f"{location.path} holds no model (no config.json)", "Check 'path' of the model in the config"
        )
    for name, recorded in (about.get("sha256") or {}).items():
        file = Path(location.path) / name
        if not file.is_file() or file_hash(file) != recorded:
            raise InputError(f"{file} is not the file that {directory / 'target.json'} vouches for", _RERUN)
    return location


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
