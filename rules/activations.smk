# Activations of all sites of an experiment in one forward, one file a site. The sites, hence the files, differ between
# experiments: a rule each. Of an enumerated prior all prompts are run once, as `reference`; other splits are looked up there.


for experiment in PLAN.experiments:

    block = experiment.whole

    rule:
        name:
            f"extract_activations_{block.name}"
        input:
            source=source("extract_activations"),
            prompts=paths.PROMPTS,
            target=target_files,
        output:
            fill(paths.ACTIVATIONS, site=block.sites),
        log:
            "logs/extract_activations/{task}/{model}/{split}.log",
        benchmark:
            "benchmarks/extract_activations/{task}/{model}/{split}.tsv"
        wildcard_constraints:
            **block.constraints,
            split=one_of(experiment.extracted),
        priority: 70
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 16000),
            runtime=minutes(20, 240),
        params:
            used=lambda w: used(w, f"models/{w.model}/dtype", f"models/{w.model}/device_map"),
            options=options,
        message:
            f"Extracting the {{wildcards.split}} activations of {{wildcards.model}} at {block.label}"
        shell:
            "inversescope extract_activations --task {wildcards.task} --model {wildcards.model}"
            " --split {wildcards.split} {params.options} --threads {threads} --log {log}"
