"""The whole configuration as pydantic models: the only source of the YAML default and of its JSON schema.

`config/config.yaml` (the embedded study), and `config/schema.json` are generated from here by `inversescope config --write`;
a test fails with a diff when they drift. `config/paper.yaml` and `config/test/*.yaml` are deltas on the default.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inversescope.config import case_studies
from inversescope.errors import InputError


class Strict(BaseModel):
    """A model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid")


class ArchitectureConfig(Strict):
    """Shape of a transformer that the workflow builds itself."""

    architecture: Literal["gpt2", "gemma2", "llama"] = "gpt2"
    n_layers: int = Field(4, ge=1)
    n_heads: int = Field(4, ge=1)
    d_model: int = Field(64, ge=8)
    d_mlp: int | None = Field(None, description="Hidden width of the MLP; 4 d_model if absent.")
    n_positions: int = Field(32, ge=4)
    n_kv_heads: int | None = Field(
        None, description="Grouped-query attention (gemma2, llama); n_heads if absent."
    )
    head_dim: int | None = Field(
        None, description="Width of a head; d_model / n_heads if absent (gemma2 sets it apart)."
    )
    sliding_window: int | None = Field(
        None,
        ge=1,
        description="Positions that every other layer sees (gemma2); the family's default if absent.",
    )
    tied_embeddings: bool = True
    initializer_range: float = Field(
        0.08,
        gt=0,
        description="Standard deviation of the initial weights; 0.02 (GPT-2's) is slow at small widths.",
    )


class TargetTraining(Strict):
    """How `train_target` makes a target model when no trained one is given."""

    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = 0.1
    warmup: int = 50
    max_steps: int = Field(1500, description="Cap: a candidate that has not passed the gate by then fails.")
    extra_steps: int = Field(
        100, ge=1, description="Steps after the gate is first passed, with the rate decaying to zero."
    )
    schedule: Literal["gate", "cosine"] = Field(
        "gate",
        description="gate: constant rate until the gate is passed, then extra_steps. cosine: decay over all of max_steps.",
    )
    gate_accuracy: float = Field(
        0.99,
        description="Accuracy of the answer that a candidate must reach (icl_translation: on each task).",
    )
    answer_weight: float = Field(
        1.0, gt=0, description="Weight of the answer's tokens in the loss, relative to the prompt's."
    )
    curriculum: list[int] = Field(
        default_factory=list,
        description="Sizes of the dictionary, one after the other, for tasks with a curriculum; empty: all of it from the start.",
    )
    curriculum_loss: float = Field(
        0.35,
        description="Loss of the last two answers, nats, mean of 20 steps, at which the next size begins.",
    )
    delay_layers: int = Field(
        0,
        ge=0,
        description="Blocks in which, until the gate is passed, the position that predicts does not attend to the query "
        "(icl_translation). The extra steps are without.",
    )
    corpus: dict[str, float] = Field(
        default_factory=dict,
        description="Further tasks whose answered prompts it is trained on too, each with its share of the batch.",
    )

    @field_validator("corpus")
    @classmethod
    def _shares(cls, corpus: dict[str, float]) -> dict[str, float]:
        if any(share <= 0 for share in corpus.values()) or sum(corpus.values()) >= 1:
            raise ValueError(f"shares of further tasks must be positive, their sum below 1, got {corpus}")
        return corpus


class GemmaScopeConfig(Strict):
    """Released sparse autoencoders of a model's residual stream: files layer_L/width_W/average_l0_N/params.npz."""

    source: Literal["hub", "local"] = "hub"
    path: str = Field(..., description="Hub repository, or local folder.")
    revision: str | None = Field(None, description="Commit of the hub repository; required for source: hub.")
    width: str = Field("16k", pattern=r"^\w+$", description="Width in the files' names.")
    l0: dict[int, int] = Field(..., description="Layer -> average L0 in the file's name.")

    @model_validator(mode="after")
    def _pinned(self) -> GemmaScopeConfig:
        if self.source == "hub" and not self.revision:
            raise ValueError("source: hub needs a pinned 'revision'")
        return self


class VocabularyConfig(Strict):
    """A character vocabulary."""

    characters: str = Field(..., min_length=2, description="All tokens in order of their ids, from 0.")
    end: str = Field(
        ...,
        min_length=1,
        max_length=1,
        description="The character that ends a sequence; the generator's start too.",
    )
    unknown: str | None = Field(
        None, max_length=1, description="Stands for other characters, which are refused either way."
    )


class CheckpointConfig(Strict):
    """A published GPT-2 checkpoint: config.json, model.safetensors or pytorch_model.bin, and what its token ids stand for."""

    folder: str = Field(..., description="Where it lies; also below `mirror`.")
    url: str | None = Field(
        None, description="https address of its folder at a pinned commit; fetched from if it lies nowhere."
    )
    sha256: dict[str, str] = Field(
        default_factory=dict, description="File name -> SHA-256, checked wherever the file comes from."
    )
    vocabulary: VocabularyConfig

    @model_validator(mode="after")
    def _pinned(self) -> CheckpointConfig:
        if self.url and len(self.sha256) < 2:
            raise ValueError("a checkpoint with a url needs the sha256 of config.json and of its weights")
        return self


class ModelConfig(Strict):
    """A target model: trained by the workflow, a local directory, a hub repository at a pinned revision, or a checkpoint."""

    source: Literal["trained", "local", "hub", "checkpoint"] = "trained"
    checkpoint: CheckpointConfig | None = Field(None, description="For source: checkpoint.")
    path: str | None = Field(None, description="Hub repository or local directory.")
    revision: str | None = Field(None, description="Commit of the hub repository; required for source: hub.")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device_map: str | None = Field(None, description="'auto' shards over GPUs by accelerate.")
    n_layers: int | None = Field(
        None, description="Layers of a hub or local model, so that its sites are known before download."
    )
    n_heads: int | None = Field(None, description="Attention heads a layer, likewise.")
    bos: bool = Field(
        False,
        description="Put the tokenizer's begin token before each prompt, as Gemma and Llama expect (token positions count it).",
    )
    control: str | None = Field(
        None, description="Model that figures show beside this one (icl_translation: trained without delay)."
    )
    candidates: dict[str, TargetCandidate] = Field(
        default_factory=dict,
        description="Shapes and seeds that `train_target` tries; `select_target` picks one.",
    )
    training: TargetTraining = TargetTraining()
    gemma_scope: GemmaScopeConfig | None = Field(
        None,
        description="Released autoencoders as SAE (General); a model without them has its own trained on its general text.",
    )

    @model_validator(mode="after")
    def _complete(self) -> ModelConfig:
        if self.source == "trained" and not self.candidates:
            raise ValueError("a trained model needs at least one entry in 'candidates'")
        if (self.source == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("source: checkpoint and the key 'checkpoint' go together")
        if self.source == "checkpoint" and (self.n_layers is None or self.n_heads is None):
            raise ValueError("source: checkpoint needs n_layers and n_heads, so that its sites are known")
        if self.source in ("local", "hub") and not self.path:
            raise ValueError(f"source: {self.source} needs 'path'")
        if self.source == "hub" and not self.revision:
            raise ValueError("source: hub needs a pinned 'revision'")
        return self


class TargetCandidate(Strict):
    """One candidate of the target scan: a shape and a seed."""

    shape: ArchitectureConfig = ArchitectureConfig()
    seed: int = 0


class IOIConfig(Strict):
    """The prior of the indirect object identification task (paper, D.1.1)."""

    n_names: int = Field(32, ge=4)
    n_templates: int = Field(8, ge=1)
    n_places: int = Field(8, ge=1)
    n_items: int = Field(8, ge=1)
    held_out_pairs: float = Field(
        0.05, gt=0, lt=1, description="Share of unordered name pairs kept for the test split."
    )
    split_seed: int = 0


class RavelConfig(Strict):
    """The RAVEL task (paper, 4.2 and D.2): where its fact tables come from, and how much of them is used."""

    source: Literal["embedded", "upstream"] = Field(
        "embedded", description="The table of the package, or what `fetch_ravel` brings: upstream's files."
    )
    mirror: str | None = Field(
        None, description="Folder that holds upstream's files; upstream's archive is downloaded if absent."
    )
    archive_sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the archive; if absent, only files of it with a pinned sum are used.",
    )
    types: list[str] | None = Field(None, min_length=1, description="Entity types; all if absent.")
    n_entities: int | None = Field(None, ge=3, description="Entities a type, at most.")
    n_templates: int | None = Field(None, ge=3, description="Templates an attribute, at most.")

    @property
    def files(self) -> list[str]:
        """Fetched files that the prior is made of, below data/ravel; none where the tables come with the package."""
        return ["source/manifest.json"] if self.source == "upstream" else []


class TranslationConfig(Strict):
    """The in-context translation prior (paper, D.3.2): words, and the split."""

    words: Literal["own", "lists"] = Field(
        "own",
        description="'own': the package's table of concepts in four languages. 'lists': the downloaded word pairs of Hendel et al.",
    )
    n_concepts: int | None = Field(
        156, ge=8, description="Dictionary entries that are used, from the first; null: all."
    )
    held_out: float = Field(
        0.05, gt=0, lt=1, description="Share of the (query, shots) combinations kept for the test split."
    )
    mirror: str | None = Field(
        None,
        description="Directory to read the lists from instead of downloading them; checksums hold there too.",
    )

    @property
    def files(self) -> list[str]:
        """Downloaded files that the prior is made of, below data/icl_translation."""
        others = ("fr", "it", "es")
        names = [*(f"en_{one}.json" for one in others), *(f"{one}_en.json" for one in others)]
        return [f"lists/{name}" for name in names] if self.words == "lists" else []


class CountingConfig(Strict):
    """The prior of character counting (InversionView's first case study)."""

    letters: str = Field("abcdefghijklmnopqrstuvwxyz", min_length=2, description="The alphabet.")
    n_distinct: int = Field(3, ge=2, description="Distinct letters in a prompt.")
    max_count: int = Field(9, ge=1, le=9, description="How often a letter occurs at most.")
    begin: str = Field("B", description="Characters before the letters; may be empty.")
    bar: str = Field(
        "|", min_length=1, max_length=1, description="Between the letters and the target letter."
    )
    colon: str = Field(
        ":", min_length=1, max_length=1, description="Behind the target letter; the count follows."
    )
    held_out_letters: float = Field(
        0.05, gt=0, lt=1, description="Share of sets of letters kept for the test split."
    )
    split_seed: int = 0


class AdditionConfig(Strict):
    """The prior of addition (InversionView's third case study): both operands with as many digits, none beginning with 0."""

    n_digits: int = Field(3, ge=1, le=3, description="Digits of each operand: 3 make 810,000 prompts.")
    begin: str = Field("B", description="Characters before the first operand; may be empty.")
    with_answer: bool = Field(
        False,
        description="Prompts go on to the sum, so that activations at its digits can be read (A1, A2, ...).",
    )
    held_out_pairs: float = Field(
        0.05, gt=0, lt=1, description="Share of unordered pairs of operands kept for the test split."
    )
    split_seed: int = 0


class TextFeatureConfig(Strict):
    """A feature of a corpus's prompts: a column of the file, what a regular expression finds, or what a function says."""

    column: str | None = Field(None, min_length=1, description="Column that holds the label.")
    pattern: str | None = Field(
        None,
        min_length=1,
        description="Regular expression, searched in the prompt; its group `label`, or else its first group, is the label.",
    )
    function: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="package.module:function, from a prompt to its label (str): of this package or of text.functions.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> TextFeatureConfig:
        if sum(value is not None for value in (self.column, self.pattern, self.function)) != 1:
            raise ValueError("a feature has exactly one of column, pattern and function")
        if self.pattern is not None:
            try:
                compiled = re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
            if not compiled.groups:
                raise ValueError(
                    f"pattern {self.pattern!r} has no group: put what is the label in parentheses"
                )
        return self


class TextConfig(Strict):
    """The prior of a corpus: the prompts of a file, as often as they stand there (InversionView's factual recall, for one)."""

    file: str = Field(
        "data/text/corpus.jsonl",
        description="Parquet, JSON lines, or plain text (one prompt a line), inside the project.",
    )
    format: Literal["parquet", "jsonl", "text"] | None = Field(
        None, description="Of the file; if absent, its suffix says: .parquet, .jsonl, .txt."
    )
    prompt: str = Field(
        "{text}",
        description="The prompt: columns in braces (named slots), and what stands between them. Plain text has the column text.",
    )
    answer: str | None = Field(
        None, description="Column that should follow the prompt, without the space before it; may be absent."
    )
    weight: str | None = Field(
        None, description="Column that says how often a row counts, a whole number; 1 if absent."
    )
    split_by: str | None = Field(
        None, description="Column whose values are held out as a whole; the prompt itself if absent."
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of these values kept for the test split.")
    split_seed: int = 0
    token_unit: Literal["word", "character"] = Field(
        "word", description="What the tokenizer of a target trained here takes for a token."
    )
    features: dict[str, TextFeatureConfig] = Field(default_factory=dict)
    functions: str | None = Field(
        None, description="Folder inside the project whose modules may be named in features."
    )

    @property
    def sources(self) -> list[str]:
        """Files of the project that the prior is made of: the corpus, and modules of its functions."""
        named = [f.function.split(":")[0] for f in self.features.values() if f.function is not None]
        own = [name for name in named if name.split(".")[0] != "inversescope"] if self.functions else []
        modules = [Path(self.functions or "", *name.split(".")).with_suffix(".py").as_posix() for name in own]
        return [self.file, *dict.fromkeys(modules)]


#: Parts of the configuration that an experiment may set for itself. Models and priors are shared and named, never overlaid.
SETTABLE = (
    "budget",
    "kernel",
    "backbone",
    "variants",
    "studied_variants",
    "study_variants",
    "sampling",
    "fcr",
    "figures",
    "sae",
    "probe",
    "patching",
)


class ExperimentConfig(Strict):
    """One study: a task, a target model, the sites that are read, and what differs from the other studies."""

    task: Literal["ioi", "ravel", "icl_translation", "counting", "addition", "text"] = "ioi"
    model: str
    sites: list[str] = Field(
        ..., min_length=1, description="Labels or patterns such as L*H* and L*.resid_post."
    )
    patched: list[str] = Field(
        default_factory=list,
        description="Sites of the causal checks, as in `sites` (resid_mid cannot be replaced); empty = no causal checks.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description=f"Laid over the rest of the configuration for this experiment alone: {', '.join(SETTABLE)}.",
    )
    n_train: int = Field(100_000, ge=1, description="Prompts in the activation cache (paper: 100,000).")
    n_test: int = Field(50, ge=1, description="Target prompts, drawn from the test split (paper: 5,000).")
    representative: list[int] | None = Field(
        None,
        min_length=1,
        description="Layers of Figure 10 and Table 2 (ravel); all that are read if absent.",
    )
    n_val: int = Field(
        0, ge=0, description="Prompts on which hyperparameters of baselines are chosen (ravel)."
    )
    n_reference: int | Literal["all"] = Field(
        "all", description="Prior draws for the exact values, or all of the prior."
    )


class KernelConfig(Strict):
    """Kernel k, distance d and bandwidth epsilon of P(x; z) (paper, section 2)."""

    distance: Literal["cosine", "euclidean", "normalised_euclidean"] = "cosine"
    kind: Literal["hard", "gaussian"] = "hard"
    epsilon: float = Field(0.1, description="Headline bandwidth.")
    epsilons: list[float] = Field([0.005, 0.02, 0.05, 0.1, 0.15], description="Bandwidths that are read.")

    @field_validator("epsilon")
    @classmethod
    def _positive(cls, value: float) -> float:
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"kernel bandwidth epsilon must be positive and finite, got {value}")
        return value

    @field_validator("epsilons")
    @classmethod
    def _all_positive(cls, values: list[float]) -> list[float]:
        for value in values:
            cls._positive(value)
        return values


class BackboneConfig(Strict):
    """The decoder-only backbone and its fine-tuning on the prior (paper, 3.2 and C.1)."""

    init: Literal["scratch", "hub", "local"] = "scratch"
    path: str | None = None
    revision: str | None = None
    shape: ArchitectureConfig = ArchitectureConfig(tied_embeddings=False, initializer_range=0.02)
    targets: Literal["grammar", "samples"] = Field(
        "samples", description="'samples': next tokens of drawn prompts (paper). 'grammar': their exact next-token distribution "
        "under the prior, for tasks that expose it as a grammar: the same optimum without label noise."
    )  # fmt: skip
    support_weight: float = Field(
        20.0, ge=0, description="With 'grammar' targets: weight of -log(probability of all tokens that the grammar allows)."
    )  # fmt: skip
    tilt: float = Field(
        6.0, description="Logit tilt of a prompt's own names on half of the batch (0 = plain fine-tuning). "
        "The optimum is still the exact prior; it makes the rule 'second name differs' learnable."
    )  # fmt: skip
    batch_size: int = Field(64, ge=1)
    steps: int = Field(3000, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = 0.1
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    gate_in_prior: float = Field(0.9, description="Share of unconditional samples that must be in the prior.")
    gate_repeated_name: float = Field(0.01, description="Largest share of samples whose two names are equal.")


class VariantConfig(Strict):
    """One way to make a generator. Each ablation differs from `paper` or `default` in one field (`base`, `change`)."""

    generator: Literal["inversescope", "inversionview"] = Field(
        "inversescope", description="Architecture: backbone with control layers, or InversionView's decoder."
    )
    base: Literal[
        "paper",
        "default",
        "inversionview",
        "inversionview_noised",
        "inversionview_wide",
        "inversionview_noised_wide",
        "inversionview_scratch",
    ]
    change: str = Field("", description="What this ablation changes, in words; empty for the bases.")
    study: Literal["", "dimension", "ablation", "sparse", "frontier", "capacity"] = Field(
        "", description="Part of the study that it belongs to."
    )
    settings: list[str] = Field(
        default_factory=list,
        description="Decoding settings under which it is read at its headline bandwidth, the first one its headline "
        "(entries of sampling.settings, or plain, masked, mixed); empty = what its place in the study asks for.",
    )
    sites: list[str] | None = Field(
        None, description="Patterns of the sites that it is trained on; all if absent."
    )
    seed: int = 0
    # pairs
    pairs: Literal["noise", "kernel", "clean"] = Field(
        "noise",
        description="Appendix B noise, kernel pairs, or each cached activation with its own prompt, without noise.",
    )
    epsilon: float | None = Field(
        None, description="Bandwidth of training; None = the headline's, or drawn (eps_input)."
    )
    noise_space: Literal["model", "subspace"] = Field(
        "model",
        description="Where noise on activations lives: the residual stream, or a head's own subspace.",
    )
    norm_band: float = Field(0.1, gt=0, lt=1, description="delta of Appendix B.")
    see_norm: bool = Field(True, description="Whether the generator sees the norm of z, or z / |z|.")
    eps_input: bool = Field(
        False, description="log eps is an input; eps drawn log-uniformly from eps_range an anchor."
    )
    eps_range: tuple[float, float] = (0.004, 0.25)
    mean_embedding: bool = Field(
        False, description="Condition on the kernel mean embedding of cached neighbours."
    )
    neighbour_logits: bool = Field(
        False,
        description="Attention over cached neighbours: their next tokens after the same prefix are an input.",
    )
    neighbour_words: bool = Field(
        False,
        description="Attention over cached neighbours by the words that they share with what has been written.",
    )
    n_condition: int = Field(128, ge=1, description="Cached neighbours that condition, at most.")
    soft_targets: bool = Field(False, description="Next-token distribution among neighbours as the target.")
    disjoint: bool = Field(
        True, description="Condition and target from disjoint, re-drawn parts of the cache."
    )
    empty_anchors: Literal["own", "skip", "widen"] = Field(
        "own",
        description="Anchors without a neighbour: own prompt with its prior weight, skipped, or eps widened.",
    )
    cache_size: int | None = Field(None, ge=4, description="Use only the first n cached prompts.")
    cache_pairs: Literal["all", "train"] = Field(
        "all", description="'train' leaves cached prompts with the test split's name pairs out."
    )
    # generator
    n_heads: int = Field(32, ge=1, description="Control heads (paper: 32).")
    d_head: int = Field(16, ge=1, description="Width of a control head's key (paper: 64).")
    d_condition: int | None = Field(
        None,
        description="Width of the latent space; of InversionView's site embedding. None = d_model of the target.",
    )
    site_map_blocks: int = Field(
        0,
        ge=0,
        description="Residual MLP blocks after the linear site map (paper: 0), or before InversionView's decoder (6).",
    )
    decoder: ArchitectureConfig | None = Field(
        None,
        description="InversionView's own decoder, trained from scratch; None = the shape of the backbone.",
    )
    decoder_init: Literal["scratch", "backbone"] = Field(
        "scratch",
        description="InversionView's decoder starts from random weights, or from the backbone that knows the prior.",
    )
    freeze_backbone: bool = True
    # optimisation
    steps: int = Field(3000, ge=1)
    per_site: int = Field(8, ge=1, description="Prompts a site in each batch.")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = Field(
        1.0, description="Gradient norm; None = no clipping (PyTorch's default, paper)."
    )

    @model_validator(mode="after")
    def _trainable(self) -> VariantConfig:
        low, high = self.eps_range
        for value in (low, high, self.epsilon):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"kernel bandwidth epsilon must be positive and finite, got {value}")
        if low > high:
            raise ValueError(f"eps_range runs from {low} down to {high}")
        told = ("eps_input", "mean_embedding", "neighbour_logits", "neighbour_words")
        if self.pairs != "kernel" and any(getattr(self, name) for name in told):
            raise ValueError(f"{', '.join(told[:-1])} and {told[-1]} need pairs: kernel")
        for name in told[2:]:
            if getattr(self, name) and not self.mean_embedding:
                raise ValueError(f"{name} needs mean_embedding")
        if self.generator == "inversionview":
            if any(getattr(self, name) for name in told):
                raise ValueError("inversionview reads an activation and its site alone")
            if self.freeze_backbone:
                raise ValueError("inversionview is trained end to end: set freeze_backbone: false")
            if self.decoder is not None and self.decoder_init == "backbone":
                raise ValueError("decoder_init: backbone takes the backbone's shape: leave decoder out")
        elif self.decoder is not None or self.decoder_init != "scratch":
            raise ValueError("decoder and decoder_init are settings of generator: inversionview")
        if (self.base in ("paper", "default")) != (self.generator == "inversescope"):
            raise ValueError(f"base {self.base} is no variant of generator {self.generator}")
        return self


class DecodingConfig(Strict):
    """A decoding setting of the frontier study. Lists are schedules: draws take all combinations in turn."""

    temperature: list[float] = Field([1.0], min_length=1, description="Divides the logits.")
    noise: list[float] = Field(
        [0.0],
        min_length=1,
        description="Gaussian noise on the activation, in multiples of epsilon (paper, D.1.3: 1). Its root mean square norm "
        "is that multiple of the activation's norm; for Euclidean distance, of one.",
    )
    masked: bool = Field(False, description="Only tokens that the prior's grammar allows.")
    mixed: bool = Field(False, description="Cached neighbours are mixed in.")

    @model_validator(mode="after")
    def _drawable(self) -> DecodingConfig:
        if not all(value > 0 and math.isfinite(value) for value in self.temperature):
            raise ValueError(f"temperatures must be positive and finite, got {self.temperature}")
        if not all(value >= 0 and math.isfinite(value) for value in self.noise):
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")
        if self.mixed and self.varies:
            raise ValueError("cached neighbours are mixed in at one temperature and without noise")
        return self

    @property
    def varies(self) -> bool:
        """Whether draws of one target differ in more than their random numbers: by noise, or by temperature."""
        return len(self.temperature) > 1 or any(self.noise)


BUILT_IN = ("plain", "masked", "mixed", "noised")
FRONTIER_SETTINGS = {
    "cool": DecodingConfig(temperature=[0.8], masked=True),
    "cold": DecodingConfig(temperature=[0.6], masked=True),
    "noise1": DecodingConfig(noise=[1.0]),
    "noise4": DecodingConfig(noise=[4.0]),
    "schedule": DecodingConfig(noise=[0.0, 1.0, 2.0, 4.0], masked=True),
}


class SamplingConfig(Strict):
    """Candidates a target, budgets and decoding options."""

    candidates: int = Field(
        100, ge=1, description="Draws a target at the headline bandwidth, for each decoding that is read."
    )
    candidates_elsewhere: int = Field(30, ge=1, description="Draws a target at the other bandwidths.")
    candidates_study: int = Field(40, ge=1, description="Draws a target for the variants of the study.")
    max_candidates: int = Field(100, description="Budget: draws before a target is given up.")
    min_accepted: int = Field(
        0, description="A target stops when it has so many accepted samples (0 = draw all)."
    )
    temperature: float = Field(1.0, gt=0)
    mixing_alpha: float = Field(
        5.0, gt=0, description="Dirichlet back-off: weight of the generator in cached prompts."
    )
    decodings: list[Literal["mixed", "masked", "noised"]] = Field(
        ["mixed", "noised"],
        description="Decoding rules of paper and default read beside 'plain', at the headline bandwidth: "
        "cache mixing, masking to the prior's grammar, extra noise on z (Figure 8; heads only).",
    )
    settings: dict[str, DecodingConfig] = Field(
        FRONTIER_SETTINGS, description="Further decoding settings, which variants name."
    )
    batch: int = Field(
        2048, ge=1, description="Draws at a time: bounds the memory, makes no difference to results."
    )

    @field_validator("settings")
    @classmethod
    def _named(cls, settings: dict[str, DecodingConfig]) -> dict[str, DecodingConfig]:
        for name in settings:
            if name in BUILT_IN:
                raise ValueError(f"setting {name!r} has the name of a decoding rule that there is already")
        return settings

    def rule(self, name: str) -> DecodingConfig:
        """What a decoding rule does, by its name in the column `decoding`; 'noised' stands for Figure 8's noise apart."""
        if name in self.settings:
            return self.settings[name]
        if name not in BUILT_IN:
            raise InputError(
                f"unknown decoding setting {name!r}",
                f"add it to sampling.settings, or choose one of {', '.join([*BUILT_IN[:3], *self.settings])}",
            )
        return DecodingConfig(temperature=[self.temperature], masked=name == "masked", mixed=name == "mixed")


class FcrConfig(Strict):
    """Estimators, intervals and controls."""

    features: list[str] = Field(["object", "subject"], description="Headline features.")
    bootstrap: int = Field(2000, ge=100)
    confidence: float = Field(0.95, gt=0, lt=1)
    mcmc_evaluations: int = Field(200, ge=0, description="Target evaluations a chain; 0 = no chains.")


class SaeConfig(Strict):
    """Sparse autoencoders on a task's activations, by Gemma Scope's recipe (paper, D.2.2; Lieberum et al., 2024)."""

    width: int = Field(256, ge=1, description="Features (paper: 4096).")
    steps: int = Field(1000, ge=1, description="Training steps (paper: 100,000).")
    batch_size: int = Field(256, ge=1, description="Activations a step (paper: 2048).")
    sparsity: list[float] = Field(
        [2e-3, 1.2e-2, 7e-2, 0.4],
        min_length=1,
        description="Weights of the L0 penalty that are tried (paper: 5e-5); validation prompts choose.",
    )
    learning_rate: float = Field(3e-3, gt=0, description="Gemma Scope: 7e-5.")
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(20, ge=0, description="Steps of the rate's warm-up (Gemma Scope: 1000).")
    sparsity_warmup: int = Field(
        60, ge=1, description="Steps over which the penalty grows to its weight (Gemma Scope: 10,000)."
    )
    bandwidth: float = Field(
        0.05, gt=0, description="Width of the rectangle of the pseudo-gradients (Gemma Scope: 0.001)."
    )
    initial_threshold: float = Field(0.05, gt=0, description="Gemma Scope: 0.001.")


class ProbeConfig(Strict):
    """The linear probe."""

    strengths: list[float] = Field(
        [0.01, 0.1, 1.0], min_length=1, description="Inverse regularisations C; validation prompts choose."
    )
    max_iter: int = Field(500, ge=1)


class PatchingConfig(Strict):
    """The task-vector experiment (paper, D.3.1)."""

    n_pairs: int = Field(400, ge=2, description="Pairs of a three-shot source and a zero-shot target.")
    n_queries: int = Field(
        60,
        ge=5,
        description="Queries that are asked under each task from English, to tell their parts apart.",
    )
    n_shots: int = Field(4, ge=1, description="Draws of the shots for each of these queries and tasks.")


class LabellerConfig(Strict):
    """A chat model that labels texts (paper, D.3.3: gemma-2-2b-it)."""

    source: Literal["hub", "local"] = "local"
    path: str = Field(..., description="Hub repository or local directory.")
    revision: str | None = Field(None, description="Commit of the hub repository; required for source: hub.")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device_map: str | None = None
    batch_tokens: int = Field(8192, ge=1, description="Tokens of a pass, at most.")
    max_texts: int = Field(
        20_000,
        ge=1,
        description="Distinct candidates that are labelled, at most: as many of each variant and site.",
    )
    instruction: str = Field(
        "Which translation task do the examples below show? Each line gives a word and its translation. Answer with one of: "
        "{labels}. Answer 'mix' if the examples show more than one task, 'null' if they show none.",
        description="What the model is asked; {labels} stands for the labels.",
    )

    @model_validator(mode="after")
    def _pinned(self) -> LabellerConfig:
        if self.source == "hub" and not self.revision:
            raise ValueError("source: hub needs a pinned 'revision'")
        return self


class FigureConfig(Strict):
    """What the figures need beyond the tables."""

    noised_draws: int = Field(20, ge=1, description="Draws a target for Figure 8.")
    extra_noise: float = Field(0.3, description="Cosine-distance radius of the noise injected for Figure 8.")


class Config(Strict):
    """The whole configuration."""

    seed: int = 0
    budget: float = Field(1.0, gt=0, description="The one knob: scales training steps and sampling budgets.")
    save_every: int = Field(
        500,
        ge=1,
        description="Training steps between two states that a killed training resumes from; no result depends on it.",
    )
    mirror: str | None = Field(
        "../shared/data",
        description="Folder in which upstream files are looked for before they are fetched; both are checked by SHA-256.",
    )
    only: list[str] | None = Field(
        None, description="Names of the experiments that are run; all of them if absent."
    )
    experiments: dict[str, ExperimentConfig]
    models: dict[str, ModelConfig]
    ioi: IOIConfig = IOIConfig()
    ravel: RavelConfig = RavelConfig()
    icl_translation: TranslationConfig = TranslationConfig()
    counting: CountingConfig = CountingConfig()
    addition: AdditionConfig = AdditionConfig()
    text: TextConfig = TextConfig()
    kernel: KernelConfig = KernelConfig()
    backbone: BackboneConfig = BackboneConfig()
    variants: dict[str, VariantConfig]
    studied_variants: list[str] = Field(["paper", "default"])
    sampling: SamplingConfig = SamplingConfig()
    fcr: FcrConfig = FcrConfig()
    figures: FigureConfig = FigureConfig()
    sae: SaeConfig = SaeConfig()
    probe: ProbeConfig = ProbeConfig()
    patching: PatchingConfig = PatchingConfig()
    labeller: LabellerConfig | None = None
    study_variants: list[str] = Field(
        default_factory=list,
        description="Variants of the study over dimension, steps and seeds, and the ablations.",
    )

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, values: Any) -> Any:
        """Keep the experiments that `only` names; a delta leaves a single one out by setting it to null."""
        if not isinstance(values, dict) or not isinstance(values.get("experiments"), dict):
            return values
        kept = {name: part for name, part in values["experiments"].items() if part is not None}
        if values.get("only") is not None:
            for name in values["only"]:
                if name not in kept:
                    raise ValueError(f"'only' names experiment {name!r}, which is not in 'experiments'")
            kept = {name: kept[name] for name in kept if name in values["only"]}
        return {**values, "experiments": kept}

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for name, experiment in self.experiments.items():
            if experiment.model not in self.models:
                raise ValueError(
                    f"experiment {name} names model {experiment.model!r}, which is not in 'models'"
                )
            control = self.models[experiment.model].control
            if control and (experiment.task, control) not in {
                (e.task, e.model) for e in self.experiments.values()
            }:
                raise ValueError(
                    f"experiment {name} is shown beside model {control!r}, which no experiment on {experiment.task} reads"
                )
            for key in experiment.settings:
                if key not in SETTABLE:
                    raise ValueError(
                        f"experiment {name} sets {key!r}: it may set {', '.join(SETTABLE)}, all else is shared"
                    )
        for name in [*self.studied_variants, *self.study_variants]:
            if name not in self.variants:
                raise ValueError(f"variant {name!r} is studied but not in 'variants'")
            for setting in self.variants[name].settings:
                if setting not in self.sampling.settings and setting not in BUILT_IN[:3]:
                    raise ValueError(
                        f"variant {name!r} is read under {setting!r}, which is no decoding setting"
                    )
                attends = self.variants[name].neighbour_logits or self.variants[name].neighbour_words
                if attends and self.sampling.rule(setting).varies:
                    raise ValueError(
                        f"variant {name!r} attends to neighbours: no noise or schedule ({setting!r})"
                    )
        candidates = [name for model in self.models.values() for name in model.candidates]
        for name in [*self.experiments, *self.models, *self.variants, *candidates]:
            if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
                raise ValueError(f"name {name!r} may hold letters, digits, '-', '_' and '.' only")
        return self

    def scaled(self, count: int) -> int:
        """A number of steps or samples under the budget knob, at least 1."""
        return max(1, round(count * self.budget))

    def experiment(self, task: str, model: str) -> ExperimentConfig:
        """The experiment that reads this model on this task. Raises `InputError` if there is none."""
        for experiment in self.experiments.values():
            if (experiment.task, experiment.model) == (task, model):
                return experiment
        known = ", ".join(f"{e.task}/{e.model}" for e in self.experiments.values())
        raise InputError(
            f"no experiment reads model {model!r} on task {task!r}",
            f"add one to 'experiments' (there: {known})",
        )

    def of(self, task: str, model: str) -> Config:
        """The configuration as an experiment sees it: its `settings` laid over the rest.

        Raises:
            InputError: no experiment reads this model on this task, or its settings are not valid.
        """
        settings = self.experiment(task, model).settings
        if not settings:
            return self
        return parse_config(
            merge(self.model_dump(mode="json"), settings), f"the settings of experiment {task} on {model}"
        )

    def variant(self, name: str) -> VariantConfig:
        """A variant by name. Raises `InputError` if it is unknown."""
        if name not in self.variants:
            raise InputError(f"unknown variant {name!r}", f"choose one of {', '.join(self.variants)}")
        return self.variants[name]

    def epsilons_of(self, name: str) -> list[float]:
        """Bandwidths at which a variant is read: all of them if epsilon is one of its inputs, else the one it was trained for."""
        variant = self.variant(name)
        everywhere = name in self.studied_variants or variant.study == "sparse"
        if variant.eps_input and everywhere:
            return sorted({*self.kernel.epsilons, self.kernel.epsilon})
        return [variant.epsilon or self.kernel.epsilon]

    def decodings_of(self, name: str, epsilon: float, is_head: bool) -> list[str]:
        """Decoding rules under which a variant is read at a bandwidth: 'plain' always, the others at its headline one."""
        variant = self.variant(name)
        if epsilon != (variant.epsilon or self.kernel.epsilon):
            return ["plain"]
        if variant.settings:
            return list(variant.settings)
        if name not in ("paper", "default"):
            return ["plain"]
        return ["plain", *(d for d in self.sampling.decodings if d != "noised" or is_head)]


ModelConfig.model_rebuild()

MAIN_SITES = ["L*H*", "L*.resid_post"]
STUDY_SITES = ["L*H0", "L*.resid_post", "L2.mlp_post"]

PAPER = VariantConfig(base="paper", sites=MAIN_SITES)
DEFAULT = VariantConfig(
    base="default",
    sites=MAIN_SITES,
    pairs="kernel",
    noise_space="subspace",
    eps_input=True,
    mean_embedding=True,
    neighbour_logits=True,
    neighbour_words=True,
    n_condition=256,
    soft_targets=True,
    d_condition=128,
    site_map_blocks=2,
    freeze_backbone=False,
    steps=2800,
)

# Ablations: name -> (base, what changes in words, changed fields).
ABLATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "paper_subspace": ("paper", "noise in the head's own subspace", {"noise_space": "subspace"}),
    "paper_nonorm": ("paper", "norm of z hidden", {"see_norm": False}),
    "paper_deepmap": (
        "paper",
        "two MLP blocks behind the site map",
        {"site_map_blocks": 2, "d_condition": 128},
    ),
    "paper_unfrozen": ("paper", "backbone trained too", {"freeze_backbone": False}),
    "paper_kernelpairs": ("paper", "kernel pairs instead of noise", {"pairs": "kernel"}),
    "default_frozen": ("default", "backbone frozen", {"freeze_backbone": True}),
    "default_nonorm": ("default", "norm of z hidden", {"see_norm": False}),
    "default_linearmap": ("default", "no MLP blocks behind the site map", {"site_map_blocks": 0}),
    "default_noneighbourinput": (
        "default",
        "no neighbours as input",
        {"mean_embedding": False, "neighbour_logits": False, "neighbour_words": False},
    ),
    "default_noneighbours": (
        "default",
        "mean embedding, but no attention over neighbours",
        {"neighbour_logits": False, "neighbour_words": False},
    ),
    "default_nowords": (
        "default",
        "attention over neighbours by prefix alone, not by shared words",
        {"neighbour_words": False},
    ),
    "default_hardtargets": ("default", "one drawn neighbour as label", {"soft_targets": False}),
    "default_samehalves": ("default", "condition and target from the same cache", {"disjoint": False}),
    "default_fixedeps": ("default", "trained for the headline bandwidth only", {"eps_input": False}),
    "default_trainpairs": ("default", "cache without the test prompts' name pairs", {"cache_pairs": "train"}),
}
# The sparse setting: few cached prompts, so that many anchors and targets have no neighbour at the smaller bandwidths.
SPARSE: dict[str, tuple[str, dict[str, Any]]] = {
    "default_sparse_own": (
        "cache of 5,000; lonely anchors: own prompt at its prior weight",
        {"empty_anchors": "own"},
    ),
    "default_sparse_skip": ("cache of 5,000; lonely anchors skipped", {"empty_anchors": "skip"}),
    "default_sparse_widen": ("cache of 5,000; lonely anchors: bandwidth doubled", {"empty_anchors": "widen"}),
}
#: `default` with less and with more between activation and backbone, which all variants share (InversionView's open question of
#: the decoder's capacity): control heads and their width, latent space, blocks behind the site map.
CAPACITY: dict[str, tuple[str, dict[str, int]]] = {
    "default_small": (
        "an eighth of the control heads, half as wide; latent space of 32",
        {"n_heads": 4, "d_head": 8, "d_condition": 32, "site_map_blocks": 1},
    ),
    "default_large": (
        "twice the control heads, twice as wide; latent space of 256",
        {"n_heads": 64, "d_head": 32, "d_condition": 256, "site_map_blocks": 3},
    ),
}
STUDY_STEPS = {"paper": 320, "default": 240}  # 1x; comparable seconds


def default_variants() -> dict[str, VariantConfig]:
    """The two bases, the paper's other bandwidths (Figure 9), and the studies: dimension, ablations, sparse setting, capacity,
    frontier."""
    bases = {"paper": PAPER, "default": DEFAULT}
    variants: dict[str, VariantConfig] = dict(bases)
    for epsilon in (0.05, 0.15):
        change = {"epsilon": epsilon, "change": f"trained for epsilon {epsilon}", "sites": ["L*H*"]}
        variants[f"paper_eps{epsilon}"] = PAPER.model_copy(update={**change, "steps": 700})
    sparse = {
        "change": "cache of 5,000 prompts",
        "cache_size": 5000,
        "sites": ["L*H0", "L*.resid_post"],
        "steps": 600,
    }
    variants["default_sparse"] = DEFAULT.model_copy(update=sparse)
    for base, model in bases.items():
        for seed in (0, 1, 2):
            for multiple in (1, 3):
                update = {
                    "study": "dimension",
                    "seed": seed,
                    "sites": STUDY_SITES,
                    "steps": multiple * STUDY_STEPS[base],
                }
                variants[f"{base}_s{seed}_x{multiple}"] = model.model_copy(update=update)
    small = {"sites": ["L*H0", "L*.resid_post"]}
    for name, (base, words, fields) in ABLATIONS.items():
        update = {**small, "study": "ablation", "change": words, "steps": STUDY_STEPS[base], **fields}
        variants[name] = bases[base].model_copy(update=update)
    for name, (words, fields) in SPARSE.items():
        update = {
            **small,
            "study": "sparse",
            "change": words,
            "steps": STUDY_STEPS["default"],
            "cache_size": 5000,
            **fields,
        }
        variants[name] = DEFAULT.model_copy(update=update)
    for name, (words, fields) in CAPACITY.items():
        update = {"study": "capacity", "change": words, **fields}
        variants[name] = DEFAULT.model_copy(update=update)
    return variants | frontier_variants()


# The frontier: equal draws, and about equal processor seconds of training (some four minutes of a core): a step took .20 s of
# `default`, .13 of `paper`, .12, .14 and .13 of InversionView (clean, noised, wide), .11 from scratch, taken in turn
# in one process. InversionView starts from the same backbone, at whose cost it would not know the prior; from scratch it is given
# some of the backbone's seconds. Learning rates were compared by each method's own loss at about a sixth of these steps, one seed:
# 5e-4, 1e-3, 2e-3 (InversionView, clean and noised), 1e-3, 3e-3, 6e-3 (from scratch), 1.5e-3, 3e-3, 6e-3 (paper, which keeps 3e-3,
# within .06 nats of the best).
INVERSIONVIEW = VariantConfig(
    generator="inversionview",
    base="inversionview",
    pairs="clean",
    site_map_blocks=6,
    decoder_init="backbone",
    freeze_backbone=False,
    learning_rate=1e-3,
)
_NOISED = {"pairs": "noise", "learning_rate": 2e-3}
_WIDE = {"d_condition": 120}  # as many parameters as `default`
FRONTIER_BASES: dict[str, tuple[VariantConfig, int, list[str]]] = {  # steps, settings (the headline first)
    "paper": (PAPER, 1800, ["plain", "cool", "mixed"]),
    "default": (DEFAULT, 1200, ["plain", "cool", "cold", "mixed"]),
    "inversionview": (
        INVERSIONVIEW,
        2040,
        ["noise1", "plain", "noise4", "schedule", "cool", "cold", "mixed"],
    ),
    "inversionview_noised": (
        INVERSIONVIEW.model_copy(update={"base": "inversionview_noised", **_NOISED}),
        1740,
        ["plain", "cool", "cold", "mixed"],
    ),
    "inversionview_wide": (
        INVERSIONVIEW.model_copy(update={"base": "inversionview_wide", **_WIDE}),
        1860,
        ["noise1", "plain", "noise4", "cool", "cold", "mixed"],
    ),
    "inversionview_noised_wide": (
        INVERSIONVIEW.model_copy(update={"base": "inversionview_noised_wide", **_NOISED, **_WIDE}),
        1800,
        ["plain", "cool", "cold", "mixed"],
    ),
    "inversionview_scratch": (
        INVERSIONVIEW.model_copy(
            update={"base": "inversionview_scratch", "decoder_init": "scratch", "learning_rate": 3e-3}
        ),
        2400,
        ["noise1", "noise4"],
    ),
}
FRONTIER_SEEDS = (0, 1, 2)
# Controls, of the first seed alone.
FRONTIER_ONCE = ("inversionview_wide", "inversionview_noised_wide", "inversionview_scratch")
FRONTIER_SHARE = 1 / 6  # of the steps, for the first seed: refusal against seconds of training


def frontier_name(base: str, seed: int, share: float = 1.0) -> str:
    """Name of a variant of the frontier study."""
    stem = base if base.startswith("inversionview") else f"{base}_heads"
    return f"{stem}_s{seed}" + ("" if share == 1.0 else "_short")


def frontier_variants() -> dict[str, VariantConfig]:
    """Every method of the frontier by seed, trained on all heads; and, for the first seed, for a part of the steps."""
    variants = {}
    for base, (model, steps, settings) in FRONTIER_BASES.items():
        runs = [*((seed, 1.0) for seed in FRONTIER_SEEDS), (0, FRONTIER_SHARE)]
        if base in FRONTIER_ONCE:
            runs = [(0, 1.0), (0, FRONTIER_SHARE)]
        for seed, share in runs:
            update = {
                "study": "frontier",
                "seed": seed,
                "sites": ["L*H*"],
                "steps": max(1, round(share * steps)),
                "settings": settings if share == 1.0 else settings[:1],
            }
            variants[frontier_name(base, seed, share)] = model.model_copy(update=update)
    return variants


#: Causal checks of IOI: where the answer is predicted, and where the subject is named again.
IOI_PATCHED = [
    f"{site}{position}"
    for position in ("", "@S2")
    for site in ("L0.resid_pre", "L*H*", "L*.mlp_out", "L*.resid_post")
]
#: Widths of the embedded RAVEL targets and of their heads; these are not width / heads, as in Gemma 2.
RAVEL_WIDTHS = {48: 16, 64: 24, 96: 32}
#: What RAVEL's prior of two thousand prompts needs less of than IOI's of a million, for these experiments alone.
RAVEL_SETTINGS: dict[str, Any] = {
    # Chosen on validation prompts: the widest by which the exact posterior reads most of them, to within 0.01
    # (results/ravel/bandwidth.csv).
    "kernel": {"epsilon": 0.5, "epsilons": [0.5]},
    "fcr": {"features": ["attribute"], "mcmc_evaluations": 0},
    "studied_variants": ["paper", "default"],
    "study_variants": [],
    "backbone": {"shape": {"n_layers": 2}, "steps": 400},
    "variants": {
        "paper": {"sites": ["L*.resid_post"], "steps": 900, "warmup": 60},
        "default": {
            "sites": ["L*.resid_post"],
            # More steps of fewer anchors: at equal seconds fewer refusals.
            "steps": 1500,
            "per_site": 4,
            "warmup": 60,
            "n_condition": 128,
            # Small bandwidths teach what to draw where no cached prompt is near.
            "eps_range": [0.12, 0.6],
            # Most of this prior is cached. Of disjoint halves a generator learns to draw what its neighbours are not.
            "disjoint": False,
        },
    },
    # The cache holds most of this prior: what it lacks weighs less beside cached neighbours than IOI's.
    "sampling": {"candidates": 16, "max_candidates": 16, "decodings": ["mixed"], "mixing_alpha": 1.0},
}


def ravel_model(width: int, head_dim: int) -> ModelConfig:
    """A small target of Gemma 2's architecture, trained on RAVEL's facts and, as its general text, on IOI's prompts."""
    shape = ArchitectureConfig(
        architecture="gemma2",
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        head_dim=head_dim,
        d_model=width,
        d_mlp=2 * width,
        sliding_window=8,
    )
    training = TargetTraining(
        learning_rate=3e-3, max_steps=1500, extra_steps=80, answer_weight=5.0, corpus={"ioi": 0.25}
    )
    return ModelConfig(candidates={"s1": TargetCandidate(shape=shape, seed=1)}, training=training)


#: Targets of the in-context translation study. Until the gate is passed, blocks 0 to 2 do not let the predicting position attend
#: to the query; the `plain` controls know no such thing. Both end with steps of plain language modelling.
ICL_SITES = ["L*.attn_out"]
ICL_LAYERS, ICL_DELAY = 5, 3
ICL_SETTINGS: dict[str, Any] = {
    "kernel": {"epsilons": [0.1]},
    "backbone": {
        "steps": 900,
        "learning_rate": 3e-3,
        "shape": {"initializer_range": 0.08, "tied_embeddings": True},
    },
    "variants": {
        "paper": {"sites": None, "steps": 700},
        "default": {"sites": None, "steps": 1800, "eps_range": [0.08, 0.125]},
    },
    "studied_variants": ["paper", "default"],
    "study_variants": [],
    "sampling": {"decodings": ["mixed"]},
    "fcr": {"features": ["task", "query"], "mcmc_evaluations": 0},
}


def icl_models() -> dict[str, ModelConfig]:
    """Small Gemma 2 and Llama models for the in-context translation study, each with its plain control."""
    models = {}
    for name, architecture in (("gemma2", "gemma2"), ("llama", "llama")):
        shape = ArchitectureConfig.model_validate(
            {
                "architecture": architecture,
                "n_layers": ICL_LAYERS,
                "n_heads": 4,
                "n_kv_heads": 2,
                "d_model": 64,
                "n_positions": 16,
            }
        )
        for suffix, delay in (("", ICL_DELAY), ("-plain", 0)):
            training = TargetTraining(
                gate_accuracy=0.97, curriculum=[12, 40, 156], delay_layers=delay, extra_steps=150
            )
            models[f"{name}-icl{suffix}"] = ModelConfig(
                candidates={"s1": TargetCandidate(shape=shape, seed=1)},
                training=training,
                control=f"{name}-icl-plain" if not suffix else None,
            )
    return models


def icl_experiments() -> dict[str, ExperimentConfig]:
    """FCR and patching of both architectures; of the plain controls, exact FCR and patching."""
    experiments = {}
    for name in ("gemma2", "llama"):
        for suffix in ("", "_plain"):
            settings = ICL_SETTINGS if not suffix else {**ICL_SETTINGS, "studied_variants": []}
            experiments[f"icl_{name}{suffix}"] = ExperimentConfig(
                task="icl_translation",
                model=f"{name}-icl{suffix.replace('_', '-')}",
                sites=ICL_SITES,
                settings=settings,
                n_train=40_000,
                n_test=60,
                n_reference=60_000,
            )
    return experiments


def default_config() -> Config:
    """The embedded studies: small targets trained here, every rate beside its exact value. IOI: GPT-2, a million prompts. RAVEL:
    Gemma 2 in three sizes. In-context translation: Gemma 2 and Llama, 156 concepts in four languages."""
    variants = default_variants()
    candidates = {f"s{seed}": TargetCandidate(seed=seed) for seed in range(1, 7)}
    sites = [*MAIN_SITES, *(site for site in STUDY_SITES if "mlp" in site)]
    experiments = {"ioi": ExperimentConfig(model="gpt2-embedded", sites=sites, patched=IOI_PATCHED)}
    models = {"gpt2-embedded": ModelConfig(candidates=candidates)}
    for width, head_dim in RAVEL_WIDTHS.items():
        model = f"gemma2-embedded-{width}"
        models[model] = ravel_model(width, head_dim)
        experiments[f"ravel_{width}"] = ExperimentConfig(
            task="ravel",
            model=model,
            sites=["L*.resid_post"],
            n_train=1800,
            n_test=240,
            n_val=240,
            settings=RAVEL_SETTINGS,
        )
    studies = {name: ExperimentConfig.model_validate(v) for name, v in case_studies.EXPERIMENTS.items()}
    read = {name: ModelConfig.model_validate(v) for name, v in case_studies.MODELS.items()}
    return Config(
        backbone=BackboneConfig(targets="grammar", steps=800, learning_rate=5e-3),
        experiments=experiments | icl_experiments() | studies,
        models=models | icl_models() | read,
        variants=variants,
        studied_variants=[name for name, v in variants.items() if not v.study],
        study_variants=[name for name, v in variants.items() if v.study not in ("", "capacity")],
    )


SCHEMA_LINE = "# yaml-language-server: $schema=schema.json"


def to_yaml(config: Config) -> str:
    """The configuration as YAML, its first line pointing editors at the schema."""
    head = f"{SCHEMA_LINE}\n# Generated by `inversescope config --write`. Do not edit: layer a delta file on it instead.\n"
    return head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110)


def published_yaml() -> str:
    """config/published.yaml: the study of the published counting model, laid over the default configuration."""
    head = (
        f"{SCHEMA_LINE}\n# Generated by `inversescope config --write`. The counting model that InversionView's authors published:\n"
        "#   make figures CONFIG=config/published.yaml STUDIES=counting\n"
    )
    return head + yaml.safe_dump(case_studies.PUBLISHED, sort_keys=False, width=110)


def to_schema() -> str:
    """JSON schema of the configuration."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def merge(base: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """Merge a delta into nested dicts, the way Snakemake layers configuration files."""
    result = dict(base)
    for key, value in delta.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def load_config(files: list[Path] | list[str]) -> Config:
    """Read YAML files in order, later ones layered on earlier ones, and validate the whole.

    Raises:
        InputError: a file is missing or not YAML, a key is unknown, or a value is out of range; names file and key.
    """
    values: dict[str, Any] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise InputError(f"configuration file {file} does not exist", "check --config / --configfile")
        try:
            part = yaml.safe_load(file.read_text()) or {}
        except yaml.YAMLError as error:
            raise InputError(
                f"configuration file {file} is not valid YAML: {error}", "mend the file"
            ) from error
        values = merge(values, part)
    config = parse_config(values, ", ".join(map(str, files)))
    for experiment in config.experiments.values():
        config.of(experiment.task, experiment.model)
    return config


def parse_config(values: dict[str, Any], source: str = "the configuration") -> Config:
    """Validate configuration values; the first fault becomes one clear `InputError`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "(top level)"
        if first["type"] == "extra_forbidden":
            raise InputError(
                f"{source}: unknown key {key!r}", "remove it or check its spelling in config/schema.json"
            ) from error
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{source}: {key}: {message}", "see config/schema.json for what it may hold"
        ) from error
