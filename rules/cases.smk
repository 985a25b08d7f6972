# Causal checks, of every experiment that names sites to patch; distances, completeness and figures of case studies.


rule check_causes:
    input:
        source=source("check_causes"),
        target=lambda w: of(w).target_files,
        reference=fill(paths.PROMPTS, split="reference"),
        activations=lambda w: of(w).activations(["reference"], of(w).patched_and_held),
    output:
        causes="results/{task}/{model}/causes.csv",
        ranks="results/{task}/{model}/causes_rank.csv",
    log:
        "logs/check_causes/{task}/{model}.log",
    benchmark:
        "benchmarks/check_causes/{task}/{model}.tsv"
    priority: ordered(30)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(6000, 16000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(15, 120),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr/confidence", "patched", "patching/n_partners"),
        options=options,
    message:
        "Patching the sites of {wildcards.model} on {wildcards.task} with counterfactual partners"
    shell:
        "inversescope check_causes --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule trace_answers:
    input:
        source=source("trace_answers"),
        target=lambda w: of(w).target_files,
        reference=fill(paths.PROMPTS, split="reference"),
    output:
        answers="results/{task}/{model}/answers.csv",
        ranks="results/{task}/{model}/answers_rank.csv",
    log:
        "logs/trace_answers/{task}/{model}.log",
    benchmark:
        "benchmarks/trace_answers/{task}/{model}.tsv"
    priority: ordered(30)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(15, 120),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr/confidence", "patched", "patching/n_partners"),
        options=options,
    message:
        "Tracing which sites of {wildcards.model} carry which token of the answers of {wildcards.task}"
    shell:
        "inversescope trace_answers --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_causes:
    input:
        source=source("plot_causes"),
        causes="results/{task}/{model}/causes.csv",
        ranks="results/{task}/{model}/causes_rank.csv",
    output:
        shown("plot_causes", "Causal checks"),
    log:
        "logs/plot_causes/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_causes/{task}/{model}.tsv"
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 10),
    params:
        used=lambda w: used(w, "patched"),
        options=options,
    message:
        "Plotting FCR against effect at the sites of {wildcards.model} on {wildcards.task}"
    shell:
        "inversescope plot_causes --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_heads:
    input:
        source=source("plot_heads"),
        rates="results/{task}/{model}/exact_rates.parquet",
        causes=lambda w: "results/{task}/{model}/causes.csv" if of(w).settings.patched else [],
    output:
        shown("plot_heads", "Causal checks"),
    log:
        "logs/plot_heads/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_heads/{task}/{model}.tsv"
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
        used=lambda w: used(w, "seed", *HEADLINE, "fcr/confidence", "patched"),
        options=options,
    message:
        "Plotting the heads of {wildcards.model} that tell each feature, beside their effects"
    shell:
        "inversescope plot_heads --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_answers:
    input:
        source=source("plot_answers"),
        answers="results/{task}/{model}/answers.csv",
        ranks="results/{task}/{model}/answers_rank.csv",
    output:
        shown("plot_answers", "Causal checks"),
    log:
        "logs/plot_answers/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_answers/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(SPELLED),
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 10),
    params:
        used=lambda w: used(w, "patched"),
        options=options,
    message:
        "Plotting which sites of {wildcards.model} carry which token of the answers of {wildcards.task}"
    shell:
        "inversescope plot_answers --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule compare_distances:
    input:
        source=source("compare_distances"),
        bandwidths=lambda w: of(w).bandwidth_table,
        target=lambda w: of(w).recomputed_by,
        prompts=lambda w: of(w).prompts(paths.SPLITS),
        activations=lambda w: of(w).activations(paths.SPLITS, of(w).labels),
        samples=lambda w: of(w).samples(of(w).studied),
    output:
        "results/{task}/{model}/distances.csv",
    log:
        "logs/compare_distances/{task}/{model}.log",
    benchmark:
        "benchmarks/compare_distances/{task}/{model}.tsv"
    priority: ordered(30)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, 64000),
        gpu=lambda w: of(w).gpus if of(w).recomputed_by else 0,
        runtime=minutes(15, 240),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr", "studied_variants"),
        options=options,
    message:
        "Reading the sites of {wildcards.model} on {wildcards.task} under three distances"
    shell:
        "inversescope compare_distances --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule check_completeness:
    input:
        source=source("check_completeness"),
        bandwidths=lambda w: of(w).bandwidth_table,
        target=lambda w: of(w).target_files,
        prompts=lambda w: of(w).prompts(paths.SPLITS),
        activations=lambda w: of(w).activations(paths.SPLITS, of(w).labels),
        generators=lambda w: of(w).of_variants(paths.CHECKPOINT, of(w).studied, file="meta.json"),
    output:
        points="results/{task}/{model}/completeness.parquet",
        recall="results/{task}/{model}/completeness_recall.csv",
        sizes="results/{task}/{model}/completeness_sizes.csv",
    log:
        "logs/check_completeness/{task}/{model}.log",
    benchmark:
        "benchmarks/check_completeness/{task}/{model}.tsv"
    priority: ordered(30)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, 64000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(15, 240),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr", "studied_variants"),
        options=options,
    message:
        "Asking the generators of {wildcards.model} on {wildcards.task} for known members of preimages"
    shell:
        "inversescope check_completeness --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_cases:
    input:
        source=source("plot_cases"),
        bandwidths=lambda w: of(w).bandwidth_table,
        fcr="results/{task}/{model}/fcr.csv",
        refusal="results/{task}/{model}/refusal.csv",
        distances="results/{task}/{model}/distances.csv",
        points="results/{task}/{model}/completeness.parquet",
        recall="results/{task}/{model}/completeness_recall.csv",
        sizes="results/{task}/{model}/completeness_sizes.csv",
        accuracy=lambda w: of(w).accuracy,
    output:
        shown("plot_cases", "Case studies"),
    log:
        "logs/plot_cases/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_cases/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(PLAN.case_studies),
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 10),
    params:
        used=lambda w: used(w, *HEADLINE, "fcr/features", "studied_variants", "sites", "looks"),
        options=options,
    message:
        "Plotting the case study of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_cases --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
