# Prompts of the task's prior (paper, D.1.1): the cache, the targets, and draws for the exact values.

TEXT = PLAN.on("text")


if CONFIG.text.source == "hub" and TEXT:

    rule fetch_corpus:
        input:
            source=source_files("fetch_corpus", "text"),
        output:
            fill("data/text/{name}", name=CONFIG.text.files),
        log:
            "logs/fetch_corpus.log",
        benchmark:
            "benchmarks/fetch_corpus.tsv"
        priority: ordered(120)
        localrule: True
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(4000, 4000),
            runtime=minutes(60, 60),
        params:
            used=used(TEXT[0], "text"),
            options=options,
            where=TEXT[0].options,
        message:
            "Fetching the corpus of the task text at its pinned revision"
        shell:
            "inversescope fetch_corpus {params.where} {params.options} --threads {threads} --log {log}"


rule make_prompts:
    input:
        source=source("make_prompts"),
        data=lambda w: PLAN.data_of(w.task),
    output:
        paths.PROMPTS,
    log:
        "logs/make_prompts/{task}/{split}.log",
    benchmark:
        "benchmarks/make_prompts/{task}/{split}.tsv"
    priority: ordered(90)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 6000),
        runtime=minutes(5, 20),
    params:
        used=lambda w: used(w, "seed", w.task, f"n_{w.split}", "prompt"),
        # Asks for the threads, so that it is not recorded: any model of the task would do.
        model=lambda w, threads: of(w).model,
        options=options,
    message:
        "Drawing the {wildcards.split} prompts of {wildcards.task}"
    shell:
        "inversescope make_prompts --task {wildcards.task} --model {params.model} --split {wildcards.split}"
        " {params.options} --threads {threads} --log {log}"
