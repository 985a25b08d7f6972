"""Figure 5: refusal of attention heads by InverseScope and InversionView, with the generators of the main part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from inversescope.config.methods import PLAIN
from inversescope.context import need
from inversescope.figures.panels import panel_letters, share_axis
from inversescope.figures.registry import Drawing, figure
from inversescope.figures.save import as_written
from inversescope.figures.study import Study, at_headline
from inversescope.figures.style import WIDTH, new_figure
from inversescope.figures.tables import VARIANTS, full_cache, select, tidy
from inversescope.store import read_table
from inversescope.workflow import paths

BINS = np.linspace(0.0, 1.0, 21)


class BaselineStudy(Study):
    """The experiment, with refusal of the baseline's generators."""

    @cached_property
    def heads(self) -> pd.DataFrame:
        """Refusal at the heads that the baseline reads: variant, setting, site, refusal_rate, ci_low, ci_high, n_candidates.

        A variant of the baseline goes by the name of its base, under the first of its decoding settings.
        """
        plan, config = self.context.plan, self.config
        parts = []
        for name in plan.baseline:
            for label in plan.labels_of([name]):
                path = self.context.path(paths.SITE_TABLE, table="baseline/refusal", site=label)
                rows = at_headline(tidy(read_table(need(path, "estimate_fcr"))), config)
                setting = config.decodings_of(name, True, True)[0]
                rows = select(rows, str(path), variant=name, decoding=setting)
                parts.append(rows.assign(variant=config.variant(name).base))
        theirs = pd.concat(parts, ignore_index=True)
        ours = [name for name in VARIANTS if name in config.studied_variants]
        own = full_cache(select(self.refusals, "refusal.csv", variant=ours, decoding=PLAIN))
        rows = pd.concat([own.drop_duplicates(["site", "variant"]), theirs], ignore_index=True)
        read = set.intersection(*(set(part["site"]) for _, part in rows.groupby("variant")))
        rows = rows[rows["site"].isin(read) & (rows["group"] == "heads")]
        columns = ["variant", "setting", "site", "refusal_rate", "ci_low", "ci_high", "n_candidates"]
        return rows.rename(columns={"decoding": "setting"})[columns]


def histograms(study: Study, rows: pd.DataFrame, panels: Sequence[Sequence[str]]) -> Figure:
    """Histograms of refusal over attention heads, means as dashed lines; some generators a panel.

    Args:
        rows: a row a head: variant, setting, refusal_rate.
        panels: variants of each panel; those without rows are left out.
    """
    shown = [[v for v in panel if v in set(rows["variant"])] for panel in panels]
    shown = [panel for panel in shown if panel]
    drawn = new_figure(WIDTH, 2.5)
    axes = drawn.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, shown, strict=True):
        for variant in panel:
            part, colour = rows[rows["variant"] == variant], study.colour(variant)
            values = part["refusal_rate"].to_numpy(float)
            count, _ = np.histogram(values, BINS)
            ax.stairs(count, BINS, color=colour, fill=True, alpha=0.35, linewidth=0)
            ax.stairs(count, BINS, color=colour, linewidth=1.1, label="_")
            ax.axvline(values.mean(), color=colour, linestyle="--", linewidth=1.2)
            about = f"mean {values.mean():.3f}, worst {values.max():.3f}"
            label = f"{study.label(variant)} ({part['setting'].iloc[0]}): {about}"
            ax.plot([], [], color=colour, linewidth=4, alpha=0.6, label=label)
        ax.yaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel(f"share of draws refused, {study.bandwidth_label}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.3), fontsize=6.5)
        share_axis(ax, "x")
    axes[0].set_ylabel("attention heads")
    panel_letters(axes)
    return drawn


@figure("fig5", "plot_baseline", title="Figure 5: refusal of attention heads, by generator")
def fig5(study: BaselineStudy) -> Drawing:
    """Histograms of refusal over heads: `paper`, and `default`, each beside the baseline."""
    rows = as_written(study.heads)
    theirs = [v for v in dict.fromkeys(rows["variant"]) if v not in VARIANTS]
    return histograms(study, rows, [[variant, *theirs] for variant in VARIANTS]), rows
