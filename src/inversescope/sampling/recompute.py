"""What the target model computes from generated prompts, and how far that is from the activations asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inversescope.context import Context
from inversescope.kernel.distances import distance_of
from inversescope.sites import Site
from inversescope.tasks.base import Task

if TYPE_CHECKING:
    from inversescope.targets.models import Target

#: Prompts of the prior (n,), a site -> activations (n, d), at position `any` (n, P, d).
Activations = Callable[[np.ndarray, Site], np.ndarray]


class Computed:
    """Activations at sites as the target computes them: each distinct prompt is run once, up to the last site's layer."""

    def __init__(self, task: Task, target: Target, sites: Sequence[Site]) -> None:
        self.task, self.target, self.sites = task, target, sites
        self.known: dict[int, int] = {}
        self.rows: dict[Site, np.ndarray] = {}

    def __call__(self, index: np.ndarray, site: Site) -> np.ndarray:
        """Activations (n, d), at position `any` (n, P, d), of prompts of the prior at a site."""
        new = np.array(sorted(set(index.tolist()) - self.known.keys()), np.int64)
        if new.size:
            from inversescope.activations.positions import capture_prompts

            captured = capture_prompts(self.task, self.target, new, self.sites)
            numbers = range(len(self.known), len(self.known) + len(new))
            self.known.update(zip(new.tolist(), numbers, strict=True))
            for one in self.sites:
                known = [self.rows[one]] if one in self.rows else []
                self.rows[one] = np.concatenate([*known, captured[one.label]])
        return self.rows[site][[self.known[i] for i in index.tolist()]]


def activations_of(context: Context, loaded: Target | None = None) -> Callable[[Sequence[Site]], Activations]:
    """What tells activations of prompts at given sites, as they are compared: files where the prior is enumerated, or else the
    target, loaded here unless it is already."""
    target = loaded
    if context.plan.is_enumerated:
        target = None
    elif target is None:
        from inversescope.targets.models import load_target

        target = load_target(context.made_target())

    def at(sites: Sequence[Site]) -> Activations:
        if target is not None:
            computed = Computed(context.task, target, sites)
            return lambda index, site: context.centred(site.label, computed(index, site))
        known = {site: context.known(site.label, *context.plan.looked_up) for site in sites}
        return lambda index, site: context.centred(site.label, known[site].of(index))

    return at


class Recomputer:
    """Distances of prompts to target activations at sites.

    Args:
        activations: tells those of prompts.
        z: site -> (targets, d), what distances are taken to.
        distance: its name.
    """

    def __init__(self, activations: Activations, z: dict[Site, np.ndarray], distance: str) -> None:
        self.activations, self.z, self.distance = activations, z, distance_of(distance)

    def distances(self, index: np.ndarray, owner: np.ndarray, site: Site) -> np.ndarray:
        """Distance (n,) of prompt `index` (n,), -1 = not in the prior, to the activation of target `owner` (n,); NaN for -1."""
        result = np.full(len(index), np.nan)
        good = np.flatnonzero(index >= 0)
        if good.size:
            found = self.activations(index[good], site)
            result[good] = self.distance.paired(self.z[site][owner[good]], found)
        return result
