# InverseScope, from prompts to figures. A table of contents: the rules are in rules/, one file a stage, in pipeline order.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"


wildcard_constraints:
    task=one_of(TASKS),
    model=one_of(MODELS),
    site=SITE_PATTERN,
    split=one_of(SPLITS + FURTHER_SPLITS),
    generator=one_of(GENERATORS),
    variant=one_of(VARIANTS),
    candidate=one_of(CANDIDATES),


include: "rules/prompts.smk"
include: "rules/targets.smk"
include: "rules/activations.smk"
include: "rules/generator.smk"
include: "rules/sampling.smk"
include: "rules/fcr.smk"
include: "rules/figures.smk"
include: "rules/study.smk"
include: "rules/ravel.smk"
include: "rules/icl.smk"
include: "rules/cases.smk"
include: "rules/pages.smk"


PARTS = {name: named_parts(Experiment(e.task, e.model)) for name, e in CONFIG.experiments.items()}


# Each task has a target of its own name: its figures and tables.
rule ioi_figures:
    input:
        of_experiments(*rules.plot_figures.output, tasks=["ioi"]),
        of_experiments(*rules.plot_causes.output, tasks=["ioi"], having=patched),


rule ioi:
    input:
        rules.ioi_figures.input,
        rules.make_report.output if SHOWN else [],


rule ravel:
    input:
        rules.plot_ravel.output if RAVEL else [],


rule icl_translation:
    input:
        of_experiments(*rules.plot_icl.output, tasks=["icl_translation"], having=studied),


rule counting:
    input:
        of_experiments(*rules.plot_cases.output, tasks=["counting"]),
        of_experiments(*rules.plot_causes.output, tasks=["counting"], having=patched),


rule addition:
    input:
        of_experiments(*rules.plot_cases.output, tasks=["addition"]),
        of_experiments(
            *rules.plot_causes.output, *rules.plot_answers.output, tasks=["addition"], having=patched
        ),


rule text:
    input:
        of_experiments(*rules.plot_cases.output, tasks=["text"]),
        of_experiments(*rules.plot_causes.output, tasks=["text"], having=patched),


rule figures:
    input:
        rules.ioi_figures.input,
        rules.ravel.input,
        rules.icl_translation.input,
        rules.counting.input,
        rules.addition.input,
        rules.text.input,


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
        of_experiments(*rules.plot_frontier.output, having=of_frontier),


rule study:
    input:
        of_experiments(*rules.plot_study.output, having=of_ablations),
        rules.frontier.input,


# Parts of all experiments, in pipeline order: snakemake --cores 2 -- activations
rule prompts:
    input:
        [file for task in TASKS for file in prompts_of(task)],


rule targets:
    input:
        all_of("targets"),


rule activations:
    input:
        all_of("activations"),


rule generators:
    input:
        of_variants(studied, "data/{task}/{model}/checkpoints/{generator}/{variant}/model.safetensors"),


rule samples:
    input:
        at_sites("results/{task}/{model}/cells/{site}.parquet"),


rule tables:
    input:
        of_experiments("results/{task}/{model}/fcr.csv"),


# The same parts of single tasks and experiments, and more, of which the stages of dvc.yaml consist: activations_ravel_48
for task in TASKS:

    rule:
        name:
            f"prompts_{task}"
        input:
            prompts_of(task),


for name, parts in PARTS.items():
    for part, files in parts.items():

        rule:
            name:
                f"{part}_{name}"
            input:
                files,
