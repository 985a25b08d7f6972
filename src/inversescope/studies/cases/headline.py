"""Headline numbers of InversionView's case studies: target, circuit, errors against exact rates, completeness."""

from __future__ import annotations

from collections.abc import Iterator

from inversescope.figures.headline import Row, headline_page, number, with_interval
from inversescope.figures.registry import Page, table
from inversescope.studies.cases.figures import size_table
from inversescope.studies.cases.shown import CaseStudy

#: Counting's circuit, whose count is formed at the target letter, sharpened by MLP 0 and moved to the colon by the head of layer 1.
CIRCUIT = {
    "L0.resid_mid@target": "target letter, before MLP 0",
    "L0.resid_post@target": "target letter, behind MLP 0",
    "L0.resid_post@colon": "colon, before the head of layer 1",
    "L1H0@colon": "colon, output of the head of layer 1",
    "L1.resid_mid@colon": "colon, behind that head",
    "L1.resid_post@colon": "colon, at the end",
}


@table("headline", "plot_cases", title="Headline numbers")
def headline(study: CaseStudy) -> Page:
    """Headline numbers of one case study."""
    return headline_page([*_accuracy(study), *_circuit(study), *_errors(study), *_completeness(study)])


def _accuracy(study: CaseStudy) -> Iterator[Row]:
    """Right answers of the target: of an imported one on fresh prompts, of one trained here on held-out ones."""
    source = study.config.models[study.context.model_name].source
    if source == "checkpoint":
        found = study.table("target_import.csv", "import_checkpoint")
    elif source == "trained":
        found = study.table("target_selection.csv", "select_target")
        found = found[found["selected"].astype(bool)]
    else:
        return
    yield number("target", "right answers", study.context.model_name, found["accuracy"].iloc[0])


def _circuit(study: CaseStudy) -> Iterator[Row]:
    exact = study.rates[(study.rates["estimator"] == "exact") & (study.rates["feature"] == "count")]
    if study.context.task_name != "counting":
        return
    for site, what in CIRCUIT.items():
        for row in exact[exact["site"] == site].to_dict("records"):
            section = f"the count along the computation, exact FCR at {study.bandwidth_label}"
            yield number(section, f"{what} ({site})", "exact", n=row["n_targets"], **with_interval(row))


def _errors(study: CaseStudy) -> Iterator[Row]:
    section = f"|FCR − exact| over sites and features at {study.bandwidth_label}"
    for estimator in ("cache", "combined", "generated", "reweighted"):
        rows = study.rates[study.rates["estimator"] == estimator]
        for variant in ("", *study.config.studied_variants):
            part = rows[rows["variant"] == variant].drop_duplicates(["site", "feature"])
            error = part["error"].abs().dropna()  # none where no candidate was accepted anywhere
            if len(part):
                what = f"{estimator} {variant}".strip()
                yield number(section, what, "mean", error.mean(), n=len(error))
                yield number(section, what, "largest", error.max(), n=len(error))


def _completeness(study: CaseStudy) -> Iterator[Row]:
    """Completeness of each generator, from the smallest to the largest."""
    section = "completeness: known members of preimages under each generator"
    recall = study.completeness("_recall.csv")
    # Where even draws from P(x; z) find next to nothing, a small difference says nothing: so the largest of all numbers of draws.
    short = (recall["ideal"] - recall["recall"]).groupby(recall["variant"]).max()
    columns = {
        "missed": "missed: under a tenth of its probability",
        "recall_1000": "recall at 1000 draws",
        "ideal_1000": "recall of draws from P(x; z)",
        "refusal_rate": "refusal",
        "spearman": "ρ of log q and distance",
    }
    for row in size_table(study).to_dict("records"):
        what = f"{row['variant']}, {row['n_parameters']:,} parameters"
        for column, who in columns.items():
            yield number(section, what, who, row[column], n=row["n_prompts"])
        yield number(section, what, "largest shortfall of recall", short[row["variant"]])
