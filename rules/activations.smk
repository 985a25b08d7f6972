# Activations of all sites of an experiment in one forward, one file a site. The sites, hence the files, differ between
# experiments: a rule each.


for task, model in EXPERIMENTS:

    rule:
        name:
            rule_name("extract_activations", task, model)
        input:
            source=source("extract_activations", task),
            prompts=f"data/{task}/prompts/{{split}}.parquet",
            target=target_files(task, model),
        output:
            expand(
                "data/{task}/{model}/activations/{{split}}/{site}.safetensors",
                task=task,
                model=model,
                site=sites_of(task, model),
            ),
        log:
            f"logs/extract_activations/{task}/{model}/{{split}}.log",
        benchmark:
            f"benchmarks/extract_activations/{task}/{model}/{{split}}.tsv"
        priority: 70
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 16000, model),
            runtime=minutes(20, 240, model),
        params:
            used=used(Experiment(task, model), f"models/{model}/dtype", f"models/{model}/device_map"),
            options=options,
            where=f"--task {task} --model {model}",
        message:
            f"Extracting the {{wildcards.split}} activations of {model} at {len(sites_of(task, model))} sites"
        shell:
            "inversescope extract_activations {params.where} --split {wildcards.split}"
            " {params.options} --threads {threads} --log {log}"
