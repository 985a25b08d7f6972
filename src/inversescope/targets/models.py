"""Target models: what is known of one, and how it is built, saved and loaded.

Weights are read from safetensors only, code from a repository is never run, and weights are never folded or
centred (`weight processing: raw_hf`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from inversescope import store
from inversescope.config.targets import ArchitectureConfig, ModelConfig
from inversescope.errors import InputError
from inversescope.sites import LAYER_KINDS, Site, check_range
from inversescope.targets.architectures import ARCHITECTURES, Architecture
from inversescope.targets.sources import locate, quiet
from inversescope.targets.tokenizers import encode, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # seconds of imports, for those who load a model alone


def check_family(family: str, what: str) -> Architecture:
    """The entry of a family, a `model_type` of transformers. Raises `InputError` if there is none: `what` is of it."""
    if family not in ARCHITECTURES:
        raise InputError(
            f"{what} is of the family '{family}', which has no entry in ARCHITECTURES",
            f"Use one of {', '.join(ARCHITECTURES)}, or add an entry to inversescope/targets/architectures.py",
        )
    return ARCHITECTURES[family]


@dataclass
class Target:
    """A model to be read, its tokenizer, and where both come from; `identity` tells it from any other (`store.identity`)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    source: str = "trained"
    revision: str = ""
    bos: bool = False
    identity: str = ""
    #: Up to how many tokens, and which, faster ways of running it were found to be equal (`activations.proof`).
    proven: tuple[int, tuple[str, ...]] | None = None
    architecture: str = field(init=False)
    arch: Architecture = field(init=False)

    def __post_init__(self) -> None:
        self.architecture = str(self.model.config.model_type)
        self.arch = check_family(self.architecture, f"model {self.name}")
        if self.arch.eager:
            self.model.set_attn_implementation("eager")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Turn texts into token ids as the model wants them: behind its begin token, if it was trained with one (`bos`).

        Raises:
            InputError: naming the first text with an unknown word.
        """
        return self.begun(encode(self.tokenizer, texts))

    def begun(self, ids: list[np.ndarray]) -> list[np.ndarray]:
        """Token ids of texts as the model wants them; see `encode`."""
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
        inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None)
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

    def check_sites(self, sites: Sequence[Site]) -> None:
        """Raise `InputError` if a site's layer or head is out of the model's range, or its family has no such site."""
        kinds = [kind for kind in LAYER_KINDS if kind in self.arch.components]
        for site in sites:
            if site.head is None and site.kind not in kinds:
                raise InputError(
                    f"Site '{site.label}' is none of {self.name}: blocks of a {self.architecture} have no {site.kind}",
                    f"Choose heads, or one of {', '.join(kinds)}",
                )
            check_range(site.label, "layer", site.layer, self.n_layers, self.name)
            check_range(site.label, "head", site.head or 0, self.n_heads, self.name)

    def check_tokens(self, tokens: np.ndarray, rows: np.ndarray) -> None:
        """Raise `InputError` if prompts (B, T), numbered `rows` (B,), are empty, too long, or out of the vocabulary."""
        config, length = self.model.config, tokens.shape[1]
        if length == 0:
            raise InputError(f"Prompt {rows[0]} is empty", "Remove it")
        if length > config.max_position_embeddings:
            raise InputError(
                f"Prompt {rows[0]} has {length} tokens, but {self.name} takes 1 to {config.max_position_embeddings}",
                "Shorten the prompts, or use a model with more positions",
            )
        outside = ((tokens < 0) | (tokens >= config.vocab_size)).any(axis=1)
        if outside.any():
            raise InputError(
                f"Prompt {rows[outside.argmax()]} has a token outside {self.name}'s vocabulary",
                "Encode the prompts with the model's own tokenizer",
            )

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 of the tokenizer's whole definition."""
        return tokenizer_hash(self.tokenizer)


def load_target(directory: str | Path) -> Target:
    """Load the target model that `directory/target.json` describes, in evaluation mode.

    Raises:
        InputError: if a file is missing, broken or of an unknown architecture, or the hub cannot be reached.
    """
    return open_target(directory, store.read_json(Path(directory) / "target.json"))


def open_target(directory: str | Path, about: Mapping[str, Any]) -> Target:
    """Load a target model from its description.

    Args:
        directory: what the path of a trained model is relative to.
        about: name, source (see `sources.SOURCES`), path, revision, dtype, device_map, bos, sha256.

    Raises:
        InputError: as `load_target`; or the tokenizer has no begin token, though the model wants one.
    """
    location = locate(Path(directory), about)
    check_family(str(location.check().config.get("model_type")), f"model {about['name']}")
    tokenizer = location.tokenizer()
    bos = bool(about.get("bos"))
    if bos and tokenizer.bos_token_id is None:
        raise InputError(
            f"The tokenizer of {about['name']} has no begin token", "Set 'bos: false' for the model"
        )
    model = location.model(about.get("dtype") or "float32", about.get("device_map"))
    source, revision = about.get("source", "trained"), about.get("revision") or ""
    return Target(model, tokenizer, about["name"], source, revision, bos, store.identity(about))


def wants_begin_token(directory: str | Path, about: Mapping[str, Any]) -> bool:
    """Whether a model from elsewhere is to be run behind its begin token: as its family says, else as its own tokenizer does.

    Args:
        directory, about: as in `open_target`, without `bos`.

    Raises:
        InputError: a file is missing or broken, or the family has no entry.
    """
    location = locate(Path(directory), about)
    family = check_family(str(location.check().config.get("model_type")), f"model {about['name']}")
    if family.bos is not None:
        return family.bos
    tokenizer = location.tokenizer()
    begins = tokenizer("")["input_ids"][:1]
    return begins == [tokenizer.bos_token_id]


def check_size(name: str, settings: ModelConfig, n_layers: int, n_heads: int) -> None:
    """Raise `InputError` if a model has other layers or heads than its configuration says, if that says any."""
    said = (settings.n_layers, settings.n_heads)
    for key, found, asked in zip(("n_layers", "n_heads"), (n_layers, n_heads), said, strict=True):
        if asked not in (None, found):
            raise InputError(
                f"models.{name}.{key} is {asked}, but the model has {found}", f"Set it to {found}"
            )


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
        meta: further keys of target.json, such as the gate's accuracy; or others than those of a model that was trained here.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(".saving.*"):  # by a killed job
        shutil.rmtree(left, ignore_errors=True)
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".saving.", dir=directory) as temporary:
        with quiet():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary, save_jinja_files=False)
        for part in sorted(Path(temporary).iterdir()):
            hashes[part.name] = store.file_hash(part)
            with store.atomic_path(directory / part.name) as destination:
                shutil.copyfile(part, destination)
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


def build_model(
    spec: ArchitectureConfig,
    vocab_size: int,
    seed: int,
    **overrides: Any,
) -> PreTrainedModel:
    """Make a randomly initialised model; the same seed gives the same weights and leaves the global stream
    alone.

    Args:
        spec: its shape.
        vocab_size: number of tokens; token 0 begins and ends a text, as in `word_tokenizer`.
        seed: of the weights.
        **overrides: further keys of the transformers configuration, e.g. `activation_function` or
            `sliding_window`.

    Raises:
        InputError: if heads and widths do not divide.
    """
    config = _transformers_config(spec, vocab_size, overrides)
    implementation = "eager" if ARCHITECTURES[spec.architecture].eager else "sdpa"  # the fast one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=implementation, dtype=torch.float32
        )
    return model.eval()


def _transformers_config(
    spec: ArchitectureConfig, vocab_size: int, overrides: dict[str, Any]
) -> PretrainedConfig:
    """The family's configuration of a shape. Raises `InputError` as `build_model` does."""
    heads, kv_heads = spec.n_heads, spec.n_kv_heads or spec.n_heads
    if spec.head_dim is None and spec.d_model % heads:
        raise InputError(
            f"d_model {spec.d_model} is no multiple of n_heads {heads}", "Change one of them, or set head_dim"
        )
    if heads % kv_heads:
        raise InputError(f"n_heads {heads} is no multiple of n_kv_heads {kv_heads}", "Change one of them")
    kind = CONFIG_MAPPING[spec.architecture]
    # What families call a shape; each takes what it knows.
    known = {*vars(kind()), *kind.attribute_map}
    head_dim = spec.head_dim or spec.d_model // heads
    apart = {
        "n_kv_heads": kv_heads != heads and "num_key_value_heads" not in known,
        "head_dim": head_dim * heads != spec.d_model and "head_dim" not in known,
        # Models that are trained here attend by functions that know no window, but for those that need transformers' eager one.
        "sliding_window": spec.sliding_window is not None and not ARCHITECTURES[spec.architecture].eager,
    }
    for key in (key for key, lacking in apart.items() if lacking):
        raise InputError(f"{spec.architecture} has no {key} of its own", "Leave it out, or use gemma2")
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "tie_word_embeddings": spec.tied_embeddings,
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "intermediate_size": spec.d_mlp or 4 * spec.d_model,
        "n_inner": spec.d_mlp,
        "max_position_embeddings": spec.n_positions,
        **({} if spec.sliding_window is None else {"sliding_window": spec.sliding_window}),
    }
    own = dict(ARCHITECTURES[spec.architecture].settings)
    return kind(**{key: shape[key] for key in shape if key in known} | own | overrides)
