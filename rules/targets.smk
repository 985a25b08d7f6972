# The target model: candidates trained here and one of them selected, or a model from the hub or a local directory.


rule train_target:
    input:
        source=source("train_target"),
        corpus=lambda w: [source_file(f"tasks/{name}") for name in of(w).target.training.corpus],
        data=lambda w: PLAN.data_of(w.task),
    output:
        fill(paths.CANDIDATE, file=paths.TARGET_FILES),
    log:
        "logs/train_target/{task}/{model}/{candidate}.log",
    benchmark:
        "benchmarks/train_target/{task}/{model}/{candidate}.tsv"
    priority: ordered(80)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 2000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(15, 15),
    params:
        used=lambda w: used(
            w,
            "seed",
            w.task,
            f"models/{w.model}/training",
            f"models/{w.model}/shape",
            *of(w).target.training.corpus,
        ),
        options=options,
    message:
        "Training candidate {wildcards.candidate} of target {wildcards.model}"
    shell:
        "inversescope train_target --task {wildcards.task} --model {wildcards.model} --candidate {wildcards.candidate}"
        " {params.options} --threads {threads} --log {log}"


rule score_target:
    input:
        source=source("score_target"),
        target=fill(paths.CANDIDATE, file=paths.TARGET_FILES),
    output:
        fill(paths.CANDIDATE, file="score.csv"),
    log:
        "logs/score_target/{task}/{model}/{candidate}.log",
    benchmark:
        "benchmarks/score_target/{task}/{model}/{candidate}.tsv"
    priority: ordered(80)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 2000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(10, 10),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr/features"),
        options=options,
    message:
        "Scoring the heads of candidate {wildcards.candidate} against prior draws"
    shell:
        "inversescope score_target --task {wildcards.task} --model {wildcards.model} --candidate {wildcards.candidate}"
        " {params.options} --threads {threads} --log {log}"


rule select_target:
    input:
        source=source("select_target"),
        candidates=lambda w: of(w).files(
            paths.CANDIDATE, candidate=list(of(w).target.candidates), file=["score.csv", *paths.TARGET_FILES]
        ),
    output:
        fill(paths.TARGET, file=paths.TARGET_FILES),
        table="results/{task}/{model}/target_selection.csv",
    log:
        "logs/select_target/{task}/{model}.log",
    benchmark:
        "benchmarks/select_target/{task}/{model}.tsv"
    wildcard_constraints:
        model=one_of(PLAN.models_that(lambda model: model.source == "trained")),
    priority: ordered(80)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, 1500),
        runtime=minutes(5, 5),
    params:
        used=lambda w: used(w, "fcr/features"),
        options=options,
    message:
        "Selecting the candidate of {wildcards.model} whose heads differ most clearly"
    shell:
        "inversescope select_target --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule import_gguf:
    input:
        source=source("import_gguf"),
    output:
        fill(paths.WEIGHTS, file=paths.TARGET_FILES),
    log:
        "logs/import_gguf/{model}.log",
    benchmark:
        "benchmarks/import_gguf/{model}.tsv"
    wildcard_constraints:
        model=one_of(PLAN.models_that(lambda model: model.gguf)),
    priority: ordered(120)
    localrule: True
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000, 64000),
        runtime=minutes(10, 120),
    params:
        used=lambda w: used(
            w,
            "model_files",
            *(
                f"models/{w.model}/{key}"
                for key in ("source", "path", "revision", "file", "sha256", "n_layers", "n_heads")
            ),
        ),
        # Asks for the threads, so that it is not recorded: any task on the model would do.
        task=lambda w, threads: of(w).task,
        options=options,
    message:
        "Fetching {wildcards.model} and dequantising its GGUF file"
    shell:
        "inversescope import_gguf --task {params.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule fetch_target:
    input:
        source=source("fetch_target"),
        data=lambda w: PLAN.data_of(w.task),
        weights=lambda w: of(w).weights,
    output:
        fill(paths.TARGET, file="target.json"),
    log:
        "logs/fetch_target/{task}/{model}.log",
    benchmark:
        "benchmarks/fetch_target/{task}/{model}.tsv"
    wildcard_constraints:
        model=one_of(PLAN.models_that(lambda model: model.is_fetched)),
    priority: ordered(80)
    localrule: True
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        runtime=minutes(30, 120),
    params:
        used=lambda w: used(w, w.task, f"models/{w.model}", "sites", "patched", "model_files"),
        options=options,
    message:
        "Fetching target {wildcards.model} at its pinned revision and checking its tokenizer"
    shell:
        "inversescope fetch_target --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule fetch_models:
    input:
        source=source("fetch_models"),
    output:
        paths.FETCHED,
    log:
        "logs/fetch_models/{task}/{model}.log",
    benchmark:
        "benchmarks/fetch_models/{task}/{model}.tsv"
    priority: ordered(120)
    localrule: True
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(30, 120),
    params:
        used=lambda w: {"from_hub": of(w).from_hub},
        options=options,
    message:
        "Fetching what else is read from the hub for {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope fetch_models --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule import_checkpoint:
    input:
        source=source("import_checkpoint"),
        data=lambda w: PLAN.data_of(w.task),
    output:
        fill(paths.TARGET, file=paths.TARGET_FILES),
        table="results/{task}/{model}/target_import.csv",
    log:
        "logs/import_checkpoint/{task}/{model}.log",
    benchmark:
        "benchmarks/import_checkpoint/{task}/{model}.tsv"
    wildcard_constraints:
        model=one_of(PLAN.models_that(lambda model: model.source == "checkpoint")),
    priority: ordered(80)
    localrule: True
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1500, 1500),
        runtime=minutes(5, 5),
    params:
        used=lambda w: used(w, w.task, f"models/{w.model}", "sites", "patched", "model_files"),
        options=options,
    message:
        "Importing the checkpoint of {wildcards.model} with its vocabulary and asking it fresh prompts"
    shell:
        "inversescope import_checkpoint --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
