"""Samples as tables, all chosen by rule: beside Figure 2, points of Figure 8, Table 1, failure cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inversescope.errors import neutral
from inversescope.figures.tables import parsed_mask
from inversescope.store import atomic_path, write_table

#: Samples shown for each head and method beside Figure 2, and in Table 1.
SHOWN_FIG2, SHOWN_TABLE1, SHOWN_FAILURES = 4, 10, 12

#: Samples of one variant, by site.
Samples = Mapping[str, Mapping[str, pd.DataFrame]]


def fig2_examples(
    samples: Samples,
    exact: pd.DataFrame,
    prompts: pd.DataFrame,
    reasons: Mapping[str, str],
    target: int,
    feature: str,
) -> pd.DataFrame:
    """Accepted samples of one target prompt at a few sites, for each variant, and as many exact draws.

    Of each variant the first distinct accepted draws are taken, in the order in which they were drawn; they
    are listed by distance.

    Args:
        samples: variant -> site -> raw candidates at the headline bandwidth, plain decoding.
        exact: prompts drawn uniformly from the exact ball: site, target_id, text, distance, feature_<name>.
        prompts: the test split, row t = target t.
        reasons: site -> why it is shown.
        target: which target prompt.
        feature: the feature whose label is shown.

    Returns:
        site, reason, row, seed, seed_label, text, label, distance, n_accepted, n_draws; a variant without an
        accepted sample has one row with an empty text.
    """
    seed = prompts.iloc[target]
    rows: list[dict[str, Any]] = []
    for site, reason in reasons.items():
        common = {
            "site": site,
            "reason": reason,
            "seed": seed["text"],
            "seed_label": seed[f"feature_{feature}"],
            "target_id": target,
        }
        for variant, by_site in samples.items():
            drawn = by_site[site]
            drawn = drawn[drawn["target_id"] == target].sort_values("draw", kind="stable")
            accepted = drawn[drawn["accepted"].astype(bool)]
            few = accepted.drop_duplicates("text").head(SHOWN_FIG2).sort_values("distance", kind="stable")
            counts = {"row": variant, "n_accepted": len(accepted), "n_draws": len(drawn)}
            if few.empty:
                rows.append(common | counts | {"text": "", "label": "", "distance": np.nan})
            for text, distance, label in zip(
                few["text"], few["distance"], few[f"feature_{feature}"], strict=True
            ):
                rows.append(common | counts | {"text": text, "label": label, "distance": distance})
        ball = exact[(exact["site"] == site) & (exact["target_id"] == target)]
        few = ball.head(SHOWN_FIG2).sort_values("distance", kind="stable")
        for text, distance, label in zip(
            few["text"], few["distance"], few[f"feature_{feature}"], strict=True
        ):
            rows.append(common | {"row": "exact", "text": text, "label": label, "distance": distance})
    return pd.DataFrame(rows)


def fig8_points(samples: Samples, prompts: pd.DataFrame, sites: Iterable[str], feature: str) -> pd.DataFrame:
    """Points of Figure 8: each parsed sample drawn with extra noise, and whether it keeps the seed's feature.

    Returns:
        site, variant, target_id, distance, agree (0 or 1).
    """
    labels = prompts[f"feature_{feature}"].astype(str).to_numpy()
    parts = []
    for site in sites:
        for variant, by_site in samples.items():
            drawn = by_site[site]
            drawn = drawn[parsed_mask(drawn) & drawn["distance"].notna()]
            agree = (
                drawn[f"feature_{feature}"].astype(str).to_numpy() == labels[drawn["target_id"].to_numpy()]
            )
            part = drawn[["target_id", "distance"]].assign(
                agree=agree.astype(int), site=site, variant=variant
            )
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def table1(
    samples: Samples,
    exact: pd.DataFrame,
    prompts: pd.DataFrame,
    reasons: Mapping[str, str],
    target: int,
    features: list[str],
) -> pd.DataFrame:
    """Table 1: samples with their distances for three heads chosen by rule, paper, default and exact.

    Of a variant's distinct parsed candidates, sorted by distance, those at even ranks from the nearest to the
    farthest are shown, refused ones too; exact rows are uniform draws from the ball.

    Returns:
        One row with an empty text where no candidate is in the prior; otherwise the samples, with columns
        site, reason, row, target_id, seed, rank, n_distinct, distance, accepted, text, and `same_<feature>`
        for each feature.
    """
    seed = prompts.iloc[target]
    parts = []
    for site, reason in reasons.items():
        found = {variant: by_site[site] for variant, by_site in samples.items()}
        found["exact"] = exact[exact["site"] == site].assign(accepted=True, parsed=True)
        for row, drawn in found.items():
            drawn = drawn[(drawn["target_id"] == target) & parsed_mask(drawn)]
            drawn = drawn.head(SHOWN_TABLE1) if row == "exact" else drawn.drop_duplicates("text")
            drawn = drawn.sort_values("distance", kind="stable").reset_index(drop=True)
            count = len(drawn)
            if not count:
                drawn = pd.DataFrame(
                    {"target_id": [target], "text": [""], "distance": [np.nan], "accepted": [False]}
                )
            picks = np.unique(
                np.linspace(0, len(drawn) - 1, min(SHOWN_TABLE1, len(drawn))).round().astype(int)
            )
            part = drawn.iloc[picks].assign(rank=picks + 1, n_distinct=count)
            part = part.assign(
                site=site, reason=reason, row=row, seed=seed["text"], accepted=part["accepted"].astype(bool)
            )
            for feature in features:
                name = f"feature_{feature}"
                label = part[name].astype(str) if count else pd.Series("", index=part.index)
                part[f"same_{feature}"] = label == str(seed[name])
            parts.append(part)
    columns = [
        "site",
        "reason",
        "row",
        "target_id",
        "seed",
        "rank",
        "n_distinct",
        "distance",
        "accepted",
        "text",
    ]
    return pd.concat(parts, ignore_index=True)[columns + [f"same_{feature}" for feature in features]]


def failures(samples: Samples, prompts: pd.DataFrame, order: Mapping[str, list[str]]) -> pd.DataFrame:
    """Failure cases: candidates that are not in the prior, and candidates whose activation is too far away.

    For each variant, sites are visited from the highest refusal rate down; each gives its first unparseable
    candidate (by target and draw) and the refused candidate of median distance, until twelve of a kind are
    found.

    Args:
        samples: variant -> site -> raw candidates at the headline bandwidth, plain decoding.
        prompts: the test split, row t = target t.
        order: variant -> sites, highest refusal first.

    Returns:
        row (variant), failure (`not in the prior` or `too far`), site, target_id, draw, seed, text, distance,
        kept, lost (features that agree with the seed's, and that do not).
    """
    features = sorted(
        name.removeprefix("feature_") for name in prompts.columns if name.startswith("feature_")
    )
    rows: list[dict[str, Any]] = []
    for variant, by_site in samples.items():
        for failure in ("not in the prior", "too far"):
            found = 0
            for site in order[variant]:
                if found == SHOWN_FAILURES:
                    break
                drawn = by_site[site]
                parsed = parsed_mask(drawn)
                if failure == "not in the prior":
                    bad = drawn[~parsed].sort_values(["target_id", "draw"], kind="stable")
                    pick = bad.head(1)
                else:
                    bad = drawn[parsed & ~drawn["accepted"].astype(bool)].sort_values(
                        "distance", kind="stable"
                    )
                    pick = bad.iloc[len(bad) // 2 : len(bad) // 2 + 1]
                for _, one in pick.iterrows():
                    found += 1
                    seed = prompts.iloc[int(one["target_id"])]
                    known = [
                        f
                        for f in features
                        if f"feature_{f}" in one
                        and isinstance(one[f"feature_{f}"], str)
                        and one[f"feature_{f}"]
                    ]
                    kept = [f for f in known if one[f"feature_{f}"] == seed[f"feature_{f}"]]
                    rows.append(
                        {
                            "row": variant,
                            "failure": failure,
                            "site": site,
                            "target_id": int(one["target_id"]),
                            "draw": int(one["draw"]),
                            "seed": seed["text"],
                            "text": one["text"],
                            "distance": one["distance"] if failure == "too far" else np.nan,
                            "kept": " ".join(kept),
                            "lost": " ".join(f for f in known if f not in kept),
                        }
                    )
    columns = ["row", "failure", "site", "target_id", "draw", "seed", "text", "distance", "kept", "lost"]
    return pd.DataFrame(rows, columns=columns)


def write_table1(table: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """Write Table 1 as CSV and as Markdown, one sub-table a head and method."""
    lines = [
        "# Samples with their distances",
        "",
        "Each method's distinct parsed candidates for one target prompt, at even ranks of distance; bandwidth "
        f"ε = {epsilon:g}. Rows marked ✗ were refused (too far). Exact rows are uniform draws from the prior within ε.",
        "",
    ]
    same = [name for name in table.columns if name.startswith("same_")]
    for (site, row), part in table.groupby(["site", "row"], sort=False):
        first = part.iloc[0]
        lines += [
            f"## {site} ({markdown(first['reason'])}): {row}",
            "",
            f"x̂ = “{markdown(first['seed'])}”",
            "",
        ]
        heads = ["d(z, ẑ)", "accepted", "x", *[name.removeprefix("same_") for name in same]]
        lines += ["| " + " | ".join(heads) + " |", "| ---: | :-: | --- |" + " :-: |" * len(same)]
        if not first["n_distinct"]:
            lines.append("| | | (no candidate is in the prior) |" + " |" * len(same))
            part = part.iloc[:0]
        for _, one in part.iterrows():
            marks = [tick(one[name]) for name in same]
            lines.append(
                "| "
                + " | ".join([f"{one['distance']:.3f}", tick(one["accepted"]), markdown(one["text"]), *marks])
                + " |"
            )
        lines.append("")
    return _write(table, lines, out)


def write_failures(table: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """Write the failure cases as CSV and as Markdown."""
    lines = [
        "# Failure cases",
        "",
        f"Refused candidates at ε = {epsilon:g}, plain decoding, from the sites with the highest "
        "refusal down: the first that is not in the prior, and of those too far the one of median distance.",
        "",
    ]
    for (row, failure), part in table.groupby(["row", "failure"], sort=False):
        lines += [
            f"## {row}: {failure}",
            "",
            "| site | d(z, ẑ) | x̂ | x | lost features |",
            "| --- | ---: | --- | --- | --- |",
        ]
        for _, one in part.iterrows():
            distance = f"{one['distance']:.3f}" if np.isfinite(one["distance"]) else ""
            cells = [one["site"], distance, markdown(one["seed"]), markdown(one["text"]), one["lost"]]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return _write(table, lines, out)


def markdown(text: Any) -> str:
    """Text of a model as literal Markdown: markup and control characters escaped, on one line."""
    result = neutral(" ".join(str(text).split()))
    result = result.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_{}[]|#!~":
        result = result.replace(mark, "\\" + mark)
    return result


def tick(value: Any) -> str:
    """A flag as a mark."""
    return "✓" if bool(value) else "✗"


def _write(table: pd.DataFrame, lines: list[str], out: Path) -> list[Path]:
    # Whoever prints the file to a terminal must not be steered by it; raw candidates keep every byte.
    texts = table.select_dtypes(exclude=["number", "bool"]).columns
    table = table.assign(
        **{
            name: table[name].map(lambda cell: neutral(cell) if isinstance(cell, str) else cell)
            for name in texts
        }
    )
    csv, md = out.parent / f"{out.name}.csv", out.parent / f"{out.name}.md"
    write_table(table, csv)
    with atomic_path(md) as part:
        part.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return [csv, md]
