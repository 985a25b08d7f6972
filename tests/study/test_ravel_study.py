"""RAVEL from fact tables to figures at a tiny size, stage by stage: embedded tables, and upstream's where at hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_ravel import MIRROR, upstream

from inversescope.cli import main
from inversescope.config import load_config, merge
from inversescope.config.targets import ArchitectureConfig
from inversescope.context import Context
from inversescope.store import read_activations, read_json, read_table, write_table
from inversescope.studies.ravel.attributes import attributes_by_template
from inversescope.studies.ravel.stages import GENERAL, corpus_texts
from inversescope.tasks.facts import KINDS, PINNED, read_sums
from inversescope.workflow import paths

MODEL = "tiny"
SITES = ["L0.resid_post", "L1.resid_post"]
SHAPE = {
    "architecture": "gemma2",
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 12,
    "d_model": 16,
    "n_positions": 96,
    "sliding_window": 4,
}
STUDY: dict[str, Any] = {
    "experiments": {
        "ravel": {
            "task": "ravel",
            "model": MODEL,
            "sites": SITES,
            "representative": [1],
            "n_train": 60,
            "n_test": 24,
            "n_val": 16,
            "settings": {
                "kernel": {"epsilon": 0.5, "epsilons": [0.4, 0.5]},
                "fcr": {"features": ["attribute"], "mcmc_evaluations": 3, "bootstrap": 100},
                "backbone": {
                    "shape": {
                        "n_layers": 1,
                        "n_heads": 2,
                        "d_model": 32,
                        "n_positions": 96,
                    },
                    "targets": "grammar",
                    "steps": 150,
                    "learning_rate": 1e-2,
                    "warmup": 10,
                    "batch_size": 32,
                    "gate_in_prior": 0.1,
                },
                "variants": {
                    "paper": {"steps": 10, "n_heads": 2},
                    "default": {
                        "pairs": "kernel",
                        "eps_input": True,
                        "eps_range": [0.2, 0.8],
                        "mean_embedding": True,
                        "freeze_backbone": False,
                        "steps": 10,
                        "n_heads": 2,
                    },
                },
                "sampling": {
                    "candidates": 8,
                    "candidates_elsewhere": 4,
                    "max_candidates": 8,
                    "decodings": ["mixed"],
                },
                "sae": {
                    "width": 24,
                    "steps": 20,
                    "batch_size": 64,
                    "sparsity": [1e-3, 1e-2],
                    "published": 1e-3,
                },
                "probe": {"strengths": [0.1, 1.0]},
            },
        }
    },
    "models": {
        MODEL: {
            "shape": SHAPE,
            "seeds": [0],
            "training": {
                "max_steps": 30,
                "extra_steps": 5,
                "gate_accuracy": 0.0,
                "batch_size": 16,
                "answer_weight": 5.0,
                "corpus": {"ioi": 0.25},
            },
        }
    },
    "variants": {"paper": {}, "default": {}},
    "ioi": {"n_names": 6, "n_templates": 2, "n_places": 2, "n_items": 2},
    "ravel": {"types": ["country", "person"], "n_entities": 8, "n_templates": 4},
}
UPSTREAM: dict[str, Any] = {
    "source": "upstream",
    "mirror": str(MIRROR),
    "types": ["nobel_prize_winner", "physical_object"],
    "n_entities": 8,
    "n_templates": 4,
}


def write_config(root: Path, ravel: dict[str, Any]) -> None:
    (root / "config").mkdir(parents=True)
    (root / "config/config.yaml").write_text(yaml.safe_dump(merge(STUDY, {"ravel": ravel})))


def run(root: Path, stage: str, *options: str) -> int:
    where = ["--root", str(root), "--config", str(root / "config/config.yaml")]
    return main([stage, "--task", "ravel", "--model", MODEL, *where, *options])


def run_all(root: Path) -> None:
    sites = [part for site in SITES for part in ("--site", site)]
    for split in ("train", "test", "reference", "val"):
        assert run(root, "make_prompts", "--split", split) == 0
    for stage in ("train_target", "score_target"):
        assert run(root, stage, "--candidate", "s0") == 0
    assert run(root, "select_target") == 0
    for split in ("test", "reference", "val"):
        assert run(root, "extract_activations", "--split", split) == 0
    assert run(root, "train_backbone") == 0
    for variant in ("paper", "default"):
        assert run(root, "train_generator", "--variant", variant) == 0
    assert run(root, "sample_prompts", "--variant", "paper", "--variant", "default", *sites) == 0
    assert run(root, "run_mcmc", *sites) == 0
    for stage in ("collect_positions", "train_sae"):
        assert run(root, stage, *sites) == 0
    for site in SITES:
        assert run(root, "compute_exact", "--site", site) == 0
        assert run(root, "estimate_fcr", "--variant", "paper", "--variant", "default", "--site", site) == 0
        assert run(root, "classify_attributes", "--site", site) == 0
    assert run(root, "collect_tables") == 0
    assert run(root, "plot_ravel") == 0


@pytest.fixture(
    scope="module",
    params=["embedded", pytest.param("upstream", marks=upstream)],
    ids=["embedded", "upstream"],
)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished tiny study."""
    root = tmp_path_factory.mktemp(request.param)
    write_config(root, UPSTREAM if request.param == "upstream" else {})
    if request.param == "upstream":
        assert run(root, "fetch_ravel") == 0
    run_all(root)
    return root


def scores(root: Path) -> pd.DataFrame:
    return read_table(root / "results/ravel/scores.csv")


def test_targets_and_prior_share_no_entity(study: Path) -> None:
    entities = {
        split: set(read_table(study / f"data/ravel/prompts/{split}.parquet")["entity"].astype(str))
        for split in ("train", "reference", "test", "val")
    }
    assert entities["train"] <= entities["reference"]
    assert not entities["reference"] & (entities["test"] | entities["val"])
    assert not entities["test"] & entities["val"]


def test_every_method_is_scored_in_both_groups(study: Path) -> None:
    table = scores(study)
    methods = (
        "always_no default default_mixed default_template default_top exact exact_centred exact_raw exact_top nearest "
        "nearest_other paper paper_mixed paper_template paper_top prior probe sae_general sae_ravel sae_ravel_published"
    ).split()
    for _, part in table.groupby(["group", "site"]):
        assert sorted(part["method"]) == methods
        assert part["n_targets"].nunique() == 1
    sizes = table.drop_duplicates(["group", "site"]).groupby("site")["n_targets"].sum()
    assert (sizes == STUDY["experiments"]["ravel"]["n_test"]).all()
    assert (table["accuracy"] <= table["accuracy_high"]).all() and (
        table["accuracy_low"] <= table["accuracy"]
    ).all()
    no = table[table["method"] == "always_no"]
    assert (no["accuracy"] == 0).all() and (no["accuracy_one_vs_rest"] > 0.7).all()


def test_chains_count_from_their_first_state_in_the_prior(study: Path) -> None:
    """They begin at targets' prompts, whose entities are in no prompt of the prior."""
    config = load_config([study / "config/config.yaml"])
    context = Context(study, config.of("ravel", MODEL), "ravel", MODEL)
    of_chains = []
    for site in SITES:
        states = read_table(context.path(paths.MCMC, site=site))
        label = context.task.features_of(states["prompt_id"].to_numpy())["attribute"]
        own = context.task.features_of(context.prompt_ids("test"))["attribute"][states["target_id"]]
        inside = states.assign(match=label == own)[states["prompt_id"] < context.task.size]
        cells = read_table(context.path(paths.CELLS, group="", site=site)).query(
            "estimator == 'mcmc' and feature == 'attribute'"
        )
        cells = cells.set_index("target_id").sort_index()
        assert len(cells) == states["target_id"].nunique()
        size = inside.groupby("target_id").size().reindex(cells.index, fill_value=0)
        rate = inside.groupby("target_id")["match"].mean().reindex(cells.index)
        assert cells["n_samples"].tolist() == size.tolist()
        np.testing.assert_allclose(cells["value"].astype(float), rate.astype(float))
        of_chains += size.tolist()
    assert 0 in of_chains and set(of_chains) - {0}, "some find no prompt of the prior, some do"


def test_what_the_papers_match_of_templates_changes_is_told(study: Path) -> None:
    config = load_config([study / "config/config.yaml"])
    context = Context(study, config.of("ravel", MODEL), "ravel", MODEL)
    seen = context.task.counted(context.prompt_ids("test"))
    for (site, variant), part in scores(study).groupby(["site", "method"]):
        if variant not in ("paper", "default"):
            continue
        drawn = read_table(context.samples_path("inversescope", str(variant), str(site)))
        drawn = drawn[np.isclose(drawn["epsilon"], 0.5) & (drawn["decoding"] == "plain")]
        texts = drawn["text"].tolist()
        strange = ~drawn["parsed"] & (context.task.features_of_texts(texts)["attribute"] < 0)
        named = strange & (attributes_by_template(context.task, texts) >= 0)
        table = scores(study).query("site == @site").set_index(["group", "method"])
        for group, ours in part.set_index("group").iterrows():
            theirs = table.loc[(group, f"{variant}_template")]
            own = seen[drawn["target_id"]] == (group == "seen")
            assert ours["null_draws"] == pytest.approx(strange[own].mean(), abs=1e-5)
            assert ours["null_draws"] - theirs["null_draws"] == pytest.approx(named[own].mean(), abs=1e-5)
            assert theirs["accuracy"] >= ours["accuracy"]


def test_raw_and_centred_distance_are_read_at_their_best_bandwidth(study: Path) -> None:
    """Accuracy of either distance, from the activations anew, at the bandwidth that reads most validation prompts right."""
    config = load_config([study / "config/config.yaml"])
    context = Context(study, config.of("ravel", MODEL), "ravel", MODEL)
    table, site = scores(study).set_index(["site", "group", "method"]), SITES[1]
    splits = ("train", "val", "test", "reference")
    z = {split: np.array(context.activations(split, site), np.float64) for split in splits}
    index = {split: context.prompt_ids(split) for split in splits}
    label = {split: context.task.features_of(index[split])["attribute"] for split in splits}
    read = read_table(study / f"results/ravel/{MODEL}/bandwidth/{site}.csv").set_index("centred")
    for name, centre in (("raw", np.zeros(z["train"].shape[1])), ("centred", z["train"].mean(0))):
        unit = {
            split: (one - centre) / np.linalg.norm(one - centre, axis=1)[:, None] for split, one in z.items()
        }

        def accuracy(split: str, epsilon: float, unit: dict[str, np.ndarray] = unit) -> np.ndarray:
            inside = 1.0 - unit[split] @ unit["reference"].T < epsilon
            same = label[split][:, None] == label["reference"]
            return (inside & same).sum(1) / np.maximum(inside.sum(1), 1)

        rows = read.loc[name == "centred"]
        found = [accuracy("val", epsilon).mean() for epsilon in rows["epsilon"]]
        np.testing.assert_allclose(rows["accuracy"], found, atol=0.03)
        # A tenth of the prior is a tenth for either distance.
        (tenth,) = rows.loc[rows["bandwidth"] == "share 0.1", "epsilon"]
        held = (1.0 - unit["val"] @ unit["reference"].T < tenth).mean(1)
        assert np.median(held) == pytest.approx(0.1, abs=0.02)
        (best,) = rows.loc[rows["chosen"], "epsilon"]
        assert rows.loc[rows["chosen"], "accuracy"].item() == rows["accuracy"].max()
        seen = context.task.counted(index["test"])
        value = accuracy("test", best)[seen].mean()
        assert table.loc[(site, "seen", f"exact_{name}"), "accuracy"] == pytest.approx(value, abs=0.03)


def test_rates_are_over_seen_templates_and_agree_with_the_scores(study: Path) -> None:
    rates = read_table(study / "results/ravel/rates.csv")
    table = scores(study)
    for site in SITES:
        seen = table[
            (table["site"] == site) & (table["group"] == "seen") & (table["method"] == "exact")
        ].iloc[0]
        exact = rates[
            (rates["site"] == site) & (rates["estimator"] == "exact") & np.isclose(rates["epsilon"], 0.5)
        ]
        # A target whose ball is empty has no rate; as a classification it is wrong.
        row = exact.iloc[0]
        assert row["n_targets"] <= seen["n_targets"]
        assert row["fcr"] * row["n_targets"] / seen["n_targets"] == pytest.approx(seen["accuracy"], abs=1e-4)


def test_autoencoders_read_all_positions_but_the_first(study: Path) -> None:
    folder = study / f"data/ravel/{MODEL}"
    prompts = read_table(study / "data/ravel/prompts/train.parquet")
    from inversescope.targets.models import load_target
    from inversescope.targets.tokenizers import encode

    target = load_target(folder / "target")
    ids = encode(target.tokenizer, prompts["text"].tolist())
    z, _ = read_activations(folder / "positions/ravel/L1.resid_post.safetensors")
    assert len(z) == sum(len(i) - 1 for i in ids)
    # The last positions are among them; the first ones (all prompts that begin alike share one) are not.
    config = load_config([study / "config/config.yaml"])
    last = Context(study, config.of("ravel", MODEL), "ravel", MODEL).activations("train", "L1.resid_post")
    assert np.abs(last[:, None] - z).max(-1).min(1).max() < 1e-4
    log = read_table(study / f"results/ravel/{MODEL}/sae/L0.resid_post.csv")
    assert sorted(log["corpus"].unique()) == ["general", "ravel"]
    assert (log.groupby("corpus")["chosen"].sum() == 1).all() and len(log) == 4


def test_no_autoencoder_reads_about_held_out_entities(study: Path) -> None:
    config = load_config([study / "config/config.yaml"])
    context = Context(study, config.of("ravel", MODEL), "ravel", MODEL)
    task = context.task
    known = set(task.completed(np.arange(task.size)))
    held_out = set(task.completed(np.arange(task.size, task.universe))) - known
    texts = corpus_texts(context, GENERAL)
    own = [text for text in texts if text in known]
    assert held_out and not held_out & set(texts)
    # Half of the corpus is about training entities, the rest is of the target's other task.
    assert len(own) == pytest.approx(len(texts) / 2, abs=len(texts) / 8)
    assert not held_out & set(corpus_texts(context, "ravel"))


def test_target_knows_its_further_corpus(study: Path) -> None:
    about = read_json(study / f"data/ravel/{MODEL}/target/target.json")
    assert 0 <= about["accuracy_held_out"] <= 1 and about["passed"]
    from inversescope.targets.models import load_target
    from inversescope.targets.tokenizers import encode

    target = load_target(study / f"data/ravel/{MODEL}/target")
    encode(target.tokenizer, ["When John and Mary went to the store, Mary gave a drink to"])
    assert target.head_dim * target.n_heads != target.d_model and target.model.config.sliding_window == 4


def test_figures_and_tables_are_there(study: Path) -> None:
    for name in ("fig6", "fig6_new", "wordings", "fig10", "confusion"):
        for suffix in ("png", "pdf", "csv"):
            assert (study / f"results/figures/ravel_{name}.{suffix}").stat().st_size > 500
    table2 = read_table(study / "results/tables/ravel_table2.csv")
    assert table2[["model", "layers", "width"]].values.tolist() == [[MODEL, 1, 16]]
    samples = read_table(study / "results/tables/ravel_samples.csv")
    assert set(samples["kind"]) <= {"right", "another attribute", "refused", "null"} and len(samples)


def test_show_prints_numbers(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["show", "ravel", "--root", str(study), "--config", str(study / "config/config.yaml")]) == 0
    out = capsys.readouterr().out
    assert "templates outside of the prior" in out and "accuracy" in out and "refusal" in out


@pytest.mark.parametrize("delta", ["ravel_real", "smollm2_ravel"])
def test_configuration_of_real_data_is_valid(delta: str) -> None:
    root = Path(__file__).parents[2]
    whole = load_config([root / f"config/{name}.yaml" for name in ("config", delta)])
    (experiment,) = whole.experiments.values()
    config = whole.of(experiment.task, experiment.model)
    # Without a mirror too: upstream's archive holds more types, whose sums are not pinned.
    sums = read_sums(PINNED)
    assert config.ravel.source == "upstream" and config.ravel.types and config.ravel.mirror is None
    assert {f"ravel_{kind}_{part}.json" for kind in config.ravel.types for part in KINDS} == set(sums)
    # Templates of upstream are long: target and backbone have room for them.
    shapes = [
        config.backbone.shape,
        *(one.shape for one in config.models[experiment.model].candidates.values()),
    ]
    assert min(shape.n_positions for shape in shapes) > 90


def test_cost_is_the_sum_over_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from bench.goals import judge
    from bench.jobs import measure

    goal = {
        "study": "RAVEL",
        "goal": "core seconds",
        "table": "bench/ravel.csv",
        "where": "",
        "relation": "≤",
    }
    core_time = {**goal, "column": "cpu_seconds", "over": "sum", "limit": "960"}
    largest = {**goal, "column": "max_rss_mib", "over": "max", "limit": "3072"}
    assert judge(core_time, tmp_path / "results")["verdict"] == "not measured"
    jobs = {
        "train_sae/ravel/tiny/L0.tsv": (300, 600.0),
        "train_sae/ravel/tiny/L1.tsv": (600, 900.0),
        "plot_ravel.tsv": (61, 100.0),
        "train_target/ioi/other/s1.tsv": (1000, 9000.0),
    }
    for name, (seconds, memory) in jobs.items():
        path = tmp_path / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\tmax_rss\tcpu_time\n{2 * seconds}\t{memory}\t{seconds}\n")
    table = measure(tmp_path, "ravel")
    assert table["stage"].tolist() == ["plot_ravel", "train_sae"]
    assert table["cpu_seconds"].tolist() == [61, 900] and table["jobs"].tolist() == [1, 2]
    write_table(table, tmp_path / "results/bench/ravel.csv")
    found = [judge(one, tmp_path / "results") for one in (core_time, largest)]
    assert [one["verdict"] for one in found] == ["missed", "met"]
    assert [one["measured"] for one in found] == ["961", "900"]


# Bad input


def refused(capsys: pytest.CaptureFixture[str], status: int, *told: str) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len([line for line in lines if line.startswith("error: ")]) == 1
    assert all(part in lines[-1] for part in told), lines[-1]


def test_missing_tables_name_their_rule(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {**UPSTREAM, "mirror": str(tmp_path / "nowhere")})
    refused(capsys, run(tmp_path, "make_prompts", "--split", "train"), "fetch_ravel")
    refused(capsys, run(tmp_path, "fetch_ravel"), "nowhere", "mirror")


def test_autoencoder_of_another_width_is_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(study, root)
    from inversescope.store import load_checkpoint, save_checkpoint

    folder = root / f"data/ravel/{MODEL}/sae/ravel/L0.resid_post"
    arrays, meta = load_checkpoint(folder)
    save_checkpoint(folder, {**arrays, "W_enc": np.zeros((8, 24), np.float32)}, meta)
    capsys.readouterr()
    refused(
        capsys,
        run(root, "classify_attributes", "--site", "L0.resid_post"),
        "sae/ravel/L0.resid_post",
        "W_enc",
        "16",
    )
    prompts = root / "data/ravel/prompts/reference.parquet"
    write_table(read_table(prompts).iloc[:-1], prompts)
    refused(capsys, run(root, "train_sae", "--site", "L0.resid_post"), "activations", "prompt hash")


def test_a_released_autoencoder_is_judged_by_general_text(study: Path, tmp_path: Path) -> None:
    """Of a corpus on disk; what it is judged by are its features' L0 and what it leaves unexplained, computed here anew."""
    root, site = tmp_path / "copy", SITES[1]
    shutil.copytree(study, root)
    texts = read_table(root / "data/ravel/prompts/train.parquet")["text"].tolist()
    # The tokenizer knows the prompts' words alone, the first one without a space: as they begin, prompts are four of its words.
    begun = [(text, " ".join(text.split()[:4])) for text in texts]
    pages = [four for text, four in begun if text.startswith(four) and all(map(str.isalnum, four.split()))]
    (root / "general.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
    rng, width, d = np.random.default_rng(0), 40, 16
    arrays = {
        "W_enc": (d, width),
        "W_dec": (width, d),
        "b_enc": (width,),
        "b_dec": (d,),
        "threshold": (width,),
    }
    released = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    place = root / "scope/layer_1/width_16k/average_l0_7/params.npz"
    place.parent.mkdir(parents=True)
    np.savez(place, **released)
    shutil.rmtree(root / f"data/ravel/{MODEL}/sae/general")
    general = {"path": "general.jsonl", "columns": {"text": "page"}, "words": 4, "n_passages": 5}
    scope = {"source": "local", "path": str(root / "scope"), "l0": {1: 7}}
    delta = {
        "experiments": {"ravel": {"settings": {"sae": {"general": general}}}},
        "models": {MODEL: {"gemma_scope": scope}},
    }
    config = yaml.safe_load((root / "config/config.yaml").read_text())
    (root / "config/config.yaml").write_text(yaml.safe_dump(merge(config, delta)))
    assert run(root, "fetch_autoencoder", "--site", site) == 0
    assert run(root, "collect_positions", "--site", site) == 0
    assert run(root, "train_sae", "--site", site) == 0
    assert run(root, "classify_attributes", "--site", site) == 0
    z, meta = read_activations(root / f"data/ravel/{MODEL}/positions/general/{site}.safetensors")
    pre = z @ released["W_enc"] + released["b_enc"]
    features = np.maximum(pre, 0) * (pre > released["threshold"])
    left = ((features @ released["W_dec"] + released["b_dec"] - z) ** 2).sum(1).mean()
    log = read_table(root / f"results/ravel/{MODEL}/sae/{site}.csv").set_index("corpus")
    row = log.loc["general"]
    assert (row["width"], row["released_l0"], row["chosen"]) == (width, 7, True)
    assert row["l0"] == pytest.approx((features > 0).sum(1).mean(), rel=1e-3)
    assert row["unexplained"] == pytest.approx(left / ((z - z.mean(0)) ** 2).sum(1).mean(), rel=1e-3)
    table = read_table(root / f"results/ravel/{MODEL}/attributes/{site}.csv")
    assert {"sae_general", "sae_ravel"} <= set(table["method"])


def test_splits_that_a_task_has_not(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    config = yaml.safe_load((study / "config/config.yaml").read_text())
    config["experiments"]["ravel"]["n_val"] = 0
    other = study / "config/none.yaml"
    other.write_text(yaml.safe_dump(config))
    status = main(
        [
            "make_prompts",
            "--task",
            "ravel",
            "--model",
            MODEL,
            "--root",
            str(study),
            "--config",
            str(other),
            "--split",
            "val",
        ]
    )
    refused(capsys, status, "n_val")


@pytest.mark.parametrize("asked", [None, False])
def test_gemma_from_elsewhere_is_run_behind_its_begin_token(tmp_path: Path, asked: bool | None) -> None:
    """Nobody has to ask for it; activations of prompts and of all their positions are those behind the token."""
    from inversescope.targets.models import build_model, load_target
    from inversescope.targets.tokenizers import encode, task_tokenizer
    from inversescope.tasks import get_task

    folder, label = tmp_path / "gemma", SITES[0]
    scope = {"source": "local", "path": str(tmp_path), "l0": {0: 1}}
    model = {"source": "local", "path": str(folder), "n_layers": 2, "n_heads": 2, "gemma_scope": scope}
    general = {"path": "general.jsonl", "columns": {"text": "text"}, "words": 2, "n_passages": 5}
    sae = {"experiments": {"ravel": {"settings": {"sae": {"general": general}}}}}
    changes = {"models": {MODEL: model | ({} if asked is None else {"bos": asked})}} | sae
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(merge(STUDY, changes)))
    config = load_config([tmp_path / "config/config.yaml"])
    tokenizer = task_tokenizer(get_task("ravel", config, tmp_path))
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    shape = ArchitectureConfig.model_validate(SHAPE | {"sliding_window": 64})  # the last token sees the first
    build_model(shape, len(tokenizer), 0, initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for split in ("train", "test", "reference", "val"):
        assert run(tmp_path, "make_prompts", "--split", split) == 0
    assert run(tmp_path, "fetch_target") == 0
    for split in ("test", "reference", "val"):
        assert run(tmp_path, "extract_activations", "--split", split) == 0
    # General text of the words that prompts begin with: this tokenizer knows no others there.
    texts = read_table(tmp_path / "data/ravel/prompts/train.parquet")["text"]
    (tmp_path / "general.jsonl").write_text(
        "".join(json.dumps({"text": " ".join(text.split()[:2])}) + "\n" for text in texts)
    )
    assert run(tmp_path, "collect_positions", "--site", label) == 0
    context = Context(tmp_path, config.of("ravel", MODEL), "ravel", MODEL)
    target, behind = load_target(context.target_dir), asked is None
    assert target.bos == behind
    ids = encode(target.tokenizer, context.prompts("train")["text"].tolist())
    begin = np.array([target.tokenizer.convert_tokens_to_ids("<|begin|>")], np.int32)

    def hidden(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = target.model(torch.from_numpy(tokens)[None].long(), output_hidden_states=True)
        return np.asarray(found.hidden_states[1][0])

    without, with_it = ([hidden(t) for t in some] for some in (ids, [np.append(begin, t) for t in ids]))
    mine, other = (with_it, without) if behind else (without, with_it)
    last = context.activations("train", label)
    np.testing.assert_allclose(last, [one[-1] for one in mine], atol=1e-4)
    assert min(np.abs(z - one[-1]).max() for z, one in zip(last, other, strict=True)) > 1e-2
    # All positions but the first of the inference: behind the begin token that is all of the text.
    z, _ = read_activations(context.path(paths.POSITIONS, corpus="ravel", site=label))
    assert len(z) == sum(len(one) - 1 for one in mine)
    some = np.concatenate([one[1:] for one in mine])
    assert np.abs(some[:, None] - z).max(-1).min(1).max() < 1e-4
