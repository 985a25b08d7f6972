# Feature consistency rates: exact ones from prior draws, estimated ones from samples and cache, then tidy tables.


rule compute_exact:
    input:
        source=source("compute_exact"),
        prompts=expand("data/{{task}}/prompts/{split}.parquet", split=["test", "reference"]),
        activations=expand(
            "data/{{task}}/{{model}}/activations/{split}/{{site}}.safetensors", split=["test", "reference"]
        ),
    output:
        "results/{task}/{model}/exact/{site}.parquet",
    log:
        "logs/compute_exact/{task}/{model}/{site}.log",
    benchmark:
        "benchmarks/compute_exact/{task}/{model}/{site}.tsv"
    priority: 10
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 8000),
        runtime=minutes(10, 120),
    params:
        used=lambda w: used(w, w.task, "kernel/distance", "kernel/kind") | {"epsilons": bandwidths(w)},
        options=options,
    message:
        "Computing exact rates at {wildcards.site} from prior draws"
    shell:
        "inversescope compute_exact --task {wildcards.task} --model {wildcards.model} --site {wildcards.site}"
        " {params.options} --threads {threads} --log {log}"


rule estimate_fcr:
    input:
        source=source("estimate_fcr"),
        prompts=expand("data/{{task}}/prompts/{split}.parquet", split=["train", "test"]),
        activations=expand(
            "data/{{task}}/{{model}}/activations/{split}/{{site}}.safetensors", split=["train", "test"]
        ),
        exact="results/{task}/{model}/exact/{site}.parquet",
        mcmc="results/{task}/{model}/mcmc/{site}.parquet",
        prior="results/{task}/{model}/samples/backbone.parquet",
        generators=descriptions_of(studied),
        samples=samples_of(studied),
    output:
        cells="results/{task}/{model}/cells/{site}.parquet",
        fcr="results/{task}/{model}/fcr/{site}.csv",
        refusal="results/{task}/{model}/refusal/{site}.csv",
        coverage="results/{task}/{model}/coverage/{site}.csv",
    log:
        "logs/estimate_fcr/{task}/{model}/{site}.log",
    benchmark:
        "benchmarks/estimate_fcr/{task}/{model}/{site}.tsv"
    priority: 50
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 8000),
        runtime=minutes(10, 60),
    params:
        used=lambda w: used(w, "seed", w.task, "kernel", "fcr") | {"epsilons": bandwidths(w)},
        options=options,
        where=variant_options(studied),
    message:
        "Estimating rates at {wildcards.site} with intervals and controls"
    shell:
        "inversescope estimate_fcr --task {wildcards.task} --model {wildcards.model} --site {wildcards.site}"
        " {params.where} {params.options} --threads {threads} --log {log}"


rule collect_tables:
    input:
        source=source("collect_tables"),
        parts=at_all_sites("results/{task}/{model}/{table}/{site}.csv", table=["fcr", "refusal", "coverage"]),
        generators=descriptions_of(studied),
        samples=samples_of(studied),
    output:
        fcr="results/{task}/{model}/fcr.csv",
        refusal="results/{task}/{model}/refusal.csv",
        coverage="results/{task}/{model}/coverage.csv",
        timings="results/{task}/{model}/timings.csv",
    log:
        "logs/collect_tables/{task}/{model}.log",
    benchmark:
        "benchmarks/collect_tables/{task}/{model}.tsv"
    priority: 50
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 4000),
        runtime=minutes(5, 15),
    params:
        used=lambda w: used(w, "studied_variants"),
        options=options,
    message:
        "Collecting the tables of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope collect_tables --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
