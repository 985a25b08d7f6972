"""What the target model computes from generated prompts, and how far that is from the activations asked about."""

from __future__ import annotations

import numpy as np

from inversescope.activations.positions import capture_prompts
from inversescope.kernel.distances import distance_of
from inversescope.sites import Site
from inversescope.targets.models import Target
from inversescope.tasks.base import Task


class Recomputer:
    """Distances of prompts to target activations at sites; each distinct prompt is run once, up to the last site's layer.

    Args:
        z: site -> (targets, d), what distances are taken to.
        distance: its name.
    """

    def __init__(self, task: Task, target: Target, z: dict[Site, np.ndarray], distance: str) -> None:
        self.task, self.target, self.z, self.distance = task, target, z, distance_of(distance)
        self.known: dict[int, int] = {}
        self.rows: dict[Site, np.ndarray] = {}

    def activations(self, index: np.ndarray, site: Site) -> np.ndarray:
        """Activations (n, d), at position `any` (n, P, d), of prompts of the prior at a site."""
        new = np.array(sorted(set(index.tolist()) - self.known.keys()), np.int64)
        if new.size:
            captured = capture_prompts(self.task, self.target, new, list(self.z))
            numbers = range(len(self.known), len(self.known) + len(new))
            self.known.update(zip(new.tolist(), numbers, strict=True))
            for one in self.z:
                known = [self.rows[one]] if one in self.rows else []
                self.rows[one] = np.concatenate([*known, captured[one.label]])
        return self.rows[site][[self.known[i] for i in index.tolist()]]

    def distances(self, index: np.ndarray, owner: np.ndarray, site: Site) -> np.ndarray:
        """Distance (n,) of prompt `index` (n,), -1 = not in the prior, to the activation of target `owner` (n,); NaN for -1."""
        result = np.full(len(index), np.nan)
        good = np.flatnonzero(index >= 0)
        if good.size:
            found = self.activations(index[good], site)
            result[good] = self.distance.paired(self.z[site][owner[good]], found)
        return result
