# Indirect object identification (paper, sections 4.1 and D.1): figures and tables of the paper and more, each beside its data.
# Nothing here imports PyTorch. Captions are in report/.


rule plot_layers:
    input:
        source=source("plot_layers"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=fill(paths.PROMPTS, split="test"),
        exact=lambda w: of(w).at_sites(paths.EXACT),
    output:
        shown("plot_layers", "Figures"),
        rates="results/{task}/{model}/exact_rates.parquet",
    log:
        "logs/plot_layers/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_layers/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(IOI),
    priority: ordered(110)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 8000),
        runtime=minutes(10, 30),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr/bootstrap", "fcr/confidence", "sites"),
        options=options,
    message:
        "Plotting what each layer of {wildcards.model} tells"
    shell:
        "inversescope plot_layers --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule draw_exact:
    input:
        source=source("draw_exact"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(["test", "reference"]),
        activations=lambda w: of(w).activations(["test", "reference"], of(w).labels),
        fcr="results/{task}/{model}/fcr.csv",
    output:
        draws="results/{task}/{model}/exact_draws.parquet",
        agreement="results/{task}/{model}/exact_agreement.csv",
    log:
        "logs/draw_exact/{task}/{model}.log",
    benchmark:
        "benchmarks/draw_exact/{task}/{model}.tsv"
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        runtime=minutes(10, 60),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr/features", "shown"),
        options=options,
    message:
        "Drawing from the exact distribution at the heads that figures show"
    shell:
        "inversescope draw_exact --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_figures:
    input:
        source=source("plot_figures"),
        bandwidths=lambda w: of(w).bandwidth_table,
        fcr="results/{task}/{model}/fcr.csv",
        refusal="results/{task}/{model}/refusal.csv",
        coverage="results/{task}/{model}/coverage.csv",
        draws="results/{task}/{model}/exact_draws.parquet",
        agreement="results/{task}/{model}/exact_agreement.csv",
        prompts=fill(paths.PROMPTS, split="test"),
        training=lambda w: of(w).of_variants(paths.TRAINING_LOG, of(w).studied),
        samples=lambda w: of(w).samples(of(w).studied),
    output:
        shown("plot_figures", "Figures"),
    log:
        "logs/plot_figures/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_figures/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(IOI),
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 8000),
        runtime=minutes(10, 30),
    params:
        used=lambda w: used(w, "kernel", "fcr", "figures", "studied_variants", "bandwidths", "looks", "shown"),
        options=options,
    message:
        "Plotting the figures and writing the tables of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_figures --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
