# In-context tasks (paper, sections 4.3, D.3, E.4): word lists, activation patching, LLM labels, Figures 7 and 11. Targets,
# activations, generators and rates come from the rules above.


from inversescope.workflow.plan import FEW_SHOT

ICL = PLAN.on("icl_translation")


if ICL and CONFIG.icl_translation.words == "lists":

    rule fetch_word_lists:
        input:
            source=source_files("fetch_word_lists", "icl_translation"),
        output:
            PLAN.data_of("icl_translation"),
        log:
            "logs/fetch_word_lists/icl_translation.log",
        benchmark:
            "benchmarks/fetch_word_lists/icl_translation.tsv"
        priority: ordered(90)
        localrule: True
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000, 1000),
            runtime=minutes(10, 10),
        params:
            used=used(ICL[0], "icl_translation"),
            options=options,
            where=ICL[0].options,
        message:
            "Fetching the word lists, pinned and checksummed"
        shell:
            "inversescope fetch_word_lists {params.where} {params.options} --threads {threads} --log {log}"


rule patch_task_vectors:
    input:
        source=source("patch_task_vectors"),
        target=lambda w: of(w).target_files,
    output:
        rates="results/{task}/{model}/patching.csv",
        by_task="results/{task}/{model}/patching_by_task.csv",
        pairs="results/{task}/{model}/patching_pairs.parquet",
        masking="results/{task}/{model}/masking.csv",
    log:
        "logs/patch_task_vectors/{task}/{model}.log",
    benchmark:
        "benchmarks/patch_task_vectors/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(FEW_SHOT),
    priority: ordered(30)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, 24000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(10, 120),
    params:
        used=lambda w: used(
            w,
            "seed",
            w.task,
            "patching",
            "probe/max_iter",
            "fcr/bootstrap",
            "fcr/confidence",
        ),
        options=options,
    message:
        "Patching task vectors in {wildcards.model}"
    shell:
        "inversescope patch_task_vectors --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule label_tasks:
    input:
        source=source("label_tasks"),
        prompts=fill(paths.PROMPTS, split="test"),
        samples=lambda w: of(w).samples(of(w).studied),
        chat=lambda w: of(w).labeller_files,
        hub=lambda w: of(w).fetched,
    output:
        labels="results/{task}/{model}/labels.parquet",
        agreement="results/{task}/{model}/label_agreement.csv",
    log:
        "logs/label_tasks/{task}/{model}.log",
    benchmark:
        "benchmarks/label_tasks/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(FEW_SHOT),
    priority: ordered(30)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000, 16000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(30, 600),
    params:
        used=lambda w: used(w, w.task, "labeller", "fcr/confidence"),
        options=options,
    message:
        "Labelling the tasks of test prompts and candidates by a chat model"
    shell:
        "inversescope label_tasks --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule rate_labels:
    input:
        source=source("rate_labels"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=fill(paths.PROMPTS, split="test"),
        samples=lambda w: of(w).samples(of(w).studied),
        chat=lambda w: of(w).labeller_files,
        # Both keep what was labelled in one file.
        labels="results/{task}/{model}/labels.parquet",
    output:
        "results/{task}/{model}/labelled.csv",
    log:
        "logs/rate_labels/{task}/{model}.log",
    benchmark:
        "benchmarks/rate_labels/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(FEW_SHOT),
    priority: ordered(30)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000, 16000),
        gpu=lambda w: of(w).gpus,
        runtime=minutes(30, 600),
    params:
        used=lambda w: used(w, "seed", w.task, "labeller", *HEADLINE, "fcr/bootstrap", "fcr/confidence"),
        options=options,
    message:
        "Rating draws by the tasks that a chat model names"
    shell:
        "inversescope rate_labels --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_labels:
    input:
        source=source("plot_labels"),
        bandwidths=lambda w: of(w).bandwidth_table,
        exact=lambda w: of(w).at_sites(paths.EXACT),
        patching="results/{task}/{model}/patching.csv",
        fcr="results/{task}/{model}/fcr.csv",
        labelled="results/{task}/{model}/labelled.csv",
    output:
        shown("plot_labels", "Figures"),
    log:
        "logs/plot_labels/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_labels/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(FEW_SHOT),
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 4000),
        runtime=minutes(5, 20),
    params:
        used=lambda w: used(w, "seed", *HEADLINE, "fcr", "studied_variants"),
        options=options,
    message:
        "Plotting task by a chat model's labels of {wildcards.model}"
    shell:
        "inversescope plot_labels --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_icl:
    input:
        source=source("plot_icl"),
        bandwidths=lambda w: [file for e in PLAN.with_control(of(w)) for file in e.bandwidth_table],
        exact=lambda w: [file for e in PLAN.with_control(of(w)) for file in e.at_sites(paths.EXACT)],
        patching=lambda w: [
            file
            for e in PLAN.with_control(of(w))
            for file in e.files(paths.RESULT, file=["patching.csv", "patching_by_task.csv", "masking.csv"])
        ],
        targets=lambda w: [
            file
            for e in PLAN.with_control(of(w))
            if e.target.source == "trained"
            for file in e.files(paths.RESULT, file="target_selection.csv")
        ],
        fcr="results/{task}/{model}/fcr.csv",
        refusal="results/{task}/{model}/refusal.csv",
        samples=lambda w: of(w).samples(of(w).studied),
        labels=lambda w: (
            of(w).files(paths.RESULT, file="label_agreement.csv") if of(w).config.labeller else []
        ),
    output:
        shown("plot_icl", "Figures"),
        layers="results/{task}/{model}/layers.csv",
        bands="results/{task}/{model}/bands.csv",
        refused="results/{task}/{model}/refused.csv",
    log:
        "logs/plot_icl/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_icl/{task}/{model}.tsv"
    wildcard_constraints:
        task=one_of(FEW_SHOT),
    priority: ordered(20)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 4000),
        runtime=minutes(5, 20),
    params:
        used=lambda w: used(
            w,
            *HEADLINE,
            "fcr",
            *(f"models/{e.model}/training/delay_layers" for e in PLAN.with_control(of(w))),
        ),
        options=options,
    message:
        "Plotting task and query by layer of {wildcards.model} beside its control"
    shell:
        "inversescope plot_icl --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
