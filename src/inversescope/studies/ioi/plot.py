"""Stages `draw_exact` and `plot_figures`: from tables to pictures, without torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from inversescope.context import Context, echo
from inversescope.figures.registry import draw
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values
from inversescope.store import write_table
from inversescope.streams import stream

# Imported for what they register.
from inversescope.studies.ioi import accuracy, bandwidth, distance, headline, heatmaps, samples, stability
from inversescope.studies.ioi.shown import SHOWN_TARGET, IoiStudy

__all__ = [
    "accuracy",
    "bandwidth",
    "distance",
    "draw_exact",
    "headline",
    "heatmaps",
    "plot_figures",
    "samples",
    "stability",
]

_BINS = 200  # of distance, in Figure 8's exact curve
_FEWEST_IN_BIN = 50
_MOST_TARGETS = 200
_BLOCK = 1 << 16


def draw_exact(context: Context) -> None:
    """Draw from the exact P(x; z) at the heads that figures show, from the reference split: no generator.

    Writes results/{task}/{model}/exact_draws.parquet (site, target_id, draw, text, distance, feature_*:
    kernel-weighted draws without replacement for the target that Figure 2 and Table 1 show) and
    exact_agreement.csv (site, distance, n, agreement: share of reference prompts that keep the target's first
    headline feature, by bins of distance, over the targets).

    Raises:
        InputError: fcr.csv, prompts or activations are missing.
    """
    study = IoiStudy(context)
    reference = context.labelled(context.prompts("reference"))
    names = [name for name in reference.columns if name.startswith("feature_")]
    labels, values = pd.factorize(reference[f"feature_{study.feature}"].astype(str))
    wanted = pd.Index(values).get_indexer(study.prompts[f"feature_{study.feature}"])
    draws, agreement = [], []
    for site in dict.fromkeys([*study.beside_map, *study.by_distance, *study.examples]):
        count = _MOST_TARGETS if site in study.by_distance else SHOWN_TARGET + 1
        found = _scan(context, site, labels, wanted[:count])
        weight = kernel_values(found.near, context.headline(site), context.config.kernel.kind)
        size = min(samples.SHOWN_TABLE1, int((weight > 0).sum()))
        if size:
            rng = stream(context.config.seed, "draw_exact", site)
            picks = rng.choice(len(weight), size=size, replace=False, p=weight / weight.sum())
            part = reference.iloc[picks][["text", *names]].assign(
                distance=found.near[picks].astype(np.float64)
            )
            part[names] = part[names].astype(str)
            draws.append(part.assign(site=site, target_id=SHOWN_TARGET, draw=np.arange(size)))
        if site in study.by_distance:
            seen = np.flatnonzero(found.total[:-1] >= _FEWEST_IN_BIN)
            bins = {"distance": (seen + 0.5) * found.width, "n": found.total[seen].astype(int)}
            share = found.same[seen] / found.total[seen]
            agreement.append(pd.DataFrame({"site": site, **bins, "agreement": share}))
        inside = int((weight > 0).sum())
        echo(f"draw_exact: {site}, {inside} of {len(weight)} reference prompts in the shown ball")
    columns = ["site", "target_id", "draw", "text", "distance", *names]
    table = pd.concat(draws, ignore_index=True)[columns] if draws else pd.DataFrame(columns=columns)
    write_table(table, context.results / "exact_draws.parquet")
    write_table(pd.concat(agreement, ignore_index=True), context.results / "exact_agreement.csv")


class Scan(NamedTuple):
    """What one pass over the reference activations of a site tells.

    Attributes:
        near: distances (reference prompts,) from the shown target.
        total: pairs of a target and a reference prompt by bin of distance; the last bin holds what lies beyond.
        same: those that share the feature.
        width: of a bin.
    """

    near: np.ndarray
    total: np.ndarray
    same: np.ndarray
    width: float


def _scan(context: Context, site: str, labels: np.ndarray, wanted: np.ndarray) -> Scan:
    """Compare the first targets, with the labels `wanted`, with all reference prompts, with the labels `labels`."""
    kernel = context.config.kernel
    metric = distance_of(kernel.distance)
    width = (2.0 if kernel.distance == "cosine" else 8 * context.headline(site)) / _BINS
    targets = metric.prepare(np.asarray(context.activations("test", site))[: len(wanted)])
    keys = context.activations("reference", site)
    near = np.empty(len(keys), np.float32)
    total, same = np.zeros((2, _BINS + 1))
    for low in range(0, len(keys), _BLOCK):
        block = slice(low, low + _BLOCK)
        d = metric.between(targets, metric.prepare(np.asarray(keys[block])))
        near[block] = d[SHOWN_TARGET]
        bins = np.clip((d / width).astype(np.int64), 0, _BINS)
        total += np.bincount(bins.ravel(), minlength=_BINS + 1)
        same += np.bincount(bins[labels[block][None, :] == wanted[:, None]], minlength=_BINS + 1)
    return Scan(near, total, same, width)


def plot_figures(context: Context) -> None:
    """Draw the study's figures and sample tables, and write its headline numbers; see `registry.draw`.

    Raises:
        InputError: a table, or rows that a figure needs, are missing; the message names the rule that makes
        them.
    """
    draw("plot_figures", IoiStudy(context))
