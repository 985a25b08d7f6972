# RAVEL beside what every task has: its data set, sparse autoencoders, all methods scored as classifiers of attributes, figures.
RAVEL = [study for study in STUDIES if study.task == "ravel"]


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
            corpus=[str(path_of(f"tasks/{name}")) for name in CONFIG.models[study.model].training.corpus],
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


RAVEL_FIGURES = literal("figures/ravel", "FIGURES")
RAVEL_TABLES = literal("figures/ravel", "TABLES")


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
    patterns = ["results/{task}/{model}/" + name for name in names]
    return [file for study in studies for pattern in patterns for file in at_all_sites(pattern)(study)]


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
