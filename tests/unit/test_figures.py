"""Figures, tables, report and `show` on small made-up tables: what is drawn is what is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from inversescope.config import Config, ExperimentConfig
from inversescope.config.methods import VariantConfig
from inversescope.config.targets import ModelConfig
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.figures import tables
from inversescope.figures.save import markdown
from inversescope.figures.style import publication_style
from inversescope.report import page as report
from inversescope.report.show import show_task
from inversescope.report.stages import make_report
from inversescope.store import file_hash, read_table, write_activations, write_table
from inversescope.studies.ioi import heatmaps, samples
from inversescope.studies.ioi import plot as plots
from inversescope.studies.ioi.distance import fig8, smooth
from inversescope.studies.ioi.shown import IoiStudy
from inversescope.studies.variants import misleads as study
from inversescope.studies.variants.plot import plot_study
from inversescope.workflow.figures import drawn_of, left_out, planned, registered
from inversescope.workflow.plan import ExperimentPlan, Plan

EPSILONS = (0.005, 0.02, 0.05, 0.1, 0.15)
FEATURES = ("object", "subject", "item", "template")
LABELS = {
    "object": ["Anna", "Ben", "Carl", "Dora"],
    "subject": ["Anna", "Ben", "Carl", "Dora"],
    "item": ["ring", "drink", "kiss"],
    "template": ["when", "then"],
}
EVIL = "<script>alert('x')</script> [bold]Then[/bold] $a_b$ | `x`"
TASK, MODEL = "ioi", "toy"
KEY = {"task": TASK, "model": MODEL}
CACHE = 50000


@dataclass(frozen=True)
class Sizes:
    """How large the made-up study is."""

    layers: int = 2
    heads: int = 4
    targets: int = 6
    draws: int = 20
    reference: int = 400
    steps: int = 30
    dimension: int = 4


def site_rows(sizes: Sizes) -> list[dict]:
    heads = [
        {"site": f"L{i}H{j}", "layer": i, "head": j} for i in range(sizes.layers) for j in range(sizes.heads)
    ]
    return heads + [{"site": f"L{i}.resid_post", "layer": i, "head": None} for i in range(sizes.layers)]


def make_config(sizes: Sizes) -> Config:
    variants = {
        "paper": VariantConfig(base="paper"),
        "paper_s1": VariantConfig(base="paper", study="dimension"),
        "paper_eps0.05": VariantConfig(base="paper", epsilon=0.05, change="eps 0.05"),
        "paper_eps0.15": VariantConfig(base="paper", epsilon=0.15, change="eps 0.15"),
        "default": VariantConfig(base="default", pairs="kernel", eps_input=True),
        "default_sparse": VariantConfig(
            base="default", pairs="kernel", eps_input=True, cache_size=5000, change="cache of 5,000"
        ),
    }
    return Config(
        experiments={
            "toy": ExperimentConfig(
                model=MODEL,
                sites=["L*H*", "L*.resid_post"],
                n_test=sizes.targets,
                variants=[name for name, one in variants.items() if not one.study],
                studies=["paper_s1"],
            )
        },
        models={MODEL: ModelConfig(source="local", path="toy", n_layers=sizes.layers, n_heads=sizes.heads)},
        variants=variants,
    ).of(TASK, MODEL)


def make_study(root: Path, sizes: Sizes) -> Config:
    """Write every table that figures read, with numbers that look like a study's."""
    rng = np.random.default_rng(1)
    config = make_config(sizes)
    results = root / "results" / TASK / MODEL
    sites = site_rows(sizes)
    write_table(make_fcr(rng, config, sizes), results / "fcr.csv")
    write_table(make_refusal(rng, config, sizes), results / "refusal.csv")
    coverage = [
        KEY
        | {"site": site["site"], "epsilon": e, "cache_size": CACHE, "share_lt1": min(0.9, 0.0004 / e)}
        | {"share_lt10": min(1, 0.002 / e), "share_lt100": min(1, 0.01 / e), "median_neighbours": 10.0}
        for site in sites
        for e in EPSILONS
    ]
    write_table(pd.DataFrame(coverage), results / "coverage.csv")

    for variant, floor in (("paper", 8.1), ("default", 8.6)):
        step = np.arange(1, sizes.steps + 1) * (3000 // sizes.steps)
        loss = floor + 0.5 + 3 * np.exp(-step / 300) + rng.normal(0, 0.08, sizes.steps)
        bayes = np.where(np.arange(sizes.steps) % 10 == 0, floor, np.nan)
        log = pd.DataFrame(
            {
                "step": step,
                "seconds": step * 0.1,
                "loss": loss,
                "bayes_floor": bayes,
                "learning_rate": 1e-3,
                "tokens_per_second": 1e4,
            }
        )
        write_table(log, results / "training" / "inversescope" / f"{variant}.csv")

    prompts = make_prompts(rng, sizes.targets)
    write_table(prompts, root / "data" / TASK / "prompts" / "test.parquet")
    reference = make_prompts(rng, sizes.reference)
    write_table(reference, root / "data" / TASK / "prompts" / "reference.parquet")
    for site in sites:
        code = rng.normal(size=(4, sizes.dimension))
        for split, frame in (("test", prompts), ("reference", reference)):
            label = frame["feature_object"].map(LABELS["object"].index).to_numpy()
            noise = rng.normal(0, 0.2, size=(len(frame), sizes.dimension))
            hashed = file_hash(root / "data" / TASK / "prompts" / f"{split}.parquet")
            path = root / "data" / TASK / MODEL / "activations" / split / f"{site['site']}.safetensors"
            write_activations(path, code[label] + noise, {"prompt_hash": hashed})
        for variant in ("paper", "default"):
            write_table(
                make_samples(rng, prompts, sizes),
                results / "samples" / "inversescope" / variant / f"{site['site']}.parquet",
            )
    make_study_tables(results, rng)
    return config


def make_fcr(rng: np.random.Generator, config: Config, sizes: Sizes) -> pd.DataFrame:
    """Exact rates that fall with the bandwidth, and estimates around them: `paper` off, residual sites more so."""
    rows: list[dict] = []

    def add(key: dict, value: float, half: float, rmse: float, **more: object) -> None:
        low, mean, high = np.clip([value - half, value, value + half], 0, 1)
        rows.append(key | {"fcr": mean, "ci_low": low, "ci_high": high, "cell_rmse": rmse} | more)

    for k, site in enumerate(site_rows(sizes)):
        spread = 0.8 + 0.4 * rng.random()
        for feature in FEATURES:
            chance = 1 / len(LABELS[feature])
            peak = chance + (1 - chance) * rng.beta(0.5, 1.6)
            if (feature, k) in (("object", 5), ("subject", 3)):
                peak = 0.97
            for epsilon in EPSILONS:
                truth = chance + (peak - chance) * np.exp(-epsilon / 0.25)
                key = (
                    KEY
                    | site
                    | {"epsilon": epsilon, "feature": feature, "chance": chance, "ess": 40.0, "ess_low": 0.1}
                )
                key |= {
                    "n_targets": sizes.targets,
                    "n_samples": 100,
                    "generator": "",
                    "variant": "",
                    "decoding": "",
                }
                key |= {"cache_size": 0}
                add(key, truth, 0.02, 0.0, estimator="exact")
                wrong = 0.02 * spread / epsilon**0.4
                add(key, truth + rng.normal(0, 0.004), 0.03, wrong, estimator="cache", cache_size=CACHE)
                for name in ("mcmc", "nearest", "majority", "prior"):
                    add(key, truth * 0.3 + chance * 0.7 + rng.normal(0, 0.01), 0.02, 0.1, estimator=name)
                for variant, settings in config.variants.items():
                    if epsilon not in config.epsilons_of(variant):
                        continue
                    size = settings.cache_size or CACHE
                    own = key | {"generator": "inversescope", "variant": variant, "cache_size": size}
                    bias = (0.08 if site["head"] is None else 0.03) * (
                        2.2 if settings.base == "paper" else 0.8
                    )
                    wide = (1 if size == CACHE else 2) * spread
                    for decoding in config.decodings_of(variant, epsilon, site["head"] is not None):
                        own["decoding"] = decoding
                        if decoding == "noised":
                            continue
                        add(own, truth + bias + rng.normal(0, 0.01), 0.03, 0.07 * wide, estimator="generated")
                        wrong = 0.06 * wide / epsilon**0.1
                        add(own, truth + bias / 4 + rng.normal(0, 0.006), 0.03, wrong, estimator="reweighted")
                        add(own, chance + 0.02, 0.02, 0.2, estimator="shuffled")
                        if decoding == "plain":
                            wrong = 0.016 * wide / epsilon**0.32
                            add(own, truth + rng.normal(0, 0.004), 0.03, wrong, estimator="combined")
                            if size != CACHE:
                                few = max(1, round(sizes.targets * (1 - min(0.9, 0.004 / epsilon))))
                                add(own, truth, 0.05, 3 * wrong, estimator="cache", n_targets=few)
    return pd.DataFrame(rows)


def make_refusal(rng: np.random.Generator, config: Config, sizes: Sizes) -> pd.DataFrame:
    """Refusal rows of every variant, site, bandwidth and decoding."""
    rows = []
    for k, site in enumerate(site_rows(sizes)):
        for variant, settings in config.variants.items():
            for epsilon in config.epsilons_of(variant):
                for decoding in config.decodings_of(variant, epsilon, site["head"] is not None):
                    paper, residual = settings.base == "paper", site["head"] is None
                    rate = 0.15 + 0.35 * rng.random() - 0.1 * (decoding == "mixed") + 0.05 * paper
                    row = {
                        "epsilon": epsilon,
                        "n_candidates": sizes.targets * sizes.draws,
                        "refusal_rate": rate,
                    }
                    row |= {"entropy_gap": -0.3 * rng.random() - (0.9 if paper and residual else 0.1)}
                    row |= {
                        "parse_refusal": 0.02 * rng.random(),
                        "distance_refusal": rate - 0.01,
                        "copies": 0.001,
                    }
                    row |= {
                        "ci_low": rate - 0.03,
                        "ci_high": rate + 0.03,
                        "gap_low": -1.0,
                        "gap_high": 0.5,
                        "decoding": decoding,
                        "bits": 4 + k % 7,
                    }
                    row |= {"cache_size": settings.cache_size or CACHE, "bits_generated": 4.2 + k % 7}
                    row |= {"fcr_error": (0.12 if paper else 0.03) * rng.random() + 0.01}
                    if decoding != "noised":
                        rows.append(KEY | {"generator": "inversescope", "variant": variant} | site | row)
    return pd.DataFrame(rows)


def make_prompts(rng: np.random.Generator, count: int) -> pd.DataFrame:
    columns = {name: rng.choice(labels, count) for name, labels in LABELS.items()}
    text = [
        f"{template.capitalize()}, {subject} and {other} went to the restaurant downtown. {subject} gave a {item} to"
        for template, subject, other, item in zip(
            columns["template"], columns["subject"], columns["object"], columns["item"], strict=True
        )
    ]
    frame = pd.DataFrame({"prompt_id": np.arange(count) * 7, "text": text})
    return frame.assign(
        **{f"feature_{name}": pd.Categorical(values, LABELS[name]) for name, values in columns.items()}
    )


def make_samples(rng: np.random.Generator, prompts: pd.DataFrame, sizes: Sizes) -> pd.DataFrame:
    parts = []
    for decoding in ("plain", "mixed", "noised"):
        count = len(prompts) * sizes.draws
        frame = make_prompts(rng, count).drop(columns="prompt_id")
        names = [name for name in frame.columns if name.startswith("feature_")]
        frame[names] = frame[names].astype(object)
        target = np.repeat(np.arange(len(prompts)), sizes.draws)
        distance = rng.gamma(1.5, 0.12 if decoding == "noised" else 0.035, count)
        keep = rng.random(count) < np.exp(-distance / 0.3)
        for name in ("feature_object", "feature_subject"):
            frame.loc[keep, name] = prompts[name].astype(str).to_numpy()[target[keep]]
        parsed = rng.random(count) > 0.03
        frame.loc[~parsed, "text"] = EVIL
        frame.loc[~parsed, names] = ""
        frame = frame.assign(
            target_id=target, draw=np.tile(np.arange(sizes.draws), len(prompts)), parsed=parsed
        )
        frame = frame.assign(
            distance=np.where(parsed, distance, np.nan), accepted=parsed & (distance < 0.1), logq=-10.0
        )
        parts.append(frame.assign(epsilon=0.1, decoding=decoding, temperature=1.0))
    return pd.concat(parts, ignore_index=True)


def make_study_tables(results: Path, rng: np.random.Generator) -> None:
    rows = []
    for base in ("paper", "default"):
        for multiple in (1, 3):
            for seed in (1, 2, 3):
                for kind, dim in (("H", 16), (".resid_post", 64), (".mlp_post", 256)):
                    for layer in range(2):
                        site = f"L{layer}H0" if kind == "H" else f"L{layer}{kind}"
                        wrong = (0.02 + 0.035 * np.log2(dim / 8)) if base == "paper" else 0.03
                        rows.append(
                            {
                                "variant": f"{base}_s{seed}",
                                "base": base,
                                "seed": seed,
                                "steps_multiple": multiple,
                                "site": site,
                                "dim": dim,
                                "kind": kind,
                                "epsilon": 0.1,
                                "refusal_rate": 0.3 / np.log2(dim / 4) / multiple**0.3 + rng.normal(0, 0.005),
                                "entropy_gap": (-0.25 * np.log2(dim / 8) if base == "paper" else -0.3)
                                + rng.normal(0, 0.03),
                                "fcr_error": wrong + rng.normal(0, 0.004),
                                "fcr_error_weighted": wrong / 2 + rng.normal(0, 0.003),
                                "train_seconds": 60.0 * multiple,
                            }
                        )
    write_table(pd.DataFrame(rows), results / "study.csv")
    changes = {
        "paper": "",
        "paper_subspace": "noise in the head's subspace",
        "paper_unit": "norm not seen",
        "paper_unfrozen": "backbone unfrozen",
        "paper_map": "two residual blocks in the site map",
        "default": "",
        "default_hard": "one drawn neighbour as the label",
        "default_nomean": "no kernel mean embedding",
        "default_frozen": "backbone frozen",
        "default_widen": "anchors without a neighbour: bandwidth widened until one is found",
    }
    rows = []
    for variant, change in changes.items():
        base = variant.partition("_")[0]
        for group in ("heads", "residual"):
            error = (
                (0.08 if base == "paper" else 0.03)
                * (1.5 if group == "residual" else 1)
                * (1 + 0.5 * rng.random())
            )
            rows.append(
                {
                    "variant": variant,
                    "base": base,
                    "change": change,
                    "group": group,
                    "refusal_rate": 0.1 + 0.3 * rng.random(),
                    "entropy_gap": -rng.random(),
                    "fcr_error": error,
                    "fcr_error_weighted": error / 3,
                    "cell_rmse": 0.03,
                    "epsilon": 0.1,
                    "ci_low": error * 0.9,
                    "ci_high": error * 1.1,
                }
            )
    write_table(pd.DataFrame(rows), results / "ablations.csv")


def context_of(root: Path, config: Config) -> Context:
    return Context(root, config, TASK, MODEL)


def draw_all(root: Path, config: Config) -> None:
    for stage in (plots.draw_exact, plots.plot_figures, plot_study, make_report):
        stage(context_of(root, config))


def names_of(stage: str, kind: str, config: Config) -> list[str]:
    return [one.name for one in planned(stage, ExperimentPlan(config, TASK, MODEL)) if one.kind == kind]


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
    for stage in ("plot_figures", "plot_study"):
        for name in names_of(stage, "figure", config):
            stem = root / "results" / "figures" / f"{TASK}_{MODEL}_{name}"
            png, pdf = (Path(f"{stem}{suffix}").read_bytes() for suffix in (".png", ".pdf"))
            assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
            assert b"CreationDate" not in pdf and b"matplotlib" not in png[:400].lower()
            assert len(read_table(Path(f"{stem}.csv")))
        for name in names_of(stage, "table", config):
            for suffix in (".csv", ".md"):
                assert (root / "results" / "tables" / f"{TASK}_{MODEL}_{name}{suffix}").stat().st_size > 100


def test_what_a_configuration_lacks_is_known_beforehand(study_root):
    """A figure that needs a decoding, a variant or a bandwidth is left out, with a line; a stage without any figure is refused."""
    _, config = study_root
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
    assert left_out(Plan(plain)) == ["figure fig8 of experiment toy is left out: there is no decoding noised"]
    assert "fig8" not in names_of("plot_figures", "figure", plain.of(TASK, MODEL))
    few = changed(toy=with_fields(variants=["paper", "default"]))
    assert left_out(Plan(few)) == [
        "figure fig9 of experiment toy is left out: there is no variant paper_eps0.05, variant paper_eps0.15"
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


def test_two_runs_write_the_same_bytes(study_root, tmp_path):
    root, config = study_root
    again = tmp_path / "again"
    make_study(again, Sizes())
    draw_all(again, config)
    for folder in ("results/figures", "results/tables"):
        files = sorted((root / folder).iterdir())
        assert [f.name for f in files] == sorted(f.name for f in (again / folder).iterdir())
        for file in files:
            assert file.read_bytes() == (again / folder / file.name).read_bytes(), file.name
    assert (root / "results/report.html").read_bytes() == (again / "results/report.html").read_bytes()


def test_csv_holds_exactly_what_a_heatmap_shows(study_root):
    root, config = study_root
    with publication_style():
        drawn, _ = heatmaps.fig4(IoiStudy(context_of(root, config)))
    data = written(root, "fig4")
    panels = [(row, feature) for row in heatmaps.ROWS for feature in ("object", "subject")]
    for ax, (row, feature) in zip(drawn.axes, panels, strict=False):
        grid = tables.head_grid(data[(data["row"] == row) & (data["feature"] == feature)]).to_numpy()
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


def test_fig9_pairs_each_bandwidth_with_its_paper_generator(study_root):
    root, _ = study_root
    rows = written(root, "fig9")
    used = rows[rows["row"] == "paper"].groupby("epsilon")["variant"].unique().map(list).to_dict()
    assert used == {0.05: ["paper_eps0.05"], 0.1: ["paper"], 0.15: ["paper_eps0.15"]}


def test_fig8_has_the_half_line_and_all_samples(study_root):
    root, config = study_root
    data = written(root, "fig8")
    with publication_style():
        drawn, _ = fig8(IoiStudy(context_of(root, config)))
    assert len(drawn.axes) == 4
    for ax in drawn.axes:
        half = [line for line in ax.lines if list(line.get_ydata()) == [0.5, 0.5]]
        assert len(half) == 1 and half[0].get_label() == "50%"
    for (site, variant), part in data[data["kind"] == "sample"].groupby(["site", "variant"]):
        path = root / "results" / TASK / MODEL / "samples" / "inversescope" / variant / f"{site}.parquet"
        raw = read_table(path)
        assert len(part) == int(((raw["decoding"] == "noised") & raw["parsed"]).sum())
    smoothed = data[data["kind"] == "smoothed"]
    assert (smoothed["ci_low"] <= smoothed["agreement"] + 1e-6).all() and (
        smoothed["agreement"] <= smoothed["ci_high"] + 1e-6
    ).all()


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
    claim = study.misleading_claim(frame[frame["seed"] == 1], 0.1)
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


def test_a_study_of_which_nothing_was_accepted_is_drawn(tmp_path):
    config = make_study(tmp_path, Sizes())
    path = tmp_path / "results" / TASK / MODEL / "study.csv"
    frame = read_table(path)
    frame = frame.assign(refusal_rate=1.0, entropy_gap=np.nan, fcr_error=np.nan, fcr_error_weighted=np.nan)
    write_table(frame, path)
    plot_study(context_of(tmp_path, config))
    for name in ("figures/{}_misleads.png", "tables/{}_study_headline.md"):
        assert (tmp_path / "results" / name.format(f"{TASK}_{MODEL}")).stat().st_size > 0


def test_exact_draws_lie_in_the_ball_and_agreement_is_a_share(study_root):
    root, config = study_root
    draws = read_table(root / "results" / TASK / MODEL / "exact_draws.parquet")
    assert len(draws) and (draws["distance"] < config.kernel.epsilon).all()
    assert not draws.duplicated(["site", "draw"]).any()
    agreement = read_table(root / "results" / TASK / MODEL / "exact_agreement.csv")
    assert agreement["agreement"].between(0, 1).all() and agreement["site"].nunique() == 2


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
            "epsilon": 0.1,
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
    assert list(tables.example_heads(tables.tidy(pd.DataFrame(rows)), ["object", "subject"], 0.1)) == [
        "L0H0",
        "L0H2",
        "L0H3",
    ]


def test_study_intervals_and_claim(study_root):
    root, _ = study_root
    frame = read_table(root / "results" / TASK / MODEL / "study.csv")
    means = study.study_means(frame, 0.1)
    one = means[
        (means["kind"] == "mean")
        & (means["metric"] == "fcr_error")
        & (means["base"] == "paper")
        & (means["dim"] == 64)
    ]
    part = frame[(frame["base"] == "paper") & (frame["dim"] == 64) & (frame["steps_multiple"] == 1)]
    seeds = part.groupby("seed")["fcr_error"].mean()
    first = one[one["steps_multiple"] == 1].iloc[0]
    half = 4.302653 * seeds.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(
        [first["value"], first["ci_low"], first["ci_high"]],
        [seeds.mean(), seeds.mean() - half, seeds.mean() + half],
        rtol=1e-5,
    )
    claim = study.misleading_claim(frame, 0.1)
    assert len(claim) == 6 and claim.loc[claim["dim"] == 256, "misleads"].all()
    # Longer training, by hand for one cell: the mean difference by seed, and misleading only if both intervals say so.
    longer = study.training_claim(frame, 0.1)
    assert set(longer["base"]) == {"paper", "default"} and (longer["n_seeds"] == 3).all()
    seeds = study.study_means(frame, 0.1)
    for _, row in longer.iterrows():
        part = seeds[
            (seeds["kind"] == "seed") & (seeds["base"] == row["base"]) & (seeds["dim"] == row["dim"])
        ]
        part = part[part["metric"] == "refusal_rate"].pivot(
            index="seed", columns="steps_multiple", values="value"
        )
        assert row["refusal_rate_difference"] == pytest.approx((part[3] - part[1]).mean())
        assert row["misleads"] == (row["refusal_rate_high"] < 0 and row["fcr_error_low"] > 0)
    wrong = frame.copy()
    grown = (wrong["base"] == "paper") & (wrong["steps_multiple"] == 3)
    wrong.loc[grown, "fcr_error"] += 0.5
    assert study.training_claim(wrong, 0.1).set_index("base").loc["paper", "misleads"].all()
    assert not study.training_claim(wrong, 0.1).set_index("base").loc["default", "misleads"].any()
    alone = study.study_means(frame[frame["seed"] == 1], 0.1)
    assert alone.loc[alone["kind"] == "mean", "ci_low"].isna().all()


def test_report_is_self_contained_and_escapes_text(study_root):
    root, config = study_root
    page = (root / "results" / "report.html").read_text()
    assert "<script" not in page.lower()
    assert "&lt;script&gt;" in page
    drawn = [name for stage in ("plot_figures", "plot_study") for name in names_of(stage, "figure", config)]
    assert page.count("data:image/png;base64,") == len(drawn)
    assert "goal" not in page
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
    errors = tables.fcr_errors(fcr, 0.1, ["object", "subject"], "combined", "plain", "default")
    one = numbers[(numbers["what"] == "combined, plain, heads") & (numbers["who"] == "default")].iloc[0]
    of_heads = errors.loc[errors["group"] == "heads", "error"]
    assert one["value"] == pytest.approx(of_heads.mean(), rel=1e-5) and one["n"] == len(of_heads)
    with pytest.raises(InputError, match="no experiment"):
        show_task(root, config, "ravel", console)
    with pytest.raises(InputError, match="make figures"):
        show_task(tmp_path, config, TASK, console)


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
        plots.plot_figures(context)
    (results / "study.csv").unlink()
    with pytest.raises(InputError, match="study.csv"):
        plot_study(context)
    with pytest.raises(InputError, match="plot_figures"):
        make_report(context)
