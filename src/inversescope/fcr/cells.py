"""Cells at one site: every estimator's value for each target, bandwidth and feature, beside the exact one and controls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from inversescope.context import Context
from inversescope.fcr.estimators import Estimate, Weighed
from inversescope.kernel.kernel import kernel_values, support_radius
from inversescope.kernel.neighbours import Neighbours
from inversescope.sites import Site


@dataclass
class SiteCells:
    """What the estimators know of one site, and the cells so far.

    Attributes:
        test, train: prompt ids of the targets and of the cache.
        left_out: prompt ids that the cache was made without.
        exact: (epsilon, target_id) -> the columns of the table of exact values.
        near: each target's cached neighbours at the largest radius.
        nearest: (targets,) cache row of the nearest one.
        labels, train_labels: feature -> labels of the targets, and of the cache.
    """

    context: Context
    site: Site
    test: np.ndarray
    left_out: np.ndarray
    train: np.ndarray
    exact: pd.DataFrame
    near: Neighbours
    nearest: np.ndarray
    labels: dict[str, np.ndarray]
    train_labels: dict[str, np.ndarray]
    cells: list[dict[str, object]] = field(default_factory=list)

    def add(
        self,
        feature: str,
        target: int,
        epsilon: float,
        estimator: str,
        estimate: Estimate,
        generator: str = "",
        variant: str = "",
        decoding: str = "",
        cache_size: int = 0,
    ) -> None:
        """Record a cell."""
        self.cells.append(
            {
                "target_id": target,
                "epsilon": epsilon,
                "generator": generator,
                "variant": variant,
                "decoding": decoding,
                "cache_size": cache_size,
                "estimator": estimator,
                "feature": feature,
                "value": estimate.value,
                "ess": estimate.ess,
                "n_samples": estimate.n,
            }
        )

    @cached_property
    def truth(self) -> dict[tuple[float, int], dict[str, float]]:
        """The rows of `exact`: a look-up in a table takes a hundred times as long."""
        return self.exact.to_dict("index")

    @cached_property
    def bandwidths(self) -> pd.DataFrame:
        """Each bandwidth that is read: bandwidth, its epsilon here, and share of the prior (of an absolute epsilon, what the median
        ball of the targets holds). Several may have one epsilon."""
        counted = np.flatnonzero(self.context.task.counted(self.test))
        mass = self.exact["log_mass"].unstack("epsilon").loc[counted].median()
        rows = []
        for one, epsilon in self.context.resolved(self.site.label):
            share = one.value if one.kind == "share" else math.exp(mass[epsilon])
            rows.append({"epsilon": epsilon, "bandwidth": str(one), "share": share})
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """All cells, with the exact value of each."""
        cells = pd.DataFrame(self.cells)
        for feature in self.labels:
            rows = cells["feature"] == feature
            index = pd.MultiIndex.from_frame(cells.loc[rows, ["epsilon", "target_id"]])
            cells.loc[rows, "exact"] = self.exact[f"fcr_{feature}"].reindex(index).to_numpy()
        return cells

    def cached(
        self, target: int, epsilon: float, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A target's neighbours among the cached prompts, or the allowed ones of them (N,) bool: rows and kernel values."""
        kind = self.context.config.kernel.kind
        part = slice(self.near.start[target], self.near.start[target + 1])
        rows, d = self.near.rows[part], self.near.distance[part]
        keep = d < np.float32(support_radius(epsilon, kind))
        if allowed is not None:
            keep &= allowed[rows]
        return rows[keep], kernel_values(d[keep], epsilon, kind)

    def add_untrained(
        self, epsilons: list[float], prior_samples: pd.DataFrame, states: pd.DataFrame | None
    ) -> None:
        """Exact values, the cache alone, the controls that need no generator, and chains of swap moves if there are any.

        Args:
            prior_samples: what the backbone writes without any activation.
            states: of the chains, at the headline bandwidth.
        """
        size = len(self.train)
        prior_samples = prior_samples[prior_samples["parsed"].astype(bool)]
        if self.context.functions and len(prior_samples):
            prior_samples = prior_samples.assign(
                prompt_id=self.context.task.parse(prior_samples["text"].tolist())
            )
            prior_samples = self.context.labelled(prior_samples)
        near = {
            (target, epsilon): (rows, Weighed(weight))
            for target in range(len(self.test))
            for epsilon in epsilons
            for rows, weight in [self.cached(target, epsilon)]
        }
        for feature, labels in self.labels.items():
            cached_label = self.train_labels[feature]
            drawn = prior_samples[f"feature_{feature}"].to_numpy().astype(str)
            names = np.array(self.context.task.feature_values[feature])
            # The majority label of the cache is the best guess without any activation.
            majority = int(np.bincount(cached_label[cached_label >= 0]).argmax())
            for target, own in enumerate(labels):
                share = float((drawn == names[own]).mean()) if len(drawn) else math.nan
                prior = Estimate(share, len(drawn), float(len(drawn)))
                nearest = Estimate(float(cached_label[self.nearest[target]] == own), 1, 1.0)
                for epsilon in epsilons:
                    row = self.truth[epsilon, target]
                    mass = float(row["n_ball"])
                    exact = Estimate(float(row[f"fcr_{feature}"]), int(mass), mass)
                    rows, weighed = near[target, epsilon]
                    cache = weighed.share((cached_label[rows] == own).astype(float))
                    self.add(feature, target, epsilon, "exact", exact)
                    self.add(feature, target, epsilon, "prior", prior)
                    self.add(feature, target, epsilon, "cache", cache, cache_size=size)
                    self.add(feature, target, epsilon, "nearest", nearest, cache_size=size)
                    self.add(feature, target, epsilon, "majority", Estimate(float(majority == own), 1, 1.0))
            if states is not None:
                self._add_chains(feature, states)

    def _add_chains(self, feature: str, states: pd.DataFrame) -> None:
        target_id, index = states["target_id"].to_numpy(), states["prompt_id"].to_numpy().astype(np.int64)
        # A chain that begins outside the prior, as RAVEL's do, counts from its first state inside.
        inside = np.isfinite(self.context.task.log_prior(index))
        target_id, found = target_id[inside], self.context.labels_of(index[inside])[feature]
        match = pd.Series((found == self.labels[feature][target_id]).astype(float)).groupby(target_id)
        mean, size = match.mean(), match.size()
        for target in range(len(self.test)):
            estimate = Estimate(float(mean.get(target, math.nan)), int(size.get(target, 0)), math.nan)
            self.add(feature, target, self.context.headline(self.site.label), "mcmc", estimate)
