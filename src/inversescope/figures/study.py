"""An experiment as its figures see it: its tables, read when they are first asked for."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds

from inversescope.config import Config
from inversescope.context import Context, need
from inversescope.fcr.intervals import bootstrap_means
from inversescope.figures.style import GREY
from inversescope.figures.tables import select, tidy
from inversescope.store import read_table
from inversescope.workflow import paths

#: Where `Study.exact` is kept once it was computed, below results/{task}/{model}.
EXACT_RATES = "exact_rates.parquet"


def at_headline(frame: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Rows of a result table at the headline bandwidth; of each variant, at the one at which figures show it (`headline_of`)."""
    wanted = {name: str(config.headline_of(name)) for name in config.variants} | {
        "": str(config.kernel.headline)
    }
    return frame[frame["bandwidth"] == frame["variant"].map(wanted)]


class Study:
    """Tables and settings of one experiment, for figures, tables and headline numbers.

    Attributes:
        context: its files and configuration.
        config: its configuration.
        bandwidth: headline bandwidth, as the column `bandwidth` of tables has it.
        features: names of the headline features.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.config = context, context.config
        self.bandwidth = str(self.config.kernel.headline)
        self.features = list(self.config.fcr.features)
        self._tables: dict[str, pd.DataFrame] = {}
        self._samples: dict[tuple[str, str, str], pd.DataFrame] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads of the target model, whichever of them are read."""
        return self.context.plan.shape

    def table(self, name: str, rule: str) -> pd.DataFrame:
        """A table below results/{task}/{model}. Raises `InputError` naming the rule that makes it."""
        if name not in self._tables:
            self._tables[name] = read_table(need(self.context.results / name, rule))
        return self._tables[name]

    @cached_property
    def fcr(self) -> pd.DataFrame:
        """Tidy fcr.csv."""
        return tidy(self.table("fcr.csv", "collect_tables"))

    @cached_property
    def exact(self) -> pd.DataFrame:
        """Exact rates of all features at the headline bandwidth, straight from each site's values: no generator is waited for.

        Returns:
            site, layer, head, group, position, epsilon, share (of the prior, in the median ball), feature, fcr, ci_low, ci_high,
            chance, n_targets; over the targets that the task counts, with bootstrap intervals over these.

        Raises:
            InputError: a site's values are missing, or none are at the headline bandwidth.
        """
        context, settings = self.context, self.config.fcr
        test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
        counted = np.flatnonzero(context.task.counted(test))
        about, values = [], []
        for site in context.plan.sites:
            path = need(context.path(paths.EXACT, site=site.label), "compute_exact")
            epsilon = context.headline(site.label)
            rows = (
                select(read_table(path), str(path), epsilon=epsilon).set_index("target_id").reindex(counted)
            )
            where = {"site": site.label, "layer": site.layer, "head": site.head, "position": site.position}
            share = self.config.kernel.share or float(np.exp(rows["log_mass"].median()))
            where |= {"epsilon": epsilon, "share": share}
            for name in rows.columns[rows.columns.str.startswith("fcr_")]:
                feature = name.removeprefix("fcr_")
                about.append(where | {"feature": feature, "chance": context.chance(feature)})
                values.append(rows[name].to_numpy(float))
        table = np.stack(values)
        ends = bootstrap_means(table, settings.bootstrap, settings.confidence, self.config.seed)
        rates = dict(zip(("fcr", "ci_low", "ci_high"), ends, strict=True))
        return tidy(pd.DataFrame(about).assign(**rates, n_targets=np.isfinite(table).sum(1)))

    @cached_property
    def refusal(self) -> pd.DataFrame:
        """Tidy refusal.csv."""
        return tidy(self.table("refusal.csv", "collect_tables"))

    @cached_property
    def rates(self) -> pd.DataFrame:
        """fcr.csv at the headline bandwidth."""
        return at_headline(self.fcr, self.config)

    @cached_property
    def refusals(self) -> pd.DataFrame:
        """refusal.csv at the headline bandwidth."""
        return at_headline(self.refusal, self.config)

    def on_axis(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows of a result table whose bandwidth is of the headline's kind, with its value in the column `nominal`."""
        asked = frame["bandwidth"].map({str(one): one for one in self.context.plan.bandwidths})
        kept = frame[[one.kind == self.config.kernel.headline.kind for one in asked]]
        return kept.assign(nominal=[one.value for one in asked[kept.index]])

    @property
    def axis(self) -> str:
        """What an axis of bandwidths shows."""
        return {"epsilon": "bandwidth ε", "share": "share of the prior"}[self.config.kernel.headline.kind]

    def bandwidth_of(self, variant: str) -> str:
        """The bandwidth at which a variant is shown; the headline's for "" (estimates without a generator)."""
        return str(self.config.headline_of(variant)) if variant else self.bandwidth

    def at_bandwidth(self, variant: str) -> str:
        """A variant's name, with its bandwidth if that is not the headline's: "paper at ε = 0.1"."""
        own = self.config.headline_of(variant)
        return variant if own == self.config.kernel.headline else f"{variant} at {own.label}"

    @property
    def bandwidth_label(self) -> str:
        """The headline bandwidth for readers, and that of variants which are shown at another one."""
        return self.config.bandwidth_label

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """The test split, row t = target t, labels as text."""
        prompts = self.context.labelled(self.context.prompts("test"))
        names = [name for name in prompts.columns if name.startswith("feature_")]
        return prompts.assign(**{name: prompts[name].astype(str) for name in names})

    def samples(self, variant: str, site: str, decoding: str) -> pd.DataFrame:
        """Raw candidates of a variant at a site, of one decoding, at the headline bandwidth, by target and draw.

        Raises:
            InputError: there is none.
        """
        key = (variant, site, decoding)
        if key not in self._samples:
            rule = f"sample_prompts (variant {variant}, site {site})"
            path = need(
                self.context.samples_path(self.config.variant(variant).generator, variant, site), rule
            )
            epsilon = self.context.headline(site, variant)
            near = (pc.field("epsilon") > epsilon * (1 - 1e-6)) & (pc.field("epsilon") < epsilon * (1 + 1e-6))
            rows = ds.dataset(path).to_table(filter=near & (pc.field("decoding") == decoding)).to_pandas()
            if rows.empty:
                select(rows.assign(decoding=""), str(path), decoding=decoding)
            rows = self.context.labelled(rows)
            for name in rows.columns:
                if name.startswith("feature_"):
                    rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
            rows = rows.sort_values(["target_id", "draw"], kind="stable").reset_index(drop=True)
            self._samples[key] = rows
        return self._samples[key]

    def colour(self, variant: str) -> str:
        """Colour of a variant, the same in every figure."""
        return self.config.variant(variant).colour or GREY

    def label(self, variant: str) -> str:
        """Name of a variant for readers."""
        return self.config.variant(variant).label or variant
