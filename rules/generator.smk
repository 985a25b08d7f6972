# The conditional generator (paper, section 3): a backbone that knows the prior, then control layers and site maps.


rule train_backbone:
    input:
        source=source("train_backbone"),
        target=lambda w: of(w).target_files,
        hub=lambda w: of(w).fetched,
    output:
        fill(paths.BACKBONE, file=paths.CHECKPOINT_FILES),
        log="results/{task}/{model}/training/backbone.csv",
        samples=paths.PRIOR_SAMPLES,
    log:
        "logs/train_backbone/{task}/{model}.log",
    benchmark:
        "benchmarks/train_backbone/{task}/{model}.tsv"
    priority: ordered(100)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        gpu=lambda w: of(w).gpus,
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
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(["train"]),
        target=lambda w: of(w).target_files,
        activations=lambda w: of(w).activations(["train"], of(w).labels_of([w.variant])),
        backbone=fill(paths.BACKBONE, file=paths.CHECKPOINT_FILES),
    output:
        fill(paths.CHECKPOINT, file=paths.CHECKPOINT_FILES),
        log=paths.TRAINING_LOG,
    log:
        "logs/train_generator/{task}/{model}/{generator}/{variant}.log",
    benchmark:
        "benchmarks/train_generator/{task}/{model}/{generator}/{variant}.tsv"
    priority: ordered(100)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(6000, 64000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(30, 2880),
    params:
        used=lambda w: used(w, "seed", "budget", w.task, *HEADLINE, "backbone/init", f"training/{w.variant}"),
        launch=launch,
        options=options,
    message:
        "Training generator {wildcards.generator}, variant {wildcards.variant}"
    shell:
        "{params.launch}"
        "inversescope train_generator --task {wildcards.task} --model {wildcards.model}"
        " --generator {wildcards.generator} --variant {wildcards.variant}"
        " {params.options} --threads {threads} --log {log}"
