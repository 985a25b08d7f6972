"""Figures and tables of a made-up study: which there are, and what they say of what is missing."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest
from made_up import MODEL, TASK, Sizes, context_of, make_config, make_study, names_of
from matplotlib.figure import Figure

from inversescope.config import ExperimentConfig
from inversescope.errors import InputError
from inversescope.figures import panels, registry, tables
from inversescope.report import page as report
from inversescope.report.page import make_report
from inversescope.store import read_table, write_table
from inversescope.studies.ioi import plot as plots
from inversescope.studies.ioi import samples
from inversescope.studies.ioi.accuracy import training
from inversescope.studies.ioi.bandwidth import _curves
from inversescope.studies.ioi.distance import fig8_table, smooth
from inversescope.studies.ioi.heatmaps import fig2
from inversescope.studies.ioi.shown import IoiStudy
from inversescope.studies.variants import misleads as study
from inversescope.studies.variants.plot import plot_study
from inversescope.workflow.figures import drawn_of, left_out, registered
from inversescope.workflow.plan import Plan
from inversescope.workflow.stages import STAGES


def test_figure_8_of_generators_that_leave_the_prior():
    """No sample of any variant is a prompt of the prior: the exact curve is left."""
    points = pd.DataFrame(columns=["site", "variant", "target_id", "distance", "agree"])
    exact = pd.DataFrame({"site": ["L0H0"], "distance": [0.1], "n": [9], "agreement": [0.5]})
    table = fig8_table(points, exact)
    assert table["kind"].tolist() == ["exact"] and table["target_id"].isna().all()


def test_a_site_all_of_whose_draws_were_refused_has_no_curve():
    rates = {("L0H0", "heads"): 0.5, ("L0H1", "heads"): np.nan, ("L1.resid_post", "residual"): np.nan}
    rows = pd.DataFrame(
        [
            {"site": site, "group": group, "nominal": nominal, "fcr": rate, "ci_low": rate, "ci_high": rate}
            for (site, group), rate in rates.items()
            for nominal in (0.1, 0.2)
        ]
    )
    ax = Figure().subplots()
    _curves(ax, rows, [site for site, _ in rates])
    assert [name.get_text() for name in ax.texts] == ["L0H0"]


def test_what_a_configuration_lacks_is_known_beforehand():
    """A figure that needs a decoding, a variant or a bandwidth is left out, with a line; a stage without any figure is refused."""
    config = make_config(Sizes())
    assert set(names_of("plot_figures", "figure", config)) >= {"fig2", "fig8", "fig9"}
    assert not left_out(Plan(config))
    toy, mixed = config.experiments["toy"], {"sampling": {"decodings": ["mixed"]}}

    def changed(**experiments):
        return config.model_copy(
            update={"experiments": experiments, "models": dict.fromkeys([MODEL, "other"], target)}
        )

    def with_fields(**fields):
        return ExperimentConfig.model_validate(toy.model_dump(exclude={"settings"}) | fields)

    target = config.models[MODEL]
    plain = changed(toy=with_fields(settings=mixed))
    assert left_out(Plan(plain)) == [
        "figure fig8 of experiment toy is left out: there is no decoding noised",
        "table fig8_plateau of experiment toy is left out: there is no decoding noised",
    ]
    assert "fig8" not in names_of("plot_figures", "figure", plain.of(TASK, MODEL))
    few = changed(toy=with_fields(settings={"kernel": {"epsilons": [0.05, 0.1]}}))
    assert left_out(Plan(few)) == [
        "figure fig9 of experiment toy is left out: there is no third bandwidth",
        "table fig9_ranks of experiment toy is left out: there is no third bandwidth",
    ]
    # One rule draws all experiments: what one of them cannot have is none of its files.
    both = Plan(changed(toy=toy, bare=with_fields(settings=mixed, model="other")))
    drawn = {one.name for one in drawn_of("plot_figures", both)}
    assert "fig8" not in drawn and {"fig2", "fig9"} < drawn
    with pytest.raises(InputError, match="nothing to draw of experiment toy: there is no variant paper"):
        drawn_of("plot_figures", Plan(changed(toy=with_fields(variants=["default"]))))


def test_every_figure_has_a_caption():
    """By the name that its decorator says; the paper's figures come first, by number."""
    names = [one.name for one in registered()]
    assert names[:2] == ["fig2", "fig4"] and len(names) > 35
    for one in registered():
        assert (report.CAPTIONS / f"{one.caption}.rst").is_file(), one.caption
        assert one.title


def test_every_planned_figure_is_imported_by_its_stage():
    """What the rules read from the source is what the modules of the stages register."""
    for stage in STAGES.values():
        importlib.import_module(f"inversescope.{stage.module}")
    assert {(one.stage, one.kind, one.name) for one in registered()} == set(registry._FUNCTIONS)


def test_what_was_not_run_is_said(tmp_path):
    """A head without samples, one seed: named, not left out."""
    config = make_study(tmp_path, Sizes())
    results = tmp_path / "results" / TASK / MODEL
    plots.draw_exact(context_of(tmp_path, config))
    for path in results.glob("samples/inversescope/paper/*.parquet"):
        write_table(read_table(path).assign(parsed=False, accepted=False), path)
    shown, text = samples.table1(IoiStudy(context_of(tmp_path, config)))
    nothing = shown[shown["row"] == "paper"]
    assert (nothing["n_distinct"] == 0).all() and (nothing["text"] == "").all() and len(nothing) == 3
    assert text.count("no candidate is in the prior") == 3
    beside = samples.fig2_examples(IoiStudy(context_of(tmp_path, config)))
    assert (beside.loc[beside["row"] == "paper", "n_accepted"] == 0).all()
    frame = read_table(results / "study.csv")
    claim = study.misleading_claim(frame[frame["seed"] == 1])
    assert not claim["misleads"].any() and (claim["n_seeds"] == 1).all()


def test_smoothing_recovers_a_known_curve():
    rng = np.random.default_rng(0)
    x = rng.random(20000)
    curve = smooth(
        pd.Series(x), pd.Series((rng.random(20000) < 1 - x).astype(int)), pd.Series(np.arange(20000) % 50)
    )
    inner = curve[(curve["distance"] > 0.1) & (curve["distance"] < 0.9)]
    np.testing.assert_allclose(inner["agreement"], 1 - inner["distance"], atol=0.04)
    assert smooth(pd.Series([0.1]), pd.Series([1]), pd.Series([0])).empty
    # Nothing is said where no sample is near.
    x = pd.Series(np.r_[np.linspace(0, 0.2, 50), np.linspace(0.8, 1, 50)])
    curve = smooth(x, (x < 0.5).astype(int), pd.Series(np.arange(100) % 10))
    far = curve["distance"].between(0.23, 0.77)
    assert far.any() and curve.loc[far, ["agreement", "ci_low", "ci_high"]].isna().all(axis=None)
    assert curve.loc[~curve["distance"].between(0.2, 0.8), "agreement"].notna().all()
    # Nor where samples are few: the first of the two far away would be a spike of its own.
    x = pd.Series(np.r_[np.linspace(0, 0.1, 100), 0.9, 0.95, 1])
    curve = smooth(x, (x == 0.9).astype(int), pd.Series(np.arange(103) % 10))
    assert (curve["agreement"].dropna() == 0).all()


def test_sites_are_in_order_of_depth_and_the_first_of_each_kind_is_named():
    stream = [f"L{layer}.resid_post" for layer in range(60)]
    frame = pd.DataFrame({"site": ["L0H0", *stream, "L0.resid_mid", "L0.resid_pre"]})
    sites = list(tables.sort_sites(frame)["site"])
    assert sites == ["L0H0", "L0.resid_pre", "L0.resid_mid", *stream]
    ax = Figure().subplots()
    panels.site_axis(ax, sites)
    named = [text.get_text() for text in ax.get_xticklabels()]
    assert named[:5] == ["L0H0", "L0.resid_pre", "L0.resid_mid", "L0.resid_post", "L2.resid_post"]
    assert len(named) < 36


def test_the_configuration_names_heads(tmp_path):
    """Figures 2 and 8 and Table 1 show what it names, each its own."""
    make_study(tmp_path, Sizes())
    shown = {"fig2": ["L0H1", "L1H0", "L1H3"], "fig8": ["L0H2"], "table1": ["L1H2"]}
    config = make_config(Sizes(), shown=shown)
    study = IoiStudy(context_of(tmp_path, config))
    assert list(study.by_distance) == ["L0H2"] and list(study.examples) == ["L1H2"]
    plots.draw_exact(study.context)
    assert set(study.exact_draws["site"]) == {*shown["fig2"], "L0H2", "L1H2"}
    assert set(study.table("exact_agreement.csv", "draw_exact")["site"]) == {"L0H2"}
    _, drawn = fig2(study)
    assert list(drawn["site"][drawn["kind"] == "sample"].unique()) == shown["fig2"]
    assert set(samples.fig8_points(study)["site"]) == {"L0H2"}


def test_rules_choose_heads():
    frame = pd.DataFrame(
        {
            "site": ["L0H0", "L0H1", "L0H2", "L0.resid_post"],
            "layer": [0] * 4,
            "head": [0, 1, 2, None],
            "fcr": [0.2, 0.9, 0.9, 1.0],
        }
    )
    assert tables.best_heads(frame, 2) == ["L0H1", "L0H2"]
    assert tables.highest_and_median_head(frame) == ["L0H1", "L0H2"]
    rows = [
        {
            "site": f"L0H{h}",
            "head": h,
            "layer": 0,
            "estimator": "exact",
            "bandwidth": "epsilon 0.1",
            "feature": f,
            "fcr": v,
            "chance": 0.1,
        }
        for f, values in {
            "object": (0.9, 0.2, 0.3, 0.1),
            "subject": (0.8, 0.3, 0.7, 0.1),
            "item": (0.9, 0.2, 0.5, 0.6),
        }.items()
        for h, v in enumerate(values)
    ]
    assert list(
        tables.example_heads(tables.tidy(pd.DataFrame(rows)), ["object", "subject"], "epsilon 0.1")
    ) == [
        "L0H0",
        "L0H2",
        "L0H3",
    ]


def test_a_missing_table_names_its_rule(tmp_path):
    config = make_study(tmp_path, Sizes())
    context = context_of(tmp_path, config)
    with pytest.raises(InputError, match="draw_exact"):
        plots.plot_figures(context)
    plots.draw_exact(context)
    results = tmp_path / "results" / TASK / MODEL
    fcr = read_table(results / "fcr.csv")
    write_table(fcr[fcr["variant"] != "paper"], results / "fcr.csv")
    with pytest.raises(InputError, match="variant = paper"):
        plots.plot_figures(context)
    write_table(fcr, results / "fcr.csv")
    (results / "training" / "inversescope" / "paper.csv").unlink()
    with pytest.raises(InputError, match="train_generator"):
        training(IoiStudy(context))
    (results / "study.csv").unlink()
    with pytest.raises(InputError, match="study.csv"):
        plot_study(context)
    with pytest.raises(InputError, match="plot_figures"):
        make_report(context)
