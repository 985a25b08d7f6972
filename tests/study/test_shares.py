"""The tiny study read by share of the prior, from validation prompts to tables and figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, SITES, each, run, run_from_generators, write_config

from inversescope.config import load_config
from inversescope.config.entries import merge
from inversescope.config.methods import Bandwidth
from inversescope.context import Context
from inversescope.figures.study import Study
from inversescope.generator.build import backbone_tokenizer, load_generator, pair_source
from inversescope.generator.condition import scalar_inputs
from inversescope.kernel.distances import distance_of
from inversescope.store import read_table
from inversescope.studies.variants.reported import readings

VARIANTS = ["paper", "default", "paper_share"]
SHARES = [0.02, 0.03, 0.1, 0.2]
DELTA: dict[str, Any] = {
    "experiments": {"ioi": {"n_val": 21, "variants": VARIANTS}},
    "kernel": {"epsilons": [0.02], "share": 0.1, "shares": [0.1, 0.2]},
    "variants": {
        "default": {"share_range": [0.02, 0.1]},
        "paper_share": {"base": "paper", "steps": 20, "n_heads": 4, "d_head": 4, "share": 0.03},
    },
    "sampling": {"candidates": 12, "candidates_elsewhere": 8, "decodings": ["mixed"]},
    "fcr": {"mcmc_evaluations": 4},
}


@pytest.fixture(scope="module")
def shared(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study's prompts, activations and backbone; all that depends on bandwidths is made by share."""
    root = tmp_path_factory.mktemp("shares") / "study"
    kept = (
        "exact",
        "mcmc",
        "cells",
        "samples",
        "fcr*",
        "refusal*",
        "coverage*",
        "inversescope",
        "timings.csv",
    )
    shutil.copytree(study, root, ignore=shutil.ignore_patterns(*kept))
    write_config(root, DELTA)
    shutil.copytree(study / f"results/ioi/{MODEL}/samples", root / f"results/ioi/{MODEL}/samples")
    assert run(root, "make_prompts", "--split", "val") == 0
    assert run(root, "choose_bandwidths") == 0
    run_from_generators(root, VARIANTS)
    return root


def context(root: Path) -> Context:
    config = load_config([root / "config/config.yaml"])
    return Context(root, config.of("ioi", MODEL), "ioi", MODEL, config)


def chosen(root: Path) -> pd.DataFrame:
    """bandwidths.csv by site and bandwidth."""
    return read_table(context(root).results / "bandwidths.csv").set_index(["site", "bandwidth"])


def test_epsilons_are_chosen_on_validation_prompts(shared: Path) -> None:
    c, table = context(shared), chosen(shared)
    val, test = (set(c.prompts(split)["prompt_id"]) for split in ("val", "test"))
    assert len(val) == 21 and not val & test
    assert len(table) == len(SITES) * (2 + len(SHARES))
    for site in SITES:
        z, reference = (np.array(c.activations(split, site)) for split in ("val", "reference"))
        d = np.stack(
            [distance_of("cosine").paired(np.tile(one, (len(reference), 1)), reference) for one in z]
        )
        for name, row in table.loc[site].iterrows():
            clear = np.abs(d - row["epsilon"]).min() > 1e-6
            share = np.median((d < row["epsilon"]).mean(1))
            assert not clear or row["measured"] == pytest.approx(share, rel=1e-4)
            assert (row["n_val"], row["n_reference"]) == (21, c.task.size)
            asked = Bandwidth.parse(str(name))
            if asked.kind == "share":
                assert row["share"] == asked.value
                assert share == pytest.approx(asked.value, abs=1 / len(reference)) or row["epsilon"] <= 1e-6
            else:
                assert row["epsilon"] == asked.value and row["share"] == row["measured"]


def test_every_stage_works_at_the_epsilons_of_the_site(shared: Path) -> None:
    c, table = context(shared), chosen(shared)["epsilon"]
    for site in SITES:
        at = {name: float(table[site, f"share {name}"]) for name in SHARES}
        assert c.headline(site) == at[0.1] and c.headline(site, "paper") == 0.1
        read = {"paper": {0.1}, "paper_share": {at[0.03]}, "default": {0.02, at[0.1], at[0.2]}}
        for variant, epsilons in read.items():
            frame = read_table(c.samples_path("inversescope", variant, site))
            assert set(frame["epsilon"]) == epsilons
            assert (frame["accepted"] == (frame["distance"] < frame["epsilon"].astype(np.float32))).all()
            own = at[0.1] if variant == "default" else next(iter(epsilons))
            assert set(frame.loc[frame["decoding"] == "mixed", "epsilon"]) <= {own}
            draws = frame[frame["decoding"] == "plain"].groupby("epsilon")["draw"].nunique()
            assert draws.to_dict() == {e: 12 if e == own else 8 for e in epsilons}
        exact = read_table(c.results / f"exact/{site}.parquet")
        assert set(exact["epsilon"]) == {0.02, 0.1, at[0.03], at[0.1], at[0.2]}
        assert set(read_table(c.results / f"mcmc/{site}.parquet")["epsilon"]) == {at[0.1]}


def test_generators_are_trained_at_the_bandwidths_of_each_site(shared: Path) -> None:
    c, table = context(shared), chosen(shared)["epsilon"]
    tokenizer = backbone_tokenizer(c)
    of = {name: pair_source(c, name, tokenizer) for name in VARIANTS}
    assert of["paper"].epsilon == dict.fromkeys(SITES, 0.1) and not of["paper"].log_epsilons
    assert of["paper_share"].epsilon == {site: table[site, "share 0.03"] for site in SITES}
    model, _ = load_generator(c, "inversescope", "default")
    for site in SITES:
        # From one end of share_range to the other, and to the widest ball and the smallest that are read.
        at = [table[site, f"share {share}"] for share in (0.02, 0.1, 0.2)]
        low, high = min(*at, 0.02), max(*at, 0.02)
        assert of["default"].epsilon_at(site) == (low, high)
        assert model.shape.log_epsilon(site) == pytest.approx(np.log(low * high) / 2)
    # What it is told of epsilon is centred: as much above as below, whatever the site.
    batch = of["default"].batch(0)
    assert batch.scalars is not None
    reach = [np.log(high / low) / 2 for low, high in (of["default"].epsilon_at(site) for site in SITES)]  # type: ignore[misc]
    told = np.abs(batch.scalars[:, 0]).reshape(len(SITES), -1).max(1)
    assert (told <= np.add(reach, 1e-6)).all() and (told > np.multiply(reach, 0.3)).all()


def test_generators_are_told_in_sampling_what_they_were_told_in_training(shared: Path) -> None:
    from inversescope.generator.build import cached_prompts
    from inversescope.generator.condition import make_condition
    from inversescope.kernel.neighbours import Cache

    c = context(shared)
    model, _ = load_generator(c, "inversescope", "default")
    prompts = cached_prompts(c, backbone_tokenizer(c), np.arange(200))
    for site in SITES:
        cache, epsilon = Cache(np.array(c.activations("train", site))), c.headline(site)
        z = np.array(c.activations("test", site))
        made = make_condition(model, site, z, epsilon, cache, prompts)
        near = cache.search(cache.prepare(z), epsilon, limit=model.shape.n_condition)
        centre = np.mean(np.log(pair_source(c, "default", backbone_tokenizer(c)).epsilon_at(site)))
        wanted = scalar_inputs(near, np.full(len(z), epsilon), float(centre))
        assert made.scalars is not None
        np.testing.assert_allclose(made.scalars.numpy(), wanted, atol=1e-5)


def test_epsilon_and_share_stand_in_every_table(shared: Path) -> None:
    c, table = context(shared), chosen(shared)["epsilon"]
    for name in ("fcr", "refusal", "coverage"):
        frame = read_table(c.results / f"{name}.csv")
        for (site, bandwidth), rows in frame.groupby(["site", "bandwidth"]):
            asked = Bandwidth.parse(str(bandwidth))
            assert set(rows["epsilon"]) == {table[site, bandwidth]}
            exact = read_table(c.results / f"exact/{site}.parquet")
            mass = np.exp(exact[exact["epsilon"] == table[site, bandwidth]]["log_mass"].median())
            share = asked.value if asked.kind == "share" else mass
            assert rows["share"].to_numpy() == pytest.approx(share, rel=1e-5)
        assert "share 0.1" in set(frame["bandwidth"])
    rates = read_table(c.results / "fcr.csv")
    cells = pd.concat([read_table(c.results / f"cells/{site}.parquet").assign(site=site) for site in SITES])
    mine = cells[(cells["estimator"] == "generated") & (cells["variant"] == "default")]
    for row in rates[(rates["estimator"] == "generated") & (rates["variant"] == "default")].to_dict(
        "records"
    ):
        keep = np.logical_and.reduce([mine[k] == row[k] for k in ("site", "feature", "decoding")])
        part = mine[keep & np.isclose(mine["epsilon"], table[row["site"], row["bandwidth"]])]
        assert np.isnan(row["fcr"]) or row["fcr"] == pytest.approx(part["value"].mean(), abs=1e-5)


def test_figures_show_each_variant_at_its_bandwidth(shared: Path) -> None:
    shown = Study(context(shared))
    assert shown.bandwidth_label == "10% of the prior (paper: ε = 0.1)"
    found = shown.rates.groupby("variant")["bandwidth"].unique().map(list).to_dict()
    assert found == {"": ["share 0.1"], "default": ["share 0.1"], "paper": ["epsilon 0.1"]}
    assert set(shown.refusals["variant"]) == {"paper", "default"}
    for variant in ("paper", "default"):
        drawn = shown.samples(variant, "L0H0", "plain")
        assert set(drawn["epsilon"]) == {shown.context.headline("L0H0", variant)}
    axis = shown.on_axis(shown.fcr)
    assert set(axis["nominal"]) == {0.03, 0.1, 0.2}


def test_figures_are_drawn_by_share(shared: Path) -> None:
    for stage in ("draw_exact", "plot_figures"):
        assert run(shared, stage) == 0
    folder = shared / "results"
    heat = read_table(folder / f"figures/ioi_{MODEL}_fig4.csv")
    table = chosen(shared)["epsilon"]
    for row in heat.to_dict("records"):
        wanted = 0.1 if row["row"] == "paper" else table[row["site"], "share 0.1"]
        assert row["epsilon"] == pytest.approx(wanted, rel=1e-4)
    curve = read_table(folder / f"figures/ioi_{MODEL}_fcr_vs_eps.csv")
    assert set(curve["nominal"]) == {0.03, 0.1, 0.2}
    assert "10% of the prior (paper: ε = 0.1)" in (folder / f"tables/ioi_{MODEL}_headline.md").read_text()


def test_shares_that_the_reference_cannot_tell_are_refused(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained: the size of a prior that is run as a whole is known to its task alone."""
    root = tmp_path / "few"
    shutil.copytree(shared / "data/ioi/prompts", root / "data/ioi/prompts")
    write_config(root, DELTA | {"kernel": {"share": 0.0005}})
    assert run(root, "choose_bandwidths") == 2
    said = capsys.readouterr().err
    assert "a median ball of 0.05% of the prior holds" in said and "raise n_reference" in said


def test_a_table_without_the_share_is_refused(shared: Path) -> None:
    c = context(shared)
    from inversescope.errors import InputError

    with pytest.raises(InputError, match=r"no epsilon of 7% of the prior at site L0H0.*choose_bandwidths"):
        c.epsilon(Bandwidth("share", 0.07), "L0H0")


def test_the_study_compares_variants_at_the_bandwidths_of_each(shared: Path, tmp_path: Path) -> None:
    """A generator that takes epsilon is read wherever others of the study were trained; rates and exact ones stand side by side."""
    site = "L1H1"
    runs = {
        "own": {"base": "paper"},
        "own_share": {"base": "paper", "share": 0.03},
        "ours": {"base": "default"},
    }
    study = {
        "sites": [site],
        "sweeps": [{"name": "{run}_s{seed}", "seeds": [0]}],
        "runs": {name: one | {"steps": 20} for name, one in runs.items()},
    }
    shutil.copytree(shared, tmp_path / "root")
    root, names = tmp_path / "root", [f"{run}_s0" for run in runs]
    delta = {"experiments": {"ioi": {"studies": ["dimension"]}}, "studies": {"dimension": study}}
    write_config(root, merge(DELTA, delta))
    assert run(root, "choose_bandwidths") == 0
    for name in names:
        assert run(root, "train_generator", "--variant", name) == 0
    assert run(root, "sample_prompts", *each("--variant", names), "--site", site) == 0
    assert run(root, "compute_exact", "--site", site) == 0
    assert run(root, "estimate_fcr", *each("--variant", names), "--site", site, "--out", "study") == 0
    assert run(root, "collect_study") == 0
    results = context(root).results
    rates = read_table(results / "study_rates.csv")
    found = rates.groupby("variant")["bandwidth"].agg(set).to_dict()
    assert found == {
        "own_s0": {"epsilon 0.1"},
        "own_share_s0": {"share 0.03"},
        "ours_s0": {"epsilon 0.1", "share 0.03", "share 0.1"},
    }
    assert set(readings(rates)["bandwidth"]) == {"epsilon 0.1", "share 0.03"}
    told = read_table(results / f"study/fcr/{site}.csv")
    told = told[(told["estimator"] == "generated") & (told["decoding"] == "plain")]
    columns = ["variant", "bandwidth", "feature"]
    both = rates.merge(told, on=columns, suffixes=("", "_told"))
    assert len(both) == len(rates) == 5 * 2
    for name in ("fcr", "ci_low", "ci_high", "epsilon", "share", "chance"):
        np.testing.assert_allclose(both[name], both[f"{name}_told"], rtol=1e-5)
    exact = read_table(results / f"exact/{site}.parquet")
    for row in rates.itertuples():
        values = exact.loc[np.isclose(exact["epsilon"], row.epsilon), f"fcr_{row.feature}"]
        assert row.exact == pytest.approx(values.mean(), rel=1e-5)
        assert row.exact_low <= row.exact <= row.exact_high
