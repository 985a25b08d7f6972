"""Whether a model's folder is what it says: a table of what is looked at before anything is loaded.

What is wrong is the user's own model: each check names the file, and what can be done about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from inversescope.errors import InputError, first_line
from inversescope.store import file_hash

CONFIG, WEIGHTS, INDEX, TOKENIZER = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)
#: Files of a model that say what it computes, beside its weights.
TOLD = (CONFIG, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
#: How weights are stored; what else there is stands for quantised ones.
FLOATS = ("F64", "F32", "F16", "BF16")
#: How others save weights: what only code can read, or another library.
FOREIGN = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
#: Ends of names of a GPT-2's causal masks, which older versions of transformers saved; each model makes its own.
MASKS = (".attn.bias", ".attn.masked_bias")
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Folder:
    """A model's folder."""

    path: Path

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """What a JSON file says. Raises `InputError` if it is none."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / name} cannot be read ({first_line(error)})", _AGAIN) from error
        if not isinstance(found, dict):
            raise InputError(f"{self.path / name} holds no settings", _AGAIN)
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        return self.json(CONFIG)

    @cached_property
    def index(self) -> dict[str, Any]:
        """Weight -> the file that holds it, as the index of several files says; empty if there is none."""
        found = self.json(INDEX).get("weight_map") if self.has(INDEX) else None
        return found if isinstance(found, dict) else {}

    @cached_property
    def shards(self) -> list[str]:
        """Files of its weights, as safetensors."""
        if self.has(INDEX):
            return sorted({str(name) for name in self.index.values()})
        return [WEIGHTS] if self.has(WEIGHTS) else []

    @property
    def files(self) -> list[str]:
        """All files that the model is read from."""
        return [name for name in (*TOLD, INDEX, *self.shards) if self.has(name)]

    def of(self, *patterns: str) -> list[str]:
        """Names of files of some patterns."""
        return sorted(path.name for pattern in patterns for path in self.path.glob(pattern) if path.is_file())


def _pointer(folder: Folder) -> str | None:
    for name in folder.of("*.json", "*.safetensors", *FOREIGN):
        with (folder.path / name).open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                return f"{folder.path / name} is a pointer of Git LFS, not the file itself"
    return None


def _adapter(folder: Folder) -> str | None:
    name = "adapter_config.json"
    return (
        f"{folder.path} holds an adapter ({name}), which changes another model" if folder.has(name) else None
    )


def _gguf(folder: Folder) -> str | None:
    found = [] if folder.has(CONFIG) else folder.of("*.gguf")
    return f"{folder.path} holds the GGUF file {found[0]}" if found else None


def _file(folder: Folder) -> str | None:
    return f"{folder.path} is a file, not a model's folder" if folder.path.is_file() else None


def _no_model(folder: Folder) -> str | None:
    return None if folder.has(CONFIG) else f"{folder.path} holds no model (no {CONFIG})"


def _foreign(folder: Folder) -> str | None:
    found = [] if folder.shards else folder.of(*FOREIGN)
    return f"{folder.path} holds its weights as {found[0]}, and not as safetensors" if found else None


def _no_weights(folder: Folder) -> str | None:
    return None if folder.shards else f"{folder.path} holds no weights (no {WEIGHTS})"


def _twice(folder: Folder) -> str | None:
    both = folder.has(WEIGHTS) and folder.shards != [WEIGHTS]
    return f"{folder.path} holds its weights twice, as {WEIGHTS} and as {INDEX} names them" if both else None


def _cut(folder: Folder) -> str | None:
    for name in folder.shards:
        if not folder.has(name) or Path(name).name != name:
            return f"{folder.path / INDEX} names {name}, which is not in its folder"
        try:
            with safe_open(folder.path / name, "numpy") as file:  # compares the header with the file's size
                told = {weight for weight, place in folder.index.items() if place == name}
                differ = sorted(told ^ set(file.keys())) if folder.index else []
                kinds = {weight: file.get_slice(weight).get_dtype() for weight in file.keys()}
        except (SafetensorError, OSError) as error:
            return f"{folder.path / name} is cut short or no safetensors file ({first_line(error)})"
        if differ:
            return f"{folder.path / INDEX} and {name} do not agree on where {_first(differ)} is"
        for weight, kind in kinds.items():
            if weight.endswith(".weight") and kind not in FLOATS:
                return f"{folder.path / name} holds the weight {weight} as {kind}, which is no number of a whole model"
    return None


def _own_code(folder: Folder) -> str | None:
    asks = "AutoModelForCausalLM" in (folder.config.get("auto_map") or {})
    return f"{folder.path / CONFIG} asks for code of its own (auto_map), which is never run" if asks else None


def _quantised(folder: Folder) -> str | None:
    about = folder.config.get("quantization_config")
    how = about.get("quant_method", "an unknown way") if isinstance(about, dict) else about
    return f"{folder.path} holds weights that are quantised ({how})" if about else None


def _activation(folder: Folder) -> str | None:
    from transformers.activations import ACT2FN

    for key in ("hidden_act", "activation_function", "hidden_activation"):
        name = folder.config.get(key)
        if name is not None and name not in ACT2FN:
            return (
                f"{folder.path / CONFIG} names the activation function '{name}' ({key}), which nobody knows"
            )
    return None


def _rotation(folder: Folder) -> str | None:
    from transformers import CONFIG_MAPPING

    if not (told := folder.config.get("rope_parameters") or folder.config.get("rope_scaling")):
        return None
    try:
        config = CONFIG_MAPPING[folder.config["model_type"]].from_dict(folder.config)
        whole = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        pairs = int(whole * config.rope_parameters.get("partial_rotary_factor", 1.0)) // 2
    except Exception:  # of a dozen types: the file is no configuration of that model, which loading it says
        return None
    for key in ("short_factor", "long_factor"):
        factors = told.get(key)
        if factors is not None and (not isinstance(factors, list) or len(factors) != pairs):
            found = len(factors) if isinstance(factors, list) else 1
            return f"{folder.path / CONFIG} has a {key} of length {found}, but the model's heads need {pairs}"
    return None


def _no_tokenizer(folder: Folder) -> str | None:
    return None if folder.has(TOKENIZER) else f"{folder.path} has no {TOKENIZER}"


_AGAIN = "Download or copy it again"
_PULL = "Run 'git lfs pull' in that folder"
_SAVE = "load the model and tokenizer by transformers, where you trust them, and save both by save_pretrained(FOLDER)"

Check = Callable[[Folder], str | None]
#: What is wrong with a configuration, or None; and what to do about it.
CONFIG_CHECKS: tuple[tuple[Check, str], ...] = (
    (_own_code, "If transformers' own code computes the same, take auto_map out of that file"),
    (_quantised, "Take the model as it was before, or its GGUF file; or dequantise it and save that"),
    (_activation, "Name one that transformers has"),
    (_rotation, f"Let {CONFIG} be the one that was saved with the weights"),
)
#: The same of a whole folder, in this order: later checks need earlier ones.
CHECKS: tuple[tuple[Check, str], ...] = (
    (_pointer, _PULL),
    (
        _adapter,
        "Merge it into its model by merge_and_unload() of peft, save that, and set 'path' to where it is saved",
    ),
    (_gguf, "Set 'path' to that file"),
    (_file, "Set 'path' to the folder that it is in"),
    (_no_model, "Check 'path' of the model in the config"),
    (_foreign, f"Convert them: {_SAVE}, then set 'path' to it"),
    (_no_weights, _AGAIN),
    (_twice, "Move away the ones that are not meant"),
    (_cut, f"{_AGAIN}; of a quantised model take the weights as they were before"),
    *CONFIG_CHECKS,
)
#: The same of a checkpoint that is imported, whatever its weights are saved as.
CHECKPOINT_CHECKS: tuple[tuple[Check, str], ...] = ((_pointer, _PULL), *CONFIG_CHECKS)
#: What a tokenizer's folder needs.
TOKENIZER_CHECKS: tuple[tuple[Check, str], ...] = (
    (_pointer, _PULL),
    (_no_tokenizer, f"Write it: {_SAVE}"),
)


def check_files(path: str | Path, checks: tuple[tuple[Check, str], ...] = CHECKS) -> Folder:
    """The folder, if it is what it says. Raises `InputError` with what the first check finds, and its remedy."""
    folder = Folder(Path(path))
    for find, remedy in checks:
        if culprit := find(folder):
            raise InputError(culprit, remedy)
    return folder


def hashes_of(path: str | Path) -> dict[str, str]:
    """SHA-256 of each file that a folder's model is read from."""
    folder = Folder(Path(path))
    return {name: file_hash(folder.path / name) for name in folder.files}


def check_loaded(path: str, kind: str, info: dict[str, Any]) -> None:
    """Compare weights that were in a model's files with those that a model of its configuration has.

    Args:
        path: of the model.
        kind: what was built.
        info: what transformers tells of the loading.

    Raises:
        InputError: some are missing, unexpected or of another shape: transformers would draw them at random, or leave them out.
    """
    missing = sorted(info["missing_keys"])
    unexpected = sorted(name for name in info["unexpected_keys"] if not name.endswith(MASKS))
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise InputError(
            f"{path}: the weight {name} has shape {tuple(found)}, but by {CONFIG} {tuple(wanted)}",
            f"Let {CONFIG} be the one that was saved with the weights",
        )
    if not missing and not unexpected:
        return
    both = (("lacks", missing), ("has no use for", unexpected))
    told = " and ".join(f"{verb} {_first(names)}" for verb, names in both if names)
    prefixes = {odd.removesuffix(name) for odd in unexpected for name in missing if odd.endswith(f".{name}")}
    remedy = f"Let {CONFIG} be the one that was saved with the weights, or save the whole language model by save_pretrained"
    if prefixes:
        remedy = f"Take the prefix '{min(prefixes)}' off the weights' names: save the model itself, not what is wrapped around it"
    raise InputError(f"{path} is no {kind} as {CONFIG} describes it: it {told}", remedy)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the weight {names[0]}{more}"
