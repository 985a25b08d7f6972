"""Target models and tokenizers: one declarative table of architectures, loading, saving, building.

Weights are read from safetensors only, code from a repository is never run, and weights are never folded or
centred (`weight processing: raw_hf`).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tokenizers
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from inversescope import store
from inversescope.config import ArchitectureConfig
from inversescope.errors import InputError
from inversescope.ops import causal_attention, linear
from inversescope.sites import Site

if TYPE_CHECKING:
    from inversescope.tasks.base import Task

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
WEIGHT_PROCESSING = "raw_hf"
#: One token of `word_tokenizer`: a word with the space before it, a punctuation mark, or a space that no word follows.
_WORD = r" ?\w+|[^\w\s]|\s"
#: Name of our attention function among those of transformers.
_ATTENTION = "inversescope_short"
_TEXTS_PER_CALL = 8192


@dataclass(frozen=True)
class Component:
    """Where an activation is found in a block.

    Args:
        module: path from the block; "" is the block itself.
        side: whether it is the module's input or its output.
        per_head: whether its last axis is heads times head_dim.
    """

    module: str
    side: Literal["input", "output"]
    per_head: bool = False


@dataclass(frozen=True)
class Architecture:
    """What capture needs to know about a family of models.

    Args:
        body: path from the causal language model to the stack of blocks without its unembedding.
        layers: path from the body to the list of blocks.
        final_norm: path from the body to the norm after the last block.
        attention: path from a block to its attention module.
        out_proj: path from a block to the projection that holds W_O.
        out_proj_rows: whether W_O[h] is rows of that weight (GPT-2's Conv1D) or columns (Linear).
        post_norm: whether a norm stands between W_O and the residual stream.
        components: kind of site -> component.
    """

    body: str
    layers: str
    final_norm: str
    attention: str
    out_proj: str
    out_proj_rows: bool
    post_norm: bool
    components: Mapping[str, Component]


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        body="transformer",
        layers="h",
        final_norm="ln_f",
        attention="attn",
        out_proj="attn.c_proj",
        out_proj_rows=True,
        post_norm=False,
        components={
            "resid_pre": Component("", "input"),
            "z": Component("attn.c_proj", "input", per_head=True),
            "attn_out": Component("attn", "output"),
            "resid_mid": Component("ln_2", "input"),
            "mlp_post": Component("mlp.c_proj", "input"),
            "mlp_out": Component("mlp", "output"),
            "resid_post": Component("", "output"),
        },
    ),
    # Gemma 2 norms what attention and MLP return before adding it; as in TransformerLens, attn_out and
    # mlp_out are what is added.
    "gemma2": Architecture(
        body="model",
        layers="layers",
        final_norm="norm",
        attention="self_attn",
        out_proj="self_attn.o_proj",
        out_proj_rows=False,
        post_norm=True,
        components={
            "resid_pre": Component("", "input"),
            "z": Component("self_attn.o_proj", "input", per_head=True),
            "attn_out": Component("post_attention_layernorm", "output"),
            "resid_mid": Component("pre_feedforward_layernorm", "input"),
            "mlp_post": Component("mlp.down_proj", "input"),
            "mlp_out": Component("post_feedforward_layernorm", "output"),
            "resid_post": Component("", "output"),
        },
    ),
    "llama": Architecture(
        body="model",
        layers="layers",
        final_norm="norm",
        attention="self_attn",
        out_proj="self_attn.o_proj",
        out_proj_rows=False,
        post_norm=False,
        components={
            "resid_pre": Component("", "input"),
            "z": Component("self_attn.o_proj", "input", per_head=True),
            "attn_out": Component("self_attn", "output"),
            "resid_mid": Component("post_attention_layernorm", "input"),
            "mlp_post": Component("mlp.down_proj", "input"),
            "mlp_out": Component("mlp", "output"),
            "resid_post": Component("", "output"),
        },
    ),
}


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


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of a tokenizer's whole definition (model, pre-tokenizer, decoder, added tokens)."""
    with _unpadded(tokenizer.backend_tokenizer):
        return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


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


@contextmanager
def fast_linear_layers(model: nn.Module) -> Iterator[None]:
    """Let `ops.linear` multiply in a model's linear layers for the length of a block, GPT-2's activation included.

    Results and gradients are equal up to float32 rounding. Modules keep their places and hooks. Where `ops.linear` has
    nothing faster to offer (GPU, half precision) nothing changes.
    """
    # An MLP of GPT-2: its first layer can return what its activation would make of it.
    activated = {
        id(module.c_fc): module.act
        for module in model.modules()
        if isinstance(module, GPT2MLP) and isinstance(module.act, NewGELUActivation | GELUTanh)
    }
    patched: list[nn.Module] = []

    def patch(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        module.forward = forward
        patched.append(module)

    try:
        for module in model.modules():
            if not isinstance(module, nn.Linear | Conv1D):
                continue
            weight, bias, act = module.weight, module.bias, activated.get(id(module))
            if weight.device.type != "cpu" or weight.dtype != torch.float32:
                continue
            transposed = isinstance(module, Conv1D)
            patch(module, partial(_fast_linear, weight, bias, transposed, act is not None))
            if act is not None:
                patch(act, _same)
        yield
    finally:
        for module in patched:
            # The class's own method comes back into view.
            module.__dict__.pop("forward", None)


def _fast_linear(weight: Tensor, bias: Tensor | None, transposed: bool, gelu: bool, x: Tensor) -> Tensor:
    return linear(x, weight.t() if transposed else weight, bias, gelu)


def _same(x: Tensor) -> Tensor:
    return x


@contextmanager
def short_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a CPU attend by `ops.causal_attention` for the length of a block: prompts without padding."""
    if model.config._attn_implementation != "sdpa" or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(_ATTENTION, _attention)
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`ops.causal_attention`, called as transformers' attention functions are.

    Args:
        module: the attention module.
        query: (B, H, S, d).
        key: (B, G, T, d).
        value: (B, G, T, d).
        attention_mask: None, as transformers makes no mask for attention functions that it does not know; a mask of a hook's
        (ablated     attention) is obeyed, at the usual speed.
        scaling: of the scores.
        **kwargs: settings of other attention functions, off or irrelevant here.

    Returns:
        (B, S, H, d), and no weights.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    return causal_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


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


def word_tokenizer(words: Sequence[str], pattern: str | None = None) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a word, lossless on texts of these words: decode(encode(x)) == x.

    As in GPT-2 the space before a word belongs to its token, and punctuation has none. Token 0 is
    `<|endoftext|>` (begin, end and padding), token 1 `<|unknown|>`; the rest keep the order of `words`.

    Args:
        words: the tokens, each as it stands: " Mary" with the space before it, "Then" for the beginning of a
            text, ",".
        pattern: regular expression of one token (`Task.word_pattern`), if not that of a word or punctuation mark.

    Raises:
        InputError: naming an entry that the tokenizer would split.
    """
    vocabulary = {END_OF_TEXT: 0, UNKNOWN: 1}
    for word in words:
        if not re.fullmatch(pattern or _WORD, word):
            raise InputError(f"'{word}' is not one word, mark or space", "Split it into several tokens")
        vocabulary.setdefault(word, len(vocabulary))
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = _word_splitter(pattern or _WORD)
    backend.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def character_tokenizer(
    vocabulary: Sequence[str], end: str = END_OF_TEXT, unknown: str | None = UNKNOWN
) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a character, lossless on texts of these characters.

    Args:
        vocabulary: the tokens in order of their ids; single characters, `end` and `unknown` apart.
        end: the token that begins and ends a sequence of the generator, and pads.
        unknown: stands for all other characters; without it they are refused.

    Raises:
        InputError: naming an entry that occurs twice or is not one character, or if `end` or `unknown` is missing.
    """
    ids = {token: number for number, token in enumerate(vocabulary)}
    special = [end] if unknown is None else [end, unknown]
    for number, token in enumerate(vocabulary):
        if ids[token] != number:
            raise InputError(
                f"'{token}' is twice in the vocabulary", "Name each character once, in order of ids"
            )
        if len(token) != 1 and token not in special:
            raise InputError(f"'{token}' in the vocabulary is not one character", "Split it")
    for token in special:
        if token not in ids:
            raise InputError(f"'{token}' is not in the vocabulary", "Name a character of the vocabulary")
    options = {} if unknown is None else {"unk_token": unknown}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, **options))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[\s\S]"), behavior="isolated", invert=False
    )
    backend.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
        **options,
    )


def task_tokenizer(*tasks: Task) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a target that is trained on tasks, of their words or characters; the first says what a token is."""
    words = [word for task in tasks for word in task.words()]
    if tasks[0].token_unit == "word":
        return word_tokenizer(words, tasks[0].word_pattern)
    return character_tokenizer([END_OF_TEXT, UNKNOWN, *dict.fromkeys(words)])


def _word_splitter(pattern: str = _WORD) -> tokenizers.pre_tokenizers.PreTokenizer:
    return tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated", invert=False)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], strict: bool = True) -> list[np.ndarray]:
    """Turn texts into token ids, without special tokens, fast enough for a million prompts.

    Args:
        tokenizer: any fast tokenizer.
        texts: N texts.
        strict: refuse words that the tokenizer does not know, instead of giving the unknown token.

    Returns:
        N int32 arrays, each as long as its text has tokens.

    Raises:
        InputError: naming the first text with an unknown word, if strict.
    """
    flat: list[int] = []
    lengths: list[int] = []
    backend = tokenizer.backend_tokenizer
    words = _word_vocabulary(backend)
    with _unpadded(backend):
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = list(texts[start : start + _TEXTS_PER_CALL])
            if words is None or not _encode_words(words, chunk, flat, lengths):
                try:
                    encodings = backend.encode_batch_fast(chunk, add_special_tokens=False)
                except Exception as error:  # tokenizers without an unknown token raise a bare Exception
                    raise InputError(
                        f"The tokenizer cannot encode one of '{chunk[0]}' and the texts after it ({error})",
                        "Use a target model whose vocabulary covers the task",
                    ) from error
                for one in encodings:
                    flat += one.ids
                    lengths.append(len(one.ids))
    ids = np.array(flat, dtype=np.int32)
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    unknown = tokenizer.unk_token_id
    if strict and unknown is not None and unknown != tokenizer.eos_token_id and (ids == unknown).any():
        culprit = texts[int(np.searchsorted(ends, (ids == unknown).argmax(), side="right"))]
        raise InputError(
            f"The tokenizer does not know a word of '{culprit}'",
            "Use a target model whose tokenizer covers the task, or train one on it",
        )
    return np.split(ids, ends[:-1]) if len(texts) else []


def _word_vocabulary(backend: tokenizers.Tokenizer) -> dict[str, int] | None:
    """The vocabulary of a tokenizer that `word_tokenizer` made with the usual pattern, None for any other."""
    if not isinstance(backend.model, tokenizers.models.WordLevel) or backend.normalizer is not None:
        return None
    if backend.pre_tokenizer.__getstate__() != _word_splitter().__getstate__():
        return None
    return backend.get_vocab()


def _encode_words(words: dict[str, int], texts: list[str], flat: list[int], lengths: list[int]) -> bool:
    """Append ids and lengths of texts that consist of known words only; otherwise leave both alone and
    return False.

    This is the tokenizer's own rule, four times as fast in Python's regular expressions. Whatever could
    differ (other scripts, special tokens, unknown words, further spaces) is left to the tokenizer.
    """
    find = re.compile(_WORD, re.ASCII).findall
    pieces: list[str] = []
    counts: list[int] = []
    for text in texts:
        found = find(text)
        if "<|" in text or "".join(found) != text:
            return False
        pieces += found
        counts.append(len(found))
    try:
        flat += [words[piece] for piece in pieces]
    except KeyError:
        return False
    lengths += counts
    return True


@contextmanager
def _unpadded(backend: tokenizers.Tokenizer) -> Iterator[None]:
    """Switch off padding and truncation, which are settings of the last call and not of the tokenizer."""
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    try:
        yield
    finally:
        if padding:
            backend.enable_padding(**padding)
        if truncation:
            backend.enable_truncation(**truncation)


def check_single_tokens(tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> None:
    """Check that each word, after a space, is one token that decodes to itself.

    Args:
        tokenizer: any fast tokenizer.
        words: with or without the leading space.

    Raises:
        InputError: naming the first word that is not.
    """
    spaced = [f" {word.strip()}" for word in words]
    unknown = tokenizer.unk_token_id
    for word, ids in zip(spaced, encode(tokenizer, spaced, strict=False), strict=True):
        lossless = (
            len(ids) == 1
            and tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False).strip() == word.strip()
        )
        if not lossless or (ids[0] == unknown and unknown != tokenizer.eos_token_id):
            raise InputError(
                f"The tokenizer cannot encode '{word}' as one token (it makes {len(ids)})",
                "Remove that word from the task, or use a target model whose tokenizer has it",
            )


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a directory, or from the hub at a pinned revision.

    A directory may hold a `target.json` that points elsewhere (hub or local models).

    Raises:
        InputError: it cannot be loaded.
    """
    about_path = Path(path) / "target.json"
    if about_path.is_file():
        about = store.read_json(about_path)
        if about.get("source") == "hub":
            return load_tokenizer(about["path"], about.get("revision"))
        path = Path(path) / (about.get("path") or ".")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # the hub and file layers raise a dozen unrelated types
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"The tokenizer of {path} cannot be loaded ({reason})",
            "Set a local path that holds tokenizer.json, or HF_HOME to a cache that does",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{path} has no fast tokenizer", "Use a model with tokenizer.json")
    return tokenizer
