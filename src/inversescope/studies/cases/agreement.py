"""Do sites that tell a feature also use it? Rank agreement of FCR and effect over sites, with intervals over sites."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inversescope.fcr.resampling import correlations, intervals_of_correlations, resamples

SAME = 1e-3  # logits: effects that differ by less on every pair are one effect


def same_effects(effects: np.ndarray, labels: list[str]) -> dict[str, str]:
    """Each site's first site of the same effect on every pair; one that has no effect at all is on its own.

    Such sites are no independent evidence: one is computed from nothing but the other, or is the same stream a block later.

    Args:
        effects: logits (K, n).
        labels: of the K sites.
    """
    result: dict[str, str] = {}
    for k, label in enumerate(labels):
        equal = (j for j in range(k) if np.abs(effects[k] - effects[j]).max(initial=0.0) < SAME)
        twin = next(equal, k) if np.abs(effects[k]).max(initial=0.0) >= SAME else k
        result[label] = result.get(labels[twin], label)
    return result


def rank_agreement(table: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of FCR and size of the effect over sites, of each feature and as the mean over features.

    A site that suppresses an answer uses what it holds like one that promotes it, so sizes count (`spearman`); `signed` is the
    correlation with the effect itself. Over all sites, and over those with a path to the answer (`sites`: all, path): elsewhere the
    effect is zero whatever is told. Bootstrap intervals over sites; sites of the same effect (`same_as`) are drawn together, and in
    all features alike.

    Args:
        table: site, feature, fcr, effect, path, same_as; a row a site and feature.

    Returns:
        feature (the last one, `mean`, is the mean over features, if there are several), sites, n_sites, n_distinct (groups of
        sites of different effects), spearman, low, high, signed.
    """
    features = list(dict.fromkeys(table["feature"]))
    parts = [
        _agreement(part, features, confidence, seed).assign(sites=which)
        for which, part in (("path", table[table["path"]]), ("all", table))
        if len(part)
    ]
    columns = ["feature", "sites", "n_sites", "n_distinct", "spearman", "low", "high", "signed"]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    order = [*features, "mean"]
    return found[columns].sort_values("feature", kind="stable", key=lambda names: names.map(order.index))


def _agreement(table: pd.DataFrame, features: list[str], confidence: float, seed: int) -> pd.DataFrame:
    """`rank_agreement` over all sites of a table."""
    labels = list(dict.fromkeys(table["site"]))
    group = table.drop_duplicates("site").set_index("site")["same_as"].reindex(labels)
    code = pd.factorize(group)[0]
    members = [np.flatnonzero(code == c) for c in range(int(code.max()) + 1)]
    fcr, effect = (
        table.pivot(index="feature", columns="site", values=column)
        .reindex(features, columns=labels)
        .to_numpy()
        for column in ("fcr", "effect")
    )
    size, draws = np.abs(effect), resamples(members, np.random.default_rng([seed, 31]))
    low, high = intervals_of_correlations(fcr, size, draws, confidence).T
    found = {
        "feature": [*features, "mean"] if len(features) > 1 else features,
        "spearman": correlations(fcr, size),
        "low": low,
        "high": high,
        "signed": correlations(fcr, effect),
    }
    return pd.DataFrame(found).assign(n_sites=len(labels), n_distinct=len(members))
