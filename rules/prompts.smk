# Prompts of the task's prior (paper, D.1.1): the cache, the targets, and draws for the exact values.


rule make_prompts:
    input:
        source=source("make_prompts"),
        data=lambda w: data_of(w.task),
    output:
        "data/{task}/prompts/{split}.parquet",
    log:
        "logs/make_prompts/{task}/{split}.log",
    benchmark:
        "benchmarks/make_prompts/{task}/{split}.tsv"
    priority: 90
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 6000),
        runtime=minutes(5, 20),
    params:
        used=lambda w: used(experiment_on(w.task), "seed", w.task) | size_of_split(w.task, w.split),
        options=options,
        # Asks for the threads, so that it is not recorded: any model of the task would do.
        model=lambda w, threads: experiment_on(w.task).model,
    message:
        "Drawing the {wildcards.split} prompts of {wildcards.task}"
    shell:
        "inversescope make_prompts --task {wildcards.task} --model {params.model} --split {wildcards.split}"
        " {params.options} --threads {threads} --log {log}"
