"""Headline numbers of RAVEL: answers of the targets, attributes read by each method, refusal, bandwidth, autoencoders."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inversescope.config.methods import Bandwidth
from inversescope.figures.headline import Row, headline_page, number
from inversescope.figures.registry import Page, table
from inversescope.figures.study import Study, at_headline
from inversescope.figures.tables import DECODINGS, VARIANTS
from inversescope.studies.ravel.shown import RavelStudy

METHODS = (
    "exact default paper default_template paper_template default_entity paper_entity default_mixed paper_mixed exact_top "
    "default_top paper_top sae_ravel sae_ravel_published sae_general probe nearest nearest_other exact_raw exact_centred"
).split()
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
GROUPS = {"seen": "templates of the prior", "new": "templates outside of the prior"}


@table("headline", "plot_ravel", title="Headline numbers")
def headline(study: RavelStudy) -> Page:
    """Headline numbers over all targets."""
    parts = (_targets, _scores, _refusal, _sizes, _bandwidth, _autoencoders)
    return headline_page(row for part in parts for row in part(study))


def _targets(study: RavelStudy) -> Iterator[Row]:
    for row in study.gathered("targets").to_dict("records"):
        for column, who in (("accuracy", "trained templates"), ("accuracy_held_out", "held-out templates")):
            if np.isfinite(row[column]):
                yield number("right answers of the targets", row["model"], who, row[column])


def _scores(study: RavelStudy) -> Iterator[Row]:
    """Scores of every method at each layer, of new entities; templates of the prior and others apart."""
    rows = study.gathered("scores").sort_values(["d_model", "model", "layer"], kind="stable")
    for (group, about), (metric, name) in ((g, m) for g in GROUPS.items() for m in METRICS.items()):
        part = rows[rows["group"] == group]
        exact = part[part["method"] == "exact"].set_index(["model", "layer"])[metric]
        for row in part[part["method"].isin(METHODS)].to_dict("records"):
            ends = {"low": row[f"{metric}_low"], "high": row[f"{metric}_high"], "n": row["n_targets"]}
            what = f"{row['model']}, layer {row['layer']}"
            ends["exact"] = exact.get((row["model"], row["layer"]), np.nan)
            yield number(f"{name}: {about}, new entities", what, row["method"], row[metric], **ends)


def _refusal(study: RavelStudy) -> Iterator[Row]:
    rows = study.gathered("refusal")
    section = "refusal, mean over layers, templates of the prior; entropy of accepted candidates − exact"
    columns = {"refusal_rate": "refused", "parse_refusal": "not in the prior", "entropy_gap": "entropy gap"}
    for one in study.contexts:
        about, here = (
            Study(one).bandwidth_label,
            at_headline(rows[rows["model"] == one.model_name], one.config),
        )
        for decoding, how in DECODINGS.items():
            part = here[here["decoding"] == decoding].groupby("variant")[list(columns)]
            for column, name in columns.items():
                for who in (v for v in VARIANTS if v in part.groups):
                    what = f"{one.model_name}, {about}, {how}: {name}"
                    unit = "nats" if column == "entropy_gap" else ""
                    n = int(part.count().loc[who, column])
                    yield number(section, what, who, part.mean().loc[who, column], unit=unit, n=n)


def _sizes(study: RavelStudy) -> Iterator[Row]:
    rows = study.gathered("scores")
    rows = rows[(rows["group"] == "seen") & rows["method"].isin(METHODS)]
    for width, part in rows.groupby("d_model"):
        by = part.groupby("method", sort=False)["accuracy"]
        for who, value in by.mean().items():
            yield number(
                "accuracy by size, mean over layers",
                f"width {width}",
                str(who),
                value,
                n=len(by.get_group(who)),
            )


def _bandwidth(study: RavelStudy) -> Iterator[Row]:
    section = "bandwidth: what the exact posterior reads from validation prompts, mean over models and layers"
    by = study.gathered("bandwidth").groupby(["centred", "bandwidth"], sort=False)
    for (centred, name), row in by[["accuracy", "empty", "n"]].mean().iterrows():
        what = f"{'centred' if centred else 'raw'}, {Bandwidth.parse(name).label}"
        for column, who in (("accuracy", "accuracy"), ("empty", "targets without a neighbour")):
            yield number(section, what, who, row[column], n=int(row["n"]))


def _autoencoders(study: RavelStudy) -> Iterator[Row]:
    """Which sparsities validation prompts chose, over models and layers: at the ends of the grid the optimum may lie beyond it."""
    section = "autoencoders: how often validation prompts chose a sparsity, models and layers; features active, mean"
    for (corpus, sparsity), part in study.gathered("saes").groupby(["corpus", "sparsity"]):
        chosen = part[part["chosen"].astype(bool)]
        what = f"{corpus}, λ = {sparsity:g}"
        yield number(section, what, "chosen", len(chosen), unit="count", n=len(part))
        if len(chosen):
            yield number(section, what, "active", chosen["l0"].mean(), n=len(chosen))
