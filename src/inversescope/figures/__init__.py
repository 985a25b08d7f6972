"""Figures and tables of the study: functions of tables that write PNG, PDF and the plotted numbers as CSV."""

from inversescope.figures.accuracy import (
    plot_controls,
    plot_estimators,
    plot_refusal,
    plot_scatter,
    plot_training,
)
from inversescope.figures.bandwidth import plot_fcr_vs_eps
from inversescope.figures.distance import plot_fig8
from inversescope.figures.heatmaps import plot_fig2, plot_fig4, plot_fig9
from inversescope.figures.samples import write_failures, write_table1
from inversescope.figures.study import plot_ablations, plot_misleads

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
TABLES = {"table1": "Table 1: samples with their distances", "failures": "Failure cases"}

__all__ = [
    "FIGURES",
    "STUDY_FIGURES",
    "TABLES",
    "plot_ablations",
    "plot_controls",
    "plot_estimators",
    "plot_fcr_vs_eps",
    "plot_fig2",
    "plot_fig4",
    "plot_fig8",
    "plot_fig9",
    "plot_misleads",
    "plot_refusal",
    "plot_scatter",
    "plot_training",
    "write_failures",
    "write_table1",
]
