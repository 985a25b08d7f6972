# Feature consistency rates: exact ones from prior draws, estimated ones from samples and cache, then tidy tables.


from inversescope.workflow.plan import GROUPS

for block in blocks(PLAN.experiments):

    rule:
        name:
            f"compute_exact_{block.name}"
        input:
            source=source("compute_exact"),
            bandwidths=lambda w: of(w).bandwidth_table,
            prompts=block.experiment.prompts(["test", "reference"]),
            activations=block.experiment.activations(["test", "reference"], block.sites),
        output:
            fill(paths.EXACT, site=block.sites),
        log:
            f"logs/compute_exact/{{task}}/{{model}}/{block.sites[0]}.log",
        benchmark:
            f"benchmarks/compute_exact/{{task}}/{{model}}/{block.sites[0]}.tsv"
        wildcard_constraints:
            **block.constraints,
        priority: ordered(105)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 8000),
            runtime=minutes(10, 120),
        params:
            used=lambda w: used(w, w.task, *COMPARED, "bandwidths", "functions"),
            options=options,
            sites=block.options,
        message:
            f"Computing exact rates at {block.label} from prior draws"
        shell:
            "inversescope compute_exact --task {wildcards.task} --model {wildcards.model}"
            " {params.sites}"
            " {params.options} --threads {threads} --log {log}"


# Of the main variants, and of those of other groups, which have no rates beside their generators'.
for block in [block for group in GROUPS for block in blocks(PLAN.experiments, group=group)]:

    e, variants = block.experiment, block.experiment.group(block.group)

    rule:
        name:
            f"estimate_fcr_{block.name}"
        input:
            source=source("estimate_fcr"),
            bandwidths=lambda w: of(w).bandwidth_table,
            prompts=e.prompts(["train", "test"]),
            activations=e.activations(["train", "test"], block.sites),
            exact=fill(paths.EXACT, site=block.sites),
            mcmc=fill(paths.MCMC, site=block.sites) if e.has_chains and not block.group else [],
            prior=[] if block.group else paths.PRIOR_SAMPLES,
            generators=e.of_variants(paths.CHECKPOINT, variants, file="meta.json"),
            samples=block.samples_of(variants),
        output:
            fill(paths.CELLS, group=block.folder, site=block.sites),
            fill(paths.SITE_TABLE, table=block.tables, site=block.sites),
        log:
            f"logs/estimate_fcr/{{task}}/{{model}}/{block.folder}{block.sites[0]}.log",
        benchmark:
            f"benchmarks/estimate_fcr/{{task}}/{{model}}/{block.folder}{block.sites[0]}.tsv"
        wildcard_constraints:
            **block.constraints,
        priority: ordered(50)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 8000),
            runtime=minutes(10, 60),
        params:
            used=lambda w: used(w, "seed", w.task, "kernel", "fcr", "bandwidths"),
            variants=variant_options(variants) + (f" --out {block.group}" if block.group else ""),
            options=options,
            sites=block.options,
        message:
            f"Estimating rates at {block.label} with intervals and controls"
        shell:
            "inversescope estimate_fcr --task {wildcards.task} --model {wildcards.model}"
            " {params.sites}"
            " {params.variants} {params.options} --threads {threads} --log {log}"


rule collect_tables:
    input:
        source=source("collect_tables"),
        parts=lambda w: of(w).at_sites(paths.SITE_TABLE, table=["fcr", "refusal", "coverage"]),
        generators=lambda w: of(w).of_variants(paths.CHECKPOINT, of(w).studied, file="meta.json"),
        samples=lambda w: of(w).samples(of(w).studied),
    output:
        fcr="results/{task}/{model}/fcr.csv",
        refusal="results/{task}/{model}/refusal.csv",
        coverage="results/{task}/{model}/coverage.csv",
        timings="results/{task}/{model}/timings.csv",
    log:
        "logs/collect_tables/{task}/{model}.log",
    benchmark:
        "benchmarks/collect_tables/{task}/{model}.tsv"
    priority: ordered(50)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 4000),
        runtime=minutes(5, 15),
    params:
        used=lambda w: used(w, "studied_variants"),
        options=options,
    message:
        "Collecting the tables of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope collect_tables --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
