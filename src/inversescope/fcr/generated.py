"""Cells and refusal of one variant's candidates at one site."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.methods import ALONE, PLAIN
from inversescope.fcr.cells import SiteCells
from inversescope.fcr.estimators import (
    CacheDraws,
    GeneratorDraws,
    Weighed,
    combined_weights,
    importance_weights,
    refusal,
)
from inversescope.kernel.kernel import kernel_values


@dataclass(frozen=True)
class Candidates:
    """One target's raw candidates, (n,) each.

    Attributes:
        index: prompt of the prior, -1 = none.
        log_q: as each was drawn, given its own activation.
        marginal: log q without it, where each has one of its own.
        kernel: kernel value; 0 for refused ones.
        log_prior, log_density: log probability under the prior, and as a draw of the cache (-inf outside it).
        labels: feature -> labels.
    """

    index: np.ndarray
    accepted: np.ndarray
    log_q: np.ndarray
    marginal: np.ndarray | None
    kernel: np.ndarray
    log_prior: np.ndarray
    log_density: np.ndarray
    labels: dict[str, np.ndarray]


@dataclass(frozen=True)
class VariantCells:
    """One variant's cells at one site.

    Attributes:
        rows: (m,) cached prompts that the variant may use.
    """

    site: SiteCells
    generator: str
    variant: str
    rows: np.ndarray

    def add(self, samples: pd.DataFrame, log_q: pd.DataFrame) -> list[dict[str, Any]]:
        """Add the cells of all the variant's candidates to the site's; returns refusal rows, a target each.

        Args:
            samples, log_q: candidates, and log q of cached prompts, as `sample_prompts` wrote them.
        """
        of_cached = {
            (float(e), int(t)): pd.Series(group["logq"].to_numpy(), index=group["row"].to_numpy())
            for (e, t), group in log_q.groupby(["epsilon", "target_id"])
        }
        refusals: list[dict[str, Any]] = []
        for (epsilon, decoding), block in samples.groupby(["epsilon", "decoding"], sort=True):
            if decoding == "noised":
                continue
            names: dict[str, Any] = {
                "generator": self.generator,
                "variant": self.variant,
                "decoding": str(decoding),
                "cache_size": len(self.rows),
            }
            groups = dict(list(block.groupby("target_id")))
            for target in range(len(self.site.test)):
                drawn = self.candidates(groups[target], epsilon)
                refusals.append({**names, "epsilon": epsilon, **self.refusal_row(target, epsilon, drawn)})
                cached_q = of_cached.get((float(epsilon), target))
                self.add_target(target, epsilon, drawn, cached_q, names)
        return refusals

    def candidates(self, group: pd.DataFrame, epsilon: float) -> Candidates:
        """Candidates of one target, from their rows."""
        task, kind = self.site.context.task, self.site.context.config.kernel.kind
        index, accepted = group["prompt_id"].to_numpy().astype(np.int64), group["accepted"].to_numpy(bool)
        distance = group["distance"].fillna(np.inf).to_numpy(float)
        return Candidates(
            index=index,
            accepted=accepted,
            log_q=group["logq"].to_numpy(float),
            marginal=group["logq_marginal"].to_numpy(float) if "logq_marginal" in group else None,
            kernel=np.where(accepted, kernel_values(distance, epsilon, kind), 0.0),
            log_prior=task.log_prior(index),
            log_density=self.log_density(index),
            labels=self.site.context.labels_of(index),
        )

    @cached_property
    def alone(self) -> bool:
        """Whether it is read without the cache's help, to be compared with other generators."""
        return self.site.context.config.variant(self.variant).study in ALONE

    @cached_property
    def split(self) -> str | None:
        """What the cache was drawn from: the prior (None), or its train split; in both cases without the test prompts."""
        return "train" if self.site.context.config.variant(self.variant).cache_pairs == "train" else None

    @cached_property
    def log_kept(self) -> float:
        """Log of what is left without the prompts that the cache was made without."""
        task = self.site.context.task
        return math.log1p(-np.exp(task.log_prior(self.site.left_out, self.split)).sum())

    def log_density(self, index: np.ndarray) -> np.ndarray:
        """Log probability (n,) of prompts as draws of the cache, -inf for those that it cannot hold, and for -1."""
        density = self.site.context.task.log_prior(index, self.split) - self.log_kept
        return np.where(np.isin(index, self.site.left_out), -np.inf, density)

    @cached_property
    def of_train(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each prompt of the train split (N,): whether the variant may use it, its log prior, its log density."""
        allowed = np.zeros(len(self.site.train), bool)
        allowed[self.rows] = True
        return allowed, self.site.context.task.log_prior(self.site.train), self.log_density(self.site.train)

    def refusal_row(self, target: int, epsilon: float, drawn: Candidates) -> dict[str, Any]:
        """Refusal and diversity of one target's candidates, beside the exact posterior's entropy and mass."""
        copies = drawn.index == self.site.test[target]
        outcome = refusal(
            drawn.index >= 0, drawn.accepted, drawn.log_q, copies, drawn.log_prior, drawn.marginal
        )
        truth = self.site.truth[epsilon, target]
        return {
            "target_id": target,
            "n": outcome.n,
            "refusal_rate": outcome.rate,
            "parse_refusal": outcome.parse,
            "distance_refusal": outcome.distance,
            "entropy_gap": outcome.entropy - float(truth["entropy"]),
            "copies": outcome.copies,
            "bits": -float(truth["log_mass"]) / math.log(2),
            "bits_generated": -outcome.log_mass / math.log(2),
        }

    def add_target(
        self,
        target: int,
        epsilon: float,
        drawn: Candidates,
        cached_q: pd.Series | None,
        names: dict[str, Any],
    ) -> None:
        """Add one target's cells.

        Args:
            cached_q: log q of cached neighbours by row, where the target is sparse.
            names: what the cells have in common.
        """
        site = self.site
        # Candidates follow P(x; z), kernel and all: a plain mean over the accepted ones (equation 1).
        plain = Weighed(drawn.accepted.astype(float))
        accepted = drawn.kernel > 0
        weighed = Weighed(importance_weights(drawn.kernel, drawn.log_prior, drawn.log_q))
        # As if they were another target's: a control.
        other = (target - 1) % len(site.test)
        mixes = names["decoding"] == PLAIN and not self.alone
        rows, cached = self.cache_draws(target, epsilon, cached_q)
        draws = GeneratorDraws(cached.match, drawn.kernel, drawn.log_prior, drawn.log_density, drawn.log_q)
        both = Weighed(combined_weights(cached, draws)) if mixes else None
        alone = Weighed(cached.kernel) if mixes and len(self.rows) != len(site.train) else None
        for feature, labels in site.labels.items():
            match = (drawn.labels[feature] == labels[target]).astype(float)
            shuffled = (drawn.labels[feature] == labels[other]).astype(float)
            site.add(feature, target, epsilon, "generated", plain.share(match), **names)
            site.add(feature, target, epsilon, "reweighted", weighed.share(match[accepted]), **names)
            site.add(feature, other, epsilon, "shuffled", plain.share(shuffled), **names)
            if both is not None:
                near = (site.train_labels[feature][rows] == labels[target]).astype(float)
                share = both.share(np.concatenate([near, match[accepted]]))
                site.add(feature, target, epsilon, "combined", share, **names)
                if alone is not None:
                    site.add(feature, target, epsilon, "cache", alone.share(near), **names)

    def cache_draws(
        self, target: int, epsilon: float, cached_q: pd.Series | None
    ) -> tuple[np.ndarray, CacheDraws]:
        """One target's cached neighbours: rows of the cache, and what `combined` takes, but for the labels."""
        allowed, log_prior, log_density = self.of_train
        rows, kernel = self.site.cached(target, float(epsilon), allowed)
        log_q = np.zeros(0) if not len(rows) else None
        if cached_q is not None:
            log_q = cached_q.reindex(rows).to_numpy()
        unknown = np.full(len(rows), np.nan)
        return rows, CacheDraws(unknown, kernel, log_prior[rows], log_density[rows], log_q, len(self.rows))
