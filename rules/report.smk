# Pages that need no other file: results/report.html of the first study on indirect object identification, results/studies.html of
# all others.
import re

SHOWN = PLAN.reported
OTHERS = [e for e in PLAN.experiments if e is not SHOWN]
CAPTIONS = captions_of(SHOWN) if SHOWN else []
# Parts of the configuration that captions quote: values most of which are defaults and stand in no file.
config.clear()
config.update(CONFIG.model_dump(mode="json"), bandwidth=PLAN.bandwidth_label)
CAPTION_KEYS = sorted(
    {
        key
        for file in CAPTIONS
        for key in re.findall(r'snakemake\.config\["(\w+)"\]', Path(file).read_text(encoding="utf-8"))
    }
)


if SHOWN:

    rule make_report:
        input:
            source=source_files("make_report", None),
            rates=SHOWN.files(paths.RESULT, file=["fcr.csv", "refusal.csv"]),
            figures=parts_of(*DRAWN, experiments=[SHOWN]),
            captions=CAPTIONS,
        output:
            report("results/report.html", category="Report", labels={"shows": "All of the study on one page"}),
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


if OTHERS:

    rule make_studies:
        input:
            source=source_files("make_studies", None),
            figures=figures_of(*(e.task for e in OTHERS)),
            captions=captions_of(*OTHERS),
        output:
            report(
                "results/studies.html", category="Report", labels={"shows": "All other studies on one page"}
            ),
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
