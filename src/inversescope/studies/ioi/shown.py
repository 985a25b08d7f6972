"""What figures and tables of the study show: heads and a target prompt, named or chosen by rule; variants of each bandwidth."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import pandas as pd

from inversescope.config.methods import Bandwidth
from inversescope.figures.study import Study
from inversescope.figures.tables import example_heads, highest_and_median_head, select

#: The target prompt that Figure 2 and Table 1 show: the first one, so that nobody picks, or the one that the experiment names.
SHOWN_TARGET = 0


class IoiStudy(Study):
    """The experiment, with the heads that are shown, each with the reason."""

    @property
    def feature(self) -> str:
        """The first headline feature."""
        return self.features[0]

    @property
    def headline(self) -> list[str]:
        """The two features that panels show."""
        return self.features[:2]

    def named(self, figure: Literal["fig2", "fig8", "table1"]) -> dict[str, str]:
        """The heads that the configuration names for a figure; empty where a rule chooses."""
        return dict.fromkeys(self.context.plan.settings.shown.get(figure, ()), "named in the configuration")

    @cached_property
    def _two_heads(self) -> dict[str, str]:
        rows = select(self.rates, estimator="exact", feature=self.feature)
        reasons = (f"highest exact {self.feature} FCR", f"median exact {self.feature} FCR")
        return dict(zip(highest_and_median_head(rows.drop_duplicates("site")), reasons, strict=False))

    @property
    def beside_map(self) -> dict[str, str]:
        """The heads whose samples stand beside Figure 2."""
        return self.named("fig2") or self._two_heads

    @property
    def by_distance(self) -> dict[str, str]:
        """The heads of Figure 8."""
        return self.named("fig8") or self._two_heads

    @cached_property
    def examples(self) -> dict[str, str]:
        """The heads of Table 1."""
        return self.named("table1") or example_heads(self.fcr, self.features, self.bandwidth)

    @cached_property
    def paper_variants(self) -> dict[Bandwidth, str]:
        """Bandwidth -> variant of the paper's method that was trained at it and is read there."""
        found: dict[Bandwidth, str] = {}
        for name in sorted(self.config.studied_variants, key=lambda n: (len(n), n)):
            if name == "paper" or name.startswith(("paper_eps", "paper_share")):
                found.setdefault(self.config.bandwidth_of(name), name)
        return found

    @cached_property
    def three_bandwidths(self) -> list[Bandwidth]:
        """The headline bandwidth between its neighbours, of those that `default` is read at; fewer where it has less than two."""
        read = self.config.bandwidths_of("default")
        at = read.index(self.config.kernel.headline)
        low = min(max(at - 1, 0), max(len(read) - 3, 0))
        return read[low : low + 3]

    @property
    def exact_draws(self) -> pd.DataFrame:
        """Prompts drawn from the exact ball: site, target_id, draw, text, distance, feature_<name>."""
        return self.table("exact_draws.parquet", "draw_exact")
