"""Kernel, backbone, generator variants, sampling, estimators and baselines."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from inversescope.config.strict import Pinned, Strict
from inversescope.config.targets import ArchitectureConfig
from inversescope.config.tasks import GeneralTextConfig
from inversescope.errors import InputError

Share = Annotated[float, Field(ge=0, lt=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
DECAY_ALL = "Weight decay of biases and norms too (PyTorch's default, paper), not of matrices alone."
CLIP = "Gradient norm; None = no clipping (PyTorch's default, paper)."


class Bandwidth(NamedTuple):
    """A bandwidth as it is asked for: an epsilon for all sites, or a share of the prior, which is another epsilon at each site."""

    kind: Literal["epsilon", "share"]
    value: float

    def __str__(self) -> str:
        """What the column `bandwidth` of tables holds."""
        return f"{self.kind} {self.value}"

    @classmethod
    def parse(cls, text: str) -> Bandwidth:
        """The bandwidth that `str` gives this text."""
        kind, value = text.split()
        return cls("share" if kind == "share" else "epsilon", float(value))

    @property
    def label(self) -> str:
        """The same for readers."""
        return f"ε = {self.value:g}" if self.kind == "epsilon" else f"{100 * self.value:g}% of the prior"


class KernelConfig(Strict):
    """Kernel k, distance d and bandwidth epsilon of P(x; z) (paper, section 2)."""

    distance: Literal["cosine", "euclidean", "normalised_euclidean"] = Field("cosine", description="d.")
    centred: bool = False
    """Each site's mean cached activation is taken off all its activations first: distances, noise and generators see the rest."""
    kind: Literal["hard", "gaussian"] = "hard"
    """k: 1 within epsilon, or a Gaussian of d / epsilon."""
    epsilon: float = Field(
        0.1, description="Headline bandwidth, and what variants are trained for that name none."
    )
    epsilons: list[float] = Field([0.005, 0.02, 0.05, 0.1, 0.15], description="Bandwidths that are read.")
    share: float | None = Field(None, gt=0, lt=1)
    """Headline bandwidth as a share of the prior: at each site the epsilon at which the median ball of the validation
    prompts holds this share."""
    shares: list[OpenShare] = []
    """Bandwidths, as shares of the prior, that are read too."""

    @field_validator("epsilon", "epsilons")
    @classmethod
    def _positive(cls, value: float | list[float]) -> float | list[float]:
        for one in value if isinstance(value, list) else [value]:
            if not (one > 0 and math.isfinite(one)):
                raise ValueError(f"kernel bandwidth epsilon must be positive and finite, got {one}")
        return value

    @property
    def headline(self) -> Bandwidth:
        """The bandwidth at which most of a study is done."""
        return Bandwidth("epsilon", self.epsilon) if self.share is None else Bandwidth("share", self.share)

    @property
    def bandwidths(self) -> list[Bandwidth]:
        """All bandwidths that are read, whatever variants are trained for."""
        absolute = [Bandwidth("epsilon", one) for one in self.epsilons]
        shares = [Bandwidth("share", one) for one in self.shares]
        return sorted({*absolute, *shares, self.headline})

    @property
    def by_share(self) -> bool:
        """Whether any of them is a share of the prior."""
        return any(one.kind == "share" for one in self.bandwidths)


class BackboneArchitecture(ArchitectureConfig):
    """Shape of the backbone: an own matrix for the next token, and GPT-2's initial weights."""

    tied_embeddings: bool = Field(False, description="Embedding and unembedding are one matrix.")
    initializer_range: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")


class BackboneConfig(Strict):
    """The decoder-only backbone and its fine-tuning on the prior (paper, 3.2 and C.1)."""

    init: Literal["scratch", "hub", "local"] = "scratch"
    """Random weights of `shape` and the task's words as tokens, or a pre-trained model with its own."""
    path: str | None = Field(None, description="Hub repository or local directory of the pre-trained model.")
    revision: str | None = Field(None, description="Commit of the hub repository; required for init: hub.")
    shape: BackboneArchitecture = BackboneArchitecture()
    targets: Literal["grammar", "samples"] = "samples"
    """'samples': next tokens of drawn prompts (paper). 'grammar': their exact next-token distribution under the
    prior, for tasks that expose it as a grammar: the same optimum without label noise."""
    support_weight: float = Field(20.0, ge=0)
    """With 'grammar' targets: weight of -log(probability of all tokens that the grammar allows)."""
    tilt: float = 6.0
    """Logit tilt of a prompt's own names on half of the batch (0 = plain fine-tuning). The optimum is still the
    exact prior; it makes the rule 'second name differs' learnable."""
    batch_size: int = Field(64, ge=1, description="Prompts a step.")
    steps: int = Field(3000, ge=1, description="Training steps.")
    learning_rate: float = Field(2e-3, gt=0, description="Of AdamW, after the warm-up.")
    weight_decay: float = Field(0.1, ge=0, description="Of AdamW.")
    decay_all: bool = Field(False, description=DECAY_ALL)
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="Of AdamW.")
    warmup: int = Field(100, ge=0, description="Steps over which the learning rate grows.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Of the rate after the warm-up.")
    clip: float | None = Field(1.0, gt=0, description=CLIP)
    gate_in_prior: float = Field(0.9, ge=0, le=1)
    """Share of unconditional samples that must be in the prior."""
    gate_repeated_name: float = Field(0.01, ge=0, le=1)
    """Largest share of samples whose two names are equal."""


#: Studies that compare generators alone: nobody asks what the cache adds.
ALONE = ("frontier", "baseline")
#: Studies of what one change does, seed by seed: what the paper says of its training, and what lowers the error of its rates.
CHANGES = ("claims", "cures")


class VariantConfig(Strict):
    """One way to make a generator. The defaults are the paper's method, fitted to small models; an ablation changes its `base`."""

    generator: Literal["inversescope", "inversionview"] = "inversescope"
    """Architecture: backbone with control layers, or InversionView's decoder."""
    base: str = ""
    """The variant that this one takes over; what follows is the change. Resolved: its own name if it has none."""
    change: str = Field("", description="What it changes of its base, in words.")
    label: str = Field("", description="Its name in figures; the name of its entry if empty.")
    colour: str | None = Field(None, pattern="^#[0-9A-Fa-f]{6}$")
    """Its colour in figures, the same in all."""
    study: str = Field("", description="The study that it is a run of: filled in from `studies`.")
    settings: list[str] = Field(default_factory=list)
    """Decoding settings under which it is read at its headline bandwidth, the first one its headline (entries of
    sampling.settings, or plain, masked, mixed); empty = what its place in the study asks for."""
    sites: list[str] | None = None
    """Patterns of the sites that it is trained on; all if absent."""
    seed: int = Field(0, description="Of its initial weights and training batches.")
    # pairs
    pairs: Literal["noise", "kernel", "clean"] = "noise"
    """Appendix B noise, kernel pairs, or each cached activation with its own prompt, without noise."""
    epsilon: float | None = None
    """Bandwidth of training; None = kernel.epsilon, or drawn (eps_input)."""
    share: float | None = Field(None, gt=0, lt=1)
    """The same as a share of the prior."""
    noise_space: Literal["model", "subspace"] = "model"
    """Where noise on activations lives: the residual stream, or a head's own subspace."""
    norm_band: float = Field(0.1, gt=0, lt=1, description="delta of Appendix B.")
    see_norm: bool = Field(True, description="Whether the generator sees the norm of z, or z / |z|.")
    eps_input: bool = False
    """log eps is an input; eps drawn log-uniformly from eps_range an anchor."""
    eps_range: tuple[float, float] = (0.004, 0.25)
    """Bandwidths of training, for eps_input, where all that are read are absolute."""
    share_range: tuple[OpenShare, OpenShare] = (0.001, 0.05)
    """The same where shares of the prior are read: from the epsilon of one share to that of the other, site by site, and as
    much further as the variant is read."""
    mean_embedding: bool = False
    """Condition on the kernel mean embedding of cached neighbours."""
    neighbour_logits: bool = False
    """Attention over cached neighbours: their next tokens after the same prefix are an input."""
    neighbour_words: bool = False
    """Attention over cached neighbours by the words that they share with what has been written."""
    n_condition: int = Field(128, ge=1, description="Cached neighbours that condition, at most.")
    soft_targets: bool = Field(False, description="Next-token distribution among neighbours as the target.")
    disjoint: bool = True
    """Condition and target from disjoint, re-drawn parts of the cache."""
    empty_anchors: Literal["own", "skip", "widen"] = "own"
    """Anchors without a neighbour: own prompt with its prior weight, skipped, or eps widened."""
    cache_size: int | None = Field(None, ge=4, description="Use only the first n cached prompts.")
    cache_pairs: Literal["all", "train"] = "all"
    """'train' leaves cached prompts with the test split's name pairs out."""
    # generator
    n_heads: int = Field(32, ge=1, description="Control heads (paper: 32).")
    d_head: int = Field(16, ge=1, description="Width of a control head's key (paper: 64).")
    zero_values: bool = True
    """V of the control layers starts at zero (paper, C.2), or at random as Q and K do."""
    d_condition: int | None = None
    """Width of the latent space; of InversionView's site embedding. None = d_model of the target."""
    site_map_blocks: int = Field(0, ge=0)
    """Residual MLP blocks after the linear site map (paper: 0), or before InversionView's decoder (6)."""
    normed_queries: bool = True
    """A layer norm stands before Q; the paper's formula has none."""
    scaled_scores: bool = True
    """<q, k> is divided by the root of a head's width; in the paper it is not."""
    scaled_inputs: bool = True
    """Activations are brought to unit scale, by their site's root mean square norm; in the paper they are not."""
    zero_biases: bool = True
    """Biases of Q, K and V begin at zero. Otherwise all but the matrix V begins as PyTorch's linear layers do (paper: Kaiming)."""
    decoder: ArchitectureConfig | None = None
    """InversionView's own decoder, trained from scratch; None = the shape of the backbone."""
    decoder_init: Literal["scratch", "backbone"] = "scratch"
    """InversionView's decoder starts from random weights, or from the backbone that knows the prior."""
    freeze_backbone: bool = Field(True, description="Train the control layers alone (paper).")
    # optimisation
    steps: int = Field(3000, ge=1, description="Training steps.")
    per_site: int = Field(8, ge=1, description="Prompts a site in each batch.")
    sites_per_step: int | None = Field(None, ge=1)
    """Sites that a step reads, drawn at random; None = all."""
    learning_rate: float = Field(3e-3, gt=0, description="Of AdamW, after the warm-up.")
    weight_decay: float = Field(0.01, ge=0, description="Of AdamW.")
    decay_all: bool = Field(False, description=DECAY_ALL)
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="Of AdamW.")
    warmup: int = Field(100, ge=0, description="Steps over which the learning rate grows.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Of the rate after the warm-up.")
    clip: float | None = Field(1.0, gt=0, description=CLIP)

    @model_validator(mode="after")
    def _trainable(self) -> VariantConfig:
        low, high = self.eps_range
        for value in (low, high, self.epsilon):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"kernel bandwidth epsilon must be positive and finite, got {value}")
        for name, (low, high) in (("eps_range", self.eps_range), ("share_range", self.share_range)):
            if low > high:
                raise ValueError(f"{name} runs from {low} down to {high}")
        if self.epsilon is not None and self.share is not None:
            raise ValueError(
                "is trained for an epsilon and for a share of the prior: set one of them to null"
            )
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
        return self


class DecodingConfig(Strict):
    """A decoding setting of the frontier study. Lists are schedules: draws take all combinations in turn."""

    temperature: list[float] = Field([1.0], min_length=1, description="Divides the logits.")
    noise: list[float] = Field([0.0], min_length=1)
    """Gaussian noise on the activation, in multiples of epsilon (paper, D.1.3: 1). Its root mean square norm is that
    multiple of the activation's norm; for Euclidean distance, of one."""
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


#: The decoding in which variants are compared: nothing but the generator.
PLAIN = "plain"
#: The same with cache mixing.
MIXED = "mixed"
BUILT_IN = (PLAIN, "masked", MIXED, "noised")


class SamplingConfig(Strict):
    """Candidates a target, budgets and decoding options."""

    candidates: int = Field(100, ge=1)
    """Draws a target at the headline bandwidth, for each decoding that is read."""
    candidates_elsewhere: int = Field(30, ge=1, description="Draws a target at the other bandwidths.")
    candidates_study: int = Field(40, ge=1, description="Draws a target for the variants of the study.")
    max_candidates: int = Field(100, ge=1, description="Budget: draws before a target is given up.")
    min_accepted: int = Field(0, ge=0)
    """A target stops when it has so many accepted samples (0 = draw all)."""
    temperature: float = Field(1.0, gt=0, description="Divides the logits.")
    mixing_alpha: float = Field(5.0, gt=0)
    """Dirichlet back-off: weight of the generator in cached prompts."""
    decodings: list[Literal["mixed", "masked", "noised"]] = ["mixed", "noised"]
    """Decoding rules of paper and default read beside 'plain', at the headline bandwidth: cache mixing, masking to
    the prior's grammar, extra noise on z (Figure 8; heads only)."""
    settings: dict[str, DecodingConfig] = Field(default_factory=dict)
    """Further decoding settings, which variants name."""
    batch: int = Field(2048, ge=1)
    """Draws at a time: bounds the memory, makes no difference to results."""

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
            known = ", ".join([*BUILT_IN[:3], *self.settings])
            raise InputError(f"unknown decoding setting {name!r}", f"choose one of {known}, or add it")
        return DecodingConfig(temperature=[self.temperature], masked=name == "masked", mixed=name == MIXED)


class FcrConfig(Strict):
    """Estimators, intervals and controls."""

    features: list[str] = Field(["object", "subject"], description="Headline features.")
    bootstrap: int = Field(2000, ge=100, description="Resamples of the target prompts for an interval.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Of the intervals.")
    mcmc_evaluations: int = Field(200, ge=0, description="Target evaluations a chain; 0 = no chains.")


class ProposerConfig(Pinned):
    """A chat model that proposes label functions, which are then tested as all others are."""

    path: str = Field(description="Hub repository or local directory.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of its weights.")
    device_map: str | None = Field(None, description="'auto' shards over GPUs by accelerate.")
    n_targets: int = Field(3, ge=1, description="Target prompts whose texts it is shown at a site.")
    n_texts: int = Field(10, ge=2, description="Texts that are alike, and others, that it is shown of each.")
    max_tokens: int = Field(160, ge=1, description="Tokens of an answer, at most.")
    instruction: str = Field(
        "Texts of group A have something in common that texts of group B have not. Which functions of a text have the same value "
        "for all texts of group A, and other values in group B? Answer with functions of this grammar, one a line, and nothing "
        "else, for instance twice(capital) or after('a', -1) or which(['cat', 'dog'], ['red']).\n\nGrammar:\n{grammar}"
    )
    """What it is asked; {grammar} stands for the grammar."""


class HypothesesConfig(Strict):
    """Hypotheses without a human: label functions that samples tell about."""

    shares: list[OpenShare] = Field([0.01, 0.03, 0.1, 0.3, 0.5], min_length=1)
    """Shares of the prior at which balls are looked at, beside the headline bandwidth."""
    n_tested: int = Field(10, ge=1, description="Hypotheses that are tested at a site, at most.")
    level: float = Field(0.05, gt=0, lt=1, description="Of the test, for all hypotheses of a site together.")
    wordings: bool = Field(False, description="Also try groups of wordings whose activations lie together.")
    proposer: ProposerConfig | None = Field(None, description="A chat model that proposes further functions.")


class SaeConfig(Strict):
    """Sparse autoencoders on a task's activations, by Gemma Scope's recipe (paper, D.2.2; Lieberum et al., 2024)."""

    width: int = Field(256, ge=1, description="Features (paper: 4096).")
    steps: int = Field(1000, ge=1, description="Training steps (paper: 100,000).")
    batch_size: int = Field(256, ge=1, description="Activations a step (paper: 2048).")
    sparsity: list[float] = Field([2e-3, 1.2e-2, 7e-2, 0.4], min_length=1)
    """Weights of the L0 penalty that are tried (paper: 5e-5); validation prompts choose."""
    published: float | None = None
    """One of them whose autoencoder on the task's prompts stands in figures beside the chosen one: the paper's."""
    learning_rate: float = Field(3e-3, gt=0, description="Gemma Scope: 7e-5.")
    betas: tuple[Share, Share] = Field((0.0, 0.999), description="Of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    warmup: int = Field(20, ge=0, description="Steps of the rate's warm-up (Gemma Scope: 1000).")
    sparsity_warmup: int = Field(60, ge=1)
    """Steps over which the penalty grows to its weight (Gemma Scope: 10,000)."""
    bandwidth: float = Field(0.05, gt=0)
    """Width of the rectangle of the pseudo-gradients (Gemma Scope: 0.001)."""
    initial_threshold: float = Field(0.05, gt=0, description="Gemma Scope: 0.001.")
    general: GeneralTextConfig | None = None
    """Corpus of SAE (General), by which a released one is judged; text at hand if absent (docs/ravel.md)."""

    @model_validator(mode="after")
    def _tried(self) -> SaeConfig:
        if self.published is not None and self.published not in self.sparsity:
            raise ValueError(f"published is {self.published:g}, which is not in sparsity")
        return self


class ProbeConfig(Strict):
    """The linear probe."""

    strengths: list[float] = Field([0.01, 0.1, 1.0], min_length=1)
    """Inverse regularisations C; validation prompts choose."""
    max_iter: int = Field(500, ge=1, description="Iterations of the solver, at most.")


class AttributesConfig(Strict):
    """Which candidates outside of the prior have an attribute (ravel)."""

    match: Literal["entity", "template"] = "entity"
    """Those in which a template holds an entity of its type (ours), or in which it holds anything (paper, D.2.4). Tables have the
    scores of both."""


class PatchingConfig(Strict):
    """Task vectors (paper, D.3.1), and causal checks by counterfactual partners."""

    n_partners: int = Field(200, ge=1, description="Prompts that get a partner in a causal check, a feature.")
    n_pairs: int = Field(400, ge=2, description="Pairs of a three-shot source and a zero-shot target.")
    n_queries: int = Field(60, ge=5)
    """Queries that are asked under each task from English, to tell their parts apart."""
    n_shots: int = Field(4, ge=1, description="Draws of the shots for each of these queries and tasks.")


class FigureConfig(Strict):
    """What the figures need beyond the tables."""

    noised_draws: int = Field(20, ge=1, description="Draws a target for Figure 8.")
    extra_noise: float = Field(0.3, gt=0)
    """Cosine-distance radius of the noise injected for Figure 8."""
