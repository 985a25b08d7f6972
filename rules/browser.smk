# The browser of each experiment that has generators: one page that needs no other file.


rule make_browser:
    input:
        source=source("make_browser"),
        bandwidths=lambda w: of(w).bandwidth_table,
        prompts=lambda w: of(w).prompts(["train", "test"]),
        activations=lambda w: of(w).activations(["train", "test"], of(w).labels),
        exact=lambda w: of(w).at_sites(paths.EXACT),
        samples=lambda w: of(w).samples(of(w).studied),
        fcr="results/{task}/{model}/fcr.csv",
        refusal="results/{task}/{model}/refusal.csv",
        hypotheses="results/{task}/{model}/hypotheses.csv",
        causes=lambda w: "results/{task}/{model}/causes.csv" if of(w).settings.patched else [],
    output:
        report(
            paths.BROWSER,
            category="Browser",
            subcategory="{task} on {model}",
            labels={"shows": "Samples, rates and bandwidths of every site, to click through"},
        ),
    log:
        "logs/make_browser/{task}/{model}.log",
    benchmark:
        "benchmarks/make_browser/{task}/{model}.tsv"
    priority: ordered(10)
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000, 16000),
        runtime=minutes(15, 60),
    params:
        used=lambda w: used(
            w,
            w.task,
            f"models/{w.model}",
            *HEADLINE,
            "bandwidths",
            "fcr/features",
            "studied_variants",
            "sites",
            "patched",
            "looks",
        ),
        options=options,
    message:
        "Writing the browser of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope make_browser --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"
