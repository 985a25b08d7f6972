# Activations of all sites of an experiment in one forward, one file a site. The sites, hence the files, differ between
# experiments: a rule each. Of an enumerated prior all prompts are run once, as `reference`; other splits are looked up there.
# Then the epsilons of bandwidths that are shares of the prior.


for experiment in PLAN.experiments:

    block = experiment.whole

    rule:
        name:
            f"extract_activations_{block.name}"
        input:
            source=source("extract_activations"),
            prompts=paths.PROMPTS,
            target=lambda w: of(w).target_files,
        output:
            fill(paths.ACTIVATIONS, site=block.sites),
        log:
            "logs/extract_activations/{task}/{model}/{split}.log",
        benchmark:
            "benchmarks/extract_activations/{task}/{model}/{split}.tsv"
        wildcard_constraints:
            **block.constraints,
            split=one_of(experiment.extracted),
        priority: ordered(110)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(4000, 16000),
            gpu=lambda w: of(w).gpus,
            runtime=minutes(20, 240),
        params:
            used=lambda w: used(w, f"models/{w.model}/dtype", f"models/{w.model}/device_map"),
            options=options,
        message:
            f"Extracting the {{wildcards.split}} activations of {{wildcards.model}} at {block.label}"
        shell:
            "inversescope extract_activations --task {wildcards.task} --model {wildcards.model}"
            " --split {wildcards.split} {params.options} --threads {threads} --log {log}"


rule choose_bandwidths:
    input:
        source=source("choose_bandwidths"),
        prompts=lambda w: of(w).prompts(["val", "reference"]),
        activations=lambda w: of(w).activations(["val", "reference"], of(w).labels),
    output:
        paths.BANDWIDTHS,
    log:
        "logs/choose_bandwidths/{task}/{model}.log",
    benchmark:
        "benchmarks/choose_bandwidths/{task}/{model}.tsv"
    priority: ordered(110)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, 16000),
        runtime=minutes(10, 120),
    params:
        used=lambda w: used(w, "kernel/distance", "kernel/centred", "bandwidths", "shares"),
        options=options,
    message:
        "Choosing the bandwidths of {wildcards.task} on {wildcards.model} by share of the prior"
    shell:
        "inversescope choose_bandwidths --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
