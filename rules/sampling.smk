# Candidate prompts from the generators, their activations and distances; and chains of swap moves without a generator.


for block in blocks(all_variants):

    rule:
        name:
            rule_name("sample_prompts", block.name)
        input:
            source=source("sample_prompts", block.task),
            prompts=expand("data/{task}/prompts/{split}.parquet", task=block.task, split=["train", "test"]),
            target=block.target_files,
            cache=block.files("data/{task}/{model}/activations/train/{site}.safetensors"),
            targets=block.files("data/{task}/{model}/activations/test/{site}.safetensors"),
            generator=f"data/{block.folder}/checkpoints/{{generator}}/{{variant}}/model.safetensors",
            meta=f"data/{block.folder}/checkpoints/{{generator}}/{{variant}}/meta.json",
        output:
            block.files(
                "results/{task}/{model}/samples/{{generator}}/{{variant}}/{site}{suffix}",
                suffix=SAMPLE_SUFFIXES,
            ),
        log:
            f"logs/sample_prompts/{block.folder}/{{generator}}/{{variant}}/{block.first}.log",
        benchmark:
            f"benchmarks/sample_prompts/{block.folder}/{{generator}}/{{variant}}/{block.first}.tsv"
        wildcard_constraints:
            **block.constraints(),
        priority: 60
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 16000, block.model),
            runtime=minutes(20, 360, block.model),
        params:
            used=lambda w, block=block: used(
                block.experiment(w), "seed", "budget", block.task_of(w), *HEADLINE, "figures"
            )
            | drawn_as(block.experiment(w), w.variant),
            options=options,
            where=block.options,
        message:
            f"Sampling prompts from {{wildcards.generator}} {{wildcards.variant}} at {block.label}"
        shell:
            "inversescope sample_prompts {params.where} --generator {wildcards.generator} --variant {wildcards.variant}"
            " {params.options} --threads {threads} --log {log}"


for block in blocks():

    rule:
        name:
            rule_name("run_mcmc", block.name)
        input:
            source=source("run_mcmc", block.task),
            prompts=f"data/{block.task}/prompts/test.parquet",
            target=block.target_files,
            targets=block.files("data/{task}/{model}/activations/test/{site}.safetensors"),
        output:
            block.files("results/{task}/{model}/mcmc/{site}.parquet"),
        log:
            f"logs/run_mcmc/{block.folder}/{block.first}.log",
        benchmark:
            f"benchmarks/run_mcmc/{block.folder}/{block.first}.tsv"
        wildcard_constraints:
            **block.constraints(),
        priority: 20
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(2000, 16000, block.model),
            runtime=minutes(20, 240, block.model),
        params:
            used=lambda w, block=block: used(
                block.experiment(w), "seed", "budget", block.task_of(w), *HEADLINE, "fcr/mcmc_evaluations"
            ),
            options=options,
            where=block.options,
        message:
            f"Running chains of swap moves at {block.label}"
        shell:
            "inversescope run_mcmc {params.where} {params.options} --threads {threads} --log {log}"
