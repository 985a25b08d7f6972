"""InversionView's case studies: imported checkpoints, causal effects, distances, completeness."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import default_values
from project import ROOT, UPSTREAM
from safetensors.torch import save_file
from test_counting import COSINE, TINY, toy_target

from inversescope.cli import main
from inversescope.config import merge, parse_config
from inversescope.config.targets import ArchitectureConfig
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.store import read_json, read_table, write_table
from inversescope.studies.cases.agreement import rank_agreement
from inversescope.studies.cases.causes import check_causes, trace_answers
from inversescope.targets.models import build_model, load_target, save_trained
from inversescope.targets.tokenizers import encode, task_tokenizer

PUBLISHED = UPSTREAM / "inversionview/counting"


def checkpoint(folder: Path, vocabulary: int = 14, kind: str = "pytorch_model.bin", **shape: int) -> Path:
    """A GPT-2 checkpoint with random weights as third parties save them."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"n_layers": 2, "n_heads": 2, "d_model": 16, "n_positions": 16} | shape
    model = build_model(ArchitectureConfig(**sizes), vocabulary, 0, initializer_range=0.3)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    about = {"model_type": "gpt2", "vocab_size": vocabulary, "activation_function": "gelu_new"}
    about |= {"n_layer": 2, "n_head": sizes["n_heads"], "n_embd": sizes["d_model"], "n_positions": 16}
    (folder / "config.json").write_text(json.dumps(about))
    if kind.endswith(".bin"):
        torch.save({**tensors, "transformer.h.0.attn.bias": torch.ones(1)}, folder / kind)
    else:
        save_file(tensors, folder / kind)
    return folder


def study(
    root: Path, characters: str = "ab12cd|:BEPxyz", delta: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Values of a tiny counting study of a checkpoint in root/checkpoint: counting_embedded, made small."""
    tiny = {
        "base": "counting_embedded",
        "model": "tiny",
        "sites": ["L1H0@target", "L0.resid_post@any"],
        "n_train": 60,
        "n_test": 4,
        "n_reference": 150,
        "variants": ["paper", "default", "inversionview"],
        "settings": {
            "variants": {name: {"steps": 6} for name in ("paper", "default", "inversionview")},
            "backbone": {"steps": 60, "gate_in_prior": 0.0, "shape": {"n_positions": 14}},
            "sampling": {"candidates": 8, "candidates_elsewhere": 4, "max_candidates": 8},
            "fcr": {"bootstrap": 100, "mcmc_evaluations": 3},
            "kernel": {"epsilon": 0.1, "epsilons": [0.1]},
        },
    }
    vocabulary = {"characters": characters, "end": "E", "unknown": "P"}
    about = {"folder": str(root / "checkpoint"), "vocabulary": vocabulary}
    values = {
        "only": ["tiny"],
        "experiments": {"tiny": tiny},
        "models": {
            "tiny": {
                "source": "checkpoint",
                "n_layers": 2,
                "n_heads": 2,
                "checkpoint": about,
                "training": {"gate_accuracy": 0.0},
            }
        },
        "counting": TINY.model_dump(),
    }
    return default_values(merge(values, delta or {}))


def write(root: Path, values: dict[str, Any]) -> None:
    (root / "config").mkdir(exist_ok=True)
    (root / "config/config.yaml").write_text(yaml.safe_dump(values))


def run(root: Path, stage: str, *options: str) -> int:
    return main([stage, "--task", "counting", "--model", "tiny", "--root", str(root), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study of an imported checkpoint, from prompts to tables."""
    root = tmp_path_factory.mktemp("counting")
    checkpoint(root / "checkpoint")
    config = study(root)
    write(root, config)
    assert run(root, "import-checkpoint") == 0
    for split in ("train", "test", "reference"):
        assert run(root, "make_prompts", "--split", split) == 0
        assert run(root, "extract_activations", "--split", split) == 0
    assert run(root, "train_backbone") == 0
    names = ["paper", "default", "inversionview"]
    sites = [option for label in ("L1H0@target", "L0.resid_post@any") for option in ("--site", label)]
    for name in names:
        generator = ["--generator", "inversionview" if name == "inversionview" else "inversescope"]
        assert run(root, "train_generator", *generator, "--variant", name) == 0
        assert run(root, "sample_prompts", *generator, "--variant", name, *sites) == 0
    assert run(root, "run_mcmc", *sites) == 0
    variants = [option for name in names for option in ("--variant", name)]
    for label in ("L1H0@target", "L0.resid_post@any"):
        assert run(root, "compute_exact", "--site", label) == 0
        assert run(root, "estimate_fcr", *variants, "--site", label) == 0
    assert run(root, "collect_tables") == 0
    return root


def test_imported_checkpoint_is_the_same_model(finished: Path) -> None:
    target = load_target(finished / "data/counting/tiny/target")
    saved = torch.load(finished / "checkpoint/pytorch_model.bin", weights_only=True)
    for name, value in target.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert target.tokenizer.encode("Bab|a:", add_special_tokens=False) == [8, 0, 1, 6, 0, 7]
    about = read_json(finished / "data/counting/tiny/target/target.json")
    table = read_table(finished / "results/counting/tiny/target_import.csv")
    assert table["accuracy"][0] == pytest.approx(about["accuracy"])


def test_study_of_a_checkpoint_has_the_usual_tables(finished: Path) -> None:
    fcr = read_table(finished / "results/counting/tiny/fcr.csv")
    assert set(fcr["site"]) == {"L1H0@target", "L0.resid_post@any"}
    assert {"generated", "reweighted", "cache", "combined", "exact", "mcmc", "prior", "shuffled"} <= set(
        fcr["estimator"]
    )
    assert set(fcr["variant"]) == {"paper", "default", "inversionview", ""}
    exact = fcr[fcr["estimator"] == "exact"]
    assert exact["fcr"].between(0, 1).all()


@pytest.fixture(scope="module")
def checked(finished: Path) -> Path:
    """The same study with its causal checks, distances, completeness and figures."""
    for stage in ("check_causes", "compare_distances", "check_completeness", "plot_cases", "plot_causes"):
        assert run(finished, stage) == 0
    return finished / "results/counting/tiny"


def test_effects_are_what_patching_must_do(checked: Path) -> None:
    table = read_table(checked / "causes.csv").set_index(["site", "feature"])
    for feature in ("count", "target"):
        last = table.loc[("L1.resid_post@colon", feature)]
        # The last residual at the end decides alone; what the last block writes elsewhere reaches nothing.
        assert last["effect"] == pytest.approx(last["total"], abs=1e-4)
        for site in ("L1.resid_post@target", "L1H0@target", "L1.mlp_out@target"):
            assert table.loc[(site, feature), "effect"] == 0.0
            assert not table.loc[(site, feature), "path"]
        assert table.loc[("L1.resid_pre@target", feature), "path"]
    kept = table.xs("last", level="feature")
    assert (kept["answer_changes"] == 0).all() and (kept["compared"] == "other").all()
    ranks = read_table(checked / "causes_rank.csv")
    assert set(ranks["feature"]) == {"count", "target", "mean"}
    assert (ranks["n_distinct"] <= ranks["n_sites"]).all()
    assert (ranks["low"] <= ranks["high"]).all() and ranks["spearman"].between(-1, 1).all()


def test_rank_agreement_by_hand() -> None:
    """Signs do not count, copies of a site do not narrow an interval, sites without a path stand apart."""
    sites = [f"s{i}" for i in range(8)]
    fcr = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9])
    effect = np.array([0.0, 0.1, -0.3, 0.2, 0.4, -0.5, 0.6, 0.0])
    table = pd.DataFrame({"site": sites, "feature": "f", "fcr": fcr, "effect": effect, "same_as": sites})
    table["path"] = table["site"] != "s7"
    found = rank_agreement(table, seed=3).set_index("sites")
    # Of the seven ranks of |effect|, those of the third and fourth are exchanged: 1 - 6 * 2 / (7 * 48).
    assert found.loc["path", "spearman"] == pytest.approx(1 - 12 / 336)
    assert found.loc["path", "signed"] < found.loc["path", "spearman"]
    assert found.loc["all", "spearman"] < found.loc["path", "spearman"]
    assert found.loc["path", ["n_sites", "n_distinct"]].tolist() == [7, 7]
    other = table.assign(feature="g", effect=-effect[::-1])
    both = rank_agreement(pd.concat([table, other]), seed=3).set_index(["feature", "sites"])
    mean = both.loc[("mean", "path"), "spearman"]
    assert mean == pytest.approx(
        (both.loc[("f", "path"), "spearman"] + both.loc[("g", "path"), "spearman"]) / 2
    )
    rng = np.random.default_rng(0)
    noisy = pd.DataFrame({"site": sites, "feature": "f", "fcr": fcr, "effect": fcr + rng.normal(0, 0.4, 8)})
    noisy = noisy.assign(same_as=sites, path=True)
    copies = noisy.assign(site=[f"{site}-copy" for site in sites])
    width = [
        float((part["high"] - part["low"]).iloc[0])
        for part in (rank_agreement(noisy), rank_agreement(pd.concat([noisy, copies])))
    ]
    assert width[1] == pytest.approx(width[0], abs=0.1), "copies are drawn with their sites"
    assert rank_agreement(pd.concat([noisy, copies]))["n_distinct"].tolist() == [8, 8]


def test_each_pair_tells_of_the_first_token_that_differs(tmp_path: Path) -> None:
    """Addition, spelled digit by digit: what patching must do where each digit is predicted."""
    config = parse_config(
        {
            "experiments": {
                "tiny": {
                    "task": "addition",
                    "model": "tiny",
                    "sites": ["L1H0@equals"],
                    "patched": ["L*H*@equals", "L1.resid_post@equals", "L0.resid_pre@plus"],
                    "variants": [],
                }
            },
            "models": {"tiny": {"source": "local", "path": "x", "n_layers": 2, "n_heads": 2}},
            "addition": {"n_digits": 2},
            "kernel": {"epsilon": 0.2},
            "fcr": {"features": ["A1"]},
        }
    ).of("addition", "tiny")
    context = Context(tmp_path, config, "addition", "tiny")
    task = context.task
    target = toy_target(task)
    save_trained(context.target_dir, target.model, target.tokenizer, "tiny", {})
    write_table(task.frame(task.enumerate()), context.prompts_path("reference"))
    trace_answers(context)
    table = read_table(context.results / "answers.csv")
    assert set(table["digit"]) == {1, 2, 3}
    assert set(table["site"]) == {"L0H0", "L0H1", "L1H0", "L1H1", "L1.resid_post"}
    whole = table[table["site"] == "L1.resid_post"]
    assert whole["share"].to_numpy() == pytest.approx(1.0, abs=1e-3)
    # A pair that differs in the ones differs in the last digit, or carries.
    of = table[table["site"] == "L0H0"].set_index(["digit", "feature"])["n_pairs"]
    for digit in (1, 2, 3):
        parts = [of[digit, name] for name in ("F1", "F2", "S1", "S2") if (digit, name) in of.index]
        assert of[digit, "answer"] >= sum(parts)
    assert table.loc[table["digit"] == 3, "n_pool"].unique() == [
        np.sum([len(a) == 3 for a in task.answers(task.enumerate())])
    ]
    ranks = read_table(context.results / "answers_rank.csv")
    assert ranks["feature"].tolist() == ["A1", "A2", "A3", "mean"]


def test_features_that_leave_the_answer_are_asked_by_their_own_labels(tmp_path: Path) -> None:
    """IOI: another object is another answer; another subject leaves it, and the two subjects' names are compared."""
    study = {
        "task": "ioi",
        "variants": [],
        "model": "tiny",
        "sites": ["L0.mlp_out"],
        "patched": ["L*H*", "L1.resid_post", "L1.mlp_out@S2"],
    }
    values = {
        "experiments": {"tiny": study},
        "models": {"tiny": {"source": "local", "path": "x", "n_layers": 2, "n_heads": 2}},
        "ioi": {"n_names": 8, "n_templates": 2, "n_places": 2, "n_items": 2, "held_out_pairs": 0.3},
        "kernel": {"epsilon": 0.3},
    }
    config = parse_config(values).of("ioi", "tiny")
    context = Context(tmp_path, config, "ioi", "tiny")
    task = context.task
    shape = ArchitectureConfig(n_layers=2, n_heads=2, d_model=16, n_positions=24)
    tokenizer = task_tokenizer(task)
    save_trained(
        context.target_dir,
        build_model(shape, len(tokenizer), 0, initializer_range=0.3),
        tokenizer,
        "tiny",
        {},
    )
    write_table(task.frame(task.enumerate()), context.prompts_path("reference"))
    check_causes(context)
    table = read_table(context.results / "causes.csv").set_index(["feature", "site"])
    assert table.loc["object", "compared"].unique().tolist() == ["answers"]
    assert table.loc["subject", "compared"].unique().tolist() == ["labels"]
    assert (table.loc["object", "answer_changes"] == 1).all() and (
        table.loc["subject", "answer_changes"] == 0
    ).all()
    for feature in ("object", "subject"):
        assert table.loc[(feature, "L1.resid_post"), "share"] == pytest.approx(1.0, abs=1e-3)
        assert table.loc[(feature, "L1.mlp_out@S2"), "effect"] == 0.0
        assert not table.loc[(feature, "L1.mlp_out@S2"), "path"]
    assert set(read_table(context.results / "causes_rank.csv")["feature"]) == {"object", "subject", "mean"}


def test_distances_are_compared_at_equal_shares(checked: Path) -> None:
    table = read_table(checked / "distances.csv")
    assert set(table["distance"]) == {"cosine", "normalised_euclidean", "standardised"}
    shares = table.drop_duplicates("distance").set_index("distance")["share"]
    assert shares.to_numpy() == pytest.approx(shares["cosine"], abs=0.01)
    assert (table.loc[table["distance"] == "cosine", "overlap"] == 1.0).all()
    fcr = read_table(checked / "fcr.csv")
    exact = fcr[(fcr["estimator"] == "exact") & (fcr["site"] == "L1H0@target")].set_index("feature")["fcr"]
    own = table[table["distance"] == "cosine"].set_index("feature")["fcr"]
    for feature in own.index:
        assert own[feature] == pytest.approx(exact[feature])
    same = table[table["distance"] == "cosine"]
    assert same["fcr_matched"].to_numpy() == pytest.approx(same["fcr"].to_numpy())
    refusal = read_table(checked / "refusal.csv").set_index(["variant", "site"])["refusal_rate"]
    for variant in (
        "paper",
        "default",
        "inversionview",
    ):  # judged anew under the configured distance: the same rates
        one = table.loc[table["distance"] == "cosine", f"refusal_{variant}"].iloc[0]
        assert one == pytest.approx(refusal[variant, "L1H0@target"], abs=1e-6)


def test_a_generator_that_never_writes_a_prompt_is_always_refused(checked: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(checked.parents[2], root)
    for path in (root / "results/counting/tiny/samples").rglob("L1H0@target.parquet"):
        target = {"target": pq.read_schema(path).metadata[b"target"].decode()}
        write_table(read_table(path).assign(prompt_id=-1), path, target)
    assert run(root, "compare_distances") == 0
    table = read_table(root / "results/counting/tiny/distances.csv")
    assert (table[["refusal_paper", "refusal_default", "refusal_inversionview"]] == 1.0).all(axis=None)
    before = read_table(checked / "distances.csv")
    assert (table["fcr"].to_numpy() == before["fcr"].to_numpy()).all()


def test_a_generator_without_any_accepted_candidate_is_told_of(checked: Path) -> None:
    path = checked / "fcr.csv"
    whole = read_table(path)
    generated = whole["estimator"] == "generated"
    write_table(whole.assign(error=whole["error"].where(~generated)), path)
    assert run(checked.parents[2], "plot_cases") == 0
    numbers = read_table(checked.parents[1] / "tables/counting_tiny_headline.csv").set_index(["what", "who"])
    assert numbers.loc[("generated default", "largest"), "n"] == 0
    assert np.isnan(numbers.loc[("generated default", "largest"), "value"])
    write_table(whole, path)


def test_completeness_is_what_the_generator_says(checked: Path) -> None:
    points = read_table(checked / "completeness.parquet")
    assert (points["log_q"] <= 0).all()
    assert (points.loc[points["inside"], "distance"] < 0.1).all()
    assert (points.loc[~points["inside"], "distance"] >= 0.1).all()
    recall = read_table(checked / "completeness_recall.csv")
    for _, part in recall.groupby("variant"):
        assert part.sort_values("draws")["recall"].is_monotonic_increasing
    assert recall[["recall", "ideal"]].stack().between(0, 1).all()
    sizes = read_table(checked / "completeness_sizes.csv")
    assert sizes["spearman"].between(-1, 1).all() and (sizes["missed"].between(0, 1)).all()
    # By hand, for one generator and number of draws.
    members = points[(points["variant"] == "paper") & points["inside"]]
    by_hand = (1 - (1 - np.exp(members["log_q"])) ** 100).groupby(members["target_id"]).mean().mean()
    row = recall[(recall["variant"] == "paper") & (recall["draws"] == 100)].iloc[0]
    assert row["recall"] == pytest.approx(by_hand, rel=1e-4)


def test_case_figures_are_drawn(checked: Path) -> None:
    folder = checked.parents[1]
    for name in ("sites", "causes", "distances", "completeness"):
        for suffix in ("png", "pdf", "csv"):
            assert (folder / "figures" / f"counting_tiny_{name}.{suffix}").stat().st_size > 0
    for name in ("cases", "sizes"):
        assert (folder / "tables" / f"counting_tiny_{name}.md").read_text().count("|") > 20


def test_exact_values_of_a_prior_that_is_not_uniform(finished: Path) -> None:
    """Reference prompts are draws: mass, entropy and rates are means over them."""
    config = parse_config(study(finished)).of("counting", "tiny")
    context = Context(finished, config, "counting", "tiny")
    task = context.task
    table = read_table(context.results / "exact/L1H0@target.parquet").set_index("target_id")
    reference = context.prompts("reference")["prompt_id"].to_numpy()
    z, own = (np.array(context.activations(split, "L1H0@target")) for split in ("reference", "test"))
    for target in range(4):
        inside = COSINE.paired(np.tile(own[target], (len(z), 1)), z) < 0.1
        row = table.loc[target]
        if inside.any():
            mass = inside.mean()
            assert row["log_mass"] == pytest.approx(math.log(mass))
            # Entropy of prior * [inside] / mass, estimated from draws: -E[log prior] + log mass.
            assert row["entropy"] == pytest.approx(-task.log_prior(reference[inside]).mean() + math.log(mass))


def test_labels_that_no_reference_prompt_has_are_wrong_answers(finished: Path, tmp_path: Path) -> None:
    """The reference is draws: a label function may give a target, a cached prompt or a candidate a label that none of them has."""
    shutil.copytree(finished, tmp_path / "study")
    root, name = tmp_path / "study", "skeleton(['|'])"
    write(
        root,
        study(
            finished, delta={"experiments": {"tiny": {"settings": {"fcr": {"features": ["count", name]}}}}}
        ),
    )
    variants = ["paper", "default", "inversionview"]
    assert run(root, "score_readers", *(option for one in variants for option in ("--variant", one))) == 0
    answers = read_table(root / "results/counting/tiny/answers.parquet")
    test, reference = (
        read_table(root / f"data/counting/prompts/{split}.parquet") for split in ("test", "reference")
    )
    missing = test.index[~test["text"].isin(reference["text"])]
    said = answers[(answers["feature"] == name) & answers["target_id"].isin(missing)]
    sure = said[said["reader"] == "prompt only"]
    assert len(sure) and (sure["confidence"] == 1).all() and (sure["right"] == 0).all()
    assert said["bits"].notna().all() and (said.loc[said["reader"] == "exact", "bits"] < 0.01).all()
    # What is asked for has every value that examples have, and somebody else's samples may have further ones.
    where = ["counting", "tiny", "--root", str(root)]
    assert main(["questions", *where, "--out", str(tmp_path / "asked")]) == 0
    values = set(read_json(tmp_path / "asked/about.json")["features"][name])
    prior, examples = (
        set(read_table(tmp_path / f"asked/{one}.parquet")[f"feature_{name}"]) for one in ("prior", "examples")
    )
    assert examples - prior and examples | prior == values
    rows = [(row, "L1H0@target", text) for row, text in enumerate(test["text"])]
    write_table(pd.DataFrame(rows, columns=["target_id", "site", "text"]), tmp_path / "copies.parquet")
    assert main(["score", str(tmp_path / "copies.parquet"), "--task", "counting", "--model", *where[1:]]) == 0


def test_vocabulary_of_another_model_is_a_matter_of_configuration(tmp_path: Path) -> None:
    """Other letters, other marks, no begin mark, weights as safetensors."""
    checkpoint(tmp_path / "checkpoint", vocabulary=9, kind="model.safetensors")
    counts = {
        "letters": "XYZ",
        "begin": "",
        "bar": "?",
        "colon": "=",
        "n_distinct": 2,
        "max_count": 2,
        "held_out_letters": 0.4,
    }
    config = study(tmp_path, "21=?ZYX.;", {"counting": counts})
    config["models"]["tiny"]["checkpoint"]["vocabulary"] |= {"end": ".", "unknown": None}
    write(tmp_path, config)
    assert run(tmp_path, "import_checkpoint") == 0
    target = load_target(tmp_path / "data/counting/tiny/target")
    assert encode(target.tokenizer, ["XXY?X="])[0].tolist() == [6, 6, 5, 3, 6, 2]
    with pytest.raises(InputError, match="cannot encode"):
        encode(target.tokenizer, ["a"])


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hostile-was-here",))


BROKEN: dict[str, tuple[str, str]] = {
    "pickle": ("is no file of weights", "only tensors are read"),
    "objects": ("holds other things than weights", "only tensors are read"),
    "vocabulary": ("embedding of model tiny has 14 tokens, its vocabulary names 13", "vocabulary.characters"),
    "letters": ("lacks 'c'", "checkpoint.vocabulary"),
    "shape": ("does not fit", "both files of one checkpoint"),
    "missing": ("config.json of the checkpoint is neither in", "checkpoint.folder"),
    "sha256": ("not the pinned", "pin the file"),
    "family": ("not a gpt2", "source: local or hub"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_checkpoints_that_are_none(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(tmp_path / "checkpoint")
    config = study(
        tmp_path,
        "ab12cd|:BEPxy"
        if fault == "vocabulary"
        else "ab12zd|:BEPxyw"
        if fault == "letters"
        else "ab12cd|:BEPxyz",
    )
    weights = folder / "pytorch_model.bin"
    if fault == "pickle":
        weights.write_bytes(pickle.dumps(Hostile()))
    elif fault == "objects":
        torch.save([1, 2], weights)
    elif fault == "shape":
        about = read_json(folder / "config.json")
        (folder / "config.json").write_text(json.dumps({**about, "n_embd": 32}))
    elif fault == "missing":
        (folder / "config.json").unlink()
    elif fault == "sha256":
        config["models"]["tiny"]["checkpoint"]["sha256"] = {"pytorch_model.bin": "0" * 64}
    elif fault == "family":
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    write(tmp_path, config)
    assert run(tmp_path, "import-checkpoint") == 2
    message = capsys.readouterr().err
    assert all(part in message for part in BROKEN[fault]), message
    assert message.count("error:") == 1 and "Traceback" not in message
    assert not (tmp_path / "hostile-was-here").exists()
    assert not (tmp_path / "data/counting/tiny/target/target.json").exists()


def test_a_checkpoint_that_answers_wrongly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where two characters of the vocabulary are exchanged."""
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "checkpoint")
    write(tmp_path, study(tmp_path, delta={"models": {"tiny": {"training": {"gate_accuracy": 0.99}}}}))
    assert run(tmp_path, "import-checkpoint") == 2
    message = capsys.readouterr().err
    assert "less than its gate 0.99" in message and "checkpoint.vocabulary: it must list" in message
    assert not (tmp_path / "data/counting/tiny/target/target.json").exists()


def test_published_model_answers_fresh_prompts(tmp_path: Path) -> None:
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published counting model is not at {PUBLISHED} (set INVERSESCOPE_MIRROR)")
    (tmp_path / "mirror.yaml").write_text(f"mirror: {PUBLISHED.parents[1]}\n")
    files = [ROOT / "config/config.yaml", ROOT / "config/published.yaml", tmp_path / "mirror.yaml"]
    options = ["--task", "counting", "--model", "counting-published", "--root", str(tmp_path)]
    options += [part for file in files for part in ("--config", str(file))]
    assert main(["import-checkpoint", *options]) == 0
    assert read_json(tmp_path / "data/counting/counting-published/target/target.json")["accuracy"] >= 0.99
