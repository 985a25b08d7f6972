"""Which attribute does an activation encode? One table of decisions for all methods, and one function that scores it.

A row of the table says how surely a method calls a target by one attribute: 0 or 1 for a feature that is active or not, a
probability for a method that draws prompts and reads their attributes. A method may call a target by several attributes (features)
or by none ("null").
"""

from __future__ import annotations

import numpy as np
import pandas as pd

KEYS = ["method", "group", "target_id"]
#: Scores of a method: what they are, in the order of the tables.
METRICS = {
    "accuracy": "targets called by their own attribute and by no other",
    "accuracy_one_vs_rest": "decisions, one a target and attribute, that are right",
    "balanced_accuracy": "mean of sensitivity and specificity, over attributes",
    "macro_f1": "F1, over attributes",
}


def decisions(method: str, group: np.ndarray, truth: np.ndarray, decision: np.ndarray) -> pd.DataFrame:
    """Lay out a method's decisions (targets, attributes) as rows: method, group, target_id, truth, attribute, decision.

    Args:
        group: (targets,) which targets are reported together.
        truth: (targets,) attribute codes.
    """
    n, k = decision.shape
    return pd.DataFrame(
        {
            "method": method,
            "group": np.repeat(group, k),
            "target_id": np.repeat(np.arange(n, dtype=np.int32), k),
            "truth": np.repeat(truth.astype(np.int32), k),
            "attribute": np.tile(np.arange(k, dtype=np.int32), n),
            "decision": decision.astype(np.float32).ravel(),
        }
    )


def from_labels(
    labels: np.ndarray, weight: np.ndarray, owner: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Decisions (targets, attributes) of labelled draws: each target's weights divided by their sum; label -1 is "null".

    A target without any draw is called by nothing.
    """
    n, k = shape
    total = np.bincount(owner, weights=weight, minlength=n)
    known = labels >= 0
    flat = np.bincount(owner[known] * k + labels[known], weights=weight[known], minlength=n * k)
    share: np.ndarray = flat.reshape(n, k) / np.where(total > 0, total, 1.0)[:, None]
    return share


def most_likely(share: np.ndarray) -> np.ndarray:
    """Decisions (targets, attributes) for the attribute of the largest share alone; of none where all are 0."""
    decision: np.ndarray = (np.arange(share.shape[1]) == share.argmax(1)[:, None]) & (
        share.max(1, keepdims=True) > 0
    )
    return decision.astype(float)


def score(
    table: pd.DataFrame,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    cluster: np.ndarray | None = None,
) -> pd.DataFrame:
    """Score every method of a decision table, in each group of targets by itself.

    Probabilities count as expected numbers of decisions. Averages over attributes leave out those that no target of the group has.
    Intervals are percentile bootstraps over targets, the same resamples for all methods of a group.

    Args:
        cluster: (targets,) what targets have in common, such as their entity: targets of one are drawn together. Without it each
            target is drawn by itself.

    Returns:
        A row a method and group: the metrics of `METRICS` with `_low` and `_high`, `null` (share of calls by nothing),
        n_targets, n_clusters.
    """
    rows = []
    for (group, method), part in table.groupby(["group", "method"], sort=True):
        part = part.sort_values(["target_id", "attribute"], kind="stable")
        k = part["attribute"].nunique()
        decision = part["decision"].to_numpy(float).reshape(-1, k)
        truth = part["truth"].to_numpy().reshape(-1, k)[:, 0]
        n = len(truth)
        values = _metrics(np.full((1, n), 1.0), truth, decision)
        targets = part["target_id"].to_numpy().reshape(-1, k)[:, 0]
        own = np.arange(n) if cluster is None else np.unique(cluster[targets], return_inverse=True)[1]
        m = int(own.max()) + 1
        draws = np.random.default_rng([seed, 11, m]).multinomial(m, np.full(m, 1.0 / m), size=resamples)
        resampled = _metrics(draws[:, own].astype(float), truth, decision)
        row: dict[str, object] = {"method": method, "group": group}
        for name in METRICS:
            tail = 100.0 * (1.0 - confidence) / 2.0
            low, high = np.percentile(resampled[name], [tail, 100.0 - tail])
            row |= {name: float(values[name][0]), f"{name}_low": low, f"{name}_high": high}
        row |= {
            "null": float(np.clip(1.0 - decision.sum(1), 0.0, 1.0).mean()),
            "n_targets": n,
            "n_clusters": m,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _metrics(weight: np.ndarray, truth: np.ndarray, decision: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics (R,) of R resamples: weight (R, n) says how often each target is in each of them."""
    n, k = decision.shape
    own = (truth[:, None] == np.arange(k)).astype(float)
    right = decision * own
    # Called by its own attribute and by no other: probabilities of one call add up to one at most.
    single = decision.sum(1) <= 1.0 + 1e-6
    counts = weight @ np.concatenate([right, decision, own], axis=1)
    tp, called, positive = counts[:, :k], counts[:, k : 2 * k], counts[:, 2 * k :]
    total = weight.sum(1, keepdims=True)
    tn = total - called - positive + tp
    negative = total - positive
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = 0.5 * (tp / positive + tn / negative)
        f1 = 2.0 * tp / (called + positive)
    present = positive > 0
    both = present & (negative > 0)
    with np.errstate(invalid="ignore"):
        return {
            "accuracy": weight @ (right.sum(1) * single) / total[:, 0],
            "accuracy_one_vs_rest": ((tp + tn) / total).mean(1),
            "balanced_accuracy": np.where(both, balanced, 0.0).sum(1) / both.sum(1),
            "macro_f1": np.where(present, f1, 0.0).sum(1) / present.sum(1),
        }


def confusion(table: pd.DataFrame, n_attributes: int) -> np.ndarray:
    """Confusion matrix (attributes, attributes + 1) of one method and group: rows add up to one; the last column is "null".

    Targets that are called by several attributes are divided among them. Rows without a target are NaN.
    """
    part = table.sort_values(["target_id", "attribute"], kind="stable")
    decision = part["decision"].to_numpy(float).reshape(-1, n_attributes)
    truth = part["truth"].to_numpy().reshape(-1, n_attributes)[:, 0]
    share = decision / np.maximum(decision.sum(1, keepdims=True), 1.0)
    share = np.concatenate([share, 1.0 - share.sum(1, keepdims=True)], axis=1)
    own = (truth[:, None] == np.arange(n_attributes)).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        matrix: np.ndarray = own.T @ share / own.sum(0)[:, None]
    return matrix
