"""The frontier: InversionView's generator trained in two manners, beside ours, through every stage to tables."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import MODEL, each, run
from torch import nn

from inversescope.config import load_config
from inversescope.context import Context
from inversescope.generator.build import load_backbone, load_generator
from inversescope.store import read_json, read_table
from inversescope.workflow.figures import planned

VIEW = {
    "base": "inversionview",
    "site_map_blocks": 2,
    "d_condition": 8,
    "sites": ["L0H0", "L1H1"],
    "steps": 20,
    "settings": ["noise1", "plain", "schedule"],
}
OURS = {
    "base": "default",
    "sites": ["L0H0", "L1H1"],
    "steps": 20,
    # `default` of the tiny study, without its inputs.
    "eps_input": False,
    "mean_embedding": False,
    "neighbour_logits": False,
    "soft_targets": False,
    "site_map_blocks": 0,
    "settings": ["plain", "mixed"],
}
RUNS = {
    "view_s0": VIEW,
    "view_s1": VIEW | {"seed": 1},
    "view_short": VIEW | {"steps": 10, "settings": ["noise1"]},
    "view_scratch": VIEW
    | {"base": "inversionview_scratch", "decoder": {"n_layers": 1, "n_heads": 2, "d_model": 24}},
    "ours_s0": OURS,
    "ours_s1": OURS | {"seed": 1},
}
DELTA = {
    "variants": {
        "inversionview": {
            "generator": "inversionview",
            "pairs": "clean",
            "decoder_init": "backbone",
            "freeze_backbone": False,
        },
        "inversionview_scratch": {"base": "inversionview", "decoder_init": "scratch"},
    },
    "studies": {
        "frontier": {"runs": RUNS},
        "baseline": {"runs": {"view_once": VIEW | {"settings": ["noise1"]}}},
    },
    "experiments": {"ioi": {"studies": [*RUNS, "baseline"]}},
    "sampling": {
        "candidates_study": 20,
        "settings": {"noise1": {"noise": [1.0]}, "schedule": {"noise": [0.0, 1.0, 2.0, 4.0], "masked": True}},
    },
}
CHECKPOINTS = Path("data/ioi") / MODEL / "checkpoints"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def generator_of(name: str) -> str:
    return "inversionview" if name.startswith("view") else "inversescope"


def context(root: Path) -> Context:
    return Context(root, load_config([root / "config/config.yaml"]).of("ioi", MODEL), "ioi", MODEL)


@pytest.fixture(scope="module")
def frontier(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study with a frontier: every stage through the command line."""
    import shutil

    from conftest import write_config

    root = tmp_path_factory.mktemp("frontier") / "root"
    shutil.copytree(study, root)
    write_config(root, DELTA)
    for name in [*RUNS, "view_once"]:
        assert run(root, "train_generator", "--generator", generator_of(name), "--variant", name) == 0
        sites = each("--site", ["L0H0", "L1H1"])
        assert run(root, "sample_prompts", "--generator", generator_of(name), "--variant", name, *sites) == 0
    for site in ("L0H0", "L1H1"):
        names = each("--variant", RUNS)
        assert run(root, "estimate_fcr", *names, "--site", site, "--out", "frontier") == 0
        assert run(root, "estimate_fcr", "--variant", "view_once", "--site", site, "--out", "baseline") == 0
    assert run(root, "collect_frontier") == 0
    assert run(root, "plot_frontier") == 0
    assert run(root, "plot_baseline") == 0
    return root


def test_decoders_start_where_they_should(frontier: Path) -> None:
    """From the backbone they have its sizes, and learn on; from scratch they have their own."""
    c = context(frontier)
    backbone, _ = load_backbone(c)
    view, meta = load_generator(c, "inversionview", "view_s0")
    assert view.backbone.shape == backbone.shape
    close = nn.functional.cosine_similarity(
        view.backbone.wpe.weight.flatten(), backbone.wpe.weight.flatten(), dim=0
    )
    assert 0.9 < close < 1 - 1e-6
    assert meta["n_parameters"] == sum(p.numel() for p in view.parameters())
    # 16 dimensions of the residual stream, though heads have 8; a site embedding of 8.
    assert meta["shape"]["sites"] == {"L0H0": 16, "L1H1": 16} and view.shape.d_site == 8
    scratch, _ = load_generator(c, "inversionview", "view_scratch")
    assert (scratch.backbone.shape.d_model, scratch.backbone.shape.n_layers) == (24, 1)
    assert scratch.backbone.shape.vocab_size == backbone.shape.vocab_size


def test_a_killed_run_goes_on_to_the_same_weights(frontier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inversescope.generator import loss as losses

    path = frontier / CHECKPOINTS / "inversionview/view_s0/model.safetensors"
    whole = digest(path)
    file = frontier / "config/config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "save_every": 6}))
    original, calls = losses.conditional_loss, []

    def killed(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(losses, "conditional_loss", killed)
    command = ("train_generator", "--generator", "inversionview", "--variant", "view_s0")
    with pytest.raises(KeyboardInterrupt):
        run(frontier, *command)
    path.unlink()
    assert run(frontier, *command) == 0
    assert len(calls) == 15 + 20 - 12
    assert digest(path) == whole


def test_variants_of_another_generator_are_refused(
    frontier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(frontier, "train_generator", "--generator", "inversescope", "--variant", "view_s0") == 2
    assert "variant view_s0 is one of generator inversionview" in capsys.readouterr().err


def test_candidates_under_noise(frontier: Path) -> None:
    c = context(frontier)
    frame = read_table(c.samples_path("inversionview", "view_s0", "L1H1"))
    assert list(dict.fromkeys(frame["decoding"])) == ["noise1", "plain", "schedule"]
    assert (frame.groupby(["decoding", "target_id"]).size() == 20).all()
    plain, noised = (frame[frame["decoding"] == name] for name in ("plain", "noise1"))
    np.testing.assert_array_equal(plain["logq"], plain["logq_marginal"])
    known = noised["logq_marginal"].notna()
    assert known.sum() == np.minimum(noised.groupby("target_id")["accepted"].sum(), 2).sum() > 0
    assert noised["accepted"][known].all()
    # q under one's own noise exceeds q over 16 noises by the logarithm of 16 at most.
    gap = (noised["logq"] - noised["logq_marginal"])[known]
    assert (gap < math.log(16) + 1e-6).all() and gap.abs().max() > 1e-4
    assert frame["parsed"][frame["decoding"] == "schedule"].all()  # it is masked


def test_frontier_is_what_the_candidates_say(frontier: Path) -> None:
    c = context(frontier)
    table = read_table(c.results / "frontier.csv")
    first = "generator setting seed refusal_rate fcr_error entropy_gap train_seconds n_parameters".split()
    assert list(table.columns)[: len(first)] == first
    assert not table.duplicated(["generator", "setting", "seed"]).any()
    assert set(table["generator"]) == {"inversescope", "inversionview", "inversionview_scratch"}
    backbone = read_json(c.backbone_dir / "meta.json")["train_seconds"]
    row = table[(table["generator"] == "inversionview") & (table["seed"] == 1)].set_index("setting")
    assert list(row.index) == ["noise1", "plain", "schedule"] and row["headline"].tolist() == [
        True,
        False,
        False,
    ]
    meta = read_json(c.generator_dir("inversionview", "view_s1") / "meta.json")
    assert (row["n_parameters"] == meta["n_parameters"]).all()
    np.testing.assert_allclose(row["train_seconds"], meta["train_seconds"] + backbone, rtol=1e-4)
    scratch = table[table["generator"] == "inversionview_scratch"]
    assert (scratch["backbone_seconds"] == 0).all()
    for setting in row.index:
        refused, errors = [], []
        for site in ("L0H0", "L1H1"):
            frame = read_table(c.samples_path("inversionview", "view_s1", site))
            frame = frame[frame["decoding"] == setting]
            refused.append(1 - frame["accepted"].mean())
            exact = read_table(c.results / f"exact/{site}.parquet")
            exact = exact[exact["epsilon"] == 0.1].set_index("target_id")
            labels = c.task.features_of(c.prompts("test")["prompt_id"].to_numpy())
            for feature in c.config.fcr.features:
                gaps = []
                for target, group in frame[frame["accepted"]].groupby("target_id"):
                    codes = c.task.features_of(group["prompt_id"].to_numpy())[feature]
                    gaps.append((codes == labels[feature][target]).mean() - exact[f"fcr_{feature}"][target])
                errors.append(abs(np.mean(gaps)))
        assert row["refusal_rate"][setting] == pytest.approx(np.mean(refused), abs=1e-6)
        assert row["fcr_error"][setting] == pytest.approx(np.mean(errors), abs=1e-5)
        assert row["refusal_low"][setting] <= row["refusal_rate"][setting] <= row["refusal_high"][setting]
    # Shorter runs stand apart.
    time = read_table(c.results / "frontier_time.csv")
    shares = time[time["generator"] == "inversionview"].set_index(["seed", "share"])["steps"]
    assert shares.to_dict() == {(0, 1.0): 20, (1, 1.0): 20, (0, 0.5): 10}
    assert set(time["setting"]) == {"noise1", "default/plain"}


def test_pairs_of_generators(frontier: Path) -> None:
    c = context(frontier)
    pairs = read_table(c.results / "frontier_pairs.csv").set_index(["generator", "other"])
    assert set(pairs.index) == {
        ("inversionview", "inversionview_scratch"),
        ("inversionview", "default"),
        ("inversionview_scratch", "default"),
    }
    heads = read_table(c.results / "frontier_heads.csv")
    row = pairs.loc[("inversionview", "default")]
    ours = heads[(heads["variant"] == "default") & (heads["setting"] == "plain")].set_index("site")
    view = heads[(heads["variant"] == "inversionview") & (heads["setting"] == "noise1")].set_index("site")
    rates = ours["refusal_rate"], view["refusal_rate"]
    assert (row["other_mean"], row["mean"]) == pytest.approx([r.mean() for r in rates], abs=1e-6)
    assert (row["other_worst"], row["worst"]) == pytest.approx([r.max() for r in rates], abs=1e-6)
    assert row["share_won"] == (view["refusal_rate"] < ours["refusal_rate"]).mean()
    assert row["n_seeds"] == 2 and row["ci_low"] <= row["difference"] <= row["ci_high"]
    assert row["difference"] == pytest.approx(row["mean"] - row["other_mean"], abs=1e-6)


def test_figure_5_shows_the_main_generators_beside_the_baseline(frontier: Path) -> None:
    """At the heads that the baseline reads, each as its raw candidates say."""
    c = context(frontier)
    assert c.plan.baseline == ["view_once"] and not {"view_once"} & {*c.plan.ablations, *c.plan.frontier}
    drawn = read_table(frontier / "results/figures" / f"ioi_{MODEL}_fig5.csv")
    shown = {
        "paper": ("paper", "plain"),
        "default": ("default", "plain"),
        "inversionview": ("view_once", "noise1"),
    }
    assert sorted(drawn["variant"]) == sorted(2 * list(shown))
    for row in drawn.to_dict("records"):
        name, setting = shown[row["variant"]]
        drawn_of = read_table(c.samples_path(generator_of(name), name, row["site"]))
        near = np.isclose(drawn_of["epsilon"], c.headline(row["site"], name))
        refused = ~drawn_of[near & (drawn_of["decoding"] == setting)]["accepted"]
        assert row["setting"] == setting and row["refusal_rate"] == pytest.approx(refused.mean(), abs=1e-6)


def test_frontier_figures_and_tables(frontier: Path) -> None:
    shown = planned("plot_frontier", context(frontier).plan)
    for name in (one.name for one in shown if one.kind == "figure"):
        for suffix in (".png", ".pdf", ".csv"):
            assert (frontier / "results/figures" / f"ioi_{MODEL}_{name}{suffix}").stat().st_size > 100
    for name in ("fig5_methods", "frontier_matched"):
        text = (frontier / "results/tables" / f"ioi_{MODEL}_{name}.md").read_text()
        assert text.startswith("# Refusal") and "inversionview" in text
    drawn = read_table(frontier / "results/figures" / f"ioi_{MODEL}_frontier.csv")
    assert len(drawn) == len(read_table(context(frontier).results / "frontier.csv"))
