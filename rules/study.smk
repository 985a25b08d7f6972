# The study over dimension, training steps and seeds with its ablations, and the frontier of generators: further variants,
# trained and sampled by the rules above, compared here.


use rule estimate_fcr as estimate_study with:
    input:
        source=source("estimate_fcr"),
        prompts=expand("data/{{task}}/prompts/{split}.parquet", split=["train", "test"]),
        activations=expand(
            "data/{{task}}/{{model}}/activations/{split}/{{site}}.safetensors", split=["train", "test"]
        ),
        exact="results/{task}/{model}/exact/{site}.parquet",
        generators=descriptions_of(of_ablations),
        samples=samples_of(of_ablations),
    output:
        cells="results/{task}/{model}/study/cells/{site}.parquet",
        fcr="results/{task}/{model}/study/fcr/{site}.csv",
        refusal="results/{task}/{model}/study/refusal/{site}.csv",
    log:
        "logs/estimate_study/{task}/{model}/{site}.log",
    benchmark:
        "benchmarks/estimate_study/{task}/{model}/{site}.tsv"
    params:
        used=lambda w: used(w, "seed", w.task, "kernel", "fcr") | {"epsilons": bandwidths(w)},
        options=options,
        where=lambda w: f"{variant_options(of_ablations)(w)} --out study",
    message:
        "Estimating rates of the study's variants at {wildcards.site}"


rule collect_study:
    input:
        source=source("collect_study"),
        parts=at_sites_of(
            of_ablations, "results/{task}/{model}/study/{table}/{site}.csv", table=["fcr", "refusal"]
        ),
        cells=at_sites_of(of_ablations, "results/{task}/{model}/study/cells/{site}.parquet"),
        prompts="data/{task}/prompts/test.parquet",
        activations=at_sites_of(of_ablations, "data/{task}/{model}/activations/test/{site}.safetensors"),
        generators=descriptions_of(of_ablations),
        samples=samples_of(of_ablations),
    output:
        study="results/{task}/{model}/study.csv",
        ablations="results/{task}/{model}/ablations.csv",
        timings="results/{task}/{model}/study_timings.csv",
    log:
        "logs/collect_study/{task}/{model}.log",
    benchmark:
        "benchmarks/collect_study/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        runtime=minutes(15, 120),
    params:
        used=lambda w: used(
            w, "seed", "kernel", "fcr", "study_variants", *(f"variants/{v}" for v in of_ablations(w))
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
        ablations="results/{task}/{model}/ablations.csv",
    output:
        figures=drawn(STUDY_FIGURES, "figures", "Study", "png"),
        vector=expand("results/figures/{{task}}_{{model}}_{name}.pdf", name=STUDY_FIGURES),
        data=expand("results/figures/{{task}}_{{model}}_{name}.csv", name=STUDY_FIGURES),
        claim="results/tables/{task}_{model}_misleads.csv",
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
        used=lambda w: used(w, "kernel", "fcr/confidence"),
        options=options,
    message:
        "Plotting the study of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_study --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


use rule estimate_fcr as estimate_frontier with:
    input:
        source=source("estimate_fcr"),
        prompts=expand("data/{{task}}/prompts/{split}.parquet", split=["train", "test"]),
        activations=expand(
            "data/{{task}}/{{model}}/activations/{split}/{{site}}.safetensors", split=["train", "test"]
        ),
        exact="results/{task}/{model}/exact/{site}.parquet",
        generators=descriptions_of(of_frontier),
        samples=samples_of(of_frontier),
    output:
        cells="results/{task}/{model}/frontier/cells/{site}.parquet",
        fcr="results/{task}/{model}/frontier/fcr/{site}.csv",
        refusal="results/{task}/{model}/frontier/refusal/{site}.csv",
    log:
        "logs/estimate_frontier/{task}/{model}/{site}.log",
    benchmark:
        "benchmarks/estimate_frontier/{task}/{model}/{site}.tsv"
    params:
        used=lambda w: used(w, "seed", w.task, "kernel", "fcr") | {"epsilons": bandwidths(w)},
        options=options,
        where=lambda w: f"{variant_options(of_frontier)(w)} --out frontier",
    message:
        "Estimating rates of the frontier's variants at {wildcards.site}"


rule collect_frontier:
    input:
        source=source("collect_frontier"),
        parts=at_sites_of(of_frontier, "results/{task}/{model}/frontier/refusal/{site}.csv"),
        cells=at_sites_of(of_frontier, "results/{task}/{model}/frontier/cells/{site}.parquet"),
        generators=descriptions_of(of_frontier),
        samples=samples_of(of_frontier),
        backbone="data/{task}/{model}/checkpoints/backbone/meta.json",
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
            w, "seed", "kernel", "fcr", "study_variants", *(f"variants/{v}" for v in of_frontier(w))
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
        figures=drawn(FRONTIER_FIGURES, "figures", "Study", "png"),
        vector=expand("results/figures/{{task}}_{{model}}_{name}.pdf", name=FRONTIER_FIGURES),
        data=expand("results/figures/{{task}}_{{model}}_{name}.csv", name=FRONTIER_FIGURES),
        tables=drawn(FRONTIER_TABLES, "tables", "Study", "csv"),
        markdown=expand("results/tables/{{task}}_{{model}}_{name}.md", name=FRONTIER_TABLES),
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
        used=lambda w: used(w, "kernel", "fcr/confidence"),
        options=options,
    message:
        "Plotting the frontier of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_frontier --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
