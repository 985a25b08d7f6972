"""Figure 8: does a sample keep the seed's feature, the further its activation lies from the target's?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.figures.panels import panel_letters, share_axis
from inversescope.figures.registry import Drawing, figure
from inversescope.figures.save import as_written
from inversescope.figures.style import BLACK, GREY, WIDTH, new_figure
from inversescope.figures.tables import VARIANTS
from inversescope.studies.ioi.samples import fig8_points
from inversescope.studies.ioi.shown import IoiStudy

_GRID = 80
#: Nothing is said of a distance if the nearest sample is farther than `_NEAR` of the range, or if the kernel's weights sum to
#: less than `_FEW` samples.
_NEAR, _FEW = 1 / 40, 5
_RESAMPLES = 400


@figure(
    "fig8",
    "plot_figures",
    title="Figure 8: distance against feature agreement",
    needs={"decodings": ["noised"]},
)
def fig8(study: IoiStudy) -> Drawing:
    """Figure 8: distance against agreement with the seed's feature, from samples drawn with extra noise.

    The curve is a Nadaraya-Watson estimate with a Gaussian kernel; its 95% band resamples target prompts. The
    exact curve is the share of agreeing prompts among *all* reference prompts at that distance, whatever a
    generator would propose.
    """
    data = as_written(fig8_table(fig8_points(study), study.table("exact_agreement.csv", "draw_exact")))
    sites = list(study.by_distance)
    drawn = new_figure(WIDTH, 2.15 * len(sites) + 0.25)
    axes = drawn.subplots(len(sites), len(VARIANTS), sharey=True, squeeze=False)
    for i, site in enumerate(sites):
        here = data[data["site"] == site]
        radii = {variant: study.context.headline(site, variant) for variant in VARIANTS}
        end = here.loc[here["kind"] == "sample", "distance"].max()
        end = max(end if np.isfinite(end) else 0, 1.2 * max(radii.values()))
        for j, (variant, radius) in enumerate(radii.items()):
            ax = axes[i, j]
            ax.axhline(0.5, color=GREY, linewidth=0.8, label="50%")
            ax.axvline(radius, color=GREY, linewidth=0.8, linestyle=":", label="radius of the bandwidth")
            _agreement(ax, here[here["variant"] == variant], study.colour(variant))
            truth = here[(here["kind"] == "exact") & (here["distance"] <= end)]
            for k, piece in enumerate(_unbroken(truth)):
                style = {"color": BLACK, "linewidth": 1, "linestyle": "--"}
                label = "exact, all prompts" if k == 0 else None
                ax.plot(piece["distance"], piece["agreement"], label=label, **style)
            share_axis(ax, pad=0.06)
            ax.set_xlim(0, end * 1.02)
            at = study.config.headline_of(variant).label
            ax.set_title(f"{site} ({study.by_distance[site]})\n{variant}, {at}")
            ax.set_xlabel("cosine distance d(z, ẑ)" if i == len(sites) - 1 else "")
            ax.set_ylabel(f"same {study.feature} as the seed" if j == 0 else "")
    panel_letters(axes.flat)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend = drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    return drawn, data


def _agreement(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Samples of a variant, and their smoothed agreement."""
    dots, curve = rows[rows["kind"] == "sample"], rows[rows["kind"] == "smoothed"]
    style: dict[str, Any] = {"alpha": 0.18, "markersize": 6, "markeredgewidth": 0.6, "rasterized": True}
    ax.plot(dots["distance"], dots["agreement"], "|", color=colour, label="samples", **style)
    ax.fill_between(
        curve["distance"], curve["ci_low"], curve["ci_high"], color=colour, alpha=0.2, linewidth=0
    )
    ax.plot(
        curve["distance"], curve["agreement"], color=colour, linewidth=1.6, label="smoothed, 95% interval"
    )
    if dots.empty:
        ax.text(0.5, 0.25, "no sample in the prior", transform=ax.transAxes, ha="center", color=GREY)


def _unbroken(truth: pd.DataFrame) -> list[pd.DataFrame]:
    """The exact curve in pieces, parted where bins hold too few prompts to say anything."""
    x = truth["distance"].to_numpy()
    if len(x) < 2:
        return [truth]
    gaps = np.flatnonzero(np.diff(x) > 3.5 * np.diff(x).min()) + 1
    return [truth.iloc[part] for part in np.split(np.arange(len(x)), gaps)]


def fig8_table(points: pd.DataFrame, exact: pd.DataFrame) -> pd.DataFrame:
    """All that Figure 8 draws, in one tidy table; `kind` is `sample`, `smoothed` or `exact`.

    Args:
        points: one row a parsed sample: site, variant, target_id, distance, agree (0 or 1).
        exact: site, distance (middle of a bin), n, agreement.
    """
    parts = []
    for (site, variant), group in points.groupby(["site", "variant"], sort=False):
        dots = group.rename(columns={"agree": "agreement"}).assign(kind="sample")
        curve = smooth(group["distance"], group["agree"], group["target_id"]).assign(kind="smoothed")
        parts += [part.assign(site=site, variant=variant) for part in (dots, curve)]
    parts.append(exact[["site", "distance", "agreement", "n"]].assign(kind="exact", variant="exact"))
    table = pd.concat(parts, ignore_index=True)
    numbers = ["distance", "agreement", "ci_low", "ci_high", "n"]
    columns = ["site", "variant", "kind", "target_id", *numbers]
    return table.reindex(columns=columns).astype({"target_id": "Int64"} | dict.fromkeys(numbers, float))


def smooth(distance: pd.Series, agree: pd.Series, target: pd.Series) -> pd.DataFrame:
    """Smooth a 0/1 indicator over distance by a Gaussian kernel, with a band that resamples target prompts.

    The bandwidth is Silverman's (0.9 min(sd, IQR / 1.34) n^-1/5), at least a hundredth of the range; the
    curve spans the 1st to the 99th percentile of distances, and is missing where few samples are near.

    Returns:
        distance, agreement, ci_low, ci_high on an even grid, NaN where few samples are near; empty for fewer than two distances.
    """
    x, y = distance.to_numpy(dtype=float), agree.to_numpy(dtype=float)
    low, high = (np.quantile(x, [0.01, 0.99])) if len(x) else (0.0, 0.0)
    if high <= low:
        return pd.DataFrame({"distance": [], "agreement": [], "ci_low": [], "ci_high": []})
    spread = min(x.std(), (np.quantile(x, 0.75) - np.quantile(x, 0.25)) / 1.34) or x.std()
    width = max(0.9 * spread * len(x) ** -0.2, (high - low) / 100)
    grid = np.linspace(low, high, _GRID)
    kernel = np.exp(-0.5 * ((grid[:, None] - x[None, :]) / width) ** 2)
    owner, index = np.unique(target.to_numpy(), return_inverse=True)
    # Sums a target, so that a resample of targets is one product of small matrices.
    member = np.zeros((len(x), len(owner)))
    member[np.arange(len(x)), index] = 1.0
    top, bottom = (kernel * y) @ member, kernel @ member
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(owner), np.full(len(owner), 1 / len(owner)), size=_RESAMPLES).T
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.where(bottom @ times > 1e-9, (top @ times) / (bottom @ times), np.nan)
        band = np.nanquantile(draws, [0.025, 0.975], axis=1)
        rates = np.stack([top.sum(1) / bottom.sum(1), *band])
    far = np.abs(grid[:, None] - x).min(1) > _NEAR * (high - low)
    rates[:, far | (kernel.sum(1) < _FEW)] = np.nan
    return pd.DataFrame(
        {"distance": grid} | dict(zip(("agreement", "ci_low", "ci_high"), rates, strict=True))
    )
