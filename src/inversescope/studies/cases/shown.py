"""What figures and tables of a case study show: sites in the order of the computation, variants side by side."""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from inversescope.figures.study import Study
from inversescope.sites import Site

#: Order of a block's activations in the computation.
RANK = {
    "resid_pre": 0,
    "result": 1,
    "z": 1,
    "attn_out": 2,
    "resid_mid": 3,
    "mlp_post": 4,
    "mlp_out": 5,
    "resid_post": 6,
}


class CaseStudy(Study):
    """The experiment, with what its figures share."""

    @cached_property
    def order(self) -> list[str]:
        """Labels of the sites position by position as the experiment names them, each in the order of computation."""
        plan = self.context.plan
        places: dict[str, None] = {}
        for pattern in plan.settings.sites:
            for site in plan.expand([pattern]):
                places.setdefault(site.position)
        positions = list(places)

        def rank(site: Site) -> tuple[int, int, int, int]:
            return positions.index(site.position), site.layer, RANK[site.kind], site.head or 0

        return [site.label for site in sorted(plan.sites, key=rank)]

    @property
    def shown(self) -> list[str]:
        """Variants that have panels: decoders of other sizes are compared in a table alone."""
        names = self.config.studied_variants
        return [name for name in names if self.config.variant(name).study != "capacity"]

    @cached_property
    def refused(self) -> pd.DataFrame:
        """refusal.csv at the headline bandwidth, the first decoding of each variant."""
        return self.refusals.drop_duplicates(["site", "variant"])

    def completeness(self, name: str) -> pd.DataFrame:
        """A table of `check_completeness`."""
        return self.table(f"completeness{name}", "check_completeness")
