# What all rules share. No rules; what is derived from the configuration is in the package, typed and tested: inversescope.workflow.
import functools
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.jobs import Reason
from snakemake.logging import logger
from snakemake.output_index import OutputIndex

from inversescope.config.load import load_config
from inversescope.errors import InputError
from inversescope.sites import SITE_PATTERN
from inversescope.workflow import paths, place
from inversescope.workflow.figures import DRAWN, captions_of, drawn_of, left_out
from inversescope.workflow.paths import fill
from inversescope.workflow.plan import IOI, SPELLED, ExperimentPlan, Plan, blocks, one_of, variant_options
from inversescope.workflow.sources import source_file, source_files
from inversescope.workflow.used import COMPARED, HEADLINE, used as values_of

# Jobs call the command `inversescope` of the environment that runs Snakemake, activated or not, and speak UTF-8 in any locale.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
os.environ.update(PYTHONUTF8="1")
# An output without a record of its job was not computed here, but copied: it is made anew, as if forced. Snakemake would keep it.
Reason.no_metadata = Reason.forced
# Jobs ask for the same files over and over: Snakemake compares each with the patterns of all outputs once, not for each job.
OutputIndex.match_producers = functools.cache(OutputIndex.match_producers)

# The default configuration, then what --configfile names, in order, as paths that the jobs can be given.
CONFIG_FILES = list(dict.fromkeys(map(os.path.relpath, ["config/config.yaml", *workflow.configfiles])))


def make_plan() -> Plan:
    """Validate the configuration, make sure that the jobs, which read the files, see what Snakemake sees, and plan."""
    try:
        if workflow.config_settings.config:
            remedy = "write them to a YAML file and pass it by --configfile"
            raise InputError("--config overrides do not reach the jobs", remedy)
        deployed = workflow.deployment_settings.deployment_method
        place.check_place(Path("."), (way.name.lower() for way in deployed))
        return Plan(load_config(CONFIG_FILES))
    except InputError as error:
        raise WorkflowError(str(error)) from None


PLAN = make_plan()
for line in left_out(PLAN) if workflow.is_main_process else []:
    logger.warning(line)
CONFIG = PLAN.config


def of(wildcards) -> ExperimentPlan:
    """The experiment of a job; of one that makes prompts any on its task, of one that fetches weights any on its model."""
    asked = [name for name in ("task", "model") if hasattr(wildcards, name)]
    return next(e for e in PLAN.experiments if all(getattr(e, n) == getattr(wildcards, n) for n in asked))


def ordered(priority: int):
    """Priority of a job: studies come in the order of the configuration, and the stages of a study by this number."""
    return lambda wildcards: priority + 1000 * (len(PLAN.experiments) - PLAN.experiments.index(of(wildcards)))


def used(wildcards, *keys: str) -> dict[str, object]:
    """Parts of the configuration, for `params`: a job reruns when one of them changes, and only then."""
    return values_of(of(wildcards), *keys)


def source(stage: str):
    """Input function: source files that a stage depends on; of the tasks, only the job's."""
    return lambda wildcards: source_files(stage, wildcards.get("task"))


def options(wildcards, threads, resources) -> str:
    """Options of every command. It asks for threads and GPUs, so Snakemake does not record it: where jobs run makes nothing stale."""
    return place.options(CONFIG_FILES, resources.get("gpu"))


def shown(stage: str, category: str, about: str = "{task} on {model}") -> list[str]:
    """What a stage draws, as files of all formats, each figure and table with its caption for Snakemake's report."""
    files = []
    for one in drawn_of(stage, PLAN):
        first, *others = one.files(about.replace(" on ", "_"))
        told = {"category": category, "subcategory": about, "labels": {"shows": one.title}}
        files += [report(first, caption=f"../report/{one.caption}.rst", **told), *others]
    return files


def parts_of(*parts: str, experiments: list[ExperimentPlan] = PLAN.experiments) -> list[str]:
    """Files of some parts of experiments; to be asked for behind the rules that make them."""
    planned = (e.parts(lambda rule: getattr(rules, rule).output) for e in experiments)
    return [file for found in planned for part in parts for file in found.get(part, [])]


def figures_of(*tasks: str) -> list[str]:
    """Figures and tables of all experiments on some tasks."""
    of_all = list(rules.plot_ravel.output) if "ravel" in tasks else []
    experiments = [e for e in PLAN.experiments if e.task in tasks]
    return of_all + parts_of("hypotheses", *DRAWN, experiments=experiments)


def is_small(wildcards) -> bool:
    """Whether no model that a job may read is large."""
    models = [wildcards.model] if hasattr(wildcards, "model") else PLAN.models
    return not any(CONFIG.models[name].is_large for name in models)


def memory(small: int, large: int):
    """MiB for a job that reads a small model, or a large one (the paper's); doubled at each attempt."""
    return lambda wildcards, attempt: (small if is_small(wildcards) else large) * 2 ** (attempt - 1)


def minutes(small: int, large: int):
    """Minutes for a job, likewise; they grow with each attempt."""
    return lambda wildcards, attempt: (small if is_small(wildcards) else large) * attempt


def launch(wildcards, resources, threads) -> str:
    """What starts a training, by the GPUs that the job was given. Like `options`, not recorded."""
    return place.launcher(resources.get("gpu"))
