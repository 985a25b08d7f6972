# The page of all studies but that of indirect object identification, whose own is results/report.html.
OTHERS = [study for study in STUDIES if study.task in ("ravel", "icl_translation", "counting", "addition")]


if OTHERS:

    rule make_studies:
        input:
            source=source("make_studies"),
            ravel=rules.plot_ravel.output if RAVEL else [],
            icl=of_experiments(*rules.plot_icl.output, tasks=["icl_translation"], having=studied),
            cases=of_experiments(*rules.plot_cases.output, tasks=["counting", "addition"]),
            causes=of_experiments(*rules.plot_causes.output, tasks=["counting", "addition"], having=patched),
            answers=of_experiments(*rules.plot_answers.output, tasks=["addition"], having=patched),
            captions=expand(
                "report/{name}.rst",
                name=[
                    *expand("ravel_{name}", name=RAVEL_FIGURES),
                    "task_vectors",
                    *CASE_FIGURES,
                    *CAUSE_FIGURES,
                    *ANSWER_FIGURES,
                ],
            ),
        output:
            report(
                "results/studies.html", category="Report", labels={"shows": "All other studies on one page"}
            ),
            headline=expand("results/tables/studies_headline.{suffix}", suffix=["csv", "md"]),
        log:
            "logs/make_studies.log",
        benchmark:
            "benchmarks/make_studies.tsv"
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=memory(1000, 2000),
            runtime=minutes(5, 10),
        params:
            # What the other experiments use has changed their tables by the time it matters here.
            used=used(OTHERS[0], "seed", "kernel", "fcr"),
            options=options,
            where=OTHERS[0].options,
        message:
            "Writing the page of the other studies"
        shell:
            "inversescope make_studies {params.where} {params.options} --threads {threads} --log {log}"
