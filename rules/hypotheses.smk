# Hypotheses without a human: label functions of the prompts that samples and cached neighbours tell about, ranked and tested.


for block in blocks(PLAN.experiments):

    rule:
        name:
            f"find_hypotheses_{block.name}"
        input:
            source=source("find_hypotheses"),
            bandwidths=block.experiment.bandwidth_table,
            prompts=block.experiment.prompts(["test", block.experiment.drawn_split]),
            activations=block.experiment.activations(["test", block.experiment.drawn_split], block.sites),
            samples=block.samples_of([block.experiment.leading] * bool(block.experiment.leading)),
            chat=lambda w: of(w).proposer_files,
            hub=block.experiment.fetched if PLAN.config.hypotheses.proposer else [],
        output:
            fill(paths.SITE_TABLE, table="hypotheses", site=block.sites),
        log:
            f"logs/find_hypotheses/{{task}}/{{model}}/{block.sites[0]}.log",
        benchmark:
            f"benchmarks/find_hypotheses/{{task}}/{{model}}/{block.sites[0]}.tsv"
        wildcard_constraints:
            **block.constraints,
        priority: ordered(40)
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(3000, 4000) if PLAN.config.hypotheses.proposer is None else memory(4000, 16000),
            runtime=minutes(10, 60) if PLAN.config.hypotheses.proposer is None else minutes(30, 600),
            gpu=int(PLAN.config.hypotheses.proposer is not None),
        params:
            used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr/confidence", "hypotheses"),
            options=options,
            sites=block.options,
        message:
            f"Finding hypotheses at {block.label} from samples and cached neighbours"
        shell:
            "inversescope find_hypotheses --task {wildcards.task} --model {wildcards.model}"
            " {params.sites}"
            " {params.options} --threads {threads} --log {log}"


rule collect_hypotheses:
    input:
        source=source("collect_hypotheses"),
        parts=lambda w: of(w).at_sites(paths.SITE_TABLE, table="hypotheses"),
    output:
        "results/{task}/{model}/hypotheses.csv",
    log:
        "logs/collect_hypotheses/{task}/{model}.log",
    benchmark:
        "benchmarks/collect_hypotheses/{task}/{model}.tsv"
    priority: ordered(50)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(1000, 2000),
        runtime=minutes(5, 15),
    params:
        used=lambda w: used(w, "sites"),
        options=options,
    message:
        "Collecting the hypotheses about {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope collect_hypotheses --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
