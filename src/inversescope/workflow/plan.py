"""What is to be done under a configuration: experiments, their variants, sites and bandwidths, and the blocks of sites of a job.

Rules and stages ask here, so that each list is derived once. Nothing heavy is imported: Snakemake reads this before any job runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from inversescope.config import Config, ExperimentConfig
from inversescope.config.methods import ALONE, CHANGES, Bandwidth, ProposerConfig
from inversescope.config.targets import LabellerConfig, ModelConfig
from inversescope.config.tasks import COPIED
from inversescope.errors import InputError
from inversescope.sites import Site, expand_sites
from inversescope.workflow import paths
from inversescope.workflow.paths import fill

#: Loading PyTorch and the target takes seconds. Where a site takes seconds too, a process reads several sites in turn: so many, or
#: more where there would be more jobs than these otherwise.
SITES_PER_JOB = 10
JOBS = 10
#: Variants that every figure shows side by side.
VARIANTS = ("paper", "default")
#: Tasks whose answers are several tokens.
SPELLED = ("addition",)
#: Splits whose prompts are not in the task's prior.
OUTSIDE = {"ravel": ("test", "val")}
#: Priors of indirect object identification.
IOI = ("ioi", "ioi_small")
#: In-context tasks: few-shot prompts.
FEW_SHOT = ("icl_translation", "icl_words")
#: Variants whose estimates lie in one folder: those of the main part, and further ones in `study` and the others.
GROUPS = ("", "study", "frontier", "baseline")
#: Files of a model in a repository of the hub, or in a folder.
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja"]
#: Rules that make what a task's study has beside rates, by the name under which it can be asked for.
OWN_STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(IOI, {"figures": ("plot_figures",)}),
    # Figures of RAVEL are of all its experiments: `plot_ravel`.
    "ravel": {},
    **dict.fromkeys(FEW_SHOT, {"figures": ("plot_icl",)}),
}
#: The same of every other task.
CASE_STUDY = {"checks": ("compare_distances", "check_completeness"), "figures": ("plot_cases",)}


@dataclass(frozen=True)
class ExperimentPlan:
    """One experiment, a task on a target model, with all that follows from its configuration.

    Args:
        config: the configuration as this experiment sees it.
        task: name of the task.
        model: name of the target model.
    """

    config: Config
    task: str
    model: str

    @cached_property
    def settings(self) -> ExperimentConfig:
        """Its entry in `experiments`. Raises `InputError` if there is none."""
        return self.config.experiment(self.task, self.model)

    @cached_property
    def name(self) -> str:
        """Its name in `experiments`."""
        entries = self.config.experiments.items()
        return next(name for name, e in entries if (e.task, e.model) == (self.task, self.model))

    @cached_property
    def values(self) -> dict[str, Any]:
        """The configuration as nested dicts."""
        return self.config.model_dump(mode="json")

    @property
    def options(self) -> str:
        """Options that tell a command the experiment."""
        return f"--task {self.task} --model {self.model}"

    @property
    def target(self) -> ModelConfig:
        """How the target model is configured."""
        return self.config.models[self.model]

    @property
    def gpus(self) -> int:
        """GPUs that a job asks for which runs a model: one, but for a target that was trained here: a core serves it as well."""
        return int(self.target.is_fetched)

    # ----------------------------------------------------------------------------------------------------------- sites
    @cached_property
    def shape(self) -> tuple[int, int]:
        """Layers and heads of the target model: the set of jobs is known before any model is there.

        Raises:
            InputError: the configuration does not say them.
        """
        if self.target.size is None:
            raise InputError(f"models.{self.model} has no n_layers or n_heads", "set both, to know its sites")
        return self.target.size

    @cached_property
    def sites(self) -> list[Site]:
        """All sites that are read."""
        return self.expand(self.settings.sites)

    def expand(self, patterns: list[str]) -> list[Site]:
        """The sites that patterns name on this model. Raises `InputError` for one that it does not have."""
        return expand_sites(patterns, *self.shape)

    def sites_of(self, variant: str) -> list[Site]:
        """Sites that a variant is trained on and read at; the configuration is refused if the experiment does not read them."""
        patterns = self.config.variant(variant).sites
        return self.sites if patterns is None else self.expand(patterns)

    @cached_property
    def labels(self) -> list[str]:
        """Labels of all sites in order."""
        return [site.label for site in self.sites]

    @cached_property
    def _labels_of(self) -> dict[str, list[str]]:
        return {name: [site.label for site in self.sites_of(name)] for name in self.variants}

    def labels_of(self, variants: Iterable[str]) -> list[str]:
        """Labels of the sites that any of some planned variants reads."""
        read = {label for name in variants for label in self._labels_of[name]}
        return [label for label in self.labels if label in read]

    # -------------------------------------------------------------------------------------------------------- variants
    @cached_property
    def studied(self) -> list[str]:
        """Variants of the main part."""
        return list(dict.fromkeys(self.config.studied_variants))

    @cached_property
    def leading(self) -> str | None:
        """The variant whose candidates stand for all where one must do: `default`, or else the first; None if there is none."""
        return "default" if "default" in self.studied else next(iter(self.studied), None)

    @property
    def drawn_split(self) -> str:
        """Prompts of the prior that stand for it beside candidates: the activation cache or, without variants, the reference."""
        return "train" if self.leading else "reference"

    def _of_study(self, *studies: str) -> list[str]:
        names = dict.fromkeys(self.config.study_variants)
        return [name for name in names if self.config.variant(name).study in studies]

    @cached_property
    def frontier(self) -> list[str]:
        """Variants that the frontier compares; without any there is no frontier."""
        return self._of_study("frontier")

    @cached_property
    def baseline(self) -> list[str]:
        """Variants that Figure 5 shows beside those of the main part; without any there is no Figure 5."""
        return self._of_study("baseline")

    @cached_property
    def ablations(self) -> list[str]:
        """Variants of the study over dimension, steps and seeds, and the ablations: all others of studies."""
        alone = self._of_study(*ALONE)
        return [name for name in dict.fromkeys(self.config.study_variants) if name not in alone]

    @cached_property
    def claims(self) -> list[str]:
        """Those of them that change one thing, seed by seed (`CHANGES`): they have a table of their own."""
        return [name for name in self.ablations if self.config.variant(name).study in CHANGES]

    @cached_property
    def variants(self) -> list[str]:
        """All of these."""
        return list(dict.fromkeys([*self.studied, *self.config.study_variants]))

    @property
    def scored(self) -> list[str]:
        """Variants of the main part that are scored as readers: `paper`, `default` and those of other generators, or else all."""
        return [name for name in self.studied if self._is_reader(name)] or self.studied

    @property
    def rivals(self) -> list[str]:
        """Variants of the frontier that are: those of other generators."""
        return [name for name in self.frontier if self._is_reader(name)]

    def _is_reader(self, variant: str) -> bool:
        return variant in VARIANTS or self.generator_of(variant) != "inversescope"

    def group(self, name: str) -> list[str]:
        """Variants of one of `GROUPS`."""
        return dict(zip(GROUPS, (self.studied, self.ablations, self.frontier, self.baseline), strict=True))[
            name
        ]

    def generator_of(self, variant: str) -> str:
        """The generator that a variant trains."""
        return self.config.variant(variant).generator

    @cached_property
    def bandwidths(self) -> list[Bandwidth]:
        """All bandwidths at which anything is read."""
        of_variants = [one for name in self.variants for one in self.config.bandwidths_of(name)]
        return sorted({*self.config.kernel.bandwidths, *of_variants})

    @property
    def functions(self) -> list[str]:
        """Features whose rates are asked for that are none of the task's own, but label functions of the grammar."""
        own = getattr(self.config, self.task).feature_names
        return [name for name in self.config.fcr.features if name not in own]

    @property
    def has_chains(self) -> bool:
        """Whether chains of swap moves are run."""
        return self.config.fcr.mcmc_evaluations > 0

    @property
    def labelled(self) -> bool:
        """Whether a chat model's labels of draws are the task feature of a figure."""
        labeller = self.config.labeller
        return self.task in FEW_SHOT and bool(self.studied) and labeller is not None and labeller.targets > 0

    @property
    def corpora(self) -> list[str]:
        """What sparse autoencoders are about: the task's prompts, and general text."""
        return [self.task, "general"]

    @property
    def trained_corpora(self) -> list[str]:
        """Those of which autoencoders are trained here: of general text, where no release has them."""
        return [self.task] if self.target.gemma_scope is not None else self.corpora

    @property
    def general_text(self) -> list[str]:
        """Files of the corpus of general text; none if text at hand stands for it."""
        corpus = self.config.sae.general
        if corpus is None:
            return []
        return files_in(corpus.own) or self.files(paths.GENERAL, file=COPIED)

    # ---------------------------------------------------------------------------------------------------------- splits
    @property
    def is_enumerated(self) -> bool:
        """Whether the reference split is all of the prior: its prompts are run once, and everything else looks them up."""
        return self.settings.n_reference == "all"

    def kept_in(self, split: str) -> str:
        """The split whose files hold a split's activations: of an enumerated prior `reference`, of which it is a selection."""
        selected = self.is_enumerated and split not in OUTSIDE.get(self.task, ())
        return "reference" if selected else split

    @property
    def looked_up(self) -> list[str]:
        """Splits among which activations of candidates are looked up; none where the target computes them."""
        return ["reference", "test"] if self.is_enumerated else []

    @cached_property
    def patched_and_held(self) -> list[str]:
        """Labels of the patched sites at which the activations of all of the prior are in files."""
        patched = {site.label for site in self.expand(self.settings.patched)}
        return [label for label in self.labels if self.is_enumerated and label in patched]

    @property
    def extracted(self) -> list[str]:
        """Splits that the target is run on."""
        cached = ["train"] * bool(self.variants)
        splits = [*cached, *self.centre, "test", "reference"] + ["val"] * bool(self.settings.n_val)
        return list(dict.fromkeys(map(self.kept_in, splits)))

    @property
    def centre(self) -> list[str]:
        """Splits whose mean is taken off all activations: with a centred kernel the cache."""
        return ["train"] if self.config.kernel.centred else []

    def prompts(self, splits: Iterable[str]) -> list[str]:
        """Prompts of splits, and of those whose files hold their activations."""
        named = [*splits, *self.centre]
        return self.files(paths.PROMPTS, split=list(dict.fromkeys([*named, *map(self.kept_in, named)])))

    def activations(self, splits: Iterable[str], labels: Iterable[str]) -> list[str]:
        """Files that hold the activations of splits at sites, and those of the centre that is taken off them."""
        kept = list(dict.fromkeys(map(self.kept_in, [*splits, *self.centre])))
        return self.files(paths.ACTIVATIONS, split=kept, site=list(labels))

    # ----------------------------------------------------------------------------------------------------------- files
    @property
    def weights(self) -> list[str]:
        """Files of the weights that a GGUF file holds; none of any other model."""
        return self.files(paths.WEIGHTS, file=paths.TARGET_FILES) if self.target.gguf else []

    @property
    def target_files(self) -> list[str]:
        """Files of the target model that is read: of one from elsewhere its description, and its weights if they are here."""
        own = ["target.json"] if self.target.is_fetched else paths.TARGET_FILES
        return self.files(paths.TARGET, file=own) + self.weights

    @property
    def from_hub(self) -> list[tuple[str, str, list[str]]]:
        """What jobs read from the hub beside the target: repository, revision, and patterns of its files."""
        read: list[Any] = []
        if self.config.backbone.init == "hub":
            read.append(self.config.backbone)
        chat = self.config.labeller if self.task in FEW_SHOT else None
        if chat is not None:
            model = self.config.models[chat.model] if chat.model else chat
            if model.source == "hub" and not (isinstance(model, ModelConfig) and model.gguf):
                read.append(model)
        proposer = self.config.hypotheses.proposer
        if proposer is not None and proposer.source == "hub":
            read.append(proposer)
        return [(str(one.path), str(one.revision), MODEL_FILES) for one in read]

    @property
    def labeller_files(self) -> list[str]:
        """Files of the chat model that labels, if they are here: dequantised ones, or those of a folder."""
        chat = self.config.labeller
        if chat is None or chat.model is None:
            return model_files(chat)
        if self.config.models[chat.model].gguf:
            return fill(paths.WEIGHTS, model=chat.model, file=paths.TARGET_FILES)
        return model_files(self.config.models[chat.model])

    @property
    def proposer_files(self) -> list[str]:
        """Files of the chat model that proposes hypotheses, if they are here."""
        return model_files(self.config.hypotheses.proposer)

    @property
    def fetched(self) -> list[str]:
        """The file that says that all of this is in the hub's cache, where there is any."""
        return self.files(paths.FETCHED) if self.from_hub else []

    @property
    def recomputed_by(self) -> list[str]:
        """Files of the target that computes activations of candidates; none where they are looked up."""
        return [] if self.is_enumerated else self.target_files

    def files(self, pattern: str, **values: str | Sequence[str]) -> list[str]:
        """Files of this experiment, one for each combination of some values."""
        return fill(pattern, task=self.task, model=self.model, **values)

    def at_sites(self, pattern: str, **values: str | Sequence[str]) -> list[str]:
        """A file for each site that is read."""
        return self.files(pattern, site=self.labels, **values)

    def at_sites_of(self, variants: Iterable[str], pattern: str, **values: str | Sequence[str]) -> list[str]:
        """A file for each site that any of some variants reads."""
        return self.files(pattern, site=self.labels_of(variants), **values)

    def of_variants(self, pattern: str, variants: Iterable[str], **values: str | Sequence[str]) -> list[str]:
        """A file for each of some variants."""
        return [
            file
            for name in variants
            for file in self.files(pattern, generator=self.generator_of(name), variant=name, **values)
        ]

    def samples(self, variants: Iterable[str], site: str | None = None) -> list[str]:
        """What `sample_prompts` writes for variants at one site, or at all that each reads."""
        return [
            file
            for name in variants
            for label in self._labels_of[name]
            if site in (None, label)
            for file in self.of_variants(paths.SAMPLES, [name], site=label, suffix=paths.SAMPLE_SUFFIXES)
        ]

    @property
    def bandwidth_table(self) -> list[str]:
        """The table of each site's epsilons, where bandwidths are shares of the prior."""
        return self.files(paths.BANDWIDTHS) if self.config.shares else []

    def autoencoders(self, trained_here: bool = False, **named: str | Sequence[str]) -> list[str]:
        """Files of autoencoders, names not given left open: of each corpus the chosen one, of the task's the published one too.

        All of them, or those alone that are trained here: of general text they may be released ones.
        """
        published = [self.task] if self.config.sae.published is not None else []
        corpora = self.trained_corpora if trained_here else self.corpora
        return [
            file
            for pattern, of in ((paths.AUTOENCODER, corpora), (paths.PUBLISHED, published))
            for file in fill(pattern, corpus=of, file=paths.CHECKPOINT_FILES, **named)
        ]

    @property
    def accuracy(self) -> list[str]:
        """The table that tells how many answers of the target are right, where it is trained or imported here."""
        name = {"trained": "target_selection.csv", "checkpoint": "target_import.csv"}.get(self.target.source)
        return self.files(paths.RESULT, file=[name] if name else [])

    @property
    def whole(self) -> Block:
        """All sites as one block."""
        return Block(self, tuple(self.labels))

    def parts(self, outputs_of: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
        """What can be asked for by name, in pipeline order: files that all of a part is made with.

        Args:
            outputs_of: patterns of what a rule writes, by its name.
        """

        def made_by(*rules: str) -> list[str]:
            return [file for rule in rules for pattern in outputs_of(rule) for file in self.files(pattern)]

        parts = {
            "targets": self.target_files,
            "activations": self.activations(self.extracted, self.labels),
            "exact": self.at_sites(paths.EXACT),
        }
        if self.task in IOI:
            parts["layers"] = made_by("plot_layers")
            parts["heads"] = made_by("plot_heads")
        if self.task == "ravel":
            parts["autoencoders"] = self.at_sites(paths.SITE_TABLE, table="sae")
        if self.task in FEW_SHOT:
            parts["patching"] = made_by("patch_task_vectors")
        # A control has no generators, hence only parts that need none.
        if self.variants:
            parts["generators"] = self.of_variants(paths.CHECKPOINT, self.variants, file="model.safetensors")
            parts["samples"] = self.samples(self.variants)
        parts["hypotheses"] = made_by("collect_hypotheses")
        if self.studied:
            parts["estimates"] = self.at_sites(paths.CELLS, group="")
            parts["tables"] = self.files(paths.RESULT, file="fcr.csv")
            if self.task == "ravel":
                parts["attributes"] = self.at_sites(paths.SITE_TABLE, table="attributes")
            parts["readers"] = made_by("plot_readers")
            for part, rules in OWN_STUDIES.get(self.task, CASE_STUDY).items():
                parts[part] = made_by(*rules)
        if self.labelled:
            parts["labels"] = made_by("plot_labels")
        if self.baseline:
            parts["baseline"] = made_by("plot_baseline")
        if self.settings.patched:
            parts["causes"] = made_by("plot_causes")
            if self.task in SPELLED:
                parts["answers"] = made_by("plot_answers")
        if self.studied:
            parts["browser"] = made_by("make_browser")
        if self.ablations:
            plots = {"plot_study": self.ablations != self.claims, "plot_claims": bool(self.claims)}
            parts["study"] = made_by(*(rule for rule, draws in plots.items() if draws))
        if self.frontier:
            parts["frontier"] = made_by("plot_frontier", *(["plot_frontier_readers"] if self.rivals else []))
        return parts


@dataclass(frozen=True)
class Block:
    """Sites that one job reads in turn.

    Attributes:
        experiment: whose sites.
        sites: labels of the sites, or the wildcard.
        variants: which read just these sites; empty where no variant is read.
        group: of the variants whose estimates are made (`ExperimentPlan.group`).
    """

    experiment: ExperimentPlan
    sites: tuple[str, ...]
    variants: tuple[str, ...] = ()
    group: str = ""

    @property
    def name(self) -> str:
        """What the rule's name ends in."""
        whole = self.sites == ("{site}",) or list(self.sites) == self.experiment.labels
        told = [self.experiment.name, self.group, "" if whole else self.sites[0], *self.variants[:1]]
        return re.sub(r"\W", "_", "_".join(filter(None, told)))

    @property
    def folder(self) -> str:
        """The folder of its estimates, as paths begin with it."""
        return f"{self.group}/" if self.group else ""

    @property
    def tables(self) -> list[str]:
        """Its tables of estimates; what is known without generators is only among those of the main part."""
        names = ["fcr", "refusal"] if self.group else ["fcr", "refusal", "coverage"]
        return [f"{self.folder}{name}" for name in names]

    @property
    def constraints(self) -> dict[str, str]:
        """Values that the rule's wildcards may have: what keeps it apart from other blocks' rules."""
        limits = {"task": one_of([self.experiment.task]), "model": one_of([self.experiment.model])}
        return limits | ({"variant": one_of(self.variants)} if self.variants else {})

    @property
    def label(self) -> str:
        """The sites in words, for messages."""
        if self.sites == ("{site}",):
            return "{wildcards.site}"
        return self.sites[0] if len(self.sites) == 1 else f"{len(self.sites)} sites from {self.sites[0]}"

    @property
    def options(self) -> str:
        """Options that tell a command its sites; the wildcard is filled in where they stand in a rule's `params`."""
        return " ".join(f"--site {site}" for site in self.sites)

    def samples_of(self, variants: Iterable[str]) -> Callable[[Any], list[str]]:
        """Input function: what `sample_prompts` writes at the sites, for those of some variants that read them."""
        return lambda wildcards: [
            file
            for label in self.sites
            for file in self.experiment.samples(variants, wildcards.get("site", label))
        ]


def variant_options(variants: Iterable[str]) -> str:
    """Options that name variants to a command; it leaves out those that were not trained on its site."""
    return " ".join(f"--variant {name}" for name in variants)


def weights_note(config: Config, prefix: str) -> str:
    """What is said wherever a study is shown, if weights of its models are not the published ones; else empty.

    Args:
        config: of the experiment, or all of it.
        prefix: how names of the study's files begin: `{task}_{model}_`, or `{task}_` if it is of all models.
    """
    models = {
        e.model: config.models[e.model].weights
        for e in config.experiments.values()
        if prefix in (f"{e.task}_", f"{e.task}_{e.model}_")
    }
    return " ".join(f"{name}: {weights}." for name, weights in models.items() if weights)


def files_in(places: Iterable[str]) -> list[str]:
    """Files of the project's owner: those that are named, and all that are in folders that are named."""
    found: list[Path] = []
    for place in map(Path, places):
        found += [file for file in sorted(place.rglob("*")) if file.is_file()] if place.is_dir() else [place]
    return [file.as_posix() for file in found]


def model_files(model: ModelConfig | LabellerConfig | ProposerConfig | None) -> list[str]:
    """Files of a model that lies in a folder; none of any other."""
    if model is None or model.source != "local":
        return []
    found = sorted(file for pattern in MODEL_FILES for file in Path(str(model.path)).glob(pattern))
    return [file.as_posix() for file in found] or [str(model.path)]


def one_of(names: Iterable[str]) -> str:
    """Regular expression that matches these names and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


class Plan:
    """All experiments of a configuration.

    Args:
        config: the whole configuration.

    Raises:
        InputError: a model's layers and heads are not known.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        pairs: list[tuple[str, str]] = [(e.task, e.model) for e in config.experiments.values()]
        self._experiments = {pair: ExperimentPlan(config.of(*pair), *pair) for pair in pairs}
        self.experiments = list(self._experiments.values())
        self.tasks = sorted({task for task, _ in pairs})
        self.models = sorted({model for _, model in pairs})
        #: Tasks that are studied as InversionView's cases are.
        self.case_studies = [task for task in self.tasks if task not in OWN_STUDIES]
        for experiment in self.experiments:
            experiment.labels_of(experiment.variants)

    def __getitem__(self, experiment: tuple[str, str]) -> ExperimentPlan:
        """The experiment on a task and a model."""
        return self._experiments[experiment]

    @property
    def reported(self) -> ExperimentPlan | None:
        """The experiment that results/report.html shows: the first studied one on indirect object identification."""
        return next((e for e in self.experiments if e.task in IOI and e.studied), None)

    @property
    def bandwidth_label(self) -> str:
        """Headline bandwidths for readers; where they differ, each with its experiments."""
        found: dict[str, list[str]] = {}
        for experiment in self.experiments:
            found.setdefault(experiment.config.bandwidth_label, []).append(experiment.name)
        told = [f"{label} ({', '.join(names)})" for label, names in found.items()]
        return "; ".join(told) if len(told) > 1 else next(iter(found), "")

    def with_control(self, experiment: ExperimentPlan) -> list[ExperimentPlan]:
        """An experiment, and the control that figures show beside it."""
        control = experiment.target.control
        return [experiment, self[experiment.task, control]] if control else [experiment]

    def on(self, task: str) -> list[ExperimentPlan]:
        """Experiments that read a task's prompts."""
        return [e for e in self.experiments if e.task == task]

    def models_that(self, belongs: Callable[[ModelConfig], Any]) -> list[str]:
        """Models that are read and of which something holds."""
        return [name for name in self.models if belongs(self.config.models[name])]

    @cached_property
    def variants(self) -> list[str]:
        """Variants of all experiments."""
        return list(dict.fromkeys(name for e in self.experiments for name in e.variants))

    @cached_property
    def generators(self) -> list[str]:
        """Generators of all experiments."""
        return sorted({e.generator_of(name) for e in self.experiments for name in e.variants})

    @cached_property
    def candidates(self) -> list[str]:
        """Candidates of all models that are trained here."""
        return sorted({c for m in self.models for c in self.config.models[m].candidates})

    def data_of(self, task: str) -> list[str]:
        """Files that a task's prior is made of: downloaded ones, and those that the project's owner puts there."""
        about = getattr(self.config, task)
        downloaded = [f"data/{task}/{file}" for file in getattr(about, "files", [])]
        return downloaded + files_in(getattr(about, "sources", []))

    def prompts_of(self, task: str) -> list[str]:
        """Files of all splits of a task's prompts."""
        validated = any(e.settings.n_val for e in self.on(task))
        return fill(paths.PROMPTS, task=task, split=paths.ALL_SPLITS if validated else paths.SPLITS)


def blocks(experiments: Iterable[ExperimentPlan], by_variant: bool = False, group: str = "") -> list[Block]:
    """Sites by the job that reads them: some in turn, of a large model a single one.

    Args:
        experiments: whose sites.
        by_variant: apart for each set of variants that read the same sites.
        group: of further variants, whose sites alone are read; all sites if it is the main one.
    """
    found: list[Block] = []
    for experiment in experiments:
        read = experiment.labels_of(experiment.group(group)) if group else experiment.labels
        readers: dict[tuple[str, ...], tuple[str, ...]] = {tuple(read): ()} if read else {}
        if by_variant:
            readers = {}
            for name in experiment.variants:
                labels = tuple(experiment.labels_of([name]))
                readers[labels] = (*readers.get(labels, ()), name)
        if experiment.target.is_large and readers:
            readers = {("{site}",): tuple(experiment.variants) if by_variant else ()}
        for labels, variants in readers.items():
            size = max(SITES_PER_JOB, -(-len(labels) // JOBS))
            for start in range(0, len(labels), size):
                found.append(Block(experiment, labels[start : start + size], variants, group))
    return found
