"""Reading without a study: a model's folder and some prompts are enough."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import inversescope as iv
from inversescope.activations.capture import capture
from inversescope.cli import main
from inversescope.config.targets import ArchitectureConfig
from inversescope.reader.command import show
from inversescope.reader.reading import shown_best
from inversescope.reader.scope import Scope
from inversescope.sites import Site

ANIMALS = ["cat", "dog", "cow", "hen", "fox", "owl"]
THINGS = ["mat", "hill", "roof", "road", "sofa"]
SLOTS = {"animal": ANIMALS, "thing": THINGS, "time": ["Today", "Now", "Later"]}
TEMPLATE = "{time} the {animal} sat on the {thing}"
PROMPT = "Now the fox sat on the hill"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with random weights, in a folder."""
    from inversescope.targets.models import build_model, save_trained
    from inversescope.targets.tokenizers import word_tokenizer

    words = [*SLOTS["time"], *(f" {word}" for word in [*ANIMALS, *THINGS, "the", "sat", "on", "stood"])]
    tokenizer = word_tokenizer(words)
    shape = ArchitectureConfig(n_layers=2, n_heads=2, d_model=16)
    folder = tmp_path_factory.mktemp("model")
    save_trained(folder, build_model(shape, len(tokenizer), 0, initializer_range=0.3), tokenizer, "tiny")
    return folder


@pytest.fixture(scope="module")
def scope(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scope:
    prompts = iv.templates(TEMPLATE, **SLOTS)
    assert len(prompts) == 90
    return iv.Scope(model, prompts, folder=tmp_path_factory.mktemp("scope"))


def test_templates() -> None:
    some = iv.templates(TEMPLATE, n=20, **SLOTS)
    assert len(some) == 20 == len(some.rows.drop_duplicates())
    for slots, message in (
        ({"animal": ANIMALS}, "slot 'time' has no values"),
        ({**SLOTS, "colour": ["red"]}, "slot 'colour' is not in the template"),
        ({**SLOTS, "time": []}, "0 prompts"),
    ):
        with pytest.raises(iv.InputError, match=message):
            iv.templates(TEMPLATE, **slots)
    with pytest.raises(iv.InputError, match="n is 91"):
        iv.templates(TEMPLATE, n=91, **SLOTS)


def by_hand(scope: Scope, site: str, prompt: str) -> tuple[np.ndarray, list[str]]:
    """Distances of all prompts of the prior to another prompt, as the target computes them."""
    texts = scope.context.task.texts(np.arange(scope.context.task.size))
    z = capture(scope.target, scope.target.encode([*texts, prompt]), [Site.parse(site)])[site]
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    return 1.0 - unit[:-1] @ unit[-1], texts


@pytest.mark.parametrize(("prompt", "epsilon"), [(PROMPT, None), ("Now the fox stood on the hill", 0.8)])
def test_cached_neighbours_are_read_without_training(
    scope: Scope, prompt: str, epsilon: float | None
) -> None:
    read = scope.read(prompt, site="L1.resid_post", epsilon=epsilon)
    d, texts = by_hand(scope, "L1.resid_post", prompt)
    epsilon = read.sites["epsilon"][0]
    near = [text for text, own in zip(texts, d, strict=True) if own < epsilon and text != prompt]
    assert set(read.samples["text"]) == set(near) and read.sites["neighbours"][0] == len(near) > 3
    assert (read.features["estimator"].isin(["cache", ""])).all() and set(scope.features) == set(SLOTS)
    told = read.features.set_index("feature")
    if prompt == PROMPT:
        assert told["rate"]["animal"] == pytest.approx(np.mean([" fox " in text for text in near]))
        assert told["prompt_only"]["animal"] == pytest.approx(1 / 6) == told["chance"]["animal"]
    else:
        assert told["rate"].isna().all() and (told["likeliest"] != "").all()


def test_all_layers_and_named_positions(scope: Scope) -> None:
    assert scope.read(PROMPT, "L*").sites["site"].tolist() == ["L0.resid_post", "L1.resid_post"]
    assert scope.read(PROMPT, "L1@animal").sites["site"].tolist() == ["L1.resid_post@animal"]
    # The embedding of a slot's word tells the word, whatever the other slots.
    read = scope.read(PROMPT, "L0.resid_pre@animal", share=0.15)
    assert read.features.set_index("feature")["rate"]["animal"] == 1.0


def test_many_sites_are_shown_by_their_rates(scope: Scope, capsys: pytest.CaptureFixture[str]) -> None:
    """Of more than three sites: a row a site, and where each feature's rate is highest."""
    read = scope.read(PROMPT, ["L*H*", "L1", "L0.resid_pre@animal"], share=0.15)
    sites = ["L0H0", "L0H1", "L1H0", "L1H1", "L1.resid_post", "L0.resid_pre@animal"]
    assert list(read.rates.index) == sites and list(read.rates.columns) == scope.features
    told = read.features.set_index(["site", "feature"])["rate"]
    np.testing.assert_equal([read.rates.loc[key] for key in told.index], told.to_list())
    best = shown_best(read).set_index("feature")
    assert "L0.resid_pre@animal 1.00" in best["highest rates"]["animal"].split(", ")
    assert best["value"].to_dict() == {"time": "Now", "animal": "fox", "thing": "hill"}
    shown = repr(read)
    assert all(site in shown and site in read._repr_html_() for site in sites) and "epsilon" not in shown
    show(read, Console(width=100))
    printed = capsys.readouterr().out
    assert all(site in printed for site in sites) and "Name 3 sites or fewer" in printed and PROMPT in printed


def test_a_folder_is_gone_on_with(scope: Scope, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = scope.read(PROMPT, "L1H0")
    capsys.readouterr()
    again = iv.Scope(model, iv.templates(TEMPLATE, **SLOTS), folder=scope.context.root)
    assert again.read(PROMPT, "L1H0").to_json() == before.to_json()
    assert "extract_activations" not in capsys.readouterr().err
    with pytest.raises(iv.InputError, match="holds another scope"):
        iv.Scope(model, iv.templates(TEMPLATE, n=80, **SLOTS), folder=scope.context.root)


def test_texts_with_features_of_ones_own(model: Path) -> None:
    texts = [
        f"{time} the {animal} sat on the {thing}"
        for time in SLOTS["time"]
        for animal in ANIMALS
        for thing in THINGS
    ]
    features = {"pet": lambda text: str("cat" in text or "dog" in text), "where": r"on the (\w+)"}
    scope = iv.Scope(model, texts, features=features)
    read = scope.read("Now the dog stood on the hill", "L0H1").features.set_index("feature")
    assert read["value"].to_dict() == {"pet": "True", "where": "hill"}
    assert set(iv.Scope(model, texts).features) == {"first_word", "last_word"}


def test_a_generator_adds_candidates(model: Path) -> None:
    scope = iv.Scope(
        model,
        iv.templates(TEMPLATE, **SLOTS),
        settings={
            "backbone": {"shape": {"n_layers": 1, "n_heads": 2, "d_model": 16}, "batch_size": 16},
            "variants": {"default": {"n_heads": 2, "d_head": 4, "d_condition": 16, "per_site": 4}},
            "sampling": {"candidates": 12},
        },
    )
    with pytest.raises(iv.InputError, match="no site was read"):
        scope.train(steps=5)
    alone = scope.read(PROMPT, "L1.resid_post")
    scope.train(steps=5, backbone_steps=30)
    read = scope.read(PROMPT, "L1.resid_post")
    assert read.sites["epsilon"][0] == alone.sites["epsilon"][0]
    assert {"generated", "combined", "cache"} <= set(read.estimates["estimator"])
    assert (read.samples["source"] == "default").sum() == 12


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["one prompt", "another"], {}, "2 distinct prompts"),
        ("absent.txt", {}, "absent.txt does not exist"),
        ([f"Now the {a} sat on the {t}" for a in ANIMALS for t in THINGS], {"share": 2.0}, "share"),
    ],
)
def test_what_cannot_be_read_is_refused(model: Path, prompts: object, options: dict, message: str) -> None:
    with pytest.raises(iv.InputError, match=message):
        iv.Scope(model, prompts, **options)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(iv.InputError, match="holds no model"):
        iv.Scope(tmp_path, ["a", "b"])


def test_the_command_needs_no_study(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = iv.templates(TEMPLATE, **SLOTS).rows
    rows = rows.assign(size=["large" if "cow" in row else "small" for row in rows.to_numpy()])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows.to_dict("records")))
    options = (
        "--model",
        str(model),
        "--prompts",
        str(file),
        "--template",
        TEMPLATE,
        "--site",
        "L1H0",
        "--threads",
        "1",
    )
    assert main(["read", PROMPT, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["feature"] for row in told["features"]} == set(SLOTS)
    assert main(["read", PROMPT, *options, "--json", "--feature", "size", "--feature", "o=(o)"]) == 0
    told = {row["feature"]: row["value"] for row in json.loads(capsys.readouterr().out)["features"]}
    assert set(told) == {*SLOTS, "size", "o"} and told["size"] == "small"
    assert main(["read", PROMPT, *options, "--feature", "weight"]) == 2
    assert "weight" in capsys.readouterr().err
    # Of a study the features are known.
    assert main(["read", PROMPT, "--model", "any", "--site", "L1H0", "--feature", "size"]) == 2
    assert "--feature is for prompts of your own" in capsys.readouterr().err
    assert (
        main(
            ["read", PROMPT, "--model", str(model), "--prompts", str(tmp_path / "none.txt"), "--site", "L1H0"]
        )
        == 2
    )
    assert "none.txt does not exist" in capsys.readouterr().err


def test_rows_with_answers_have_partners(model: Path) -> None:
    """Who sat where the animal is asked for: changing the slot changes the answer, and all of the last layer carries it."""
    rows = [
        {"time": time, "first": a, "second": b, "thing": thing, "who": who}
        for time in SLOTS["time"]
        for a, b in (("cat", "dog"), ("cow", "hen"), ("fox", "owl"))
        for thing in THINGS
        for who in (a, b)
    ]
    prompts = iv.templates(
        "{time} the {first} on the {thing} sat the {second} on the {who}", rows=rows, answer="who"
    )
    reading = iv.Scope(model, prompts).read(
        "Now the cat on the hill sat the dog on the cat", ["L1.resid_post", "L0H0"]
    )
    # A further key of the rows is a feature; it fills no slot, so nothing is patched.
    more = [row | {"good": row["thing"] == THINGS[0]} for row in rows]
    further = iv.Scope(
        model, iv.templates("{time} the {first} on the {thing} sat the {second} on the {who}", rows=more)
    )
    values = further.read("Now the cat on the hill sat the dog on the cat", "L1H0").features.set_index(
        "feature"
    )["value"]
    assert values["good"] == str(values["thing"] == THINGS[0])
    effects = reading.patch("who").set_index("site")
    assert (
        effects["share"]["L1.resid_post"] == pytest.approx(1.0, abs=1e-3)
        and effects["n_partners"].iloc[0] == 1
    )
    assert effects["partner"].iloc[0] == "Now the cat on the hill sat the dog on the dog"
    with pytest.raises(iv.InputError, match="no partner that differs in first"):
        reading.patch("first")
    with pytest.raises(iv.InputError, match="'animal' is not in the rows"):
        iv.templates("{time} the {animal}", rows=rows)
