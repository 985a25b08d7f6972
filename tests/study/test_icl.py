"""The in-context translation study from prompts to figures, tiny; what its rules of thumb say on made-up tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import yaml
from conftest import default_values
from test_icl_translation import MIRROR, byte_level
from transformers import PreTrainedTokenizerFast

from inversescope.activations.patching import Intervention, patch
from inversescope.cli import main
from inversescope.config import load_config, merge
from inversescope.config.targets import ArchitectureConfig
from inversescope.config.tasks import WordsConfig
from inversescope.context import Context
from inversescope.store import read_json, read_table
from inversescope.studies.icl.headline import best_layers, separation
from inversescope.studies.icl.patching import draw_pairs
from inversescope.studies.icl.shown import (
    QUERY_BAND,
    TASK_BAND,
    layer_bands,
    order_of_layers,
    patching_bands,
)
from inversescope.targets.models import build_model, load_target
from inversescope.targets.tokenizers import encode, word_tokenizer
from inversescope.tasks import Task
from inversescope.tasks.icl_translation import CONCEPTS
from inversescope.tasks.icl_words import WordsTask

TASK = "icl_translation"
MODELS = ("delayed", "plain")
SITES = ["L0.attn_out", "L1.attn_out"]
SHAPE = {
    "architecture": "llama",
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_model": 32,
    "n_positions": 16,
}


def values(**delta: Any) -> dict[str, Any]:
    """The default configuration with a tiny study in place of the others."""
    training = {
        "curriculum": [8, 10],
        "gate_accuracy": 0.0,
        "max_steps": 60,
        "extra_steps": 10,
        "batch_size": 16,
    }
    experiment = {"task": TASK, "sites": ["L*.attn_out"], "n_train": 300, "n_test": 5, "n_reference": 400}
    generator = {"steps": 8, "n_heads": 2, "d_head": 4}
    settings = {
        "backbone": {
            "steps": 40,
            "gate_in_prior": 0.0,
            "shape": {"n_layers": 1, "n_heads": 2, "d_model": 16},
        },
        "variants": {"paper": generator, "default": {**generator, "d_condition": 16, "site_map_blocks": 1}},
        "kernel": {"epsilons": [0.1]},
        "sampling": {"candidates": 12, "decodings": ["mixed"]},
        "fcr": {"features": ["task", "query"], "mcmc_evaluations": 0, "bootstrap": 100},
        "patching": {"n_pairs": 40, "n_queries": 6, "n_shots": 2},
    }
    experiments = {
        "one": {**experiment, "model": "delayed", "settings": settings},
        "two": {"base": "one", "model": "plain", "variants": []},
    }
    models = {
        "delayed": {
            "shape": SHAPE,
            "seeds": [0],
            "training": {**training, "delay_layers": 1},
            "control": "plain",
        },
        "plain": {"base": "delayed", "control": None, "training": {"delay_layers": 0}},
    }
    study = {"only": ["one", "two"], "experiments": experiments, "models": models}
    return default_values(merge({**study, "icl_translation": {"n_concepts": 10}}, delta))


def run(root: Path, stage: str, model: str, *options: str) -> int:
    where = ["--task", TASK, "--model", model, "--root", str(root), "--config", str(root / "config.yaml")]
    return main([stage, *where, *options])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage of both models, by the command line."""
    root = tmp_path_factory.mktemp("icl")
    (root / "config.yaml").write_text(yaml.safe_dump(values()))
    for split in ("train", "test", "reference"):
        assert run(root, "make_prompts", "delayed", "--split", split) == 0
    for model in MODELS:
        for stage in ("train_target", "score_target"):
            assert run(root, stage, model, "--candidate", "s0") == 0
        assert run(root, "select_target", model) == 0
        for split in ("train", "test", "reference"):
            assert run(root, "extract_activations", model, "--split", split) == 0
        for site in SITES:
            assert run(root, "compute_exact", model, "--site", site) == 0
        assert run(root, "patch_task_vectors", model) == 0
    assert run(root, "train_backbone", "delayed") == 0
    for variant in ("paper", "default"):
        assert run(root, "train_generator", "delayed", "--variant", variant) == 0
        where = [part for site in SITES for part in ("--site", site)]
        assert run(root, "sample_prompts", "delayed", "--variant", variant, *where) == 0
    for site in SITES:
        assert (
            run(root, "estimate_fcr", "delayed", "--site", site, "--variant", "paper", "--variant", "default")
            == 0
        )
    assert run(root, "collect_tables", "delayed") == 0
    assert run(root, "plot_icl", "delayed") == 0
    return root


def context_of(root: Path, model: str = "delayed") -> Context:
    config = load_config([root / "config.yaml"])
    return Context(root, config.of(TASK, model), TASK, model)


def test_study_writes_figure_layers_and_bands(study: Path) -> None:
    for suffix in (".png", ".pdf", ".csv"):
        assert (study / f"results/figures/{TASK}_delayed_task_vectors{suffix}").stat().st_size > 1000
    layers = read_table(study / "results" / TASK / "delayed" / "layers.csv")
    assert set(layers["model"]) == set(MODELS) and set(layers["feature"]) == {
        "task",
        "query",
        "source_language",
        "target_language",
        "concept",
    }
    assert {"exact", "generated", "combined", "shuffled", "majority"} <= set(layers["estimator"])
    exact = layers[(layers["estimator"] == "exact") & (layers["model"] == "delayed")]
    fcr = read_table(study / "results" / TASK / "delayed" / "fcr.csv")
    for _, row in exact.iterrows():
        same = fcr[
            (fcr["site"] == row["site"]) & (fcr["feature"] == row["feature"]) & (fcr["estimator"] == "exact")
        ]
        assert (
            same["fcr"].iloc[0] == pytest.approx(row["rate"])
            and row["ci_low"] <= row["rate"] <= row["ci_high"]
        )
    refused = read_table(study / "results" / TASK / "delayed" / "refused.csv").set_index(
        ["variant", "site", "feature"]
    )
    assert len(refused) == 2 * 2 * 2
    generated = layers[(layers["estimator"] == "generated") & (layers["decoding"] == "plain")]
    for _, row in generated[generated["feature"].isin(["task", "query"])].iterrows():
        one = refused.loc[(row["variant"], row["site"], row["feature"])]
        assert one["generated"] == pytest.approx(row["rate"], abs=1e-5, nan_ok=True)
    bands = read_table(study / "results" / TASK / "delayed" / "bands.csv")
    assert len(bands) == 2 * 2 * 2 and set(bands["source"]) == {"fcr", "patching"}


def test_patching_rates_are_those_of_the_pairs(study: Path) -> None:
    rates = read_table(study / "results" / TASK / "delayed" / "patching.csv")
    pairs = read_table(study / "results" / TASK / "delayed" / "patching_pairs.parquet")
    kinds = {
        "none": 1,
        "residual": 2,
        "attention": 2,
        "masked": 2,
        "returned": 2,
        "returned_masked": 2,
        "forwarded": 2,
    }
    assert rates.groupby("kind")["layer"].nunique().to_dict() == kinds
    for (kind, layer), group in rates.groupby(["kind", "layer"]):
        assert group["rate"].sum() == pytest.approx(1.0)
        own = pairs[(pairs["kind"] == kind) & (pairs["layer"] == layer)]
        assert len(own) == group["n_pairs"].iloc[0] == 40
        for _, row in group.iterrows():
            assert row["rate"] == pytest.approx((own["outcome"] == row["outcome"]).mean())
    # Behind the last block nothing but the patched residual is read.
    last = rates[(rates["layer"] == 1) & (rates["outcome"] == "source")].set_index("kind")["rate"]
    context = context_of(study)
    target = load_target(context.target_dir)
    drawn = draw_pairs(context.task, target, 40, np.random.default_rng(0))  # type: ignore[arg-type]
    plain = patch(target, None, drawn.sources, [Intervention()]).top[0]
    assert set(last.index) >= {"residual", "masked"} and plain.shape == (40,)


def test_masking_compares_like_with_like(study: Path) -> None:
    table = read_table(study / "results" / TASK / "delayed" / "masking.csv")
    best = int(table.loc[table["kind"] == "own", "written"].iloc[0])
    kinds = ["returned", "recentred", "query_removed", "other_removed", "task_removed", "vector_only"]
    at = table.set_index(["kind", "outcome", "layer"]).sort_index()
    idle = float(at.loc[("none", "task", -1), "rate"])
    for kind in kinds:
        for outcome in ("task", "source"):
            assert at.loc[(kind, outcome)].index.tolist() == [0, 1]
        assert at.loc[(kind, "task"), "chance"].tolist() == pytest.approx([idle] * 2)
    gained = at.loc[("above_first", "difference"), "rate"]
    removed = at.loc[("query_removed", "task"), "rate"]
    assert gained.tolist() == pytest.approx((removed - removed.loc[0]).tolist()), "paired by query"
    inside = table[~table["kind"].isin(["remaining", "above_first"])]
    assert inside["rate"].between(0, 1).all() and (table["ci_low"] <= table["rate"] + 1e-9).all()
    assert at.loc[("remaining", "share", best), "rate"] == pytest.approx(1.0)
    assert at.loc[("own", "accuracy"), "chance"].tolist() == pytest.approx([1 / 3] * 2, abs=1e-5)
    own, carried = (at.loc[(kind, "accuracy", best), "rate"] for kind in ("own", "carried"))
    assert own == pytest.approx(carried, abs=0.03)
    assert set(table["n_prompts"]) == {6 * 3 * 2} and set(table["n_queries"]) == {6}


def test_pairs_differ_in_query_and_hide_it_entirely(study: Path) -> None:
    context = context_of(study)
    task, target = context.task, load_target(context.target_dir)
    pairs = draw_pairs(task, target, 50, np.random.default_rng(1))  # type: ignore[arg-type]
    tokens = target.tokenizer
    for i in range(len(pairs.expected)):
        source, zero = (tokens.decode(side.token_ids[i]) for side in (pairs.sources, pairs.targets))
        index = task.parse([source])
        assert index[0] >= 0 and task.split_of(index)[0] == 1
        assert zero.startswith("Input: ") and zero.count("Input:") == 1
        word = zero.removeprefix("Input: ").removesuffix(", Output:")
        query = source.rsplit("Input: ", 1)[1].removesuffix(", Output:")
        assert word != query
        where = pairs.sources.positions["query_0"][i]
        assert tokens.decode([pairs.sources.token_ids[i][where]]).strip() == query
        assert tokens.decode([pairs.expected[i, 1]]).strip() == task.answers(index)[0]
    # With all attention to the query cut, the query cannot matter.
    other = [ids.copy() for ids in pairs.sources.token_ids]
    for ids, at in zip(other, pairs.sources.positions["query_0"], strict=True):
        ids[at] = other[0][pairs.sources.positions["query_0"][0]]
    cut = Intervention(cut_target=pairs.cuts)
    one = patch(target, None, pairs.sources, [cut], pairs.expected).logits
    two = patch(
        target, None, type(pairs.sources)(other, pairs.sources.positions), [cut], pairs.expected
    ).logits
    np.testing.assert_array_equal(one, two)


def test_targets_say_how_they_were_trained(study: Path) -> None:
    for model, delay in (("delayed", 1), ("plain", 0)):
        about = read_json(study / "data" / TASK / model / "target" / "target.json")
        assert about["delay_layers"] == delay and 0 <= about["accuracy"] <= 1
    config = values(models={"delayed": {"training": {"delay_layers": 3}}})
    (study / "bad.yaml").write_text(yaml.safe_dump(config))
    where = ["--task", TASK, "--model", "delayed", "--root", str(study), "--config", str(study / "bad.yaml")]
    assert main(["train_target", *where, "--candidate", "s0"]) == 2


def test_show_prints_numbers_and_skips_controls(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "icl", "--root", str(study), "--config", str(study / "config.yaml")]) == 0
    shown = capsys.readouterr().out
    assert f"{TASK}_delayed" in shown and f"{TASK}_plain" not in shown
    numbers = read_table(study / f"results/tables/{TASK}_delayed_headline.csv")
    for words in (
        "plain",
        "task rises before query",
        "layer 1",
        "l to best layer, query hidden from the source",
    ):
        assert numbers["what"].str.startswith(words).any(), words
    assert "length of the task vector that is left" in set(numbers["what"])
    sections = " ".join(numbers["section"].unique())
    for words in (
        "patching, delayed",
        "patching, plain",
        "masked or overwritten, plain",
        "FCR at attention outputs: query",
    ):
        assert words in sections
    exact = numbers[(numbers["section"] == "FCR at attention outputs: task") & (numbers["who"] == "exact")]
    assert (
        (exact["value"] == exact["exact"]).all()
        and (exact["low"] <= exact["value"]).all()
        and (exact["n"] > 0).all()
    )
    (study / "nowhere").mkdir()
    assert (
        main(["show", "icl", "--root", str(study / "nowhere"), "--config", str(study / "config.yaml")]) == 2
    )
    assert "make figures STUDIES=icl_translation" in capsys.readouterr().err


def rates(task: list[float], query: list[float], width: float = 0.02) -> pd.DataFrame:
    rows = [
        {"layer": layer, "feature": feature, "rate": rate, "chance": chance}
        for feature, column, chance in (("task", task, 1 / 6), ("query", query, 0.0))
        for layer, rate in enumerate(column)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(ci_low=frame["rate"] - width, ci_high=frame["rate"] + width)


def test_bands_follow_the_rule() -> None:
    found = layer_bands(rates([0.2, 0.9, 0.61, 0.9, 0.1], [0.0, 0.05, 0.05, 0.3, 0.9]))
    # Layer 3: the query is neither near chance nor above the middle, so that there is neither band.
    assert found["band"].tolist() == ["", TASK_BAND, TASK_BAND, "", QUERY_BAND]
    assert found["query"].tolist() == ["absent", "absent", "absent", "unclear", "present"]
    assert order_of_layers(found) == {"task": 1.0, "query": 4.0}
    # Above half, but not above the middle between chance and 1.
    low = layer_bands(rates([0.57, 0.55], [0.0, 0.0]))
    assert low["task"].tolist() == ["unclear", "unclear"] and set(low["band"]) == {""}
    assert np.isnan(order_of_layers(low)["query"])
    patched = rates([0.3, 1.0, 0.0], [0.0, 0.0, 1.0])
    table = patched.assign(
        kind="residual", outcome=patched["feature"].map({"task": "task", "query": "source"})
    )
    idle = pd.DataFrame({"kind": "none", "outcome": ["task", "source"], "layer": -1, "rate": [0.3, 0.0]})
    assert patching_bands(pd.concat([table, idle]))["band"].tolist() == ["", TASK_BAND, QUERY_BAND]


def test_separation_ends_where_the_query_enters() -> None:
    def apart(task: list[float], query: list[float]) -> list[int]:
        layers = rates(task, query)
        return separation(layers, layer_bands(layers))

    # Layer 1: a task that is neither absent nor present is apart from an absent query; layer 3 comes after the query.
    assert apart([0.17, 0.5, 0.17, 0.9], [0.0, 0.0, 0.3, 0.0]) == [1]
    assert apart([0.17, 0.17, 0.9], [0.0, 0.5, 0.9]) == []
    assert apart([0.17, 0.9], [0.0, 0.0]) == [1]  # a query that never enters


# The LLM labeller as a stage


def save_chat_model(folder: Path, task: Task) -> Path:
    """A tiny Gemma 2 chat model with a task's words, saved as others would find it."""
    words = {part for label in task.feature_values["task"] for part in label.split("-")}
    pattern = r"(?:\n )?Input:|, Output:| ?\w+|[^\w\s]"
    tokenizer = word_tokenizer([*task.words(), *sorted(words), "-", "?", "user"], pattern)
    tokenizer.chat_template = (
        "{% for m in messages %}user {{ m['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    )
    shape = ArchitectureConfig(
        architecture="gemma2", n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, n_positions=128
    )
    model = build_model(shape, len(tokenizer), 0, initializer_range=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert len(encode(tokenizer, [task.feature_values["task"][0]], strict=False)[0]) == 3
    return folder


@pytest.fixture
def chat_model(tmp_path: Path, study: Path) -> Path:
    """A chat model with the study's words."""
    return save_chat_model(tmp_path / "chat", context_of(study).task)


def test_llm_labels_stand_beside_the_rule(study: Path, chat_model: Path) -> None:
    config = values(labeller={"path": str(chat_model)})
    (study / "labelled.yaml").write_text(yaml.safe_dump(config))
    where = [
        "--task",
        TASK,
        "--model",
        "delayed",
        "--root",
        str(study),
        "--config",
        str(study / "labelled.yaml"),
    ]
    assert main(["label_tasks", *where]) == 0
    labels = read_table(study / "results" / TASK / "delayed" / "labels.parquet")
    allowed = set(context_of(study).task.feature_values["task"])
    assert set(labels["llm"]) <= allowed and set(labels["rule"]) <= allowed and labels["text"].is_unique
    agreement = read_table(study / "results" / TASK / "delayed" / "label_agreement.csv")
    whole = agreement[agreement["rule"] == "all"].iloc[0]
    assert whole["agreement"] == pytest.approx((labels["rule"] == labels["llm"]).mean(), abs=1e-6)
    assert (
        whole["n_texts"] == len(labels)
        and whole["ci_low"] - 1e-6 <= whole["agreement"] <= whole["ci_high"] + 1e-6
    )
    cache = study / "data" / TASK / "delayed" / "labels" / "cache.jsonl"
    size = cache.stat().st_size
    assert main(["label_tasks", *where]) == 0 and cache.stat().st_size == size
    assert main(["rate_labels", *where]) == 2  # no draws are to be labelled
    assert run(study, "label_tasks", "delayed") == 2  # no labeller configured


def test_labels_of_draws_are_the_task_feature(study: Path, chat_model: Path) -> None:
    """Rates, and shares of draws called mix, are what labels of the first draws say, counted by hand."""
    labeller = {"path": str(chat_model), "targets": 4, "draws": 5}
    (study / "rated.yaml").write_text(yaml.safe_dump(values(labeller=labeller)))
    where = f"--task {TASK} --model delayed --root {study} --config {study}/rated.yaml".split()
    assert [main([stage, *where]) for stage in ("rate_labels", "plot_labels")] == [0, 0]
    context = context_of(study)
    rates = read_table(context.results / "labelled.csv")
    assert set(rates["variant"]) == {"paper", "default"} and set(rates["draws"]) >= {"all"}
    task, prompts = context.task, context.prompts("test")["text"].tolist()
    names = task.feature_values["task"]
    row = rates[(rates["labels"] == "rule") & (rates["draws"] == "all")].iloc[0]
    drawn = read_table(context.samples_path("inversescope", row["variant"], row["site"]))
    drawn = drawn[
        (drawn["decoding"] == "plain") & np.isclose(drawn["epsilon"], context.headline(row["site"]))
    ]
    told: dict[int, list[bool]] = {}
    mixed = []
    for one in drawn[(drawn["target_id"] < 4) & (drawn["draw"] < 5)].itertuples():
        label, own = (
            names[task.features_of_texts([t])["task"][0]] for t in (one.text, prompts[one.target_id])
        )
        told.setdefault(one.target_id, []).append(label == own)
        mixed.append(label == "mix")
    assert (row["n_targets"], row["n_draws"]) == (4, 20) == (len(told), len(mixed))
    assert row["rate"] == pytest.approx(np.mean([np.mean(one) for one in told.values()]), abs=1e-6)
    assert row["mix"] == pytest.approx(np.mean(mixed), abs=1e-6)
    llm = rates[rates["labels"] == "llm"]
    assert llm[["rate", "mix", "null"]].stack().between(0, 1).all()
    shown = read_table(study / f"results/figures/{TASK}_delayed_tasks_labelled.csv")
    shown = shown[shown["panel"] == "labelled"]
    assert len(shown) == len(rates) and set(shown["labels"]) == {"llm", "rule"}


# Word tasks, on a model from elsewhere that labels its own prompts too


def test_word_tasks_are_patched_task_by_task_and_labelled_by_the_model_itself(tmp_path: Path) -> None:
    words = {"n_pairs": 20}
    folder = save_chat_model(tmp_path / "chat", WordsTask(WordsConfig(**words)))
    settings = {
        "fcr": {"features": ["task", "query"]},
        "patching": {"n_pairs": 60, "n_queries": 5, "n_shots": 2},
    }
    experiment = {"task": "icl_words", "model": "chat", "sites": ["L*.attn_out"], "variants": []}
    config = {
        "only": ["words"],
        "experiments": {"words": experiment | {"n_test": 12, "settings": settings}},
        "models": {"chat": {"source": "local", "path": str(folder), "n_layers": 2, "n_heads": 2}},
        "icl_words": words,
        "labeller": {"model": "chat"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(default_values(config)))
    where = f"--task icl_words --model chat --root {tmp_path} --config {tmp_path}/config.yaml".split()
    for stage in ("make_prompts --split test", "fetch_target", "patch_task_vectors", "label_tasks"):
        assert main([*stage.split(), *where]) == 0
    results = tmp_path / "results/icl_words/chat"
    whole, by_task, masking = (
        read_table(results / f"{name}.csv") for name in ("patching", "patching_by_task", "masking")
    )
    assert by_task["asked"].nunique() == 6 and set(by_task["kind"]) == {"none", "few_shot", "residual"}
    key = ["kind", "layer", "outcome"]
    patched = by_task[by_task["kind"] != "few_shot"]
    weighed = (
        patched.assign(hits=patched["rate"] * patched["n_pairs"]).groupby(key)[["hits", "n_pairs"]].sum()
    )
    rate = whole.set_index(key)["rate"].loc[weighed.index]
    np.testing.assert_allclose(weighed["hits"] / weighed["n_pairs"], rate, atol=1e-5)
    assert set(masking["n_queries"]) == {2 * 5} and set(masking["n_prompts"]) == {2 * 5 * 2 * 2}
    assert set(masking.loc[masking["outcome"] == "accuracy", "chance"]) == {0.5}
    agreement = read_table(results / "label_agreement.csv").set_index("rule")
    assert agreement.loc["all", "n_texts"] == 12 and set(agreement["n_texts"].drop("all")) == {2}


def test_best_layer_of_a_task_is_where_the_target_answers_most() -> None:
    rates = [("none", -1, 0.1, 0.0), ("few_shot", -1, 0.0, 0.9)]
    rates += [
        ("residual", layer, task, source)
        for layer, (task, source) in enumerate([(0.2, 0.0), (0.7, 0.1), (0.3, 0.8)])
    ]
    rows = [
        {"asked": "one", "kind": kind, "layer": layer, "outcome": outcome, "rate": rate}
        for kind, layer, *both in rates
        for outcome, rate in zip(("task", "source"), both, strict=True)
    ]
    table = pd.DataFrame(rows).assign(ci_low=0.0, ci_high=1.0, n_pairs=10)
    (found,) = best_layers(table).to_dict("records")
    # Two layers later than the best one there is none: the last is read.
    assert (found["layer"], found["patched"], found["source"]) == (1, 0.7, 0.8)
    assert (found["few_shot"], found["zero_shot"]) == (0.9, 0.1)


# The paper's configuration, small: downloaded lists, a model from elsewhere whose tokenizer splits words


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A local Llama model with random weights, a byte-level tokenizer and a begin token; and the study on the real lists."""
    if not MIRROR.is_dir():
        pytest.skip(f"the word lists are not at {MIRROR} (set INVERSESCOPE_MIRROR)")
    texts = [f"Input: {a}, Output: {b}\n Input: {b}, Output: {a}" for a, b, *_ in CONCEPTS]
    tokenizer = byte_level(texts, 600)
    tokenizer.bos_token = "<|end|>"
    shape = ArchitectureConfig(**{**SHAPE, "n_positions": 128})
    folder = tmp_path / "model"
    build_model(shape, len(tokenizer), 0, initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = {"source": "local", "path": str(folder), "n_layers": 2, "n_heads": 2, "bos": True}
    delta = {
        "icl_translation": {"words": "lists", "n_concepts": None, "mirror": str(MIRROR)},
        "models": {"delayed": model | {"control": None}},
    }
    config = values(**delta, only=["one"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_rules_run_on_real_lists_with_a_model_from_elsewhere(elsewhere: Path) -> None:
    assert run(elsewhere, "fetch_word_lists", "delayed") == 0
    for split in ("train", "test", "reference"):
        assert run(elsewhere, "make_prompts", "delayed", "--split", split) == 0
    assert run(elsewhere, "fetch_target", "delayed") == 0
    for split in ("test", "reference"):
        assert run(elsewhere, "extract_activations", "delayed", "--split", split) == 0
    assert run(elsewhere, "compute_exact", "delayed", "--site", "L1.attn_out") == 0
    assert run(elsewhere, "patch_task_vectors", "delayed") == 0
    context = context_of(elsewhere)
    target = load_target(context.target_dir)
    prompts = context.prompts("test")
    ids = target.encode(prompts["text"].tolist())
    assert target.bos and all(one[0] == target.tokenizer.bos_token_id for one in ids)
    with torch.no_grad():
        hidden = target.model.model(torch.from_numpy(ids[0])[None].long(), output_hidden_states=True)
    assert hidden.hidden_states[0].shape[1] == len(ids[0])
    # Queries of several tokens are hidden as a whole: everything behind them is blind to all of their tokens.
    pairs = draw_pairs(context.task, target, 60, np.random.default_rng(2))  # type: ignore[arg-type]
    assert len(pairs.cuts) > 4
    for i, source in enumerate(pairs.sources.token_ids):
        spans = {name: int(at[i]) for name, at in pairs.sources.positions.items()}
        query = sorted({at for name, at in spans.items() if name.startswith("query")})
        text = target.tokenizer.decode(source[query])
        word = target.tokenizer.decode(source).rsplit("Input: ", 1)[1].removesuffix(", Output:")
        assert text.strip() == word
        tail = sorted({at for name, at in spans.items() if name.startswith("tail")})
        assert tail == list(range(query[-1] + 1, len(source)))
    rates = read_table(elsewhere / "results" / TASK / "delayed" / "patching.csv")
    assert (rates["n_pairs"] + rates["excluded"] == 40).all()


def test_a_target_that_splits_the_end_of_a_prompt_otherwise_is_refused(elsewhere: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r", Output:( \w+)?|."), "isolated"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="?", eos_token="?", bos_token="?"
    ).save_pretrained(elsewhere / "model")
    assert run(elsewhere, "fetch_word_lists", "delayed") == 0
    assert run(elsewhere, "fetch_target", "delayed") == 2
