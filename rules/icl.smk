# In-context translation (paper, sections 4.3, D.3, E.4): word lists, activation patching, LLM labels, Figures 7 and 11. Targets,
# activations, generators and rates come from the rules above.


rule fetch_word_lists:
    input:
        source=source("fetch_word_lists", "icl_translation"),
    output:
        expand("data/icl_translation/lists/{pair}.json", pair=WORD_LISTS),
    log:
        "logs/fetch_word_lists/icl_translation.log",
    benchmark:
        "benchmarks/fetch_word_lists/icl_translation.tsv"
    priority: 90
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 1000),
        runtime=minutes(10, 10),
    params:
        used=lambda w: used(experiment_on("icl_translation"), "icl_translation"),
        options=options,
        where=lambda w: experiment_on("icl_translation").options(w),
    message:
        "Fetching the word lists, pinned and checksummed"
    shell:
        "inversescope fetch_word_lists {params.where} {params.options} --threads {threads} --log {log}"


rule patch_task_vectors:
    input:
        source=source("patch_task_vectors", "icl_translation"),
        target=lambda w: target_files("icl_translation", w.model),
    output:
        rates="results/icl_translation/{model}/patching.csv",
        pairs="results/icl_translation/{model}/patching_pairs.parquet",
        masking="results/icl_translation/{model}/masking.csv",
    log:
        "logs/patch_task_vectors/icl_translation/{model}.log",
    benchmark:
        "benchmarks/patch_task_vectors/icl_translation/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 24000),
        runtime=minutes(10, 120),
    params:
        used=lambda w: used(
            Experiment("icl_translation", w.model),
            "seed",
            "icl_translation",
            "patching",
            "probe/max_iter",
            "fcr/bootstrap",
            "fcr/confidence",
        ),
        options=options,
    message:
        "Patching task vectors in {wildcards.model}"
    shell:
        "inversescope patch_task_vectors --task icl_translation --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule label_tasks:
    input:
        source=source("label_tasks", "icl_translation"),
        prompts="data/icl_translation/prompts/test.parquet",
        samples=lambda w: samples_of(studied)(Experiment("icl_translation", w.model)),
    output:
        labels="results/icl_translation/{model}/labels.parquet",
        agreement="results/icl_translation/{model}/label_agreement.csv",
    log:
        "logs/label_tasks/icl_translation/{model}.log",
    benchmark:
        "benchmarks/label_tasks/icl_translation/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000, 16000),
        runtime=minutes(30, 600),
    params:
        used=lambda w: used(
            Experiment("icl_translation", w.model), "icl_translation", "labeller", "fcr/confidence"
        ),
        options=options,
    message:
        "Labelling the tasks of test prompts and candidates by a chat model"
    shell:
        "inversescope label_tasks --task icl_translation --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_icl:
    input:
        source=source("plot_icl", "icl_translation"),
        exact=lambda w: [
            f"results/icl_translation/{model}/exact/{site}.parquet"
            for model in shown_beside(w.model)
            for site in sites_of("icl_translation", model)
        ],
        patching=lambda w: [
            f"results/icl_translation/{model}/{table}.csv"
            for model in shown_beside(w.model)
            for table in ("patching", "masking")
        ],
        targets=lambda w: [
            f"results/icl_translation/{model}/target_selection.csv"
            for model in shown_beside(w.model)
            if model in TRAINED
        ],
        fcr="results/icl_translation/{model}/fcr.csv",
        refusal="results/icl_translation/{model}/refusal.csv",
        samples=lambda w: samples_of(studied)(Experiment("icl_translation", w.model)),
        labels=lambda w: (
            f"results/icl_translation/{w.model}/label_agreement.csv" if CONFIG.labeller is not None else []
        ),
    output:
        report(
            "results/figures/icl_translation_{model}_task_vectors.png",
            caption="../report/task_vectors.rst",
            category="Figures",
            subcategory="icl_translation on {model}",
            labels={"shows": "Figures 7 and 11: task and query by layer, and patching"},
        ),
        vector="results/figures/icl_translation_{model}_task_vectors.pdf",
        data="results/figures/icl_translation_{model}_task_vectors.csv",
        headline=report(
            "results/tables/icl_translation_{model}_headline.csv",
            caption="../report/task_vectors.rst",
            category="Tables",
            subcategory="icl_translation on {model}",
            labels={"shows": "Headline numbers"},
        ),
        markdown="results/tables/icl_translation_{model}_headline.md",
        layers="results/icl_translation/{model}/layers.csv",
        bands="results/icl_translation/{model}/bands.csv",
        refused="results/icl_translation/{model}/refused.csv",
    log:
        "logs/plot_icl/icl_translation/{model}.log",
    benchmark:
        "benchmarks/plot_icl/icl_translation/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 4000),
        runtime=minutes(5, 20),
    params:
        used=lambda w: used(Experiment("icl_translation", w.model), "kernel/epsilon", "fcr"),
        options=options,
        shown=lambda w: {model: CONFIG.models[model].training.delay_layers for model in shown_beside(w.model)},
    message:
        "Plotting task and query by layer of {wildcards.model} beside its control"
    shell:
        "inversescope plot_icl --task icl_translation --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
