# Helpers of the rules: the configuration, tables of tasks, models, sites and variants, and input functions. No rules.
import functools
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from snakemake.exceptions import WorkflowError

from inversescope.config import Config, parse_config, read_layers
from inversescope.errors import InputError
from inversescope.sites import SITE_PATTERN, expand_sites
from inversescope.workflow.sources import literal, source_file, source_files

# Jobs call the command `inversescope` of the environment that runs Snakemake, whether or not it is activated.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


# ----------------------------------------------------------------------------------------------------------- configuration
def configuration_files() -> list[str]:
    """The default configuration, then what --configfile names, in order, as paths that the jobs can be given."""
    files: list[str] = []
    for file in [Path("config/config.yaml"), *map(Path, workflow.configfiles)]:
        path = os.path.relpath(file)
        if Path(path).is_file() and path not in files:
            files.append(path)
    return files


def read_configuration() -> Config:
    """Validate the configuration and make sure that the jobs, which read the files, see what Snakemake sees."""
    try:
        written = read_layers(CONFIG_FILES)
        if config != written:
            raise InputError(
                "--config overrides do not reach the jobs",
                "write them to a YAML file and pass it by --configfile",
            )
        return parse_config(written)
    except InputError as error:
        raise WorkflowError(str(error)) from None


CONFIG_FILES = configuration_files()
CONFIG = read_configuration()
# Captions of the report quote values, most of which are defaults that stand in no file.
config.clear()
config.update(CONFIG.model_dump(mode="json"))


def settings_of(where) -> Config:
    """The configuration as the experiment of a job sees it; `where` has a task and a model: wildcards or an `Experiment`."""
    return OF[where.task, where.model]


@functools.cache
def parts_of(task: str, model: str) -> dict[str, object]:
    """The same as nested dicts."""
    return OF[task, model].model_dump(mode="json")


def used(where, *keys: str) -> dict[str, object]:
    """The named parts of an experiment's configuration, for `params`: a job reruns when one of them changes, and only then."""
    everything = parts_of(where.task, where.model)
    return {key: functools.reduce(lambda part, name: part[name], key.split("/"), everything) for key in keys}


# The kernel at the one bandwidth where most of the study is done.
HEADLINE = ["kernel/epsilon", "kernel/distance", "kernel/kind"]


def made_as(where) -> dict[str, object]:
    """How a job's variant is made, without what only tells readers about it."""
    settings = settings_of(where).variants[where.variant].model_dump(mode="json")
    told = {"base", "change", "study", "settings", "label", "colour"}
    return {"variant": {key: value for key, value in settings.items() if key not in told}}


def drawn_as(where, variant: str) -> dict[str, object]:
    """How candidates of a variant are drawn; how many at a time makes no difference to what is drawn."""
    config = settings_of(where)
    return {
        "sampling": config.sampling.model_dump(mode="json", exclude={"batch", "settings"}),
        "settings": {
            name: config.sampling.rule(name).model_dump(mode="json")
            for name in config.variants[variant].settings
        },
        "studied": variant in config.studied_variants,
        "epsilons": config.epsilons_of(variant),
    }


def options(wildcards, threads) -> str:
    """Options that each command takes. It asks for `threads`, so Snakemake does not record it: where files lie and how many
    threads a job has must not make its results stale."""
    return " ".join(f"--config {shlex.quote(file)}" for file in CONFIG_FILES)


# --------------------------------------------------------------------------------------------- tables of what is to be done
EXPERIMENTS = {(e.task, e.model): e for e in CONFIG.experiments.values()}
OF = {pair: CONFIG.of(*pair) for pair in EXPERIMENTS}
TASKS = sorted({task for task, _ in EXPERIMENTS})
MODELS = sorted({model for _, model in EXPERIMENTS})
TRAINED = [m for m in MODELS if CONFIG.models[m].source == "trained"]
# Of both there are all files here, and both are small.
IMPORTED = [m for m in MODELS if CONFIG.models[m].source == "checkpoint"]
FETCHED = [m for m in MODELS if m not in TRAINED + IMPORTED]
CANDIDATES = sorted({c for m in TRAINED for c in CONFIG.models[m].candidates})
SPLITS = ["train", "test", "reference"]
# What further tasks have beside these.
FURTHER_SPLITS = ["val"]


def studied(where) -> list[str]:
    """Variants of an experiment's main part."""
    return list(dict.fromkeys(settings_of(where).studied_variants))


def of_study(where) -> list[str]:
    """Variants of an experiment's study over dimension, steps and seeds, of its ablations and its frontier."""
    return list(dict.fromkeys(settings_of(where).study_variants))


def of_ablations(where) -> list[str]:
    """Variants of the study over dimension, steps and seeds, and of its ablations: all of the study but the frontier's."""
    return [name for name in of_study(where) if name not in of_frontier(where)]


def patched(where) -> list[str]:
    """Sites of an experiment's causal checks."""
    return EXPERIMENTS[where.task, where.model].patched


def of_frontier(where) -> list[str]:
    """Variants that the frontier compares; without any there is no frontier."""
    return [name for name in of_study(where) if settings_of(where).variants[name].study == "frontier"]


def all_variants(where) -> list[str]:
    """All variants of an experiment."""
    return list(dict.fromkeys(studied(where) + of_study(where)))


def generator_of(where, variant: str) -> str:
    """The generator that a variant trains."""
    return settings_of(where).variants[variant].generator


class Experiment(NamedTuple):
    """A task on a model. Stands in for the wildcards of a job."""

    task: str
    model: str

    def options(self, wildcards) -> str:
        """Options that tell the command what to read."""
        return f"--task {self.task} --model {self.model}"


STUDIES = [Experiment(*pair) for pair in EXPERIMENTS]
VARIANTS = list(dict.fromkeys(variant for study in STUDIES for variant in all_variants(study)))
GENERATORS = sorted({generator_of(study, v) for study in STUDIES for v in all_variants(study)})


def check_experiments() -> None:
    """Two experiments may share prompts or activations only if they want the same ones."""
    if len(EXPERIMENTS) < len(CONFIG.experiments):
        raise WorkflowError(
            "Two experiments read the same model on the same task. Merge their lists of sites."
        )
    for task in TASKS:
        sizes = {(e.n_train, e.n_test, e.n_reference) for (t, _), e in EXPERIMENTS.items() if t == task}
        if len(sizes) > 1:
            raise WorkflowError(
                f"Experiments on task {task} differ in n_train, n_test or n_reference. Prompts belong to the task: make them equal."
            )


check_experiments()


def one_of(names: list[str]) -> str:
    """Regular expression that matches these names and nothing else."""
    return "|".join(name.replace(".", r"\.") for name in names) or "(?!)"


@functools.cache
def shape_of(model: str) -> tuple[int, int]:
    """Layers and heads of a target model, from the configuration: the set of jobs is known before any model is there."""
    settings = CONFIG.models[model]
    if settings.source == "trained":
        shapes = {(c.shape.n_layers, c.shape.n_heads) for c in settings.candidates.values()}
        if len(shapes) > 1:
            raise WorkflowError(
                f"Candidates of model {model} differ in layers or heads. Give them one shape."
            )
        return shapes.pop()
    if settings.n_layers is None or settings.n_heads is None:
        raise WorkflowError(
            f"models.{model} has no n_layers or n_heads. Set both, so that its sites are known beforehand."
        )
    return settings.n_layers, settings.n_heads


@functools.cache
def sites_of(task: str, model: str, variant: str | None = None) -> list[str]:
    """Labels of the sites that an experiment reads, or of those that one of its variants is trained on."""
    patterns = EXPERIMENTS[task, model].sites
    own = None if variant is None else OF[task, model].variants[variant].sites
    try:
        labels = [site.label for site in expand_sites(patterns, *shape_of(model))]
        if own is None:
            return labels
        chosen = [site.label for site in expand_sites(own, *shape_of(model))]
    except InputError as error:
        raise WorkflowError(str(error)) from None
    unread = sorted(set(chosen) - set(labels))
    if unread:
        raise WorkflowError(
            f"Variant {variant} is trained on {unread[0]}, which no experiment on {model} reads. Add it to sites."
        )
    return chosen


# -------------------------------------------------------------------------------------------------- blocks of sites for a job
# Loading PyTorch and the target takes seconds. Where a site takes seconds too, a process reads several sites in turn.
SITES_PER_JOB = 10


class Block:
    """What one torch job reads: some sites of a small model, or one site, a wildcard, of any model from elsewhere."""

    def __init__(
        self, task: str, model: str, sites: tuple[str, ...], variants: list[str], name: str = ""
    ) -> None:
        self.task, self.model, self.sites, self.variants, self.name = task, model, sites, variants, name
        self.folder = f"{task}/{model}"
        self.first = sites[0]
        self.label = sites[0] if len(sites) == 1 else f"{len(sites)} sites from {sites[0]}"
        if model == "{model}":
            self.label = "{wildcards.site}"

    def files(self, pattern: str, **values: list[str]) -> list[str]:
        """A path for each site; `pattern` has {task}, {model}, {site}, and doubled braces around other wildcards."""
        return expand(pattern, task=self.task, model=self.model, site=self.sites, **values)

    def target_files(self, wildcards) -> list[str]:
        """Files of the target model that is read."""
        return target_files(self.task_of(wildcards), getattr(wildcards, "model", self.model))

    def constraints(self) -> dict[str, str]:
        """What keeps the rules of different blocks apart."""
        named = {"variant": one_of(self.variants)} if self.variants else {}
        return named | ({"model": one_of(FETCHED)} if self.model == "{model}" else {})

    def task_of(self, wildcards) -> str:
        """The task of a job."""
        return getattr(wildcards, "task", self.task)

    def experiment(self, wildcards) -> "Experiment":
        """The experiment of a job."""
        return Experiment(self.task_of(wildcards), getattr(wildcards, "model", self.model))

    def options(self, wildcards) -> str:
        """Options that tell the command what to read."""
        task, model = self.task_of(wildcards), getattr(wildcards, "model", self.model)
        sites = [wildcards.site] if hasattr(wildcards, "site") else self.sites
        return f"--task {task} --model {model} " + " ".join(f"--site {site}" for site in sites)


def blocks(variants=None) -> list[Block]:
    """Blocks of all sites of all experiments; given variants by experiment, of the sites that each set of them reads."""
    everywhere = list(dict.fromkeys(v for study in STUDIES for v in variants(study))) if variants else []
    result = [Block("{task}", "{model}", ("{site}",), everywhere)]
    for study in STUDIES:
        if study.model in FETCHED:
            continue
        readers: dict[tuple[str, ...], list[str]] = {}
        for variant in variants(study) if variants else [None]:
            readers.setdefault(tuple(sites_of(*study, variant)), []).append(variant)
        for sites, names in readers.items():
            for start in range(0, len(sites), SITES_PER_JOB):
                chunk = sites[start : start + SITES_PER_JOB]
                label = f"{study.task}_{study.model}_{len(result)}"
                result.append(Block(*study, chunk, names if variants else [], label))
    return result


def rule_name(stage: str, *parts: str) -> str:
    """Name of what is made in a loop: its stage, then what sets it apart."""
    return re.sub(r"\W", "_", "_".join([stage, *filter(None, parts)]))


# ------------------------------------------------------------------------------------------------------------- source modules
def source(stage: str, task: str | None = None):
    """Input function: source files that a stage depends on; of the tasks, only the one that is asked for."""
    return lambda wildcards: source_files(stage, getattr(wildcards, "task", task))


# ------------------------------------------------------------------------------------------------------------ input functions
# What a trained model consists of; those from elsewhere stay in the hub's cache or in their own directory.
TARGET_FILES = ["target.json", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]


def target_files(task: str, model: str) -> list[str]:
    """Files of the selected target model."""
    return [
        f"data/{task}/{model}/target/{name}"
        for name in (["target.json"] if model in FETCHED else TARGET_FILES)
    ]


def candidate_files(names: list[str]):
    """Input function: files of each candidate of the target scan."""
    return lambda w: [
        f"data/{w.task}/{w.model}/target/candidates/{candidate}/{name}"
        for candidate in CONFIG.models[w.model].candidates
        for name in names
    ]


def activations_of_variant(wildcards) -> list[str]:
    """Cached activations of the sites that a variant is trained on."""
    sites = sites_of(wildcards.task, wildcards.model, wildcards.variant)
    return [f"data/{wildcards.task}/{wildcards.model}/activations/train/{site}.safetensors" for site in sites]


# Raw candidates of a site, log q of its cached neighbours, seconds spent.
SAMPLE_SUFFIXES = [".parquet", ".cache.parquet", ".json"]


def samples_of(variants):
    """Input function: what sample_prompts writes for variants by experiment, at the job's site or at all that each reads."""
    pattern = "results/{task}/{model}/samples/{generator}/{variant}/{site}{suffix}"
    return lambda w: [
        pattern.format(
            task=w.task,
            model=w.model,
            generator=generator_of(w, variant),
            variant=variant,
            site=label,
            suffix=suffix,
        )
        for variant in variants(w)
        for label in sites_of(w.task, w.model, variant)
        if label == getattr(w, "site", label)
        for suffix in SAMPLE_SUFFIXES
    ]


def descriptions_of(variants):
    """Input function: descriptions of the trained generators of variants by experiment."""
    return lambda w: [
        f"data/{w.task}/{w.model}/checkpoints/{generator_of(w, variant)}/{variant}/meta.json"
        for variant in variants(w)
    ]


def variant_options(variants):
    """Options that tell the command which variants to read; it leaves out those that were not trained on its site."""
    return lambda w: " ".join(f"--variant {variant}" for variant in variants(w))


def bandwidths(where) -> list[float]:
    """All bandwidths at which anything is read in an experiment."""
    config = settings_of(where)
    return sorted(
        {
            *config.kernel.epsilons,
            config.kernel.epsilon,
            *(e for v in all_variants(where) for e in config.epsilons_of(v)),
        }
    )


def at_all_sites(pattern: str, **values: list[str]):
    """Input function: a file for each site of the experiment; `pattern` has {task}, {model} and {site}."""
    return lambda w: expand(pattern, task=w.task, model=w.model, site=sites_of(w.task, w.model), **values)


def at_sites_of(variants, pattern: str, **values: list[str]):
    """Input function: a file for each site that any of some variants reads."""
    return lambda w: expand(
        pattern,
        task=w.task,
        model=w.model,
        site=[
            site
            for site in sites_of(w.task, w.model)
            if any(site in sites_of(w.task, w.model, v) for v in variants(w))
        ],
        **values,
    )


def training_logs(variants):
    """Input function: the training logs of variants by experiment."""
    return lambda w: [
        f"results/{w.task}/{w.model}/training/{generator_of(w, variant)}/{variant}.csv"
        for variant in variants(w)
    ]


def data_of(task: str) -> list[str]:
    """Files that a task's prior is made of: downloaded ones, and those that the project's owner puts there."""
    about = getattr(CONFIG, task)
    return [f"data/{task}/{file}" for file in getattr(about, "files", [])] + list(
        getattr(about, "sources", [])
    )


# Downloaded word pairs of the translation task, by language codes.
WORD_LISTS = [f"en_{code}" for code in ("fr", "it", "es")] + [f"{code}_en" for code in ("fr", "it", "es")]


def shown_beside(model: str) -> list[str]:
    """A model, and the control that figures show beside it."""
    control = CONFIG.models[model].control
    return [model, control] if control else [model]


def size_of_split(task: str, split: str) -> dict[str, object]:
    """How many prompts a split of a task has; part of `params`."""
    key = f"n_{split}"
    return {key: next(getattr(e, key) for (t, _), e in EXPERIMENTS.items() if t == task)}


def experiment_on(task: str) -> Experiment:
    """An experiment that reads the task's prompts: prompts depend on the task alone, commands are told an experiment."""
    return next(study for study in STUDIES if study.task == task)


# The experiment that the report shows: the first on IOI, whose figures it consists of.
SHOWN = next((study for study in STUDIES if study.task == "ioi"), None)
KNOWN_TASKS = literal("tasks", "TASKS")
FIGURES = literal("studies/ioi/figures", "FIGURES")
STUDY_FIGURES = literal("studies/ioi/figures", "STUDY_FIGURES")
FRONTIER_FIGURES = literal("studies/ioi/figures", "FRONTIER_FIGURES")
TABLES = literal("studies/ioi/figures", "TABLES")
FRONTIER_TABLES = literal("studies/ioi/figures", "FRONTIER_TABLES")
CAUSE_FIGURES = literal("studies/cases/figures", "CAUSE_FIGURES")
CAPTIONS = expand(
    "report/{name}.rst", name=[*FIGURES, *STUDY_FIGURES, *FRONTIER_FIGURES, *TABLES, *FRONTIER_TABLES]
)
# Parts of the configuration that captions quote.
CAPTION_KEYS = sorted(
    {key for file in CAPTIONS for key in re.findall(r'snakemake\.config\["(\w+)"\]', Path(file).read_text())}
)


def of_experiments(*patterns: str, tasks: list[str] = TASKS, having=all_variants) -> list[str]:
    """Files for each experiment of some tasks that has variants of some kind; patterns have {task} and {model}."""
    return [
        pattern.format(task=study.task, model=study.model)
        for study in STUDIES
        if study.task in tasks and having(study)
        for pattern in patterns
    ]


def at_sites(pattern: str, **values: list[str]) -> list[str]:
    """Files for each site of each experiment."""
    return [file for study in STUDIES for file in at_all_sites(pattern, **values)(study)]


def of_variants(variants, pattern: str) -> list[str]:
    """Files for each variant of each generator of each experiment."""
    return [
        pattern.format(task=s.task, model=s.model, generator=generator_of(s, variant), variant=variant)
        for s in STUDIES
        for variant in variants(s)
    ]


def drawn(names: dict[str, str], folder: str, category: str, suffix: str) -> list[str]:
    """Output files of figures or tables, each with its caption, for Snakemake's report."""

    def captioned(name: str, title: str) -> str:
        path = f"results/{folder}/{{task}}_{{model}}_{name}.{suffix}"
        about = {"caption": f"../report/{name}.rst", "category": category, "labels": {"shows": title}}
        return report(path, subcategory="{task} on {model}", **about)

    return [captioned(name, title) for name, title in names.items()]


# ------------------------------------------------------------------------------------------------------- parts of experiments
def prompts_of(task: str) -> list[str]:
    """Files of all splits of a task's prompts."""
    validated = any(e.n_val for e in EXPERIMENTS.values() if e.task == task)
    return expand("data/{task}/prompts/{split}.parquet", task=task, split=SPLITS + ["val"] * validated)


def named_parts(study: Experiment) -> dict[str, list[str]]:
    """What of an experiment can be asked for by name, in pipeline order: files that all of a part is made with. A control has no
    generators, hence only parts that need none."""

    def at(pattern: str, **values: list[str]) -> list[str]:
        return at_all_sites(pattern, **values)(study)

    def of_patterns(*patterns: str) -> list[str]:
        return [pattern.format(task=study.task, model=study.model) for pattern in patterns]

    experiment, variants = EXPERIMENTS[study], all_variants(study)
    splits = ["train"] * bool(variants) + ["test", "reference"] + ["val"] * bool(experiment.n_val)
    parts = {
        "targets": target_files(*study),
        "activations": at("data/{task}/{model}/activations/{split}/{site}.safetensors", split=splits),
        "exact": at("results/{task}/{model}/exact/{site}.parquet"),
    }
    if study.task == "ravel":
        parts["autoencoders"] = at("results/{task}/{model}/sae/{site}.csv")
    if study.task == "icl_translation":
        parts["patching"] = of_patterns(*rules.patch_task_vectors.output)
    if variants:
        pattern = "data/{{task}}/{{model}}/checkpoints/{}/{}/model.safetensors"
        parts["generators"] = of_patterns(*(pattern.format(generator_of(study, v), v) for v in variants))
    for generator in dict.fromkeys(generator_of(study, v) for v in variants):
        own = [v for v in variants if generator_of(study, v) == generator]
        parts[f"samples_{generator}"] = samples_of(lambda _: own)(study)
    if studied(study):
        parts["estimates"] = at("results/{task}/{model}/cells/{site}.parquet")
        parts["tables"] = of_patterns("results/{task}/{model}/fcr.csv")
        if study.task == "ravel":
            parts["attributes"] = at("results/{task}/{model}/attributes/{site}.csv")
        if study.task in CASES:
            checks = [rules.compare_distances, rules.check_completeness]
            parts["checks"] = of_patterns(*(file for check in checks for file in check.output))
        if study.task in PLOTTED_BY:
            parts["figures"] = of_patterns(*getattr(rules, PLOTTED_BY[study.task]).output)
    if experiment.patched:
        parts["causes"] = of_patterns(*rules.plot_causes.output)
        if study.task in SPELLED:
            parts["answers"] = of_patterns(*rules.plot_answers.output)
    if of_ablations(study):
        parts["study"] = of_patterns(*rules.plot_study.output)
    if of_frontier(study):
        parts["frontier"] = of_patterns(*rules.plot_frontier.output)
    return parts


# The rule that plots an experiment, by task; figures of RAVEL are of all its experiments.
PLOTTED_BY = {
    "ioi": "plot_figures",
    "icl_translation": "plot_icl",
    "counting": "plot_cases",
    "addition": "plot_cases",
}


def all_of(part: str) -> list[str]:
    """Files of a part of all experiments that have it."""
    return [file for parts in PARTS.values() for file in parts.get(part, [])]


# ---------------------------------------------------------------------------------------------------------------------- RAVEL
RAVEL = [study for study in STUDIES if study.task == "ravel"]
RAVEL_FIGURES = literal("studies/ravel/figures", "FIGURES")
RAVEL_TABLES = literal("studies/ravel/figures", "TABLES")


def positions_of(where, sites: list[str]) -> list[str]:
    """Activations at all positions that autoencoders of some sites are trained on."""
    pattern = "data/{task}/{model}/positions/{corpus}/{site}.safetensors"
    return expand(pattern, task=where.task, model=where.model, corpus=corpora_of(where), site=sites)


def autoencoders_of(where, sites: list[str]) -> list[str]:
    """Autoencoders of some sites that are trained here."""
    pattern = "data/{task}/{model}/sae/{corpus}/{site}/{file}"
    files = ["model.safetensors", "meta.json"]
    return expand(
        pattern, task=where.task, model=where.model, corpus=corpora_of(where), site=sites, file=files
    )


def corpora_of(where) -> list[str]:
    """Corpora of a model's own autoencoders."""
    return ["ravel", "general"] if where.model in TRAINED else ["ravel"]


def ravel_blocks() -> list[tuple[Experiment, list[str], str]]:
    """Sites that one job trains autoencoders of, with a name: some sites of a small model, or one of any other."""
    result = []
    for study in RAVEL:
        size = SITES_PER_JOB if study.model in TRAINED else 1
        sites = sites_of(*study)
        for start in range(0, len(sites), size):
            chunk = sites[start : start + size]
            result.append((study, chunk, f"{study.task}_{study.model}_{chunk[0]}"))
    return result


def about_ravel(names: dict[str, str], folder: str, category: str, suffix: str) -> list[str]:
    """Figures or tables over all models of RAVEL, each with its caption, for Snakemake's report."""

    def captioned(name: str, title: str) -> str:
        path = f"results/{folder}/ravel_{name}.{suffix}"
        about = {"caption": f"../report/ravel_{name}.rst", "category": category, "labels": {"shows": title}}
        return report(path, subcategory="ravel", **about)

    return [captioned(name, title) for name, title in names.items()]


def scores_of(studies: list[Experiment]) -> list[str]:
    """What classify_attributes and train_sae write for all sites of experiments."""
    names = ["attributes/{site}.parquet", "attributes/{site}.csv", "bandwidth/{site}.csv", "sae/{site}.csv"]
    return [
        file
        for study in studies
        for name in names
        for file in at_all_sites(f"results/{study.task}/{study.model}/{name}")(study)
    ]


# ------------------------------------------------------------------------------------------------------------------ resources
def is_small(wildcards, model: str | None) -> bool:
    """Whether all models that a job may read are trained here or imported, hence small."""
    read = getattr(wildcards, "model", model)
    return not FETCHED if read is None else read not in FETCHED


def memory(small: int, large: int, model: str | None = None):
    """MiB for a job that reads a model trained here, or one from elsewhere (the paper's); doubled at each attempt."""
    return lambda wildcards, attempt: (small if is_small(wildcards, model) else large) * 2 ** (attempt - 1)


def minutes(small: int, large: int, model: str | None = None):
    """Minutes for a job, likewise; they grow with each attempt."""
    return lambda wildcards, attempt: (small if is_small(wildcards, model) else large) * attempt


def launch(wildcards, resources, threads) -> str:
    """What starts a training: a process for each GPU that the job was given, if there are several. Like `options` it is not
    recorded: where a job runs must not make its results stale."""
    gpus = int(resources.get("gpu", 0) or 0)
    if gpus < 2:
        return ""
    # Port 0: a free one, so that trainings may share a node.
    return (
        f"accelerate launch --multi_gpu --num_machines 1 --num_processes {gpus} --main_process_port 0"
        " --mixed_precision no --dynamo_backend no --no_python "
    )
