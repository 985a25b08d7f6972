# RAVEL beside what every task has: its data set, sparse autoencoders, all methods scored as classifiers of attributes, figures.

from inversescope.config.tasks import COPIED
from inversescope.workflow.plan import files_in

RAVEL = PLAN.on("ravel")


if CONFIG.ravel.source != "embedded" and RAVEL:

    rule fetch_ravel:
        input:
            source=source_files("fetch_ravel", "ravel"),
            mirror=(
                [
                    file
                    for kind in CONFIG.ravel.types or ["*"]
                    for file in sorted(Path(CONFIG.ravel.mirror).glob(f"ravel_{kind}_*.json"))
                ]
                if CONFIG.ravel.source == "upstream" and CONFIG.ravel.mirror is not None
                else []
            ),
            own=files_in(CONFIG.ravel.hub.own) if CONFIG.ravel.source == "hub" else [],
        output:
            PLAN.data_of("ravel"),
        log:
            "logs/fetch_ravel.log",
        benchmark:
            "benchmarks/fetch_ravel.tsv"
        localrule: True
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000, 1000),
            runtime=minutes(5, 10),
        params:
            used=used(
                RAVEL[0], *(f"ravel/{key}" for key in ("source", "mirror", "archive_sha256", "types", "hub"))
            ),
            options=options,
            where=RAVEL[0].options,
        message:
            "Fetching RAVEL and checking its checksums"
        shell:
            "inversescope fetch_ravel {params.where} {params.options} --threads {threads} --log {log}"


rule fetch_general_text:
    input:
        source=source("fetch_general_text"),
    output:
        fill(paths.GENERAL, file=COPIED),
    log:
        "logs/fetch_general_text/{task}/{model}.log",
    benchmark:
        "benchmarks/fetch_general_text/{task}/{model}.tsv"
    wildcard_constraints:
        task="ravel",
    priority: ordered(120)
    localrule: True
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000, 4000),
        runtime=minutes(60, 60),
    params:
        used=lambda w: used(w, "sae/general"),
        options=options,
    message:
        "Fetching general text for {wildcards.model} at its pinned revision"
    shell:
        "inversescope fetch_general_text --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule fetch_autoencoder:
    input:
        source=source("fetch_autoencoder"),
        target=fill(paths.TARGET, file="target.json"),
    output:
        fill(paths.AUTOENCODER, corpus="general", file=paths.CHECKPOINT_FILES),
    log:
        "logs/fetch_autoencoder/{task}/{model}/{site}.log",
    benchmark:
        "benchmarks/fetch_autoencoder/{task}/{model}/{site}.tsv"
    wildcard_constraints:
        task="ravel",
        model=one_of(PLAN.models_that(lambda model: model.gemma_scope)),
    localrule: True
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 4000),
        runtime=minutes(60, 60),
    params:
        used=lambda w: used(w, f"models/{w.model}/gemma_scope"),
        options=options,
    message:
        "Fetching the released autoencoder of {wildcards.model} at {wildcards.site}"
    shell:
        "inversescope fetch_autoencoder --task {wildcards.task} --model {wildcards.model} --site {wildcards.site}"
        " {params.options} --threads {threads} --log {log}"


for block in blocks(RAVEL):

    rule:
        name:
            f"collect_positions_{block.name}"
        input:
            source=source("collect_positions"),
            corpus=lambda w: [source_file(f"tasks/{name}") for name in of(w).target.training.corpus],
            general=block.experiment.general_text,
            prompts=fill(paths.PROMPTS, split="train"),
            target=lambda w: of(w).target_files,
        output:
            fill(paths.POSITIONS, corpus=block.experiment.corpora, site=block.sites),
        log:
            f"logs/collect_positions/{{task}}/{{model}}/{block.sites[0]}.log",
        benchmark:
            f"benchmarks/collect_positions/{{task}}/{{model}}/{block.sites[0]}.tsv"
        wildcard_constraints:
            **block.constraints,
        priority: ordered(60)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 32000),
            gpu=lambda w: of(w).gpus,
            runtime=minutes(10, 240),
        params:
            used=lambda w: used(w, "seed", w.task, "sae/general", *of(w).target.training.corpus),
            options=options,
            sites=block.options,
        message:
            f"Extracting activations at all positions of {{wildcards.model}} at {block.label}"
        shell:
            "inversescope collect_positions --task {wildcards.task} --model {wildcards.model}"
            " {params.sites}"
            " {params.options} --threads {threads} --log {log}"

    rule:
        name:
            f"train_sae_{block.name}"
        input:
            source=source("train_sae"),
            prompts=block.experiment.prompts(["train", "val"]),
            positions=fill(paths.POSITIONS, corpus=block.experiment.corpora, site=block.sites),
            activations=block.experiment.activations(["train", "val"], block.sites),
            released=[
                file
                for corpus in block.experiment.corpora
                if corpus not in block.experiment.trained_corpora
                for file in fill(
                    paths.AUTOENCODER, corpus=corpus, site=block.sites, file=paths.CHECKPOINT_FILES
                )
            ],
        output:
            block.experiment.autoencoders(trained_here=True, site=block.sites),
            tables=fill(paths.SITE_TABLE, table="sae", site=block.sites),
        log:
            f"logs/train_sae/{{task}}/{{model}}/{block.sites[0]}.log",
        benchmark:
            f"benchmarks/train_sae/{{task}}/{{model}}/{block.sites[0]}.tsv"
        wildcard_constraints:
            **block.constraints,
        priority: ordered(60)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(2000, 64000),
            gpu=lambda w: of(w).gpus,
            runtime=minutes(20, 1440),
        params:
            used=lambda w: used(w, "seed", w.task, "sae"),
            options=options,
            sites=block.options,
        message:
            f"Training sparse autoencoders on {{wildcards.model}} at {block.label}"
        shell:
            "inversescope train_sae --task {wildcards.task} --model {wildcards.model}"
            " {params.sites}"
            " {params.options} --threads {threads} --log {log}"


rule classify_attributes:
    input:
        source=source("classify_attributes"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(paths.ALL_SPLITS),
        activations=lambda w: of(w).activations(paths.ALL_SPLITS, [w.site]),
        target=fill(paths.TARGET, file="target.json"),
        saes=lambda w: of(w).autoencoders(**w),
        samples=lambda w: of(w).samples(of(w).studied, w.site),
    output:
        decisions="results/{task}/{model}/attributes/{site}.parquet",
        scores="results/{task}/{model}/attributes/{site}.csv",
        bandwidth="results/{task}/{model}/bandwidth/{site}.csv",
    log:
        "logs/classify_attributes/{task}/{model}/{site}.log",
    benchmark:
        "benchmarks/classify_attributes/{task}/{model}/{site}.tsv"
    wildcard_constraints:
        task="ravel",
    priority: ordered(40)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 32000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(10, 240),
    params:
        used=lambda w: used(
            w,
            "seed",
            w.task,
            "kernel",
            "fcr",
            "probe",
            "attributes",
            "studied_variants",
            "sampling/decodings",
            "sae/published",
        ),
        options=options,
    message:
        "Reading attributes at {wildcards.site} of {wildcards.model} by all methods"
    shell:
        "inversescope classify_attributes --task {wildcards.task} --model {wildcards.model} --site {wildcards.site}"
        " {params.options} --threads {threads} --log {log}"


if RAVEL:

    rule plot_ravel:
        input:
            source=source_files("plot_ravel", "ravel"),
            decisions=[
                file
                for e in RAVEL
                for file in e.at_sites("results/{task}/{model}/attributes/{site}.parquet")
            ],
            scores=[
                file
                for e in RAVEL
                for file in e.at_sites(paths.SITE_TABLE, table=["attributes", "bandwidth", "sae"])
            ],
            rates=[file for e in RAVEL for file in e.files(paths.RESULT, file=["refusal.csv", "fcr.csv"])],
            prompts=fill(paths.PROMPTS, task="ravel", split="test"),
            bandwidths=[file for e in RAVEL for file in e.bandwidth_table],
            targets=[file for e in RAVEL for file in e.files(paths.TARGET, file="target.json")],
            samples=[file for e in RAVEL for file in e.samples(e.studied)],
        output:
            shown("plot_ravel", "Figures", about="ravel"),
            tables=fill(
                "results/ravel/{name}.csv",
                name=["scores", "bandwidth", "saes", "refusal", "rates", "targets"],
            ),
        log:
            "logs/plot_ravel.log",
        benchmark:
            "benchmarks/plot_ravel.tsv"
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(2000, 16000),
            runtime=minutes(10, 60),
        params:
            used=used(RAVEL[0], "ravel", *HEADLINE, *(f"experiments/{e.name}/representative" for e in RAVEL)),
            options=options,
            where=RAVEL[0].options,
        message:
            "Plotting the figures of RAVEL over all models"
        shell:
            "inversescope plot_ravel {params.where} {params.options} --threads {threads} --log {log}"
