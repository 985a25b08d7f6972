"""The reader on the finished tiny study: the workflow's numbers for a target prompt, and prompts of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, SITES

import inversescope as iv
from inversescope.cli import main
from inversescope.errors import InputError
from inversescope.reader.reading import Reading
from inversescope.reader.study import Study
from inversescope.store import read_table

KEYS = ["epsilon", "variant", "decoding", "estimator", "feature"]


@pytest.fixture(scope="module")
def opened(study: Path) -> Study:
    return iv.open_study("ioi", MODEL, study)


def cells(study: Path, site: str, target: int, epsilon: float) -> pd.DataFrame:
    """The workflow's cells of one target, but for the control that takes another target's candidates."""
    table = read_table(study / f"results/ioi/{MODEL}/cells/{site}.parquet")
    kept = (table["target_id"] == target) & (table["epsilon"] == epsilon)
    return table[kept & ~table["estimator"].isin(["shuffled", "mcmc"])].set_index(KEYS).sort_index()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_a_target_has_the_numbers_of_the_tables(
    study: Path, opened: Study, site: str, epsilon: float
) -> None:
    compared = 0
    for target, prompt in enumerate(opened.prompts[:3]):
        read = opened.read(prompt, site, epsilon=epsilon)
        own = read.estimates[~read.estimates["estimator"].isin(["shuffled", "chance", "prompt only"])]
        own = own.assign(epsilon=epsilon).set_index(KEYS).sort_index()
        written = cells(study, site, target, epsilon)
        assert own.index.equals(written.index)
        for column in ("value", "ess", "n_samples"):
            np.testing.assert_allclose(
                own[column].to_numpy(float), written[column].to_numpy(float), atol=1e-9
            )
        compared += len(own)
    assert compared > 150


def test_the_controls_of_a_target(study: Path, opened: Study) -> None:
    site, task = "L1.resid_post", opened.context.task
    read = opened.read(opened.prompts[0], site)
    table = read.features.set_index("feature")
    assert list(table.index) == opened.features and (table["site"] == site).all()
    labels = task.features_of(np.arange(task.size))
    exact = read_table(study / f"results/ioi/{MODEL}/exact/{site}.parquet").set_index(
        ["epsilon", "target_id"]
    )
    z, reference = (np.array(opened.context.activations(split, site)) for split in ("test", "reference"))
    unit, others = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (reference, z[1:]))
    near = 1.0 - others @ unit.T < 0.1
    for name, row in table.iterrows():
        own = task.feature_values[name].index(row["value"])
        assert row["chance"] == pytest.approx(task.chance(name))
        assert row["exact"] == pytest.approx(exact.loc[(0.1, 0), f"fcr_{name}"], abs=1e-9)
        assert row["prompt_only"] == pytest.approx((labels[name] == own).mean())
        same = (labels[name] == own)[None] & near
        assert row["shuffled"] == pytest.approx((same.sum(1) / near.sum(1)).mean(), abs=1e-6)
        assert row["low"] <= row["rate"] <= row["high"] and row["estimator"] == "combined (default)"


def other_prompt(opened: Study) -> str:
    """A cached prompt, no target."""
    return opened.context.prompts("train", columns=["text"])["text"][3]


def test_another_prompt_of_the_prior_is_read_the_same_way(opened: Study) -> None:
    site, text = "L0H0", other_prompt(opened)
    task, index = opened.context.task, int(opened.context.task.parse([other_prompt(opened)])[0])
    read = opened.read(text, site)
    z = np.array(opened.context.activations("reference", site))
    d = 1.0 - z @ z[index] / np.linalg.norm(z, axis=1) / np.linalg.norm(z[index])
    labels = task.features_of(np.arange(task.size))
    for _, row in read.features.iterrows():
        same = labels[row["feature"]] == labels[row["feature"]][index]
        assert row["exact"] == pytest.approx(same[d < 0.1].mean())
    train = opened.context.prompt_ids("train")
    # The prompt is cached, but it is no neighbour of its own.
    assert index in train and read.sites["neighbours"][0] == (d[train[train != index]] < 0.1).sum()
    assert read.sites["ball"][0] == pytest.approx((d < 0.1).mean())
    # Candidates of `default` are drawn now, and judged as the workflow's.
    assert set(read.estimates["variant"]) == {"", "default"}
    drawn = read.samples[read.samples["source"] == "default"]
    assert len(drawn) == 30 and not drawn.loc[drawn["accepted"], "distance"].gt(0.1).any()
    found = task.parse(drawn.loc[drawn["parsed"], "text"].tolist())
    np.testing.assert_allclose(drawn.loc[drawn["parsed"], "distance"], d[found], atol=1e-5)
    prior = read.samples[read.samples["source"] == "prior"]
    assert text not in prior["text"].tolist() and prior["distance"].is_monotonic_increasing
    assert read.to_json() == opened.read(text, site).to_json()


def test_cached_neighbours_alone(opened: Study) -> None:
    read = opened.read(other_prompt(opened), "L0H0", variants=())
    assert set(read.estimates["variant"]) == {""} and (read.features["estimator"] == "cache").all()
    told = read.features.set_index("feature")["rate"]
    value = read.estimates[read.estimates["estimator"] == "cache"].set_index("feature")["value"]
    assert told.to_dict() == value.to_dict()
    assert any("no generator" in note for note in read.notes)


def test_a_prompt_outside_the_prior_is_computed(opened: Study) -> None:
    """The task's words in an order that none of its templates has: what labels are unknown have no rate, the likeliest is told."""
    words = other_prompt(opened).split()
    read = opened.read(" ".join([words[0], words[2], words[1], *words[3:]]), ["L0H0", "L1.resid_post"])
    unknown = read.features["value"] == ""
    assert set(read.features.loc[unknown, "feature"]) == {"template"}
    assert (
        read.features.loc[unknown, "rate"].isna().all() and read.features.loc[~unknown, "rate"].notna().all()
    )
    assert read.features["its_share"].between(0, 1).all() and (read.features["likeliest"] != "").all()
    assert any("none of the task's prior" in note for note in read.notes)


def test_several_sites_at_once(opened: Study) -> None:
    assert opened.read(opened.prompts[1], "L*").sites["site"].tolist() == ["L1.resid_post"]
    read = opened.read(opened.prompts[1], ["blocks.0.attn.hook_result.0", "L1H*"], variants=())
    assert read.sites["site"].tolist() == ["L0H0", "L1H1"]
    assert set(read.features["site"]) == {"L0H0", "L1H1"} == set(read.samples["site"])


def test_a_share_of_the_prior_is_a_bandwidth(opened: Study) -> None:
    read = opened.read(opened.prompts[0], "L0H0", share=0.05, variants=())
    assert read.sites["share"][0] == 0.05 and 0.005 < read.sites["ball"][0] < 0.5


def test_too_few_neighbours_are_said_to_be_too_few(opened: Study) -> None:
    read = opened.read(opened.prompts[0], "L1.resid_post", epsilon=1e-6, variants=())
    assert (
        read.sites["neighbours"][0] == 0 and read.features["few"].all() and read.features["rate"].isna().all()
    )
    assert any("too few to say anything" in note for note in read.notes)


def test_a_reading_is_shown(opened: Study) -> None:
    read = opened.read(opened.prompts[0], "L0H0")
    page, text = read._repr_html_(), repr(read)
    for name in opened.features:
        assert name in page and name in text
    assert opened.prompts[0] in text and "<table" in page
    evil = Reading(opened, read.asked.__class__("<script>", -1, None), read.parts)
    assert "<script>" not in evil._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "L0H1"}, "site L0H1 is none that the study reads"),
        ({"site": "L9H0"}, "layer 9"),
        ({"site": "here"}, "Unknown site"),
        ({"site": "L0H0", "share": 0.1, "epsilon": 0.1}, "both share and epsilon"),
        ({"site": "L0H0", "share": 1.5}, "no share of the prior"),
        ({"site": "L0H0", "share": 1e-5}, "fewer than 3"),
        ({"site": "L0H0", "epsilon": -1.0}, "not positive"),
        ({"site": "L0H0", "variants": ["few"]}, "variant few has no generator at L0H0"),
    ],
)
def test_bad_questions_are_refused(opened: Study, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened.read(opened.prompts[0], **options)


def test_a_study_that_is_not_there_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ioi/tiny"):
        iv.open_study("ioi", "other", study)
    with pytest.raises(InputError, match="does not exist"):
        iv.open_study("ioi", MODEL, tmp_path)
    assert iv.open_study("io", MODEL, study).context.task_name == "ioi"
    assert iv.open_study("ioi", MODEL, study, study / "config/config.yaml").sites == SITES


def test_the_command_prints_what_was_read(
    study: Path, opened: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--model", MODEL, "--root", str(study), "--site", "L0H0", "--threads", "1")
    prompt = opened.prompts[2]
    assert main(["read", prompt, *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(opened.read(prompt, "L0H0").to_json())
    assert main(["read", prompt, *where]) == 0
    shown = capsys.readouterr().out
    assert "subject" in shown and "refusal rate" in shown and "hypothesis" not in shown
    assert main(["read", prompt, *where, "--hypotheses"]) == 0
    assert "hypothesis" in capsys.readouterr().out
    assert main(["read", prompt, "--model", MODEL, "--root", str(study), "--site", "L7H0"]) == 2
    assert "layer 7" in capsys.readouterr().err


def test_a_feature_is_patched_as_the_study_does(opened: Study) -> None:
    """Writing all of the residual stream changes the answer as much as the partner's own run; other sites less."""
    from inversescope.studies.cases.patched import pair_up, patched_effects

    prompt, task = opened.prompts[0], opened.context.task
    table = (
        opened.read(prompt, ["L1.resid_post", "L0H0"], variants=())
        .patch("object", partners=5)
        .set_index("site")
    )
    whole, head = table.loc["L1.resid_post"], table.loc["L0H0"]
    assert whole["effect"] == pytest.approx(whole["total"], abs=1e-4) and whole["share"] == pytest.approx(
        1.0, abs=1e-3
    )
    assert head["low"] <= head["effect"] <= head["high"] and abs(head["effect"] - head["total"]) > 1e-3
    # By hand, of the partner that is named.
    index, partner = (task.parse([text]) for text in (prompt, head["partner"]))
    labels = [task.features_of(one)["object"][0] for one in (index, partner)]
    assert labels[0] != labels[1]
    one = opened.read(prompt, "L0H0", variants=()).patch("object", partners=1).iloc[0]
    partner = task.parse([one["partner"]])
    site = [opened.context.site("L0H0")]
    answers = opened.target.encode([f" {task.answers(i)[0]}" for i in (index, partner)])
    pairs = pair_up(task, opened.target, index, partner, [(answers[0], answers[1])], 1, site)
    effect, total = patched_effects(opened.target, pairs, "patch")
    assert (one["effect"], one["total"]) == pytest.approx((effect[0, 0], total[0]), abs=1e-6)
    with pytest.raises(InputError, match="no counterfactuals for 'template'"):
        opened.read(prompt, "L0H0", variants=()).patch("template")


def test_the_page_of_a_reading_holds_its_numbers(opened: Study, tmp_path: Path) -> None:
    from inversescope.reader.page import PRIOR, page_data

    reading = opened.read(opened.prompts[0], ["L0H0", "L1.resid_post"])
    data = page_data(reading)
    assert data.sites == ["L0H0", "L1.resid_post"] and data.texts.texts[data.targets[0]] == reading.prompt
    for draws in data.draws:
        part = next(part for part in reading.parts if part.about["site"] == draws.site)
        if draws.source == PRIOR:
            inside = draws.distance < part.about["epsilon"]
            assert part.about["ball"] == pytest.approx((inside.sum() + 1) / opened.context.task.size)
        else:
            shown = part.samples[
                (part.samples["source"] == draws.source) & (part.samples["decoding"] == "plain")
            ]
            assert [data.texts.texts[i] for i in draws.text] == shown["text"].tolist()
    exact = data.exact.set_index("site")
    told = reading.features.set_index(["site", "feature"])["exact"]
    assert exact.loc["L0H0", "fcr_subject"] == told["L0H0", "subject"]
    file = tmp_path / "reading.html"
    where = ("--model", MODEL, "--root", str(opened.context.root), "--site", "L0H0", "--threads", "1")
    assert main(["read", reading.prompt, *where, "--html", str(file)]) == 0
    assert file.read_text() == opened.read(reading.prompt, "L0H0").html()


def test_hypotheses_say_what_they_are_of_the_prompt(opened: Study) -> None:
    from inversescope.config.functions import parse_function
    from inversescope.reader.page import page_data
    from inversescope.tasks.functions import Corpus

    reading = opened.read(opened.prompts[0], "L1.resid_post")
    table = reading.hypotheses
    assert (
        0 < len(table) <= 10 and set(table["site"]) == {"L1.resid_post"} and table["here"].between(0, 1).all()
    )
    # All prompts within the bandwidth but the prompt itself, by hand.
    z, index = np.array(opened.context.activations("reference", "L1.resid_post")), reading.asked.index
    d = 1.0 - z @ z[index] / np.linalg.norm(z, axis=1) / np.linalg.norm(z[index])
    near = np.flatnonzero((d < 0.1) & (np.arange(len(z)) != index))
    row = table.iloc[0]
    labels = Corpus(opened.context.task.texts(np.append(index, near))).labels(
        parse_function(row["hypothesis"])
    )
    assert row["here"] == pytest.approx((labels.codes[1:] == labels.codes[0]).mean())
    assert row["value"] == labels.texts[0]
    told = page_data(reading).hypotheses
    assert len(told) == len(table) and {"hypothesis", "value", "here"} < set(told) and len(told.columns) == 10
