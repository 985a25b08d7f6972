# The conditional generator (paper, section 3): a backbone that knows the prior, then control layers and site maps.


rule train_backbone:
    input:
        source=source("train_backbone"),
        target=lambda w: target_files(w.task, w.model),
    output:
        "data/{task}/{model}/checkpoints/backbone/model.safetensors",
        "data/{task}/{model}/checkpoints/backbone/meta.json",
        log="results/{task}/{model}/training/backbone.csv",
        samples="results/{task}/{model}/samples/backbone.parquet",
    log:
        "logs/train_backbone/{task}/{model}.log",
    benchmark:
        "benchmarks/train_backbone/{task}/{model}.tsv"
    priority: 100
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        runtime=minutes(20, 1440),
    params:
        used=lambda w: used(w, "seed", "budget", w.task, "backbone"),
        options=options,
    message:
        "Training the backbone of the generators on the prior of {wildcards.task}"
    shell:
        "inversescope train_backbone --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule train_generator:
    input:
        source=source("train_generator"),
        prompts="data/{task}/prompts/train.parquet",
        target=lambda w: target_files(w.task, w.model),
        activations=activations_of_variant,
        backbone="data/{task}/{model}/checkpoints/backbone/model.safetensors",
        meta="data/{task}/{model}/checkpoints/backbone/meta.json",
    output:
        "data/{task}/{model}/checkpoints/{generator}/{variant}/model.safetensors",
        "data/{task}/{model}/checkpoints/{generator}/{variant}/meta.json",
        log="results/{task}/{model}/training/{generator}/{variant}.csv",
    log:
        "logs/train_generator/{task}/{model}/{generator}/{variant}.log",
    benchmark:
        "benchmarks/train_generator/{task}/{model}/{generator}/{variant}.tsv"
    priority: 100
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, 64000),
        runtime=minutes(30, 2880),
    params:
        used=lambda w: used(w, "seed", "budget", w.task, *HEADLINE, "backbone/init") | made_as(w),
        options=options,
    message:
        "Training generator {wildcards.generator}, variant {wildcards.variant}"
    shell:
        "inversescope train_generator --task {wildcards.task} --model {wildcards.model}"
        " --generator {wildcards.generator} --variant {wildcards.variant}"
        " {params.options} --threads {threads} --log {log}"
