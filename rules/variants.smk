# Figure 5, the study over dimension, training steps and seeds with its ablations, and the frontier of generators: further variants,
# trained and sampled by the rules above, compared here.


rule plot_baseline:
    input:
        source=source("plot_baseline"),
        bandwidths=lambda w: of(w).bandwidth_table,
        refusal="results/{task}/{model}/refusal.csv",
        baseline=lambda w: of(w).at_sites_of(of(w).baseline, paths.SITE_TABLE, table="baseline/refusal"),
    output:
        shown("plot_baseline", "Figures"),
    log:
        "logs/plot_baseline/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_baseline/{task}/{model}.tsv"
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 10),
    params:
        used=lambda w: used(w, "kernel", "studied_variants", "study_variants", "looks"),
        options=options,
    message:
        "Plotting refusal of {wildcards.task} on {wildcards.model} beside the baseline"
    shell:
        "inversescope plot_baseline --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule collect_study:
    input:
        source=source("collect_study"),
        bandwidths=lambda w: of(w).bandwidth_table,
        parts=lambda w: of(w).at_sites_of(
            of(w).ablations, paths.SITE_TABLE, table=["study/fcr", "study/refusal"]
        ),
        cells=lambda w: of(w).at_sites_of(of(w).ablations, paths.CELLS, group="study/"),
        prompts=lambda w: of(w).prompts(["test"]),
        activations=lambda w: of(w).activations(["test"], of(w).labels_of(of(w).ablations)),
        generators=lambda w: of(w).of_variants(paths.CHECKPOINT, of(w).ablations, file="meta.json"),
        logs=lambda w: of(w).of_variants(paths.TRAINING_LOG, of(w).claims),
        samples=lambda w: of(w).samples(of(w).ablations),
    output:
        study="results/{task}/{model}/study.csv",
        rates="results/{task}/{model}/study_rates.csv",
        ablations="results/{task}/{model}/ablations.csv",
        claims="results/{task}/{model}/claims.csv",
        timings="results/{task}/{model}/study_timings.csv",
    log:
        "logs/collect_study/{task}/{model}.log",
    benchmark:
        "benchmarks/collect_study/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, 16000),
        runtime=minutes(15, 120),
    params:
        used=lambda w: used(
            w, "seed", "kernel", "fcr", "study_variants", *(f"variants/{v}" for v in of(w).ablations)
        ),
        options=options,
    message:
        "Comparing the variants of the study on {wildcards.model}"
    shell:
        "inversescope collect_study --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_study:
    input:
        source=source("plot_study"),
        study="results/{task}/{model}/study.csv",
        rates="results/{task}/{model}/study_rates.csv",
        ablations="results/{task}/{model}/ablations.csv",
    output:
        shown("plot_study", "Study"),
    log:
        "logs/plot_study/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_study/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 10),
    params:
        used=lambda w: used(w, "kernel", "fcr/confidence", "looks"),
        options=options,
    message:
        "Plotting the study of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_study --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_claims:
    input:
        source=source("plot_claims"),
        claims="results/{task}/{model}/claims.csv",
    output:
        shown("plot_claims", "Study"),
    log:
        "logs/plot_claims/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_claims/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 10),
    params:
        used=lambda w: used(w, "fcr/confidence"),
        options=options,
    message:
        "Comparing what the paper says of its training on {wildcards.model}"
    shell:
        "inversescope plot_claims --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule collect_frontier:
    input:
        source=source("collect_frontier"),
        bandwidths=lambda w: of(w).bandwidth_table,
        parts=lambda w: of(w).at_sites_of(of(w).frontier, paths.SITE_TABLE, table="frontier/refusal"),
        cells=lambda w: of(w).at_sites_of(of(w).frontier, paths.CELLS, group="frontier/"),
        generators=lambda w: of(w).of_variants(paths.CHECKPOINT, of(w).frontier, file="meta.json"),
        samples=lambda w: of(w).samples(of(w).frontier),
        backbone=fill(paths.BACKBONE, file="meta.json"),
    output:
        frontier="results/{task}/{model}/frontier.csv",
        time="results/{task}/{model}/frontier_time.csv",
        heads="results/{task}/{model}/frontier_heads.csv",
        pairs="results/{task}/{model}/frontier_pairs.csv",
    log:
        "logs/collect_frontier/{task}/{model}.log",
    benchmark:
        "benchmarks/collect_frontier/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        runtime=minutes(15, 120),
    params:
        used=lambda w: used(
            w, "seed", "kernel", "fcr", "study_variants", *(f"variants/{v}" for v in of(w).frontier)
        ),
        options=options,
    message:
        "Comparing generators by refusal, FCR error and entropy on {wildcards.model}"
    shell:
        "inversescope collect_frontier --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_frontier:
    input:
        source=source("plot_frontier"),
        frontier="results/{task}/{model}/frontier.csv",
        time="results/{task}/{model}/frontier_time.csv",
        heads="results/{task}/{model}/frontier_heads.csv",
        pairs="results/{task}/{model}/frontier_pairs.csv",
    output:
        shown("plot_frontier", "Study"),
    log:
        "logs/plot_frontier/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_frontier/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 10),
    params:
        used=lambda w: used(w, "kernel", "fcr/confidence", "looks"),
        options=options,
    message:
        "Plotting the frontier of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_frontier --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
