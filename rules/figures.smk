# Figures and tables of the paper and more, each beside its data; nothing here imports PyTorch. Captions are in report/.


rule draw_exact:
    input:
        source=source("draw_exact"),
        prompts=expand("data/{{task}}/prompts/{split}.parquet", split=["test", "reference"]),
        activations=at_all_sites(
            "data/{task}/{model}/activations/{split}/{site}.safetensors", split=["test", "reference"]
        ),
        fcr="results/{task}/{model}/fcr.csv",
    output:
        draws="results/{task}/{model}/exact_draws.parquet",
        agreement="results/{task}/{model}/exact_agreement.csv",
    log:
        "logs/draw_exact/{task}/{model}.log",
    benchmark:
        "benchmarks/draw_exact/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 16000),
        runtime=minutes(10, 60),
    params:
        used=lambda w: used(w, "seed", w.task, *HEADLINE, "fcr/features"),
        options=options,
    message:
        "Drawing from the exact distribution at the heads that figures show"
    shell:
        "inversescope draw_exact --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


rule plot_figures:
    input:
        source=source("plot_figures"),
        fcr="results/{task}/{model}/fcr.csv",
        refusal="results/{task}/{model}/refusal.csv",
        coverage="results/{task}/{model}/coverage.csv",
        draws="results/{task}/{model}/exact_draws.parquet",
        agreement="results/{task}/{model}/exact_agreement.csv",
        prompts="data/{task}/prompts/test.parquet",
        training=training_logs(studied),
        samples=samples_of(studied),
    output:
        figures=drawn(FIGURES, "figures", "Figures", "png"),
        vector=expand("results/figures/{{task}}_{{model}}_{name}.pdf", name=FIGURES),
        data=expand("results/figures/{{task}}_{{model}}_{name}.csv", name=FIGURES),
        tables=drawn(TABLES, "tables", "Tables", "csv"),
        markdown=expand("results/tables/{{task}}_{{model}}_{name}.md", name=TABLES),
    log:
        "logs/plot_figures/{task}/{model}.log",
    benchmark:
        "benchmarks/plot_figures/{task}/{model}.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, 8000),
        runtime=minutes(10, 30),
    params:
        used=lambda w: used(w, "kernel", "fcr", "figures", "studied_variants") | {"epsilons": bandwidths(w)},
        options=options,
    message:
        "Plotting the figures and writing the tables of {wildcards.task} on {wildcards.model}"
    shell:
        "inversescope plot_figures --task {wildcards.task} --model {wildcards.model}"
        " {params.options} --threads {threads} --log {log}"


if SHOWN:

    rule make_report:
        input:
            source=source("make_report"),
            fcr=f"results/{SHOWN.task}/{SHOWN.model}/fcr.csv",
            refusal=f"results/{SHOWN.task}/{SHOWN.model}/refusal.csv",
            coverage=f"results/{SHOWN.task}/{SHOWN.model}/coverage.csv",
            targets=(
                f"results/{SHOWN.task}/{SHOWN.model}/target_selection.csv" if SHOWN.model in TRAINED else []
            ),
            figures=expand(
                "results/figures/{task}_{model}_{name}.png", task=SHOWN.task, model=SHOWN.model, name=FIGURES
            ),
            causes=expand(
                "results/figures/{task}_{model}_{name}.png",
                task=SHOWN.task,
                model=SHOWN.model,
                name=CAUSE_FIGURES if EXPERIMENTS[SHOWN].patched else [],
            ),
            tables=expand(
                "results/tables/{task}_{model}_{name}.csv", task=SHOWN.task, model=SHOWN.model, name=TABLES
            ),
            captions=[*CAPTIONS, *expand("report/{name}.rst", name=CAUSE_FIGURES)],
        output:
            report("results/report.html", category="Report", labels={"shows": "All of the study on one page"}),
            headline=expand(
                "results/tables/{task}_{model}_headline.{suffix}",
                task=SHOWN.task,
                model=SHOWN.model,
                suffix=["csv", "md"],
            ),
        log:
            "logs/make_report.log",
        benchmark:
            "benchmarks/make_report.tsv"
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000, 2000),
            runtime=minutes(5, 10),
        params:
            used=used(SHOWN, "seed", "kernel", "fcr", "studied_variants", *CAPTION_KEYS),
            options=options,
            where=SHOWN.options,
        message:
            "Writing the self-contained report"
        shell:
            "inversescope make_report {params.where} {params.options} --threads {threads} --log {log}"
