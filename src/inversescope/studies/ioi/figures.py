"""Figures and tables of the study: functions of tables that write PNG, PDF and the plotted numbers as CSV."""

from inversescope.studies.ioi.accuracy import (
    plot_controls,
    plot_estimators,
    plot_refusal,
    plot_scatter,
    plot_training,
)
from inversescope.studies.ioi.bandwidth import plot_fcr_vs_eps
from inversescope.studies.ioi.distance import plot_fig8
from inversescope.studies.ioi.heatmaps import plot_fig2, plot_fig4, plot_fig9
from inversescope.studies.ioi.samples import write_failures, write_table1
from inversescope.studies.variants.figures import plot_ablations, plot_misleads
from inversescope.studies.variants.frontier_figures import (
    plot_fig5,
    plot_frontier,
    plot_refusal_seconds,
    write_fig5_methods,
    write_frontier_matched,
)

#: Figures of `plot_figures`, then of `plot_study`: name -> title, in the order of the report.
FIGURES = {
    "fig2": "Figure 2: object FCR of attention heads, with samples",
    "fig4": "Figure 4: object and subject FCR of attention heads",
    "scatter": "Estimated against exact FCR",
    "refusal": "Refusal, FCR error and entropy gap by site",
    "controls": "FCR beside its controls",
    "estimators": "Error of a single cell, from dense to sparse caches",
    "fcr_vs_eps": "FCR against the bandwidth",
    "fig9": "Figure 9: object FCR at three bandwidths",
    "fig8": "Figure 8: distance against feature agreement",
    "training": "Training curves beside the Bayes floor",
}
STUDY_FIGURES = {
    "misleads": "Where Appendix B's noise misleads",
    "ablations": "Ablations",
}
#: Figures and tables of `plot_frontier`.
FRONTIER_FIGURES = {
    "fig5": "Figure 5: refusal of attention heads, by generator",
    "refusal_seconds": "Refusal against seconds of training",
    "frontier": "The frontier: refusal against FCR error and entropy gap",
}
FRONTIER_TABLES = {
    "fig5_methods": "Refusal of attention heads, pair by pair of generators",
    "frontier_matched": "Refusal at the FCR error of default",
}
TABLES = {"table1": "Table 1: samples with their distances", "failures": "Failure cases"}

__all__ = [
    "FIGURES",
    "FRONTIER_FIGURES",
    "FRONTIER_TABLES",
    "STUDY_FIGURES",
    "TABLES",
    "plot_ablations",
    "plot_controls",
    "plot_estimators",
    "plot_fcr_vs_eps",
    "plot_fig2",
    "plot_fig4",
    "plot_fig5",
    "plot_fig8",
    "plot_fig9",
    "plot_frontier",
    "plot_misleads",
    "plot_refusal",
    "plot_refusal_seconds",
    "plot_scatter",
    "plot_training",
    "write_failures",
    "write_fig5_methods",
    "write_frontier_matched",
    "write_table1",
]
