"""Hypotheses of the finished tiny study: found from its files, with the estimators' weights, and read as features."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, SITES, run, write_config

import inversescope as iv
from inversescope.cli import main
from inversescope.config import load_config
from inversescope.config.functions import is_function
from inversescope.config.methods import ProposerConfig
from inversescope.context import Context
from inversescope.figures.study import Study
from inversescope.reader.find import TABLE, _Readers
from inversescope.reader.proposer import Chat
from inversescope.store import read_table

FUNCTIONS = ["twice(capital)", "once(0, capital)", "which_twice(capital)"]
RESULTS = f"results/ioi/{MODEL}"


def context(root: Path) -> Context:
    config = load_config([root / "config/config.yaml"])
    return Context(root, config.of("ioi", MODEL), "ioi", MODEL, config)


@pytest.fixture(scope="module")
def found(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the study whose hypotheses were found, and whose rates were estimated anew for label functions."""
    root = tmp_path_factory.mktemp("hypotheses") / "study"
    shutil.copytree(study, root)
    sites = [option for site in SITES for option in ("--site", site)]
    assert run(root, "find_hypotheses", *sites) == 0
    assert run(root, "collect_hypotheses") == 0
    write_config(root, {"fcr": {"features": ["subject", *FUNCTIONS]}})
    assert run(root, "compute_exact", "--site", "L0H0") == 0
    assert run(root, "estimate_fcr", "--site", "L0H0", "--variant", "default") == 0
    return root


def test_the_table_names_functions_and_where_they_are_told(found: Path) -> None:
    table = read_table(found / RESULTS / "hypotheses.csv")
    assert list(table.columns) == TABLE and len(table) > len(SITES)
    assert table["hypothesis"].map(is_function).all() and set(table["site"]) <= set(SITES)
    assert {"epsilon 0.1", "share 0.1"} & set(table["bandwidth"])
    own = table["bandwidth"] == "epsilon 0.1"
    assert set(table.loc[own, "estimator"]) <= {"combined"} and (table.loc[own, "epsilon"] == 0.1).all()
    assert set(table.loc[~own, "estimator"]) == {"cache"}
    parts = [(found / RESULTS / f"hypotheses/{site}.csv").read_text().splitlines() for site in SITES]
    whole = (found / RESULTS / "hypotheses.csv").read_text().splitlines()
    assert whole == [parts[0][0], *(line for lines in parts for line in lines[1:])]


def test_the_same_files_give_the_same_bytes_one_site_at_a_time(found: Path, tmp_path: Path) -> None:
    root = tmp_path / "again"
    shutil.copytree(found, root, ignore=shutil.ignore_patterns("hypotheses*"))
    write_config(root)
    assert run(root, "find_hypotheses", "--site", "L1H1") == 0
    again, before = (one / RESULTS / "hypotheses/L1H1.csv" for one in (root, found))
    assert again.read_bytes() == before.read_bytes()


def test_weights_are_those_of_the_combined_estimator(study: Path) -> None:
    """The share of a feature's label under the weights is the cell of `combined`, where the target's own prompt is not drawn."""
    c = context(study)
    readers = _Readers(c, ["L1H1"])
    here = np.array(c.activations("test", "L1H1"))
    from inversescope.kernel.distances import distance_of

    metric, keys = distance_of("cosine"), np.array(c.activations("train", "L1H1"))
    distance = metric.between(metric.prepare(here), metric.prepare(keys))
    drawn = readers.drawn["L1H1"]
    assert drawn is not None
    weights, mass = readers._combined("L1H1", drawn, distance, 0.1)
    labels, own = (c.labels_of(index)["object"] for index in (readers.index, readers.test))
    cells = read_table(study / RESULTS / "cells/L1H1.parquet")
    cells = cells[
        (cells["estimator"] == "combined") & (cells["variant"] == "default") & (cells["feature"] == "object")
    ]
    cells = cells[np.isclose(cells["epsilon"], 0.1)].set_index("target_id")["value"]
    compared = 0
    for target in range(len(own)):
        copies = (
            drawn[(drawn["target_id"] == target) & drawn["accepted"]]["prompt_id"] == readers.test[target]
        )
        if not copies.any() and weights[target].sum() > 0:
            share = weights[target][labels == own[target]].sum() / weights[target].sum()
            assert share == pytest.approx(cells[target], abs=1e-5)
            compared += 1
    assert compared >= 3 and ((mass > 0) == (weights.sum(1) > 0)).all() and (mass < 1.5).all()


def test_functions_are_read_as_features(found: Path, study: Path) -> None:
    """Functions that say what features of the task say have their rates, with every estimator and control."""
    exact = read_table(found / RESULTS / "exact/L0H0.parquet")
    rates = read_table(found / RESULTS / "fcr/L0H0.csv").set_index("feature")
    before = read_table(study / RESULTS / "exact/L0H0.parquet")
    for function, feature in zip(FUNCTIONS, ("subject", "object", "order"), strict=True):
        np.testing.assert_array_equal(exact[f"fcr_{function}"], before[f"fcr_{feature}"])
        one, other = (rates.loc[name].reset_index(drop=True) for name in (function, feature))
        assert len(one) > 10 and set(one["estimator"]) >= {"exact", "combined", "cache", "prior", "shuffled"}
        pd.testing.assert_frame_equal(one.drop(columns="chance"), other.drop(columns="chance"))
        assert one["chance"].iloc[0] == pytest.approx(other["chance"].iloc[0], rel=1e-6)


def test_figures_and_readings_know_functions(found: Path) -> None:
    shown = Study(context(found))
    assert shown.features[1:] == FUNCTIONS
    for table in (shown.prompts, shown.samples("default", "L0H0", "plain")):
        known = table["feature_subject"] != ""
        assert (table["feature_twice(capital)"] == table["feature_subject"])[known].all() and known.any()
    read = iv.open_study("ioi", MODEL, found).read(shown.prompts["text"][0], "L0H0")
    table = read.features.set_index("feature")
    assert table.loc["twice(capital)", "value"] == table.loc["subject", "value"]
    assert table.loc["twice(capital)", "rate"] == pytest.approx(table.loc["subject", "rate"])
    other = iv.open_study("ioi", MODEL, found)._labels(other_prompt())
    assert other["subject"] == -1 and other["twice(capital)"] >= 0


def test_questions_about_functions_are_asked(found: Path, tmp_path: Path) -> None:
    """They hold the values of label functions as those of the task's own features."""
    assert main(["questions", "ioi", MODEL, "--out", str(tmp_path / "new"), "--root", str(found)]) == 0
    prior = pd.read_parquet(tmp_path / "new/prior.parquet")
    assert list(prior.columns) == ["text", "feature_subject", *(f"feature_{name}" for name in FUNCTIONS)]
    assert (prior["feature_twice(capital)"] == prior["feature_subject"]).all()
    about = json.loads((tmp_path / "new/about.json").read_text())
    assert sorted(about["features"]["twice(capital)"]) == sorted(about["features"]["subject"])


def other_prompt() -> object:
    from inversescope.reader.site import Asked

    return Asked("Then Zoe and Max met. Zoe left", -1, None)


def proposing(study: Path, **settings: int) -> Context:
    """The study with a chat model that proposes."""
    plain = context(study)
    proposer = ProposerConfig(path="somebody/model", n_targets=2, **settings)
    hypotheses = plain.config.hypotheses.model_copy(update={"proposer": proposer, "n_tested": 400})
    return replace(plain, config=plain.config.model_copy(update={"hypotheses": hypotheses}))


def test_what_a_model_proposes_is_tested_and_marked(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted answer: one function that the grammar's search does not try, one that it does, and one that says nothing."""
    asked = []

    def chat(settings: ProposerConfig) -> Chat:
        assert settings.path == "somebody/model"
        return lambda text: (
            asked.append(text)
            or "which(['gave'], ['he'])\ncompare(twice(capital), once(0, capital))\nword(-2)"
        )

    monkeypatch.setattr("inversescope.reader.find.chat_with", chat)
    alone = _Readers(context(study), ["L0H0"])
    found = _Readers(proposing(study, n_texts=4), ["L0H0"]).propose("L0H0")
    assert len(asked) == 2 and asked[0] != asked[1]
    marked = found[found["meaning"].str.endswith("(proposed by somebody/model)")]
    assert set(marked["hypothesis"]) == {"compare(twice(capital), once(0, capital))"}
    assert (found["n_tried"] == alone.labels.n_tried + 3).all() and marked["p"].between(0, 1).all()
    assert (found[["n_lines", "n_read"]] == 6).all(axis=None) and (found["unread"] == "").all()


def test_a_model_none_of_whose_lines_is_read_is_told_of(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "Here they are:\ncolour(2)\nshade(1)\nword\nslot('item')"
    monkeypatch.setattr("inversescope.reader.find.chat_with", lambda settings: lambda text: answer)
    found = _Readers(proposing(study, n_texts=4), ["L0H0"]).propose("L0H0")
    told = capsys.readouterr().err
    assert "find_hypotheses L0H0: somebody/model wrote 10 lines, of which the grammar reads 0\n" in told
    faults = [
        "4 such as 'colour(2)': no label function is called 'colour'",
        "2 such as 'Here they are:': it has not the form of one",
        "2 such as 'word': label function 'word' has 0 arguments",
        "2 such as \"slot('item')\": slots are not told by raw text",
    ]
    assert [line.split("not read: ")[1] for line in told.splitlines()[1:]] == faults
    assert len(found) and (found["n_lines"] == 10).all() and (found["n_read"] == 0).all()
    assert set(found["unread"]) == {"; ".join(faults)}
    # Where no target has so many texts near it, there is nothing to ask about.
    rare = _Readers(proposing(study, n_texts=150), ["L0H0"]).propose("L0H0")
    assert "was not asked, since no target that chooses has 150 texts near it" in capsys.readouterr().err
    assert (rare["n_lines"] == 0).all()
