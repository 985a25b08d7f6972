"""Target models: what is known of one, and how it is built, saved and loaded.

Weights are read from safetensors only, code from a repository is never run, and weights are never folded or
centred (`weight processing: raw_hf`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from inversescope import store
from inversescope.config import ArchitectureConfig
from inversescope.errors import InputError
from inversescope.sites import Site
from inversescope.targets.architectures import ARCHITECTURES, Architecture
from inversescope.targets.tokenizers import encode, tokenizer_hash


@dataclass
class Target:
    """A model to be read, its tokenizer, and where both come from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    source: str = "trained"
    revision: str = ""
    bos: bool = False
    architecture: str = field(init=False)
    arch: Architecture = field(init=False)

    def __post_init__(self) -> None:
        self.architecture = str(self.model.config.model_type)
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"Model {self.name} is a '{self.architecture}', which has no entry in ARCHITECTURES",
                f"Use one of {', '.join(ARCHITECTURES)}, or add an entry to inversescope/models.py",
            )
        self.arch = ARCHITECTURES[self.architecture]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Turn texts into token ids as the model wants them: behind its begin token, if it was trained with one (`bos`).

        Raises:
            InputError: naming the first text with an unknown word.
        """
        ids = encode(self.tokenizer, texts)
        if not self.bos:
            return ids
        begin = np.array([self.tokenizer.bos_token_id], np.int32)
        return [np.concatenate([begin, one]) for one in ids]

    @property
    def body(self) -> nn.Module:
        """The stack of blocks without its unembedding."""
        return self.model.get_submodule(self.arch.body)

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, in order."""
        return list(self.body.get_submodule(self.arch.layers).children())

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.model.config.num_hidden_layers)

    @property
    def n_heads(self) -> int:
        """Number of query heads of a block."""
        return int(self.model.config.num_attention_heads)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.hidden_size)

    @property
    def head_dim(self) -> int:
        """Width of one head (Gemma 2 sets it apart from d_model / n_heads)."""
        return int(getattr(self.model.config, "head_dim", None) or self.d_model // self.n_heads)

    @property
    def d_mlp(self) -> int:
        """Hidden width of the MLP."""
        config = self.model.config
        inner = config.n_inner if self.architecture == "gpt2" else config.intermediate_size
        return int(inner or 4 * self.d_model)

    def site_dim(self, site: Site) -> int:
        """Return how many numbers are stored for one prompt at a site."""
        if site.kind == "result":
            return min(self.head_dim, self.d_model)
        return {"z": self.head_dim, "mlp_post": self.d_mlp}.get(site.kind, self.d_model)

    def out_proj(self, layer: int) -> Tensor:
        """Return a block's whole attention output projection, as its module holds it.

        Raises:
            InputError: if the weights were left on disk or in main memory for want of GPU memory.
        """
        weight = self.layers[layer].get_submodule(self.arch.out_proj).weight
        assert isinstance(weight, Tensor)
        if weight.is_meta:
            raise InputError(
                f"Block {layer} of {self.name} does not fit on the devices",
                "Use more GPUs or a smaller dtype",
            )
        return weight.detach()

    def w_o(self, layer: int, head: int) -> Tensor:
        """Return W_O[h], the map from a head's values to the residual stream, (head_dim, d_model)."""
        weight = self.out_proj(layer)
        rows = slice(head * self.head_dim, (head + 1) * self.head_dim)
        return weight[rows] if self.arch.out_proj_rows else weight[:, rows].T

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 of the tokenizer's whole definition."""
        return tokenizer_hash(self.tokenizer)


def load_target(directory: str | Path) -> Target:
    """Load the target model that `directory/target.json` describes, in evaluation mode.

    Args:
        directory: holds target.json with name, source (trained, local or hub), path, revision, dtype,
            device_map. The path of a trained model is relative to the directory.

    Raises:
        InputError: if a file is missing, broken or of an unknown architecture, or the hub cannot be reached.
    """
    directory = Path(directory)
    about = store.read_json(directory / "target.json")
    source, revision = about.get("source", "trained"), about.get("revision") or None
    path = str(about.get("path") or ".")
    if source == "trained":
        path = str(directory / path)
    if source != "hub" and not (Path(path) / "config.json").is_file():
        raise InputError(f"{path} holds no model (no config.json)", "Check 'path' of the model in the config")
    for name, recorded in (about.get("sha256") or {}).items():
        file = Path(path) / name
        if not file.is_file() or store.file_hash(file) != recorded:
            raise InputError(
                f"{file} is not the file that {directory / 'target.json'} vouches for",
                "Delete it and rerun the stage that writes it",
            )
    options: dict[str, Any] = {"revision": revision} if source == "hub" else {"local_files_only": True}
    if about.get("device_map"):
        options["device_map"] = about["device_map"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path,
            trust_remote_code=False,
            **{key: value for key, value in options.items() if key != "device_map"},
        )
        with _quiet(source != "hub"):
            model = AutoModelForCausalLM.from_pretrained(
                path,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=getattr(torch, about.get("dtype") or "float32"),
                **options,
            )
    except Exception as error:
        # Hub, file and safetensors layers raise a dozen unrelated types; what the reader can do is the same.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if source == "hub":
            raise InputError(
                f"Model {path} at revision {revision} cannot be loaded from the hub ({reason})",
                "Set 'source: local' and 'path' to a folder that holds it, or HF_HOME to a cache that does",
            ) from error
        raise InputError(
            f"The model in {path} cannot be loaded ({reason})", "Delete it and rerun the stage that writes it"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{path} has no fast tokenizer", "Use a model with tokenizer.json")
    bos = bool(about.get("bos"))
    if bos and tokenizer.bos_token_id is None:
        raise InputError(
            f"The tokenizer of {about['name']} has no begin token", "Set 'bos: false' for the model"
        )
    return Target(model.eval().requires_grad_(False), tokenizer, about["name"], source, revision or "", bos)


def save_trained(
    directory: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a trained model so that `load_target` finds it; target.json comes last and vouches for the rest.

    Args:
        directory: where model.safetensors, config.json, the tokenizer's files and target.json go; other
            files stay.
        model: its weights, kept in their dtype.
        tokenizer: saved beside it.
        name: the target's name.
        meta: further keys of target.json, such as the gate's accuracy.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(".saving.*"):  # by a killed job
        shutil.rmtree(left, ignore_errors=True)
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".saving.", dir=directory) as temporary:
        with _quiet():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for part in sorted(Path(temporary).iterdir()):
            hashes[part.name] = store.file_hash(part)
            with store.atomic_path(directory / part.name) as destination:
                destination.write_bytes(part.read_bytes())
    dtype = str(model.dtype).removeprefix("torch.")
    about = {
        "name": name,
        "source": "trained",
        "path": ".",
        "revision": "",
        "dtype": dtype,
        "device_map": None,
    }
    store.write_json(about | dict(meta or {}) | {"sha256": hashes}, directory / "target.json")


@contextmanager
def _quiet(quiet: bool = True) -> Iterator[None]:
    """Hide progress bars of steps that take no time."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    if quiet:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and shown:
            bars.enable_progress_bar()


def build_model(
    spec: ArchitectureConfig,
    vocab_size: int,
    seed: int,
    attention: Literal["sdpa", "eager"] = "sdpa",
    **overrides: Any,
) -> PreTrainedModel:
    """Make a randomly initialised model; the same seed gives the same weights and leaves the global stream
    alone.

    Args:
        spec: its shape.
        vocab_size: number of tokens; token 0 begins and ends a text, as in `word_tokenizer`.
        seed: of the weights.
        attention: `sdpa` is the fast one; Gemma 2 has only `eager` (its logits are capped).
        **overrides: further keys of the transformers configuration, e.g. `activation_function` or
            `sliding_window`.

    Raises:
        InputError: if heads and widths do not divide.
    """
    heads, kv_heads = spec.n_heads, spec.n_kv_heads or spec.n_heads
    if spec.head_dim is None and spec.d_model % heads:
        raise InputError(
            f"d_model {spec.d_model} is no multiple of n_heads {heads}", "Change one of them, or set head_dim"
        )
    if heads % kv_heads:
        raise InputError(f"n_heads {heads} is no multiple of n_kv_heads {kv_heads}", "Change one of them")
    if spec.architecture == "gpt2" and (
        kv_heads != heads or spec.head_dim not in (None, spec.d_model // heads)
    ):
        raise InputError(
            "gpt2 has neither n_kv_heads nor a head_dim of its own", "Leave them out, or use llama or gemma2"
        )
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": spec.tied_embeddings}
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": spec.head_dim or spec.d_model // heads,
        "intermediate_size": spec.d_mlp or 4 * spec.d_model,
        "max_position_embeddings": spec.n_positions,
        "pad_token_id": None,
    }
    config: transformers.PretrainedConfig
    if spec.architecture == "gpt2":
        gpt2 = {
            "vocab_size": vocab_size,
            "n_positions": spec.n_positions,
            "n_embd": spec.d_model,
            "n_layer": spec.n_layers,
            "n_head": heads,
            "n_inner": spec.d_mlp,
            # The same function as GPT-2's gelu_new, as one fused kernel.
            "activation_function": "gelu_pytorch_tanh",
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
        config = GPT2Config(**(ends | gpt2 | overrides))
    elif spec.architecture == "gemma2":
        own: dict[str, Any] = {"query_pre_attn_scalar": shape["head_dim"]}
        if spec.sliding_window is not None:
            own["sliding_window"] = spec.sliding_window
        config = Gemma2Config(**(ends | shape | own | overrides))
    else:
        config = LlamaConfig(**(ends | shape | overrides))
    implementation = "eager" if spec.architecture == "gemma2" else attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=implementation, dtype=torch.float32
        )
    assert isinstance(model, PreTrainedModel)
    return model.eval()
