"""The models that are read, and the one that labels texts."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from inversescope.config.entries import Misplaced
from inversescope.config.strict import Pinned, Strict
from inversescope.config.tasks import TaskName


class ArchitectureConfig(Strict):
    """Shape of a transformer that the workflow builds itself."""

    architecture: Literal["gpt2", "gemma2", "gpt_neox", "llama", "qwen2"] = Field(
        "gpt2", description="Model family."
    )
    n_layers: int = Field(4, ge=1, description="Blocks.")
    n_heads: int = Field(4, ge=1, description="Query heads of a block.")
    d_model: int = Field(64, ge=8, description="Width of the residual stream.")
    d_mlp: int | None = Field(None, ge=1, description="Hidden width of the MLP; 4 d_model if absent.")
    n_positions: int = Field(32, ge=4, description="Tokens of the longest prompt that fits.")
    n_kv_heads: int | None = Field(None, ge=1)
    """Grouped-query attention (not gpt2); n_heads if absent."""
    head_dim: int | None = Field(None, ge=1)
    """Width of a head (gemma2, llama); d_model / n_heads if absent."""
    sliding_window: int | None = Field(None, ge=1)
    """Positions that every other layer sees (gemma2); the family's default if absent."""
    tied_embeddings: bool = Field(True, description="Embedding and unembedding are one matrix.")
    initializer_range: float = Field(0.08, gt=0)
    """Standard deviation of the initial weights; 0.02 (GPT-2's) is slow at small widths."""


class TargetTraining(Strict):
    """How `train_target` makes a target model when no trained one is given."""

    batch_size: int = Field(64, ge=1, description="Prompts a step.")
    learning_rate: float = Field(2e-3, gt=0, description="Of AdamW, after the warm-up.")
    weight_decay: float = Field(0.1, ge=0, description="Of AdamW.")
    warmup: int = Field(50, ge=0, description="Steps over which the learning rate grows.")
    max_steps: int = Field(1500, ge=1)
    """Cap: a candidate that has not passed the gate by then fails."""
    extra_steps: int = Field(100, ge=1)
    """Steps after the gate is first passed, with the rate decaying to zero."""
    schedule: Literal["gate", "cosine"] = "gate"
    """gate: constant rate until the gate is passed, then extra_steps. cosine: decay over all of max_steps."""
    gate_accuracy: float = 0.99
    """Accuracy of the answer that a candidate must reach (icl_translation: on each task)."""
    answer_weight: float = Field(1.0, gt=0)
    """Weight of the answer's tokens in the loss, relative to the prompt's."""
    curriculum: list[int] = Field(default_factory=list)
    """Sizes of the dictionary, one after the other, for tasks with a curriculum; empty: all of it from the start."""
    curriculum_loss: float = 0.35
    """Loss of the last two answers, nats, mean of 20 steps, at which the next size begins."""
    delay_layers: int = Field(0, ge=0)
    """Blocks in which, until the gate is passed, the position that predicts does not attend to the query
    (icl_translation). The extra steps are without."""
    corpus: dict[TaskName, float] = Field(default_factory=dict)
    """Further tasks whose answered prompts it is trained on too, each with its share of the batch."""

    @field_validator("corpus")
    @classmethod
    def _shares(cls, corpus: dict[TaskName, float]) -> dict[TaskName, float]:
        if any(share <= 0 for share in corpus.values()) or sum(corpus.values()) >= 1:
            raise ValueError(f"shares of further tasks must be positive, their sum below 1, got {corpus}")
        return corpus


class GemmaScopeConfig(Pinned):
    """Released sparse autoencoders of a model's residual stream: files layer_L/width_W/average_l0_N/params.npz."""

    source: Literal["hub", "local"] = Field("hub", description="Where they are.")
    path: str = Field(..., description="Hub repository, or local folder.")
    width: str = Field("16k", pattern=r"^\w+$", description="Width in the files' names.")
    l0: dict[int, int] = Field(..., description="Layer -> average L0 in the file's name.")

    def file(self, layer: int) -> str:
        """The file of a layer. Raises `KeyError` if no L0 is named for it."""
        return f"layer_{layer}/width_{self.width}/average_l0_{self.l0[layer]}/params.npz"


class VocabularyConfig(Strict):
    """A character vocabulary."""

    characters: str = Field(..., min_length=2, description="All tokens in order of their ids, from 0.")
    end: str = Field(..., min_length=1, max_length=1)
    """The character that ends a sequence; the generator's start too."""
    unknown: str | None = Field(None, max_length=1)
    """Stands for other characters, which are refused either way."""


class CheckpointConfig(Strict):
    """A published GPT-2 checkpoint: config.json, model.safetensors or pytorch_model.bin, and what its token ids stand for."""

    folder: str = Field(..., description="Where it lies; also below `mirror`.")
    url: str | None = None
    """https address of its folder at a pinned commit; fetched from if it lies nowhere."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """File name -> SHA-256, checked wherever the file comes from."""
    vocabulary: VocabularyConfig

    @model_validator(mode="after")
    def _pinned(self) -> CheckpointConfig:
        if self.url and len(self.sha256) < 2:
            raise ValueError("a checkpoint with a url needs the sha256 of config.json and of its weights")
        return self


class ModelConfig(Strict):
    """A target model: trained by the workflow, or from elsewhere. A GGUF file is dequantised once, to float32."""

    base: str | None = Field(None, exclude=True)
    """The model that this one takes over; what follows is the change."""
    source: Literal["trained", "local", "hub", "wheel", "checkpoint"] = "trained"
    """Trained here, a local directory or GGUF file, a hub repository, a Python wheel that holds a GGUF file, or a published
    checkpoint."""
    checkpoint: CheckpointConfig | None = Field(None, description="For source: checkpoint.")
    path: str | None = Field(None, description="Hub repository, local directory or .gguf file, or package.")
    revision: str | None = Field(None, description="Commit of the hub repository, or version of the package.")
    file: str | None = None
    """GGUF file in the hub repository or in the wheel."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """File name -> SHA-256 of the wheel (required) and of the GGUF file."""
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of its weights.")
    device_map: str | None = Field(
        None, description="None: one GPU, or the processor. auto: spread over all GPUs of the job."
    )
    large: bool | None = None
    """A job reads one site of it, and asks for more memory and time; if absent, so it is for hub and local models."""
    n_layers: int | None = None
    """Layers of a model from elsewhere, so that its sites are known before download."""
    n_heads: int | None = Field(None, description="Attention heads a layer, likewise.")
    bos: bool | None = None
    """Put the tokenizer's begin token before each prompt (token positions count it). If absent, so it is for Gemma 2, for other
    models from elsewhere as their own tokenizer does, and not for models that are trained here."""
    control: str | None = None
    """Model that figures show beside this one (icl_translation: trained without delay)."""
    shape: ArchitectureConfig = Field(ArchitectureConfig(), description="Of a model that is trained here.")
    seeds: list[int] = Field([1], min_length=1)
    """`train_target` trains one candidate a seed; `select_target` picks one."""
    training: TargetTraining = TargetTraining()
    gemma_scope: GemmaScopeConfig | None = None
    """Released autoencoders as SAE (General); a model without them has its own trained on its general text."""

    @model_validator(mode="after")
    def _complete(self) -> ModelConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise Misplaced(("seeds",), f"a seed stands twice: {self.seeds}")
        if self.training.delay_layers > self.shape.n_layers:
            message = f"is {self.training.delay_layers}, but the model has {self.shape.n_layers} layers"
            raise Misplaced(("training", "delay_layers"), message)
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("source: checkpoint and the key 'checkpoint' go together")
        if self.source == "checkpoint" and (self.n_layers is None or self.n_heads is None):
            raise ValueError("source: checkpoint needs n_layers and n_heads, so that its sites are known")
        if self.is_fetched and not self.path:
            raise ValueError(f"source: {self.source} needs 'path'")
        if self.source in ("hub", "wheel") and not self.revision:
            raise ValueError(f"source: {self.source} needs a pinned 'revision'")
        if self.file is not None and (self.source not in ("hub", "wheel") or not self.file.endswith(".gguf")):
            raise Misplaced(
                ("file",), "names a .gguf file of source: hub or wheel; a local one is named by 'path'"
            )
        if self.source == "wheel":
            self._check_wheel()
        return self

    def _check_wheel(self) -> None:
        """Package and version are names that pip cannot take for options; the wheel is pinned."""
        for key, value in (("path", self.path), ("revision", self.revision)):
            if not re.fullmatch(r"[A-Za-z0-9][\w.!+-]*", value or ""):
                raise Misplaced((key,), f"is no {'package' if key == 'path' else 'version'}: {value!r}")
        if self.file is None:
            raise ValueError("source: wheel needs 'file', the GGUF file in it")
        if [name for name in self.sha256 if name.endswith(".whl")] != [self.wheel] or "/" in self.wheel:
            raise Misplaced(("sha256",), "needs the wheel's file name and its SHA-256")

    @property
    def is_fetched(self) -> bool:
        """Whether others made the model, and it is read as transformers loads it."""
        return self.source in ("hub", "local", "wheel")

    @property
    def is_large(self) -> bool:
        """Whether a job reads one site of it, and asks for more memory and time."""
        return self.source in ("hub", "local") if self.large is None else self.large

    @property
    def wheel(self) -> str:
        """File name of the wheel, as it is pinned; empty if there is none."""
        return next((name for name in self.sha256 if name.endswith(".whl")), "")

    @property
    def gguf(self) -> str | None:
        """The GGUF file that holds the model, if one does."""
        is_file = self.source == "local" and self.path is not None and self.path.endswith(".gguf")
        return self.path if is_file else self.file

    @property
    def weights(self) -> str:
        """What is said of its weights wherever the model is shown; empty unless they are dequantised ones."""
        if self.gguf is None:
            return ""
        where = "" if self.source == "local" else f" ({self.path} {self.revision})"
        return f"weights dequantised from {PurePosixPath(self.gguf).name}{where}"

    @property
    def size(self) -> tuple[int, int] | None:
        """Layers and heads, if the configuration says them; else they are known once the model is there."""
        if self.source == "trained":
            return self.shape.n_layers, self.shape.n_heads
        return None if self.n_layers is None or self.n_heads is None else (self.n_layers, self.n_heads)

    @property
    def candidates(self) -> dict[str, TargetCandidate]:
        """Candidates of the target scan by name: s1, s2, ... after their seeds; none of a model that is not trained here."""
        seeds = self.seeds if self.source == "trained" else []
        return {f"s{seed}": TargetCandidate(self.shape, seed) for seed in seeds}


class TargetCandidate(NamedTuple):
    """One candidate of the target scan."""

    shape: ArchitectureConfig
    seed: int


class LabellerConfig(Pinned):
    """A chat model that labels texts (paper, D.3.3: gemma-2-2b-it)."""

    model: str | None = None
    """An entry of `models` that an experiment reads; it says all that follows up to device_map."""
    path: str | None = Field(None, description="Hub repository or local directory.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of its weights.")
    device_map: str | None = Field(
        None, description="None: one GPU, or the processor. auto: spread over all GPUs of the job."
    )
    batch_tokens: int = Field(8192, ge=1, description="Tokens of a pass, at most.")
    max_texts: int = Field(20_000, ge=1)
    """Distinct candidates that are labelled, at most: as many of each variant and site."""
    targets: int = Field(0, ge=0)
    """Target prompts, the first ones, whose draws are all labelled: the labels are the task feature of Figures 7 and 11 (paper,
    D.3.3); 0: none."""
    draws: int = Field(10, ge=1, description="Draws of each of these targets, of each variant and site.")
    instruction: str = Field(
        "Which task do the examples below show? Each line gives an input and its output. Answer with one of: {labels}. "
        "Answer 'mix' if the examples show more than one task, 'null' if they show none."
    )
    """What the model is asked; {labels} stands for the labels."""

    @model_validator(mode="after")
    def _one_model(self) -> LabellerConfig:
        if (self.model is None) == (self.path is None):
            raise ValueError("the labeller has one of 'model' and 'path'")
        return self
