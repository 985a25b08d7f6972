# Readers, ours and others', against the exact posterior: every control's and variant's answers judged, figure and table.


rule score_readers:
    input:
        source=source("score_readers"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(paths.SPLITS),
        activations=lambda w: of(w).activations(paths.SPLITS, of(w).labels),
        exact=lambda w: of(w).at_sites(paths.EXACT),
        samples=lambda w: of(w).samples(of(w).scored),
    output:
        fill(paths.ANSWERS, group=""),
        paths.POSTERIORS,
    log:
        "logs/score_readers/{task}/{model}.log",
    benchmark:
        "benchmarks/score_readers/{task}/{model}.tsv"
    priority: ordered(40)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(6000, 16000),
        runtime=minutes(15, 120),
    params:
        used=lambda w: used(w, "seed", w.task, "kernel", "fcr/features", "bandwidths"),
        variants=lambda w: variant_options(of(w).scored),
        options=options,
    message:
        "Scoring the readers of {wildcards.task} on {wildcards.model} against the exact posterior"
    shell:
        "inversescope score_readers --task {wildcards.task} --model {wildcards.model}"
        " {params.variants} {params.options} --threads {threads} --log {log}"


use rule score_readers as score_frontier with:
    input:
        source=source("score_readers"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(paths.SPLITS),
        activations=lambda w: of(w).activations(["train", "test"], of(w).labels_of(of(w).rivals)),
        exact=lambda w: of(w).at_sites_of(of(w).rivals, paths.EXACT),
        posteriors=paths.POSTERIORS,
        samples=lambda w: of(w).samples(of(w).rivals),
    output:
        fill(paths.ANSWERS, group="frontier/"),
    log:
        "logs/score_frontier/{task}/{model}.log",
    benchmark:
        "benchmarks/score_frontier/{task}/{model}.tsv"
    params:
        used=lambda w: used(w, "seed", w.task, "kernel", "fcr/features", "bandwidths"),
        variants=lambda w: f"{variant_options(of(w).rivals)} --out frontier",
        options=options,
    message:
        "Scoring the frontier's readers of {wildcards.task} on {wildcards.model} against the exact posterior"


rule plot_readers:
    input:
        source=source("plot_readers"),
        answers=fill(paths.ANSWERS, group=""),
    output:
        shown("plot_readers", "Readers"),
    log:
        "logs/plot_readers/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_readers/{task}/{model}.tsv"
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 4000),
        runtime=minutes(5, 15),
    params:
        used=lambda w: used(w, "seed", "fcr/bootstrap", "fcr/confidence", "looks"),
        options=options,
    message:
        "Plotting the readers of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_readers --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_frontier_readers:
    input:
        source=source("plot_frontier_readers"),
        answers=fill(paths.ANSWERS, group=["", "frontier/"]),
    output:
        shown("plot_frontier_readers", "Study"),
    log:
        "logs/plot_frontier_readers/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_frontier_readers/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 4000),
        runtime=minutes(5, 15),
    params:
        used=lambda w: used(
            w,
            "seed",
            "fcr/bootstrap",
            "fcr/confidence",
            "looks",
            *(f"variants/{v}/{key}" for v in of(w).rivals for key in ("base", "steps")),
        ),
        options=options,
    message:
        "Plotting the readers of {wildcards.task} on {wildcards.model} beside those of the frontier"
    shell:
        "inversescope plot_frontier_readers --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
