# InverseScope, from prompts to figures. A table of contents: the rules are in rules/, one file a stage, in pipeline order.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"


from inversescope.workflow.figures import of_the_paper


onstart:
    # To keep to its limit of jobs that begin in a second, Snakemake 9.27 looks at all ready jobs again a second after each look, and
    # also when a job ends: ever more often, until its driver takes half a core. Nothing needs that limit here.
    workflow.scheduler.job_rate_limiter = None


wildcard_constraints:
    task=one_of(PLAN.tasks),
    model=one_of(PLAN.models),
    site=SITE_PATTERN,
    split=one_of(paths.ALL_SPLITS),
    generator=one_of(PLAN.generators),
    variant=one_of(PLAN.variants),
    candidate=one_of(PLAN.candidates),


include: "rules/prompts.smk"
include: "rules/targets.smk"
include: "rules/activations.smk"
include: "rules/generator.smk"
include: "rules/sampling.smk"
include: "rules/fcr.smk"
include: "rules/hypotheses.smk"
include: "rules/ioi.smk"
include: "rules/variants.smk"
include: "rules/ravel.smk"
include: "rules/icl.smk"
include: "rules/cases.smk"
include: "rules/readers.smk"
include: "rules/browser.smk"
include: "rules/report.smk"
include: "rules/profile.smk"


# Each task has a target of its own name: its figures, tables and browsers.
for task in PLAN.tasks:

    rule:
        name:
            task
        input:
            figures_of(task),
            parts_of("browser", experiments=PLAN.on(task)),
            rules.make_report.output if SHOWN and SHOWN.task == task else [],


# The paper's figures and tables have targets by their number; `inversescope figures` lists them, each with its jobs.
for number, files in of_the_paper(PLAN).items():

    rule:
        name:
            number
        input:
            files,


rule figures:
    input:
        figures_of(*PLAN.tasks),
        parts_of("browser"),


rule all:
    default_target: True
    input:
        rules.figures.input,
        rules.make_report.output if SHOWN else [],
        rules.make_studies.output if OTHERS else [],


rule pages:
    input:
        rules.make_studies.output if OTHERS else [],


rule frontier:
    input:
        parts_of("frontier"),


rule study:
    input:
        parts_of("study", "frontier"),


# Parts of all experiments, in pipeline order: snakemake --cores 2 -- activations
rule prompts:
    input:
        [file for task in PLAN.tasks for file in PLAN.prompts_of(task)],


rule targets:
    input:
        parts_of("targets"),


rule activations:
    input:
        parts_of("activations"),


rule layers:
    input:
        parts_of("layers"),


rule generators:
    input:
        [
            file
            for e in PLAN.experiments
            for file in e.of_variants(paths.CHECKPOINT, e.studied, file="model.safetensors")
        ],


rule samples:
    input:
        parts_of("estimates"),


rule tables:
    input:
        parts_of("tables"),


# What the stages of dvc.yaml ask for: the weights of a GGUF file, the prompts of a task, and all of an experiment.
for model in PLAN.models_that(lambda model: model.gguf):

    rule:
        name:
            f"weights_{model}".replace("-", "_").replace(".", "_")
        input:
            fill(paths.WEIGHTS, model=model, file=paths.TARGET_FILES),


for task in PLAN.tasks:

    rule:
        name:
            f"prompts_{task}"
        input:
            PLAN.prompts_of(task),


for experiment in PLAN.experiments:

    rule:
        name:
            f"experiment_{experiment.name}"
        input:
            list(experiment.parts(lambda rule: getattr(rules, rule).output).values()),
