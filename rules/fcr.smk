# Feature consistency rates: exact ones from prior draws, estimated ones from samples and cache, then tidy tables.


rule compute_exact:
    input:
        source=source("compute_exact"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(["test", "reference"]),
        activations=lambda w: of(w).activations(["test", "reference"], [w.site]),
    output:
        paths.EXACT,
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
        used=lambda w: used(w, w.task, *COMPARED, "bandwidths"),
        options=options,
    message:
        "Computing exact rates at {wildcards.site} from prior draws"
    shell:
        "inversescope compute_exact --task {wildcards.task} --model {wildcards.model} --site {wildcards.site}"
        " {params.options} --threads {threads} --log {log}"


rule estimate_fcr:
    input:
        source=source("estimate_fcr"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(["train", "test"]),
        activations=lambda w: of(w).activations(["train", "test"], [w.site]),
        exact=paths.EXACT,
        mcmc=lambda w: of(w).files(paths.MCMC, site=w.site) if of(w).has_chains else [],
        prior=paths.PRIOR_SAMPLES,
        generators=lambda w: of(w).of_variants(paths.CHECKPOINT, of(w).studied, file="meta.json"),
        samples=lambda w: of(w).samples(of(w).studied, w.site),
    output:
        cells=paths.CELLS,
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
        used=lambda w: used(w, "seed", w.task, "kernel", "fcr", "bandwidths"),
        variants=lambda w: variant_options(of(w).studied),
        options=options,
    message:
        "Estimating rates at {wildcards.site} with intervals and controls"
    shell:
        "inversescope estimate_fcr --task {wildcards.task} --model {wildcards.model} --site {wildcards.site}"
        " {params.variants} {params.options} --threads {threads} --log {log}"


rule collect_tables:
    input:
        source=source("collect_tables"),
        parts=lambda w: of(w).at_sites(paths.SITE_TABLE, table=["fcr", "refusal", "coverage"]),
        generators=lambda w: of(w).of_variants(paths.CHECKPOINT, of(w).studied, file="meta.json"),
        samples=lambda w: of(w).samples(of(w).studied),
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
