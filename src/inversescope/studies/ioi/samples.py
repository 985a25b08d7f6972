"""Samples as tables, by rule unless the configuration names heads: beside Figure 2, points of Figure 8, Table 1, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN
from inversescope.figures.registry import Page, table
from inversescope.figures.save import markdown, markdown_table
from inversescope.figures.tables import VARIANTS, parsed_mask, select
from inversescope.studies.ioi.shown import SHOWN_TARGET, IoiStudy

#: Samples shown for each head and method beside Figure 2, and in Table 1; failures of each kind.
SHOWN_FIG2, SHOWN_TABLE1, SHOWN_FAILURES = 4, 10, 12


def fig2_examples(study: IoiStudy) -> pd.DataFrame:
    """Accepted samples of the shown target prompt at the shown heads, for each variant, and as many exact draws.

    Of each variant the first distinct accepted draws are taken, in the order in which they were drawn; they
    are listed by distance.

    Returns:
        site, reason, row, seed, seed_label, text, label, distance, n_accepted, n_draws; a variant without an
        accepted sample has one row with an empty text.
    """
    target, label = SHOWN_TARGET, f"feature_{study.feature}"
    seed = study.prompts.iloc[target]
    rows: list[dict[str, Any]] = []

    def add(common: dict[str, Any], shown: pd.DataFrame) -> None:
        shown = shown.sort_values("distance", kind="stable").rename(columns={label: "label"})
        rows.extend(common | row for row in shown[["text", "label", "distance"]].to_dict("records"))

    for site, reason in study.beside_map.items():
        common = {
            "site": site,
            "reason": reason,
            "seed": seed["text"],
            "seed_label": seed[label],
            "target_id": target,
        }
        for variant in VARIANTS:
            drawn = study.samples(variant, site, PLAIN)
            drawn = drawn[drawn["target_id"] == target]
            accepted = drawn[drawn["accepted"].astype(bool)]
            counts = {"row": variant, "n_accepted": len(accepted), "n_draws": len(drawn)}
            if accepted.empty:
                rows.append(common | counts | {"text": "", "label": "", "distance": np.nan})
            add(common | counts, accepted.drop_duplicates("text").head(SHOWN_FIG2))
        ball = study.exact_draws
        ball = ball[(ball["site"] == site) & (ball["target_id"] == target)]
        add(common | {"row": "exact"}, ball.head(SHOWN_FIG2))
    return pd.DataFrame(rows)


def fig8_points(study: IoiStudy) -> pd.DataFrame:
    """Points of Figure 8: each parsed sample drawn with extra noise, and whether it keeps the seed's feature.

    Returns:
        site, variant, target_id, distance, agree (0 or 1).
    """
    name = f"feature_{study.feature}"
    labels = study.prompts[name].to_numpy()
    parts = []
    for site in study.by_distance:
        for variant in VARIANTS:
            drawn = study.samples(variant, site, "noised")
            drawn = drawn[parsed_mask(drawn) & drawn["distance"].notna()]
            agree = (drawn[name].to_numpy() == labels[drawn["target_id"].to_numpy()]).astype(int)
            parts.append(drawn[["target_id", "distance"]].assign(agree=agree, site=site, variant=variant))
    return pd.concat(parts, ignore_index=True)


@table("table1", "plot_figures", title="Table 1: samples with their distances")
def table1(study: IoiStudy) -> Page:
    """Table 1: samples with their distances for the heads of `IoiStudy.examples`, paper, default and exact.

    Of a variant's distinct parsed candidates, sorted by distance, those at even ranks from the nearest to the
    farthest are shown, refused ones too; exact rows are uniform draws from the ball. A variant without any candidate in the
    prior has one row with an empty text.
    """
    target, features = SHOWN_TARGET, study.features
    seed = study.prompts.iloc[target]
    parts = []
    for site, reason in study.examples.items():
        found = {variant: study.samples(variant, site, PLAIN) for variant in VARIANTS}
        exact = study.exact_draws
        found["exact"] = exact[exact["site"] == site].assign(accepted=True, parsed=True)
        for row, drawn in found.items():
            drawn = drawn[(drawn["target_id"] == target) & parsed_mask(drawn)]
            drawn = drawn.head(SHOWN_TABLE1) if row == "exact" else drawn.drop_duplicates("text")
            drawn = drawn.sort_values("distance", kind="stable").reset_index(drop=True)
            count = len(drawn)
            if not count:
                nothing = {"target_id": [target], "text": [""], "distance": [np.nan], "accepted": [False]}
                drawn = pd.DataFrame(nothing)
            picks = np.linspace(0, len(drawn) - 1, min(SHOWN_TABLE1, len(drawn))).round().astype(int)
            picks = np.unique(picks)
            part = drawn.iloc[picks].assign(
                rank=picks + 1, n_distinct=count, site=site, reason=reason, row=row, seed=seed["text"]
            )
            part["accepted"] = part["accepted"].astype(bool)
            for feature in features:
                name = f"feature_{feature}"
                label = part[name].astype(str) if count else pd.Series("", index=part.index)
                part[f"same_{feature}"] = label == str(seed[name])
            parts.append(part)
    columns = "site reason row target_id seed rank n_distinct distance accepted text".split()
    frame = pd.concat(parts, ignore_index=True)[columns + [f"same_{feature}" for feature in features]]
    return frame, _table1_text(frame, study.bandwidth_label)


def _table1_text(frame: pd.DataFrame, bandwidth: str) -> str:
    """Table 1 in Markdown, one part a head and method."""
    lines = [
        "# Samples with their distances",
        "",
        "Each method's distinct parsed candidates for one target prompt, at even ranks of distance; bandwidth "
        f"{bandwidth}. Rows marked ✗ were refused (too far). Exact rows are uniform draws from the prior within ε.",
        "",
    ]
    same = {name: name.removeprefix("same_") for name in frame.columns if name.startswith("same_")}
    for (site, row), part in frame.groupby(["site", "row"], sort=False):
        first = part.iloc[0]
        lines += [
            f"## {site} ({markdown(first['reason'])}): {row}",
            "",
            f"x̂ = “{markdown(first['seed'])}”",
            "",
        ]
        shown = part[["distance", "accepted", "text", *same]].rename(
            columns={"distance": "d(z, ẑ)", "text": "x", **same}
        )
        lines += [
            markdown_table(shown, ".3f") if first["n_distinct"] else "(no candidate is in the prior)",
            "",
        ]
    return "\n".join(lines)


@table("failures", "plot_figures", title="Failure cases")
def failures(study: IoiStudy) -> Page:
    """Failure cases: candidates that are not in the prior, and candidates whose activation is too far away.

    For each variant, sites are visited from the highest refusal rate down; each gives its first unparseable
    candidate (by target and draw) and the refused candidate of median distance, until twelve of a kind are
    found. `kept` and `lost` are the features that agree with the seed's, and that do not.
    """
    features = sorted(
        name.removeprefix("feature_") for name in study.prompts.columns if name.startswith("feature_")
    )
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        sites = _sites_by_refusal(study, variant)
        for failure in ("not in the prior", "too far"):
            picks = (
                _failure(study.samples(variant, site, PLAIN), failure).assign(site=site) for site in sites
            )
            found = pd.concat([pick for pick in picks if len(pick)] or [pd.DataFrame()]).head(SHOWN_FAILURES)
            for one in found.to_dict("records"):
                seed = study.prompts.iloc[int(one["target_id"])]
                known = [f for f in features if one.get(f"feature_{f}")]
                kept = [f for f in known if one[f"feature_{f}"] == seed[f"feature_{f}"]]
                rows.append(
                    {
                        "row": variant,
                        "failure": failure,
                        "site": one["site"],
                        "target_id": int(one["target_id"]),
                        "draw": int(one["draw"]),
                        "seed": seed["text"],
                        "text": one["text"],
                        "distance": one["distance"] if failure == "too far" else np.nan,
                        "kept": " ".join(kept),
                        "lost": " ".join(f for f in known if f not in kept),
                    }
                )
    columns = "row failure site target_id draw seed text distance kept lost".split()
    frame = pd.DataFrame(rows, columns=columns)
    lines = [
        "# Failure cases",
        "",
        f"Refused candidates at {study.bandwidth_label}, plain decoding, from the sites with the highest "
        "refusal down: the first that is not in the prior, and of those too far the one of median distance.",
        "",
    ]
    names = {"distance": "d(z, ẑ)", "seed": "x̂", "text": "x", "lost": "lost features"}
    for (row, failure), part in frame.groupby(["row", "failure"], sort=False):
        shown = part[["site", "distance", "seed", "text", "lost"]].rename(columns=names)
        lines += [f"## {row}: {failure}", "", markdown_table(shown, ".3f"), ""]
    return frame, "\n".join(lines)


def _sites_by_refusal(study: IoiStudy, variant: str) -> list[str]:
    """Sites by falling refusal: enough to fill both lists, though not each site has both kinds of failure."""
    rows = select(study.refusals, "refusal.csv", variant=variant, decoding=PLAIN)
    rows = rows.sort_values("refusal_rate", ascending=False, kind="stable")
    return list(rows["site"].drop_duplicates())[: 3 * SHOWN_FAILURES]


def _failure(drawn: pd.DataFrame, failure: str) -> pd.DataFrame:
    """The one candidate of a site that is shown, or none."""
    parsed = parsed_mask(drawn)
    if failure == "not in the prior":
        return drawn[~parsed].head(1)
    bad = drawn[parsed & ~drawn["accepted"].astype(bool)].sort_values("distance", kind="stable")
    return bad.iloc[len(bad) // 2 : len(bad) // 2 + 1]
