"""The task `text`: a corpus from its file through every stage to tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import each
from test_text import FEATURES, SITES, config, rows, run, write

from inversescope.config import load_config
from inversescope.store import read_table
from inversescope.studies.cases.patched import first_difference
from inversescope.tasks.text import TextTask


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, in order."""
    root = tmp_path_factory.mktemp("text")
    config(root)
    splits = ("train", "test", "reference")
    for split in splits:
        assert run(root, "make_prompts", "--split", split) == 0
    assert run(root, "train_target", "--candidate", "s0") == 0
    assert run(root, "score_target", "--candidate", "s0") == 0
    assert run(root, "select_target") == 0
    assert run(root, "extract_activations", "--split", "reference") == 0
    assert run(root, "train_backbone") == 0
    variants = each("--variant", ["paper", "default"])
    for variant in ("paper", "default"):
        assert run(root, "train_generator", "--variant", variant) == 0
    assert run(root, "sample_prompts", *variants, *each("--site", SITES)) == 0
    assert run(root, "run_mcmc", *each("--site", SITES)) == 0
    for site in SITES:
        assert run(root, "compute_exact", "--site", site) == 0
        assert run(root, "estimate_fcr", *variants, "--site", site) == 0
    stages = ("collect_tables", "check_causes", "trace_answers", "compare_distances", "check_completeness")
    for stage in (*stages, "plot_cases", "plot_causes", "plot_answers"):
        assert run(root, stage) == 0, stage
    return root / "results/text/tiny"


def test_a_corpus_goes_through_all_stages(finished: Path) -> None:
    fcr = read_table(finished / "fcr.csv")
    assert set(fcr["site"]) == set(SITES) and set(fcr["variant"]) == {"", "paper", "default"}
    assert {"exact", "generated", "combined", "cache", "mcmc", "prior", "shuffled"} <= set(fcr["estimator"])
    assert set(fcr["feature"]) == {"form", "country", *FEATURES}
    assert read_table(finished / "refusal.csv")["refusal_rate"].between(0, 1).all()
    for name in ("sites", "causes", "answers", "distances", "completeness"):
        assert (finished.parents[1] / "figures" / f"text_tiny_{name}.png").stat().st_size > 0
    drawn = read_table(finished / "samples/inversescope/paper/L1H0@country.parquet")
    masked = drawn[drawn["decoding"] == "masked"]
    assert masked["parsed"].all(), "what keeps to the automaton is a prompt of the corpus"


def test_exact_rates_are_weighted_as_the_file_is(finished: Path) -> None:
    """By hand, from activations and weights alone."""
    root = finished.parents[2]
    task = TextTask(load_config([root / "config/config.yaml"]).text, root)
    from inversescope.kernel.distances import distance_of
    from inversescope.store import read_activations

    label = SITES[1]
    reference = read_table(root / "data/text/prompts/reference.parquet")["prompt_id"].to_numpy()
    test = read_table(root / "data/text/prompts/test.parquet")["prompt_id"].to_numpy()
    # All prompts of the file are run once: those of the targets are among them.
    z = np.array(read_activations(root / f"data/text/tiny/activations/reference/{label}.safetensors")[0])
    own = z[[reference.tolist().index(one) for one in test]]
    first = np.unique(reference, return_index=True)[1]
    p, country = np.exp(task.log_prior(reference[first])), task.features_of(reference[first])["country"]
    exact = read_table(finished / "exact" / f"{label}.parquet").set_index("target_id")
    for target, prompt in enumerate(test):
        near = distance_of("cosine").paired(np.tile(own[target], (len(first), 1)), z[first]) < 0.3
        same = country == task.features_of(np.array([prompt]))["country"]
        assert exact.loc[target, "log_mass"] == pytest.approx(math.log(p[near].sum()), abs=1e-5)
        assert exact.loc[target, "fcr_country"] == pytest.approx(
            p[near & same].sum() / p[near].sum(), abs=1e-5
        )
        q = p[near] / p[near].sum()
        assert exact.loc[target, "entropy"] == pytest.approx(-(q * np.log(q)).sum(), abs=1e-5)


def test_answers_that_begin_with_the_same_tokens(tmp_path: Path) -> None:
    """Years, of which all begin with " 19", on a model of somebody else's with a token a character; the difference by hand."""
    from test_target_files import gpt2, letters, saved
    from transformers import GPT2LMHeadModel

    records = [{**row, "code": f"{1910 + number}"} for number, row in enumerate(rows())]
    torch.manual_seed(0)
    tokenizer = letters(
        extra="".join(map(str, range(10))) + "".join(f"{r['form']} {r['country']}" for r in records)
    )
    folder = saved(
        tmp_path / "model", GPT2LMHeadModel(gpt2(vocab_size=60, n_positions=40)), tokenizer.backend_tokenizer
    )
    config(tmp_path)
    write(tmp_path, records)
    delta = {
        "models": {
            "tiny": {"source": "local", "path": str(folder), "n_layers": 2, "n_heads": 2, "large": False}
        },
        "text": {"weight": None},
    }
    (tmp_path / "delta.yaml").write_text(yaml.safe_dump(delta))
    files = ["--config", str(tmp_path / "config/config.yaml"), "--config", str(tmp_path / "delta.yaml")]
    for stage in (
        "make_prompts --split reference",
        "fetch_target",
        "extract_activations --split reference",
        "check_causes",
    ):
        assert run(tmp_path, *stage.split(), *files) == 0, stage
    table = read_table(tmp_path / "results/text/tiny/causes.csv").set_index(["feature", "site"])
    assert (table["compared"] == "answers").all() and (table["n_pairs"] > 0).all()
    # The last block's output at the prompt's end is not looked back at; what stands before all blocks is.
    assert not table["path"].xs("L1.resid_post", level="site").any()
    assert (table["effect"].xs("L1.resid_post", level="site") == 0).all()
    assert (table["effect"].xs("L0.resid_pre", level="site") != 0).all()


def test_answers_are_compared_at_the_first_token_that_differs() -> None:
    a, b = np.array([5, 1, 9, 2]), np.array([5, 1, 8, 2])
    assert first_difference(a, b) == 3 and first_difference(a, a) == 0
    assert first_difference(a, a[:2]) == 0 and first_difference(a, np.array([6])) == 1
