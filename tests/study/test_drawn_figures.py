"""Figures, tables, report and `show` of a made-up study: what is drawn is what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import (
    MODEL,
    NOTE,
    TASK,
    Sizes,
    context_of,
    make_causes,
    make_config,
    make_exact,
    make_fcr,
    make_prompts,
    make_refusal,
    make_study,
    names_of,
)
from rich.console import Console
from scipy import stats

from inversescope.config import Config
from inversescope.errors import InputError
from inversescope.figures import tables
from inversescope.figures.save import markdown
from inversescope.figures.study import Study
from inversescope.figures.style import publication_style
from inversescope.report import page as report
from inversescope.report.page import make_report
from inversescope.report.show import show_task
from inversescope.store import read_table, write_table
from inversescope.studies.cases import heads
from inversescope.studies.ioi import accuracy, heatmaps
from inversescope.studies.ioi import plot as plots
from inversescope.studies.ioi.distance import fig8
from inversescope.studies.ioi.layers import layers, layers_table, plot_layers
from inversescope.studies.ioi.shown import IoiStudy
from inversescope.studies.variants import misleads as study
from inversescope.studies.variants import reported
from inversescope.studies.variants.plot import plot_study


def draw_all(root: Path, config: Config) -> None:
    stages = (plots.draw_exact, plot_layers, heads.plot_heads, plots.plot_figures, plot_study, make_report)
    for stage in stages:
        stage(context_of(root, config))


@pytest.fixture(scope="module")
def study_root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    root = tmp_path_factory.mktemp("study")
    config = make_study(root, Sizes())
    draw_all(root, config)
    return root, config


def written(root: Path, name: str) -> pd.DataFrame:
    return read_table(root / "results" / "figures" / f"{TASK}_{MODEL}_{name}.csv")


def test_every_figure_has_png_pdf_and_csv(study_root):
    root, config = study_root
    for stage in ("plot_layers", "plot_heads", "plot_figures", "plot_study"):
        for name in names_of(stage, "figure", config):
            stem = root / "results" / "figures" / f"{TASK}_{MODEL}_{name}"
            png, pdf = (Path(f"{stem}{suffix}").read_bytes() for suffix in (".png", ".pdf"))
            assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
            assert b"CreationDate" not in pdf and b"matplotlib" not in png[:400].lower()
            assert len(read_table(Path(f"{stem}.csv")))
        for name in names_of(stage, "table", config):
            for suffix in (".csv", ".md"):
                assert (root / "results" / "tables" / f"{TASK}_{MODEL}_{name}{suffix}").stat().st_size > 100
            page = root / "results" / "tables" / f"{TASK}_{MODEL}_{name}.md"
            assert page.read_text().endswith(f"\n\n{NOTE}\n")


def test_csv_holds_exactly_what_a_heatmap_shows(study_root):
    root, config = study_root
    with publication_style():
        drawn, _ = heatmaps.fig4(IoiStudy(context_of(root, config)))
    data = written(root, "fig4")
    panels = [(row, feature) for row in heatmaps.ROWS for feature in ("object", "subject")]
    for ax, (row, feature) in zip(drawn.axes, panels, strict=False):
        grid = tables.head_grid(data[(data["row"] == row) & (data["feature"] == feature)], (2, 4)).to_numpy()
        mesh = ax.collections[0]
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(grid.shape), grid)
        assert mesh.get_clim() == (0, 1)
        # The frames are the five largest cells of the panel.
        framed = {(round(p.get_y() - 0.05), round(p.get_x() - 0.05)) for p in ax.patches}
        order = np.argsort(-grid.ravel(), kind="stable")[:5]
        assert framed == {(int(i) // grid.shape[1], int(i) % grid.shape[1]) for i in order}
        assert len(framed) == 5


def test_csv_holds_exactly_the_plotted_rates(study_root):
    """The combined rates of Figure 4, and points of the scatter, are the rows of fcr.csv."""
    root, _ = study_root
    fcr = read_table(root / "results" / TASK / MODEL / "fcr.csv")
    want = fcr[
        (fcr["variant"] == "default")
        & (fcr["estimator"] == "combined")
        & (fcr["decoding"] == "plain")
        & (fcr["epsilon"] == 0.1)
        & (fcr["feature"] == "subject")
        & fcr["head"].notna()
    ]
    drawn = written(root, "fig4")
    drawn = drawn[(drawn["row"] == "default") & (drawn["feature"] == "subject")]
    assert dict(zip(drawn["site"], drawn["fcr"], strict=True)) == dict(
        zip(want["site"], want["fcr"], strict=True)
    )
    scatter = written(root, "scatter")
    assert set(scatter["estimator"]) == {"generated", "combined"} and set(scatter["variant"]) == {
        "paper",
        "default",
    }
    np.testing.assert_allclose(scatter["error"], (scatter["fcr"] - scatter["exact"]).abs(), atol=2e-6)


def test_what_each_layer_tells_is_drawn_from_exact_values_alone(tmp_path):
    """Lines along the residual stream and cells of heads are means over targets; nothing but prompts and exact values is read."""
    sizes = Sizes(layers=3, heads=2)
    config, results = make_config(sizes), tmp_path / "results" / TASK / MODEL
    features = ("item", "order", "object")
    make_exact(np.random.default_rng(0), results, sizes, features)
    prompts = make_prompts(np.random.default_rng(0), sizes.targets)
    write_table(prompts, tmp_path / "data" / TASK / "prompts" / "test.parquet")
    study = IoiStudy(context_of(tmp_path, config))
    with publication_style():
        drawn, data = layers(study)

    def mean(site: str, feature: str) -> float:
        exact = read_table(results / "exact" / f"{site}.parquet")
        return exact.loc[exact["epsilon"] == config.kernel.epsilon, f"fcr_{feature}"].mean()

    lines = [line for line in drawn.axes[0].lines if len(line.get_xdata()) == 3]
    assert {text.get_text() for text in drawn.axes[0].texts} >= {*features, "chance of"}
    for line, feature in zip(lines, features, strict=True):
        want = [mean(f"L{layer}.resid_post", feature) for layer in range(3)]
        np.testing.assert_allclose(line.get_ydata(), want, rtol=1e-5)
    cells = np.asarray(drawn.axes[2].collections[0].get_array()).reshape(3, 2)
    assert cells[1, 0] == pytest.approx((mean("L1H0", "order") - 0.5) / 0.5, rel=1e-4)
    rows = data[data["feature"] == "order"]
    assert (rows["ci_low"] <= rows["fcr"]).all() and (rows["fcr"] <= rows["ci_high"]).all()
    best = rows[rows["group"] == "heads"].sort_values("fcr").iloc[-1]
    assert drawn.axes[2].get_title().startswith(f"order: {best['site']} ")
    # Four heads for certain: their number is told. None but one above chance: one frame.
    shown, whole = study.exact, study.exact["head"].notna() & study.exact["feature"].isin(["item", "order"])
    order = {"L0H0": 0.9}
    rates = shown["site"].map(order).where(shown["feature"] == "order").fillna(shown["chance"])
    rates = rates.mask((shown["feature"] == "item") & (shown["layer"] < 2), 0.97)
    study.exact = shown.assign(fcr=shown["fcr"].mask(whole, rates))
    with publication_style():
        drawn, _ = layers(study)
    assert drawn.axes[1].get_title() == "item: L0H0 .97, 4 heads ≥ .95"
    assert drawn.axes[2].get_title() == "order: L0H0 .90"
    assert [len(ax.patches) for ax in drawn.axes[1:3]] == [3, 1]
    study.exact = shown
    table, _ = layers_table(study)
    assert list(table["site"].unique()) == [f"L{layer}.resid_post" for layer in range(3)]
    for row in table.to_dict("records"):
        assert row["fcr"] == pytest.approx(mean(row["site"], row["feature"]), rel=1e-5)
    told = {"item": (0.96, 1.0, 0.9), "order": (0.97, 0.2, 0.95), "object": (0.1, 0.6, 0.3)}
    place = study.exact["layer"].astype(int)
    rates = [told[name][layer] for name, layer in zip(study.exact["feature"], place, strict=True)]
    study.exact = study.exact.assign(fcr=rates)
    _, text = layers_table(study)
    assert text.splitlines()[-3:] == [
        "- item: L0.resid_post to L1.resid_post",
        "- order: L0.resid_post, L2.resid_post",
        "- object: nowhere; the highest is 0.60, at L1.resid_post",
    ]
    (results / "exact" / "L1H1.parquet").unlink()
    with pytest.raises(InputError, match="compute_exact"):
        layers(IoiStudy(context_of(tmp_path, config)))


def test_heads_of_each_feature_stand_beside_their_effects(tmp_path):
    """The highest heads by exact rate, joined to causes.csv; rank correlation as scipy has it; without patching, rates alone."""
    sizes = Sizes(layers=3, heads=4)
    config, results = make_config(sizes, patched=("L*H*",)), tmp_path / "results" / TASK / MODEL
    rng = np.random.default_rng(0)
    make_exact(rng, results, sizes, ("order", "subject", "object"))
    make_causes(rng, results, sizes)
    write_table(make_prompts(rng, sizes.targets), tmp_path / "data" / TASK / "prompts" / "test.parquet")
    plot_layers(context_of(tmp_path, config))
    heads.plot_heads(context_of(tmp_path, config))
    table = read_table(tmp_path / "results" / "tables" / f"{TASK}_{MODEL}_heads.csv")
    causes = read_table(results / "causes.csv").set_index(["feature", "site"])
    study = heads.HeadStudy(context_of(tmp_path, config))
    for feature, rows in table.groupby("feature"):
        of = study.told[study.told["feature"] == feature].set_index("site")["fcr"]
        assert list(rows["site"]) == list(of.nlargest(heads.SHOWN).index)
        assert rows["fcr"].tolist() == pytest.approx(of.nlargest(heads.SHOWN).tolist(), rel=1e-5)
        for moved in ("object", "subject"):
            want = causes.loc[moved].loc[rows["site"], "effect"]
            assert rows[f"effect_{moved}"].tolist() == pytest.approx(want.tolist(), rel=1e-5)
    numbers = read_table(tmp_path / "results" / "tables" / f"{TASK}_{MODEL}_heads_headline.csv")
    ranks = numbers[numbers["section"].str.contains("rank correlation")].set_index("what")
    for feature in ("object", "subject"):
        of = study.told[study.told["feature"] == feature].set_index("site")["fcr"]
        size = causes.loc[feature]["effect"].abs()
        want = stats.spearmanr(of, size.loc[of.index]).statistic
        assert ranks.loc[feature, "value"] == pytest.approx(want, abs=1e-5)
        assert ranks.loc[feature, "low"] <= want <= ranks.loc[feature, "high"]
        assert ranks.loc[feature, "n"] == 12
    with publication_style():
        drawn, data = heads.heads(heads.HeadStudy(context_of(tmp_path, make_config(sizes))))
    assert len(drawn.axes) == 1 and set(data["panel"]) == {"best"}


def test_a_model_of_many_layers_and_heads_is_drawn_whole():
    """Layers run to the right; unread heads are grey; heads of a layer are pooled, or the most telling ones shown."""
    sizes = Sizes(layers=20, heads=3)
    config = make_config(sizes)
    context = context_of(Path("nowhere"), config)
    rng, read = np.random.default_rng(0), IoiStudy(context)
    fcr = make_fcr(rng, config, sizes, epsilons=(config.kernel.epsilon,))
    read._tables = {"fcr.csv": fcr[fcr["head"] != 2], "refusal.csv": make_refusal(rng, config, sizes)}
    exact = read.fcr[(read.fcr["estimator"] == "exact") & (read.fcr["feature"] == "object")]
    with publication_style():
        drawn, _ = heatmaps.fig4(read)
        _, refused = accuracy.refusal(read)
        _, beside = accuracy.controls(read)
    grid = np.asarray(drawn.axes[6].collections[0].get_array()).reshape(3, 20)
    known = exact[exact["head"].notna()].set_index(["head", "layer"])["fcr"]
    assert np.isnan(grid[2]).all()
    assert grid[1, 7] == pytest.approx(known[1, 7], rel=1e-5)
    assert drawn.axes[6].get_xlabel() == "layer" and drawn.axes[6].get_ylabel() == "head"
    # 60 heads and 20 places in the residual stream are 40 marks; a mark is the mean of its heads.
    assert set(refused["site"]) == {f"L{i}{kind}" for i in range(20) for kind in ("H*", ".resid_post")}
    key = {"variant": "paper", "decoding": "plain", "layer": 7}
    own, one = (
        rows[np.logical_and.reduce([rows[name] == value for name, value in key.items()])]
        for rows in (read.refusal[read.refusal["group"] == "heads"], refused[refused["group"] == "heads"])
    )
    of = own.loc[np.isclose(own["epsilon"], config.kernel.epsilon), "refusal_rate"]
    found = one[["refusal_rate", "ci_low", "ci_high", "n_sites"]].to_numpy(float)
    np.testing.assert_allclose(found, [[of.mean(), of.min(), of.max(), 3]], rtol=1e-5)
    # The error of a place in the residual stream has the interval of the differences, without the sign.
    stream = refused[(refused["group"] == "residual") & (refused["variant"] == "default")]
    np.testing.assert_allclose(
        stream[["error_low", "error_high"]].to_numpy(float), [[0.034, 0.094]] * len(stream)
    )
    lift = ((exact["fcr"] - 0.25) / 0.75).where(exact["head"].notna())
    assert exact.loc[lift.idxmax(), "site"] in set(beside["site"]) and beside["site"].nunique() == 44


def test_fig9_leaves_out_a_row_of_few_heads(study_root):
    """One head of eight is no map; the frames are named."""
    root, config = study_root
    read = IoiStudy(context_of(root, config))
    fcr = read.fcr
    read.fcr = fcr[~fcr["variant"].str.startswith("paper") | (fcr["site"] == "L0H0")]
    with publication_style():
        drawn, data = heatmaps.fig9(read)
    assert set(data["row"]) == set(heatmaps.ROWS) - {"paper"}
    assert len(drawn.axes) == 3 * 3 + 1
    assert [text.get_text() for text in drawn.legends[0].texts] == ["the five highest heads of a panel"]


def test_controls_stand_beside_the_exact_rate_at_their_bandwidth(study_root, monkeypatch):
    """Each panel has the rates of its variant's bandwidth, and says which it is."""
    root, config = study_root
    read = IoiStudy(context_of(root, config))
    at = {"paper": read.bandwidth, "default": "epsilon 0.05"}
    monkeypatch.setattr(read, "bandwidth_of", at.__getitem__)
    with publication_style():
        drawn, data = accuracy.controls(read)
    for variant, bandwidth in at.items():
        panel = data[data["panel"] == variant]
        assert set(panel["bandwidth"]) == {bandwidth}
        shown = panel[panel["estimator"] == "exact"].set_index(["site", "feature"])["fcr"]
        want = read.fcr[(read.fcr["estimator"] == "exact") & (read.fcr["bandwidth"] == bandwidth)]
        want = want.set_index(["site", "feature"])["fcr"].loc[shown.index]
        np.testing.assert_allclose(shown, want, rtol=1e-5)
    assert drawn.axes[0].get_ylabel() == "object FCR\npaper,\nε = 0.1"


def test_fig9_pairs_each_bandwidth_with_its_paper_generator(study_root):
    root, _ = study_root
    rows = written(root, "fig9")
    used = rows[rows["row"] == "paper"].groupby("bandwidth")["variant"].unique().map(list).to_dict()
    assert used == {
        "epsilon 0.05": ["paper_eps0.05"],
        "epsilon 0.1": ["paper"],
        "epsilon 0.15": ["paper_eps0.15"],
    }


def test_fig8_has_the_half_line_and_all_samples(study_root, monkeypatch):
    root, config = study_root
    data = written(root, "fig8")
    with publication_style():
        drawn, _ = fig8(read := IoiStudy(context_of(root, config)))
        # Each panel marks the radius of its own variant.
        radii = {"paper": 0.2, "default": 0.1}
        monkeypatch.setattr(type(read.context), "headline", lambda _, site, variant: radii[variant])
        marked, _ = fig8(read)
    label = "radius of the bandwidth"
    found = [line.get_xdata()[0] for ax in marked.axes for line in ax.lines if line.get_label() == label]
    assert found == [0.2, 0.1] * 2
    assert len(drawn.axes) == 4
    for ax in drawn.axes:
        half = [line for line in ax.lines if list(line.get_ydata()) == [0.5, 0.5]]
        assert len(half) == 1 and half[0].get_label() == "50%"
    for (site, variant), part in data[data["kind"] == "sample"].groupby(["site", "variant"]):
        path = root / "results" / TASK / MODEL / "samples" / "inversescope" / variant / f"{site}.parquet"
        raw = read_table(path)
        assert len(part) == int(((raw["decoding"] == "noised") & raw["parsed"]).sum())
    smoothed = data[data["kind"] == "smoothed"].dropna(subset="agreement")
    assert (smoothed["ci_low"] <= smoothed["agreement"] + 1e-6).all() and (
        smoothed["agreement"] <= smoothed["ci_high"] + 1e-6
    ).all()


def test_a_study_of_which_nothing_was_accepted_is_drawn(tmp_path):
    config = make_study(tmp_path, Sizes())
    path = tmp_path / "results" / TASK / MODEL / "study.csv"
    frame = read_table(path)
    frame = frame.assign(refusal_rate=1.0, entropy_gap=np.nan, fcr_error=np.nan, fcr_error_weighted=np.nan)
    write_table(frame, path)
    path = path.with_name("study_rates.csv")
    nothing = {"fcr": np.nan, "ci_low": np.nan, "ci_high": np.nan, "entropy_gap": np.nan}
    write_table(read_table(path).assign(refusal_rate=1.0, **nothing), path)
    plot_study(context_of(tmp_path, config))
    for name in ("figures/{}_misleads.png", "tables/{}_study_headline.md"):
        assert (tmp_path / "results" / name.format(f"{TASK}_{MODEL}")).stat().st_size > 0


def test_training_without_a_floor_is_drawn(tmp_path):
    """A log has no column of what was never computed."""
    config = make_study(tmp_path, Sizes())
    path = tmp_path / "results" / TASK / MODEL / "training" / "inversescope" / "default.csv"
    write_table(read_table(path).drop(columns="bayes_floor"), path)
    study = IoiStudy(context_of(tmp_path, config))
    drawn, data = accuracy.training(study)
    of = data.groupby("variant")
    assert of["bayes_floor"].count()["default"] == 0 < of["bayes_floor"].count()["paper"]
    assert of["loss"].count().min() > 0 and drawn.axes


def test_exact_draws_lie_in_the_ball_and_agreement_is_a_share(study_root):
    root, config = study_root
    draws = read_table(root / "results" / TASK / MODEL / "exact_draws.parquet")
    assert len(draws) and (draws["distance"] < config.kernel.epsilon).all()
    assert not draws.duplicated(["site", "draw"]).any()
    agreement = read_table(root / "results" / TASK / MODEL / "exact_agreement.csv")
    assert agreement["agreement"].between(0, 1).all() and agreement["site"].nunique() == 2


def test_what_a_reader_concludes_of_each_site(study_root):
    """Means and t intervals over seeds by hand; misled where the exact rate says the opposite of the reported one, for sure."""
    root, config = study_root
    rates = read_table(root / "results" / TASK / MODEL / "study_rates.csv")
    found = reported.readings(rates)
    assert len(found) == 2 * 2 * 6 * 2 * 2 and (found["n_seeds"] == 3).all()
    key = {"bandwidth": "share 0.01", "steps_multiple": 3, "site": "L1.mlp_post", "feature": "subject"}
    for base, misled in (("paper", True), ("default", False)):
        one, own = (
            rows[np.logical_and.reduce([rows[k] == v for k, v in (key | {"base": base}).items()])]
            for rows in (found, rates)
        )
        half = 4.302653 * own["fcr"].std(ddof=1) / np.sqrt(3)
        want = [own["fcr"].mean(), own["fcr"].mean() - half, own["fcr"].mean() + half]
        np.testing.assert_allclose(
            one[["fcr", "fcr_low", "fcr_high"]].iloc[0].to_numpy(float), want, rtol=1e-5
        )
        assert bool(one["misled"].iloc[0]) is misled and not one["tells"].iloc[0]
    # Sites are in the order of their dimension; with one seed nobody is sure; a bandwidth of one base alone is not compared.
    assert found["dim"].groupby(found["bandwidth"]).apply(lambda dims: dims.is_monotonic_increasing).all()
    assert not reported.readings(rates[rates["seed"] == 1])["misled"].any()
    alone = rates[(rates["base"] == "paper") | (rates["bandwidth"] == "epsilon 0.1")]
    assert set(reported.readings(alone)["bandwidth"]) == {"epsilon 0.1"}
    text = (root / "results" / "tables" / f"{TASK}_{MODEL}_misleads.md").read_text()
    assert text.count("told, wrongly") == found["misled"].sum() == 16
    with publication_style():
        drawn, _ = reported.misleads(Study(context_of(root, config)))
    assert [ax.get_title() for ax in drawn.axes[:3]] == ["refused", "object FCR", "subject FCR"]
    assert len(drawn.axes) == 6
    shaded = sum(len(ax.patches) for ax in drawn.axes)
    assert shaded == found["misled"].sum()


def test_study_intervals_and_claim(study_root):
    root, _ = study_root
    frame = read_table(root / "results" / TASK / MODEL / "study.csv")
    claim = study.misleading_claim(frame)
    assert len(claim) == 6 and claim.loc[claim["dim"] == 256, "misleads"].all()
    # Longer training, by hand for one cell: the mean difference by seed, and misleading only if both intervals say so.
    longer = study.training_claim(frame)
    assert set(longer["base"]) == {"paper", "default"} and (longer["n_seeds"] == 3).all()
    seeds = study.study_means(frame)
    for _, row in longer.iterrows():
        part = seeds[(seeds["base"] == row["base"]) & (seeds["dim"] == row["dim"])]
        part = part[part["metric"] == "refusal_rate"].pivot(
            index="seed", columns="steps_multiple", values="value"
        )
        assert row["refusal_rate_difference"] == pytest.approx((part[3] - part[1]).mean())
        assert row["misleads"] == (row["refusal_rate_high"] < 0 and row["fcr_error_low"] > 0)
    wrong = frame.copy()
    grown = (wrong["base"] == "paper") & (wrong["steps_multiple"] == 3)
    wrong.loc[grown, "fcr_error"] += 0.5
    assert study.training_claim(wrong).set_index("base").loc["paper", "misleads"].all()
    assert not study.training_claim(wrong).set_index("base").loc["default", "misleads"].any()
    alone = study.misleading_claim(frame[frame["seed"] == 1])
    assert alone["fcr_error_low"].isna().all() and not alone["misleads"].any()


def test_report_is_self_contained_and_escapes_text(study_root):
    root, config = study_root
    page = (root / "results" / "report.html").read_text()
    assert "<script" not in page.lower()
    assert "&lt;script&gt;" in page
    stages = ("plot_layers", "plot_heads", "plot_figures", "plot_study")
    drawn = [name for stage in stages for name in names_of(stage, "figure", config)]
    assert page.count("data:image/png;base64,") == len(drawn)
    assert "goal" not in page and NOTE in page
    assert "http://" not in page and "https://" not in page and 'src="results' not in page
    for name in [*drawn, *names_of("plot_figures", "table", config)]:
        text = report.caption(name, config)
        assert len(text) > 80 and "{" not in text and "``" not in text
    for path in sorted(report.CAPTIONS.glob("*.rst")):
        assert report.caption(path.stem, config)


def test_markdown_tables_escape_text(study_root):
    root, _ = study_root
    text = (root / "results" / "tables" / f"{TASK}_{MODEL}_failures.md").read_text()
    assert "<script" not in text and "\\|" in text and "\\`x\\`" in text
    assert markdown("a|b\n<i>") == "a\\|b &lt;i&gt;"


def test_show_prints_what_the_workflow_wrote(study_root, tmp_path):
    root, config = study_root
    console = Console(record=True, width=180, file=open("/dev/null", "w"))  # noqa: SIM115
    show_task(root, config, TASK, console)
    text = console.export_text()
    for piece in (
        NOTE,
        "combined",
        "reweighted",
        "generated",
        "cache of 50,000, ε = 0.005",
        "gap",
        "dimension 256",
        "cache of 5,000",
    ):
        assert piece in text, piece
    numbers = read_table(root / "results" / "tables" / f"{TASK}_{MODEL}_headline.csv")
    fcr = tables.tidy(read_table(root / "results" / TASK / MODEL / "fcr.csv"))
    errors = tables.fcr_errors(fcr, "epsilon 0.1", ["object", "subject"], "combined", "plain", "default")
    one = numbers[(numbers["what"] == "combined, plain, heads") & (numbers["who"] == "default")].iloc[0]
    of_heads = errors.loc[errors["group"] == "heads", "error"]
    assert one["value"] == pytest.approx(of_heads.mean(), rel=1e-5) and one["n"] == len(of_heads)
    with pytest.raises(InputError, match="no experiment"):
        show_task(root, config, "ravel", console)
    with pytest.raises(InputError, match="make figures"):
        show_task(tmp_path, config, TASK, console)
