# Candidate prompts from the generators, their activations and distances; and chains of swap moves without a generator.


for block in blocks(PLAN.experiments, by_variant=True):

    rule:
        name:
            f"sample_prompts_{block.name}"
        input:
            source=source("sample_prompts"),
            bandwidths=lambda w: of(w).bandwidth_table,
            prompts=block.experiment.prompts(["train", "test", *block.experiment.looked_up]),
            target=block.experiment.recomputed_by,
            activations=block.experiment.activations(
                ["train", "test", *block.experiment.looked_up], block.sites
            ),
            generator=fill(paths.CHECKPOINT, file=paths.CHECKPOINT_FILES),
        output:
            fill(paths.SAMPLES, site=block.sites, suffix=paths.SAMPLE_SUFFIXES),
        log:
            f"logs/sample_prompts/{{task}}/{{model}}/{{generator}}/{{variant}}/{block.sites[0]}.log",
        benchmark:
            f"benchmarks/sample_prompts/{{task}}/{{model}}/{{generator}}/{{variant}}/{block.sites[0]}.tsv"
        wildcard_constraints:
            **block.constraints,
        priority: ordered(60)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(4000, 16000),
            gpu=lambda w: of(w).gpus,
            runtime=minutes(20, 360),
        params:
            used=lambda w: used(w, "seed", "budget", w.task, *HEADLINE, "figures", f"drawing/{w.variant}"),
            options=options,
            sites=block.options,
        message:
            f"Sampling prompts from {{wildcards.generator}} {{wildcards.variant}} at {block.label}"
        shell:
            "inversescope sample_prompts --task {wildcards.task} --model {wildcards.model}"
            " {params.sites}"
            " --generator {wildcards.generator} --variant {wildcards.variant}"
            " {params.options} --threads {threads} --log {log}"


for block in blocks(e for e in PLAN.experiments if e.has_chains):

    rule:
        name:
            f"run_mcmc_{block.name}"
        input:
            source=source("run_mcmc"),
            bandwidths=lambda w: of(w).bandwidth_table,
            prompts=block.experiment.prompts(["test", *block.experiment.looked_up]),
            target=block.experiment.recomputed_by,
            activations=block.experiment.activations(["test", *block.experiment.looked_up], block.sites),
        output:
            fill(paths.MCMC, site=block.sites),
        log:
            f"logs/run_mcmc/{{task}}/{{model}}/{block.sites[0]}.log",
        benchmark:
            f"benchmarks/run_mcmc/{{task}}/{{model}}/{block.sites[0]}.tsv"
        wildcard_constraints:
            **block.constraints,
        priority: ordered(20)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 16000),
            gpu=lambda w: of(w).gpus if of(w).recomputed_by else 0,
            runtime=minutes(20, 240),
        params:
            used=lambda w: used(w, "seed", "budget", w.task, *HEADLINE, "fcr/mcmc_evaluations"),
            options=options,
            sites=block.options,
        message:
            f"Running chains of swap moves at {block.label}"
        shell:
            "inversescope run_mcmc --task {wildcards.task} --model {wildcards.model}"
            " {params.sites}"
            " {params.options} --threads {threads} --log {log}"
