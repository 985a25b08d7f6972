# RAVEL beside what every task has: its data set, sparse autoencoders, all methods scored as classifiers of attributes, figures.


if CONFIG.ravel.source == "upstream" and RAVEL:

    rule fetch_ravel:
        input:
            source=source("fetch_ravel", "ravel"),
            mirror=(
                sorted(Path(CONFIG.ravel.mirror).glob("ravel_*.json"))
                if CONFIG.ravel.mirror is not None
                else []
            ),
        output:
            "data/ravel/source/manifest.json",
        log:
            "logs/fetch_ravel.log",
        benchmark:
            "benchmarks/fetch_ravel.tsv"
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000, 1000),
            runtime=minutes(5, 10),
        params:
            used=used(RAVEL[0], "ravel/source", "ravel/mirror", "ravel/archive_sha256"),
            options=options,
            where=RAVEL[0].options,
        message:
            "Fetching RAVEL and checking its checksums"
        shell:
            "inversescope fetch_ravel {params.where} {params.options} --threads {threads} --log {log}"


for study, sites, label in ravel_blocks():

    rule:
        name:
            rule_name("collect_positions", label)
        input:
            source=source("collect_positions", "ravel"),
            corpus=[str(source_file(f"tasks/{name}")) for name in CONFIG.models[study.model].training.corpus],
            prompts="data/ravel/prompts/train.parquet",
            target=target_files(*study),
        output:
            positions_of(study, sites),
        log:
            f"logs/collect_positions/{study.task}/{study.model}/{sites[0]}.log",
        benchmark:
            f"benchmarks/collect_positions/{study.task}/{study.model}/{sites[0]}.tsv"
        priority: 60
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(2000, 32000, study.model),
            runtime=minutes(10, 240, study.model),
        params:
            used=used(study, "seed", "ravel", *CONFIG.models[study.model].training.corpus),
            options=options,
            where=f"{study.options(None)} " + " ".join(f"--site {site}" for site in sites),
        message:
            f"Extracting activations at all positions of {study.model}, {len(sites)} sites from {sites[0]}"
        shell:
            "inversescope collect_positions {params.where} {params.options} --threads {threads} --log {log}"

    rule:
        name:
            rule_name("train_sae", label)
        input:
            source=source("train_sae", "ravel"),
            prompts=expand("data/ravel/prompts/{split}.parquet", split=["train", "val"]),
            positions=positions_of(study, sites),
            activations=expand(
                "data/{task}/{model}/activations/{split}/{site}.safetensors",
                task=study.task,
                model=study.model,
                split=["train", "val"],
                site=sites,
            ),
        output:
            autoencoders_of(study, sites),
            tables=expand(
                "results/{task}/{model}/sae/{site}.csv", task=study.task, model=study.model, site=sites
            ),
        log:
            f"logs/train_sae/{study.task}/{study.model}/{sites[0]}.log",
        benchmark:
            f"benchmarks/train_sae/{study.task}/{study.model}/{sites[0]}.tsv"
        priority: 60
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(2000, 64000, study.model),
            runtime=minutes(20, 1440, study.model),
        params:
            used=used(study, "seed", "ravel", "sae"),
            options=options,
            where=f"{study.options(None)} " + " ".join(f"--site {site}" for site in sites),
        message:
            f"Training sparse autoencoders on {study.model}, {len(sites)} sites from {sites[0]}"
        shell:
            "inversescope train_sae {params.where} {params.options} --threads {threads} --log {log}"


rule classify_attributes:
    input:
        source=source("classify_attributes"),
        prompts=expand("data/{{task}}/prompts/{split}.parquet", split=["train", "val", "test", "reference"]),
        activations=expand(
            "data/{{task}}/{{model}}/activations/{split}/{{site}}.safetensors",
            split=["train", "val", "test", "reference"],
        ),
        target="data/{task}/{model}/target/target.json",
        saes=lambda w: autoencoders_of(w, [w.site]),
        samples=samples_of(studied),
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
    priority: 40
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 32000),
        runtime=minutes(10, 240),
    params:
        used=lambda w: used(
            w,
            "seed",
            w.task,
            "kernel",
            "fcr",
            "probe",
            "studied_variants",
            "sampling/decodings",
            f"models/{w.model}/gemma_scope",
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
            source=source("plot_ravel", "ravel"),
            parts=scores_of(RAVEL),
            rates=expand(
                "results/ravel/{model}/{table}.csv",
                model=[study.model for study in RAVEL],
                table=["refusal", "fcr"],
            ),
            prompts="data/ravel/prompts/test.parquet",
            targets=[f"data/ravel/{study.model}/target/target.json" for study in RAVEL],
            samples=[file for study in RAVEL for file in samples_of(studied)(study)],
        output:
            tables=expand(
                "results/ravel/{name}.csv",
                name=["scores", "bandwidth", "saes", "refusal", "rates", "targets"],
            ),
            figures=about_ravel(RAVEL_FIGURES, "figures", "Figures", "png"),
            vector=expand("results/figures/ravel_{name}.pdf", name=RAVEL_FIGURES),
            data=expand("results/figures/ravel_{name}.csv", name=RAVEL_FIGURES),
            shown=about_ravel(RAVEL_TABLES, "tables", "Tables", "csv"),
            markdown=expand("results/tables/ravel_{name}.md", name=RAVEL_TABLES),
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
            used=used(RAVEL[0], "ravel", *HEADLINE)
            | {"representative": {study.model: EXPERIMENTS[tuple(study)].representative for study in RAVEL}},
            options=options,
            where=RAVEL[0].options,
        message:
            "Plotting the figures of RAVEL over all models"
        shell:
            "inversescope plot_ravel {params.where} {params.options} --threads {threads} --log {log}"
