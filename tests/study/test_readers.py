"""Readers scored on the finished tiny study: the workflow's numbers, questions without answers, answers of somebody else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, SITES, run
from safetensors.numpy import load_file

from inversescope.cli import main
from inversescope.config import load_config
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.fcr.stages import load_site
from inversescope.figures.study import Study
from inversescope.reader.answers import LinearProbe, Truth, control_answers, exact_answers, variant_answers
from inversescope.reader.questions import asked_targets
from inversescope.reader.score import ALL
from inversescope.reader.shown import with_frontier
from inversescope.store import read_table, write_table

FEATURES = ["object", "subject"]


@pytest.fixture(scope="module")
def scored(study: Path) -> Path:
    """The tiny study with its readers scored; no other test looks at these files."""
    assert run(study, "score_readers", "--variant", "paper", "--variant", "default") == 0
    return study


@pytest.fixture(scope="module")
def asked(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions") / "new"
    assert (
        main(["questions", "ioi", MODEL, "--out", str(folder), "--examples", "5", "--root", str(scored)]) == 0
    )
    return folder


def context(root: Path) -> Context:
    return Context(root, load_config([root / "config/config.yaml"]).of("ioi", MODEL), "ioi", MODEL)


def test_answers_are_the_rates_of_the_tables(scored: Path) -> None:
    """What each reader says of the target's own value is its cell in the workflow's tables."""
    c = context(scored)
    truth = Truth.of(c)
    exact = exact_answers(c, truth)
    compared = 0
    for label in SITES:
        z, z_train = (np.array(c.activations(split, label)) for split in ("test", "train"))
        here = load_site(c, label, z, z_train)
        at = {name: exact[label, name] for name in FEATURES}
        said = control_answers(here, at, truth, LinearProbe(z_train), z)
        for variant in ("paper", "default"):
            said |= {(variant, name): one for name, one in variant_answers(here, variant, truth).items()}
        cells = read_table(c.results / f"cells/{label}.parquet")
        cells = cells[(cells["epsilon"] == 0.1) & cells["decoding"].isin(["", "plain"])]
        same = {"exact": "exact", "cache": "cache", "nearest neighbour": "nearest"}
        for (reader, estimator), by_feature in said.items():
            estimator = estimator or same.get(reader, "")
            rows = cells[cells["estimator"] == estimator]
            rows = rows[rows["variant"] == (reader if reader in c.config.variants else "")]
            for name, answers in by_feature.items():
                of = rows[rows["feature"] == name].set_index("target_id").sort_index()
                if len(of):
                    own = answers.shares[np.arange(len(z)), here.labels[name]]
                    np.testing.assert_allclose(own, of["value"].to_numpy(float), atol=1e-9)
                    known = answers.shares[~np.isnan(answers.shares).any(1)]
                    np.testing.assert_allclose(known.sum(1), 1)
                    if estimator != "exact" and reader != "nearest neighbour":
                        np.testing.assert_allclose(answers.samples, of["ess"].to_numpy(float), atol=1e-6)
                    compared += 1
        # Whoever has the wrong activation, and whoever has the prompt.
        np.testing.assert_array_equal(said["shuffled activation", ""]["object"].shares[1], at["object"][0])
        assert (said["prompt only", ""]["object"].shares.argmax(1) == here.labels["object"]).all()
    assert compared == len(SITES) * len(FEATURES) * (3 + 2 * 2)


def test_every_question_is_answered_once(scored: Path) -> None:
    answers = read_table(context(scored).results / "answers.parquet")
    keys = ["reader", "estimator", "site", "feature", "target_id"]
    assert not answers.duplicated(keys).any()
    assert set(answers.groupby(["reader", "estimator"], observed=True).size()) == {
        len(SITES) * len(FEATURES) * 6
    }
    best = answers[answers["reader"] == "exact"]
    assert (best["bits"] < 0.002).all() and (best["off"] < 1e-12).all()


def test_the_figure_and_the_table(scored: Path) -> None:
    assert run(scored, "plot_readers") == 0
    stem = scored / f"results/tables/ioi_{MODEL}_readers"
    table = read_table(stem.with_suffix(".csv"))
    total = table[(table["group"] == ALL) & (table["feature"] == ALL)]
    assert total.iloc[0]["reader"] == "exact" and total["bits"].is_monotonic_increasing
    assert {"default, combined", "paper, generated", "linear probe"} < set(total["name"])
    assert "Share told" in stem.with_suffix(".md").read_text()
    drawn = read_table(scored / f"results/figures/ioi_{MODEL}_readers.csv")
    assert set(drawn["panel"]) == {"scores", "reliability"}


def test_a_variant_of_another_bandwidth_is_judged_at_the_headline(scored: Path) -> None:
    """`few` was trained and drawn for .02; candidates within .1 count."""
    c = context(scored)
    truth, label = Truth.of(c), "L1H1"
    z, z_train = (np.array(c.activations(split, label)) for split in ("test", "train"))
    said = variant_answers(load_site(c, label, z, z_train), "few", truth)
    samples = read_table(c.samples_path("inversescope", "few", label))
    samples = samples[(samples["decoding"] == "plain") & (samples["distance"] < np.float32(0.1))]
    values = truth.values["subject"]
    for target, rows in samples.groupby("target_id"):
        share = rows["feature_subject"].astype(str).value_counts(normalize=True).reindex(values).fillna(0)
        np.testing.assert_allclose(said["generated"]["subject"].shares[int(target), :-1], share.to_numpy())
    assert len(samples) and set(samples["epsilon"]) == {0.02}


def test_candidates_of_other_distances_are_refused(scored: Path) -> None:
    """A cached neighbour whose log q is not there: the candidates were drawn before something changed."""
    c = context(scored)
    truth, label = Truth.of(c), "L1H1"
    path = c.samples_path("inversescope", "default", label, ".cache.parquet")
    whole, kept = read_table(path), path.read_bytes()
    z, z_train = (np.array(c.activations(split, label)) for split in ("test", "train"))
    here = load_site(c, label, z, z_train)
    target = whole.loc[whole["epsilon"] == 0.1, "target_id"].iloc[0]
    lost = (whole["epsilon"] == 0.1) & (whole["target_id"] == target)
    try:
        write_table(whole.drop(whole.index[lost][:1]), path)
        with pytest.raises(InputError, match=f"default at site L1H1 has no log q of .* target {target}"):
            variant_answers(here, "default", truth)
    finally:
        path.write_bytes(kept)


def test_further_variants_are_compared_at_their_sites(scored: Path) -> None:
    """Of two seeds and a short run, the short run is left out and the seeds are one reader."""
    c = context(scored)
    answers = read_table(c.results / "answers.parquet")
    heads = answers[(answers["reader"] == "paper") & answers["site"].astype(str).str.contains("H")]
    more = {"base": "view", "generator": "inversionview", "study": "frontier"}
    variants = dict(c.config.variants)
    variants["view"] = variants["paper"].model_copy(update={"label": "View"})
    for name, steps in (("view_s0", 9), ("view_s1", 9), ("view_short", 3)):
        variants[name] = variants["paper"].model_copy(update=more | {"steps": steps})
    changed = Context(scored, c.config.model_copy(update={"variants": variants}), "ioi", MODEL)
    parts = [
        heads[heads["estimator"] == "generated"].assign(reader=name, estimator="generated")
        for name in more_names()
    ]
    write_table(pd.concat(parts), c.results / "frontier/answers.parquet")
    total = with_frontier(Study(changed)).total.set_index("name")
    assert total.loc["View", "n_questions"] == 2 * total.loc["exact", "n_questions"] == 2 * 2 * 2 * 6
    assert total.loc["View", "bits"] == pytest.approx(total.loc["paper, generated", "bits"])


def more_names() -> list[str]:
    return ["view_s0", "view_s1", "view_short"]


# ------------------------------------------------------------------------------------------------------------- questions
def test_questions_hold_what_is_needed(scored: Path, asked: Path) -> None:
    c, about = context(scored), json.loads((asked / "about.json").read_text())
    assert about["n_targets"] == 6 and list(about["features"]) == c.config.fcr.features
    assert about["prior"] == "all prompts" and about["model"] == {"name": MODEL, "source": "trained"}
    sites = pd.read_csv(asked / "sites.csv")
    assert sites["site"].tolist() == SITES and (sites["epsilon"] == 0.1).all()
    prior, examples = (pd.read_parquet(asked / f"{name}.parquet") for name in ("prior", "examples"))
    assert prior["text"].tolist() == c.task.texts(np.arange(c.task.size)) and len(examples) == 5
    labels = c.task.features_of(np.arange(c.task.size))
    for name, values in about["features"].items():
        assert (prior[f"feature_{name}"] == np.array(values)[labels[name]]).all()
    targets = asked_targets(c)
    assert sorted(targets) == list(range(6)) and targets.tolist() != list(range(6))
    for label in SITES:
        z = load_file(asked / f"activations/{label}.safetensors")["z"]
        np.testing.assert_array_equal(z, c.activations("test", label)[targets])
        cached = load_file(asked / f"examples/{label}.safetensors")["z"]
        np.testing.assert_array_equal(cached, c.activations("train", label)[:5])


def test_questions_hold_nothing_of_the_targets_but_activations(scored: Path, asked: Path) -> None:
    """No file says which prompts are asked about: not by name, number, order or hash."""
    c = context(scored)
    targets = c.prompts("test")
    files = {path.relative_to(asked).as_posix() for path in asked.rglob("*") if path.is_file()}
    folders = [f"{folder}/{label}.safetensors" for folder in ("activations", "examples") for label in SITES]
    assert files == {"about.json", "sites.csv", "prior.parquet", "examples.parquet", *folders}
    for label in SITES:
        data = (asked / f"activations/{label}.safetensors").read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert set(header["__metadata__"]) == {"crc32", "dtype", "package_version"} and set(header) == {
            "__metadata__",
            "z",
        }
    for name in ("about.json", "sites.csv"):
        text = (asked / name).read_text()
        assert not any(str(number) in text for number in targets["prompt_id"] if number > 99)
        assert not any(target in text for target in targets["text"])
    # All prompts alike: none is left out, marked, or in another place than its number says.
    prior = pd.read_parquet(asked / "prior.parquet")
    assert list(prior.columns) == ["text", *(f"feature_{name}" for name in c.config.fcr.features)]
    assert set(targets["text"]) < set(prior["text"]) and prior["text"].is_unique


def test_a_folder_in_use_and_centred_activations(
    scored: Path, asked: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["questions", "ioi", MODEL, "--out", str(asked), "--root", str(scored)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    delta = tmp_path / "centred.yaml"
    delta.write_text("kernel: {centred: true}\n")
    files = ["--config", str(scored / "config/config.yaml"), "--config", str(delta)]
    new = tmp_path / "centred"
    assert (
        main(["questions", "ioi", MODEL, "--out", str(new), "--examples", "0", "--root", str(scored), *files])
        == 0
    )
    arrays = load_file(new / "activations/L0H0.safetensors")
    c = context(scored)
    np.testing.assert_array_equal(arrays["z"], c.activations("test", "L0H0")[asked_targets(c)])
    np.testing.assert_allclose(arrays["centre"][0], c.activations("train", "L0H0").mean(0), atol=1e-6)
    assert not (new / "examples.parquet").exists()


# ----------------------------------------------------------------------------------------------------------------- score
def exact_by_hand(asked: Path, scored: Path, labels: list[str]) -> pd.DataFrame:
    """Somebody who has the model computes the exact answers from the questions alone."""
    about, sites = (
        json.loads((asked / "about.json").read_text()),
        pd.read_csv(asked / "sites.csv").set_index("site"),
    )
    prior, rows = pd.read_parquet(asked / "prior.parquet"), []
    for label in labels:
        z = load_file(asked / f"activations/{label}.safetensors")["z"].astype(float)
        reference = np.array(context(scored).activations("reference", label), float)
        unit, units = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (z, reference))
        near = 1 - unit @ units.T < sites.loc[label, "epsilon"]
        for target in range(about["n_targets"]):
            for name in about["features"]:
                shares = prior.loc[near[target], f"feature_{name}"].value_counts(normalize=True)
                rows += [(target, label, name, value, share) for value, share in shares.items()]
    return pd.DataFrame(rows, columns=["target_id", "site", "feature", "value", "probability"])


def score(root: Path, path: Path, *options: str) -> int:
    return main(["score", str(path), "--task", "ioi", "--model", MODEL, "--root", str(root), *options])


def test_exact_answers_from_outside_are_at_the_floor(
    scored: Path, asked: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "oracle.parquet"
    exact_by_hand(asked, scored, SITES).to_parquet(path)
    assert score(scored, path, "--json") == 0
    table = pd.DataFrame(json.loads(capsys.readouterr().out))
    total = table[(table["group"] == ALL) & (table["feature"] == ALL)].set_index(["reader", "estimator"])
    mine, best = total.loc["oracle", "yours"], total.loc["exact", ""]
    for name in ("bits", "brier", "right", "off", "calibration"):
        assert mine[name] == pytest.approx(best[name], abs=1e-6)
    # The others are as the workflow has them.
    table = read_table(scored / f"results/tables/ioi_{MODEL}_readers.csv")
    known = table[(table["group"] == ALL) & (table["feature"] == ALL)].set_index(["reader", "estimator"])
    assert set(total.index) == {*known.index, ("oracle", "yours")}
    for key, row in known.iterrows():
        for name in ("bits", "calibration", "calibration_low", "right_high"):
            assert total.loc[key, name] == pytest.approx(row[name], rel=1e-5)


def test_answers_about_one_site_and_samples(scored: Path, asked: Path, tmp_path: Path, capsys: Any) -> None:
    """A part of the questions, by CSV, and samples: what counts as one is counted."""
    part = exact_by_hand(asked, scored, ["L0H0"]).query("feature == 'object'")
    part.to_csv(tmp_path / "part.csv", index=False)
    assert score(scored, tmp_path / "part.csv", "--out", str(tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "6 questions about 6 target prompts" in shown and "part, yours" in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "readers.csv", "readers.md", "readers_figure.csv", "readers_figure.pdf", "readers_figure.png"
    }  # fmt: skip
    c = context(scored)
    texts = c.prompts("test")["text"].to_numpy()[asked_targets(c)]
    rows = [(t, "L1H1", text) for t in range(6) for text in [texts[t]] * 3 + ["no prompt"] * (t == 2)]
    write_table(pd.DataFrame(rows, columns=["target_id", "site", "text"]), tmp_path / "copies.parquet")
    assert score(scored, tmp_path / "copies.parquet", "--json") == 0
    table = pd.DataFrame(json.loads(capsys.readouterr().out))
    total = table[(table["group"] == ALL) & (table["feature"] == ALL)].set_index("reader")
    # Who copies the prompt says what `prompt only` says, from three samples.
    for name in ("brier", "right", "off", "calibration"):
        assert total.loc["copies", name] == pytest.approx(total.loc["prompt only", name])
    assert total.loc["copies", "bits"] < total.loc["prompt only", "bits"]


def test_the_reader_of_the_documentation_runs(
    scored: Path, asked: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """As it stands there, but for the sites; it needs nothing of the package."""
    page = (Path(__file__).parents[2] / "docs/score.md").read_text()
    (code,) = re.findall(r"```python\n(import .*?)```", page, flags=re.S)
    assert "inversescope" not in code and code.count('["L23H3", "L29H1"]') == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions").symlink_to(asked)
    exec(code.replace('["L23H3", "L29H1"]', str(SITES[:2])), {})
    assert score(scored, tmp_path / "nearest10.parquet") == 0


def test_bad_files_are_one_error(scored: Path, asked: Path, tmp_path: Path, capsys: Any) -> None:
    frame = exact_by_hand(asked, scored, ["L0H0"]).assign(target_id=lambda f: f["target_id"] + 1)
    frame.to_parquet(tmp_path / "off.parquet")
    assert score(scored, tmp_path / "off.parquet") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "there is no target 6" in told and "targets are 0 to 5" in told
    assert (
        main(
            [
                "score",
                str(tmp_path / "off.parquet"),
                "--task",
                "ioi",
                "--model",
                "other",
                "--root",
                str(scored),
            ]
        )
        == 2
    )
