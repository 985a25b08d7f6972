"""The whole configuration as pydantic models: each setting is described here or in the modules beside, with its default, once.

`config/config.yaml` is written by hand and says what differs. `config/schema.json` is made from these models by
`inversescope config schema`; a test fails with a diff when it has drifted.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from inversescope.config.check import check
from inversescope.config.entries import Misplaced, merge
from inversescope.config.methods import (
    ALONE,
    CHANGES,
    PLAIN,
    AttributesConfig,
    BackboneConfig,
    Bandwidth,
    FcrConfig,
    FigureConfig,
    HypothesesConfig,
    KernelConfig,
    PatchingConfig,
    ProbeConfig,
    SaeConfig,
    SamplingConfig,
    VariantConfig,
)
from inversescope.config.strict import Strict
from inversescope.config.targets import LabellerConfig, ModelConfig
from inversescope.config.tasks import (
    AdditionConfig,
    CountingConfig,
    IOIConfig,
    RavelConfig,
    SmallIOIConfig,
    TaskName,
    TextConfig,
    TranslationConfig,
    WordsConfig,
)
from inversescope.errors import InputError


class Settings(Strict):
    """What an experiment may set for itself. Models and priors are shared and named."""

    budget: float = Field(1.0, gt=0, description="The one knob: scales training steps and sampling budgets.")
    kernel: KernelConfig = KernelConfig()
    backbone: BackboneConfig = BackboneConfig()
    variants: dict[str, VariantConfig] = Field(default_factory=dict)
    """Ways to make a generator; the runs of `studies` among them."""
    sampling: SamplingConfig = SamplingConfig()
    fcr: FcrConfig = FcrConfig()
    hypotheses: HypothesesConfig = HypothesesConfig()
    figures: FigureConfig = FigureConfig()
    sae: SaeConfig = SaeConfig()
    probe: ProbeConfig = ProbeConfig()
    attributes: AttributesConfig = AttributesConfig()
    patching: PatchingConfig = PatchingConfig()
    labeller: LabellerConfig | None = None
    """Chat model that labels the tasks of few-shot candidates; none if absent."""


class ExperimentConfig(Strict):
    """A task, a target model, the sites that are read, and what differs from the other experiments."""

    base: str | None = Field(None, exclude=True)
    """The experiment that this one takes over; what follows is the change."""
    task: TaskName = Field("ioi", description="The prior P(x).")
    model: str = Field(..., description="The target model: an entry of `models`.")
    sites: list[str] = Field(..., min_length=1)
    """Labels or patterns such as L*H* and L*.resid_post."""
    patched: list[str] = Field(default_factory=list)
    """Sites of the causal checks, as in `sites` (resid_mid cannot be replaced); empty = no causal checks."""
    variants: list[str] = ["paper", "default"]
    """Variants that are trained and compared in its figures; empty = exact values alone."""
    studies: list[str] = Field(default_factory=list)
    """Studies whose variants are trained too, or single variants of studies."""
    # Excluded: jobs depend on the experiment's view (`of`), not on how it came about.
    settings: Settings = Field(Settings(), exclude=True)
    """Laid over the rest of the configuration for this experiment alone."""
    n_train: int = Field(100_000, ge=1, description="Prompts in the activation cache (paper: 100,000).")
    n_test: int = Field(50, ge=1, description="Target prompts, drawn from the test split (paper: 5,000).")
    representative: list[int] | None = Field(None, min_length=1)
    """Layers of Figure 10 and Table 2 (ravel); all that are read if absent."""
    shown: dict[Literal["fig2", "fig8", "table1"], list[str]] = Field(default_factory=dict)
    """Heads that Figures 2 and 8 and Table 1 show; chosen by rule where none is named."""
    prompt: str | None = None
    """The prompt of the prior that Figure 2 and Table 1 show: it is made the first target. If absent, the first one drawn."""
    n_val: int = Field(0, ge=0)
    """Prompts on which bandwidths by share and hyperparameters of baselines (ravel) are chosen."""
    n_reference: int | Literal["all"] = "all"
    """Prior draws for the exact values, or all of the prior."""


class SweepConfig(Strict):
    """How the runs of a study are repeated."""

    name: str = "{run}"
    """Names of the variants: {run}, {seed} and {times} (of the steps) are filled in."""
    seeds: list[int] = Field([0], min_length=1, description="Seeds of the runs.")
    times: list[Annotated[float, Field(gt=0)]] = Field([1.0], min_length=1)
    """Multiples of a run's training steps."""
    headline: bool = Field(False, description="Read under the first of the run's `settings` alone.")

    @field_validator("name")
    @classmethod
    def _fillable(cls, name: str) -> str:
        try:
            name.format(run="", seed=0, times="")
        except (KeyError, ValueError, IndexError, AttributeError):
            raise ValueError(f"may have {{run}}, {{seed}} and {{times}} alone in braces: {name!r}") from None
        return name


class StudyConfig(Strict):
    """Variants that are trained to be compared: every run once a sweep, seed and multiple of the steps."""

    sites: list[str] | None = Field(None, description="Sites of the runs that do not say their own.")
    steps: dict[str, int] = Field(default_factory=dict)
    """Base -> training steps of the runs that do not say their own."""
    sweeps: list[SweepConfig] = Field(default_factory=list)
    """Each trains all runs; if absent, they are trained once, under their own names. Runs without a `change` are then compared
    by seed and steps."""
    once: list[str] = Field(default_factory=list, description="Runs of each sweep's first seed alone.")
    runs: dict[str, dict[str, Any]]
    """Entries as in `variants`; `base` is the variant that they change."""

    @model_validator(mode="after")
    def _known(self) -> StudyConfig:
        for name in self.once:
            if name not in self.runs:
                raise Misplaced(("once",), f"{name!r} is not in 'runs'")
        return self


class Config(Settings):
    """The whole configuration."""

    include: list[str] = Field(default_factory=list, exclude=True)
    """Files, named from this one's folder, that this one is laid over."""
    seed: int = Field(0, description="Of all random numbers: each stage, site and target has its own stream.")
    save_every: int = Field(500, ge=1)
    """Training steps between two states that a killed training resumes from; no result depends on it."""
    mirror: str | None = None
    """Folder in which upstream files are looked for before they are fetched; both are checked by SHA-256."""
    only: list[str] | None = None
    """Names of the experiments that are run; all of them if absent."""
    experiments: dict[str, ExperimentConfig] = Field(default_factory=dict)
    """What is run: a task on a model."""
    models: dict[str, ModelConfig] = Field(default_factory=dict, description="Target models.")
    studies: dict[str, StudyConfig] = Field(default_factory=dict)
    """Variants by seed, steps and change."""
    ioi: IOIConfig = IOIConfig()
    ioi_small: SmallIOIConfig = SmallIOIConfig()
    ravel: RavelConfig = RavelConfig()
    icl_translation: TranslationConfig = TranslationConfig()
    icl_words: WordsConfig = WordsConfig()
    counting: CountingConfig = CountingConfig()
    addition: AdditionConfig = AdditionConfig()
    text: TextConfig = TextConfig()
    # Of an experiment's view (`of`); in files an experiment names its variants and studies.
    studied_variants: list[str] = Field(["paper", "default"])
    study_variants: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        check(self)
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
        raise InputError(f"no experiment reads model {model!r} on task {task!r}", f"add one beside {known}")

    def of(self, task: str, model: str) -> Config:
        """The configuration as an experiment sees it: its `settings` laid over the rest, its variants and studies chosen.

        Raises:
            InputError: no experiment reads this model on this task.
        """
        chosen = self.experiment(task, model)
        return self.view(next(name for name, e in self.experiments.items() if e is chosen))

    def view(self, name: str) -> Config:
        """The same by the experiment's name."""
        experiment = self.experiments[name]
        own = experiment.settings.model_dump(exclude_unset=True)
        parts = Settings.model_validate(merge(self.model_dump(include=set(own)), own))
        view = self.model_copy(update={part: getattr(parts, part) for part in own})
        studies = experiment.studies
        runs = [v for s in studies for v, about in view.variants.items() if s in (v, about.study)]
        chosen = {"studied_variants": list(experiment.variants), "study_variants": list(dict.fromkeys(runs))}
        return view.model_copy(update=chosen)

    def variant(self, name: str) -> VariantConfig:
        """A variant by name. Raises `InputError` if it is unknown."""
        if name not in self.variants:
            raise InputError(f"unknown variant {name!r}", f"choose one of {', '.join(self.variants)}")
        return self.variants[name]

    def is_swept(self, name: str) -> bool:
        """Whether a variant is its base once more, at a seed and a number of steps: a run without a `change` of a study that has
        `sweeps`, and no table of its own."""
        variant = self.variant(name)
        study = self.studies.get(variant.study)
        own_table = variant.study in (*ALONE, *CHANGES)
        return study is not None and bool(study.sweeps) and not own_table and not variant.change

    def bandwidth_of(self, name: str) -> Bandwidth:
        """The bandwidth that a variant is trained for or, if epsilon is one of its inputs, at which most of it is read."""
        variant = self.variant(name)
        if variant.share is not None:
            return Bandwidth("share", variant.share)
        if variant.epsilon is not None:
            return Bandwidth("epsilon", variant.epsilon)
        return self.headline_of(name)

    def headline_of(self, name: str) -> Bandwidth:
        """The bandwidth at which figures show a variant: the headline's. One that is trained for a single bandwidth and does not
        say which is one of the paper's epsilon, whatever the headline is."""
        variant = self.variant(name)
        fixed = not variant.eps_input and variant.epsilon is None and variant.share is None
        return Bandwidth("epsilon", self.kernel.epsilon) if fixed else self.kernel.headline

    def bandwidths_of(self, name: str) -> list[Bandwidth]:
        """Bandwidths at which a variant is read: the one that it was trained for. If epsilon is one of its inputs, all of them; in
        a study over steps and seeds those of the variants beside it."""
        variant = self.variant(name)
        if variant.eps_input and (name in self.studied_variants or variant.study == "sparse"):
            return self.kernel.bandwidths
        if variant.eps_input and self.is_swept(name):
            beside = [one for one in self.study_variants if self.variant(one).study == variant.study]
            return sorted({self.bandwidth_of(one) for one in beside})
        return [self.bandwidth_of(name)]

    @property
    def bandwidth_label(self) -> str:
        """The headline bandwidth for readers, and that of `paper` and `default` where they are shown at another one."""
        headline = self.kernel.headline
        shown = {name: self.headline_of(name) for name in ("paper", "default") if name in self.variants}
        others = [f"{name}: {one.label}" for name, one in shown.items() if one != headline]
        return headline.label + (f" ({', '.join(others)})" if others else "")

    def shares_of(self, name: str) -> set[float]:
        """Shares of the prior whose epsilons a variant is trained or read at."""
        variant = self.variant(name)
        drawn = variant.share_range if variant.eps_input and self.kernel.by_share else ()
        return {*drawn, *(one.value for one in self.bandwidths_of(name) if one.kind == "share")}

    @property
    def shares(self) -> list[float]:
        """All shares of the prior whose epsilons an experiment's view asks for."""
        of_variants = [self.shares_of(name) for name in (*self.studied_variants, *self.study_variants)]
        read = {one.value for one in self.kernel.bandwidths if one.kind == "share"}
        return sorted(read.union(*of_variants))

    def decodings_of(self, name: str, own: bool, is_head: bool) -> list[str]:
        """Decoding rules under which a variant is read: 'plain' always, the others at its own bandwidth (`bandwidth_of`)."""
        variant = self.variant(name)
        if not own:
            return [PLAIN]
        if variant.settings:
            return list(variant.settings)
        if name not in ("paper", "default"):
            return [PLAIN]
        return [PLAIN, *(d for d in self.sampling.decodings if d != "noised" or is_head)]


def to_schema() -> str:
    """JSON schema of the hand-written form: entries of which a base, or another layer, may say the rest."""
    schema = Config.model_json_schema()
    for name in ("ExperimentConfig", "VariantConfig", "ModelConfig", "StudyConfig", "GeneralTextConfig"):
        schema["$defs"][name].pop("required", None)
    for name in ("studied_variants", "study_variants"):
        del schema["properties"][name]
    del schema["$defs"]["VariantConfig"]["properties"]["study"]
    variant = {"$ref": "#/$defs/VariantConfig"}
    schema["$defs"]["StudyConfig"]["properties"]["runs"]["additionalProperties"] = variant
    return json.dumps(schema, indent=2) + "\n"
