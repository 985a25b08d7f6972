"""Each stage of the paper's configuration on a randomly initialised model of GPT-2 small's shape, with few prompts.

Every width and vocabulary is the paper's (config/paper.yaml), so that what does not fit or does not finish at that size shows
here; only numbers of prompts, sites, steps and draws are small. `make test` takes three layers, which needs a third of the memory
and time; `make test-faults` all twelve. `pytest -s` prints each stage's seconds and the process's peak memory.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import default_values
from random_models import byte_level_tokenizer

from inversescope.cli import run_stage
from inversescope.config import Config, merge, parse_config
from inversescope.config.targets import ArchitectureConfig
from inversescope.context import Context
from inversescope.generator import prior
from inversescope.store import read_activations, read_json, read_table
from inversescope.targets.models import build_model, save_trained
from inversescope.tasks import get_task

CONFIG = Path(__file__).parents[2] / "config"
VOCABULARY = 50257
VARIANTS = ("paper", "default")
N_TRAIN, N_TEST, N_REFERENCE, DRAWS, STEPS = 256, 4, 256, 2, 2
#: What is made small, laid over the paper's configuration; sites depend on the depth.
SMALL: dict[str, Any] = {
    "experiments": {
        "ioi": {
            "n_train": N_TRAIN,
            "n_test": N_TEST,
            "n_reference": N_REFERENCE,
            "variants": list(VARIANTS),
            "studies": [],
            "shown": dict.fromkeys(("fig2", "fig8", "table1"), []),
        }
    },
    "kernel": {"epsilons": [0.1]},
    # Random weights know no prior: the gates are open.
    "backbone": {"steps": STEPS, "batch_size": 2, "gate_in_prior": 0.0, "gate_repeated_name": 1.0},
    # `paper` is whole; `default` would be as large again, so it has fewer control heads.
    "variants": {
        "paper": {"steps": STEPS, "per_site": 2},
        "default": {"steps": STEPS, "per_site": 2, "n_heads": 4},
    },
    # Mixing follows the cache alone, so that some candidates are in the prior and have their activations re-computed.
    "sampling": {
        "candidates": DRAWS,
        "max_candidates": DRAWS,
        "decodings": ["mixed"],
        "mixing_alpha": 1e-6,
    },
    "fcr": {"bootstrap": 100, "mcmc_evaluations": 2},
}


@dataclass
class Study:
    """A study of which every stage has run, and the processor seconds of each stage."""

    context: Context
    depth: int
    #: Label -> width of the activation, of each site; variant -> sites at which it is trained and read.
    sites: dict[str, int]
    read: dict[str, list[str]]
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, **options: object) -> None:
        """Run a stage and print what it took."""
        wall, processor = time.monotonic(), time.process_time()
        run_stage(self.context, stage, **options)
        name = " ".join([stage, *map(str, options.values())])
        self.seconds[name] = time.process_time() - processor
        print(
            f"{name}: {time.monotonic() - wall:.1f} s ({self.seconds[name]:.1f} s of processor time), "
            f"peak {peak_gib():.2f} GiB",
            file=sys.stderr,
        )


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def config_of(depth: int, read: dict[str, list[str]], local: str) -> Config:
    """The paper's configuration with few prompts, and its model from a local directory."""
    paper = yaml.safe_load((CONFIG / "paper.yaml").read_text())
    values = merge(default_values(paper), SMALL)
    values["experiments"]["ioi"] |= {
        "sites": [site for sites in read.values() for site in sites],
        "settings": {"variants": {name: {"sites": sites} for name, sites in read.items()}},
    }
    values["models"]["gpt2"] |= {"source": "local", "path": local, "revision": None, "n_layers": depth}
    values["backbone"] |= {"init": "local", "path": local, "revision": None}
    return parse_config(values).of("ioi", "gpt2")


@pytest.fixture(scope="module", params=[3, pytest.param(12, marks=pytest.mark.faults)])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Run every stage at a depth, one thread."""
    depth = request.param
    middle, last, first = f"L{depth // 2}.resid_post", f"L{depth - 1}H10", "L1H3"
    read = {"paper": [last, middle], "default": [first]}
    config = config_of(depth, read, str(tmp_path_factory.mktemp("gpt2")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("paper")
    shape = ArchitectureConfig(n_layers=depth, n_heads=12, d_model=768, n_positions=1024)
    model = build_model(shape, VOCABULARY, 0, initializer_range=0.02)
    task = get_task("ioi", config)
    tokenizer = byte_level_tokenizer(task.texts(np.arange(0, task.size, 997)))
    save_trained(config.models["gpt2"].path or "", model, tokenizer, "gpt2")
    del model
    study = Study(Context(root, config, "ioi", "gpt2"), depth, {last: 64, middle: 768, first: 64}, read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "GATE_SAMPLES", 4)
        # Gigabytes are written that need not outlive a power cut.
        patch.setattr(os, "fsync", lambda descriptor: None)
        for split in ("train", "test", "reference"):
            study.run("make_prompts", split=split)
        study.run("fetch_target")
        for split in ("train", "test", "reference"):
            study.run("extract_activations", split=split)
        study.run("train_backbone")
        for variant in VARIANTS:
            study.run("train_generator", generator="inversescope", variant=variant)
        everywhere = list(study.sites)
        study.run("compute_exact", sites=everywhere)
        study.run("sample_prompts", generator="inversescope", variants=list(VARIANTS), sites=everywhere)
        study.run("run_mcmc", sites=everywhere)
        study.run("estimate_fcr", variants=list(VARIANTS), sites=everywhere, out="")
        study.run("collect_tables")
    torch.set_num_threads(threads)
    return study


def test_time_and_memory(study: Study) -> None:
    total = sum(study.seconds.values())
    print(f"all stages: {total:.1f} s of processor time, peak {peak_gib():.2f} GiB", file=sys.stderr)


def test_prior_is_the_papers(study: Study) -> None:
    assert study.context.task.size == 3_095_040
    assert study.context.plan.shape == (study.depth, 12)


@pytest.mark.parametrize("split,rows", [("train", N_TRAIN), ("test", N_TEST), ("reference", N_REFERENCE)])
def test_activations(study: Study, split: str, rows: int) -> None:
    for label, width in study.sites.items():
        z, _ = read_activations(study.context.activations_path(split, label))
        assert z.shape == (rows, width) and z.dtype == np.float32
        assert np.isfinite(z).all() and len(np.unique(z, axis=0)) > rows // 2


def test_backbone_is_gpt2_small(study: Study) -> None:
    shape = read_json(study.context.backbone_dir / "meta.json")["shape"]
    assert (shape["vocab_size"], shape["n_layers"], shape["d_model"]) == (VOCABULARY, study.depth, 768)
    log = read_table(study.context.results / "training" / "backbone.csv")
    assert log["step"].iloc[-1] == STEPS and np.isfinite(log["loss"]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_generators(study: Study, variant: str) -> None:
    context = study.context
    meta = read_json(context.generator_dir("inversescope", variant) / "meta.json")
    shape = meta["shape"]
    n_heads = 32 if variant == "paper" else 4
    assert (shape["n_heads"], shape["d_head"], shape["d_condition"]) == (n_heads, 64, 768)
    # The control layers: queries, keys, values with biases, and the norm before the queries.
    control = study.depth * (2 * n_heads * 64 * 769 + n_heads * 768 * 769 + 2 * 768)
    blocks = study.depth * 12 * 768**2
    assert meta["n_parameters"] > VOCABULARY * 768 + blocks + control
    assert shape["sites"] == {
        label: 768 if variant == "paper" else study.sites[label] for label in study.read[variant]
    }
    log = read_table(context.training_log("inversescope", variant))
    assert log["step"].iloc[-1] == STEPS and np.isfinite(log["loss"]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_candidates(study: Study, variant: str) -> None:
    decodings = set()
    for label in study.read[variant]:
        frame = read_table(study.context.samples_path("inversescope", variant, label))
        counts = frame.groupby(["decoding", "epsilon"], observed=True).size()
        assert set(frame["decoding"]) == {"plain", "mixed"} and (counts == N_TEST * DRAWS).all()
        assert np.isfinite(frame["logq"]).all() and (frame["logq"] < 0).all()
        parsed = frame[frame["parsed"]]
        decodings |= set(parsed["decoding"])
        assert parsed["distance"].between(0, 0.1).all()
    assert "mixed" in decodings


def test_tables(study: Study) -> None:
    fcr = read_table(study.context.results / "fcr.csv")
    assert set(fcr["site"]) == set(study.sites)
    assert {"exact", "cache", "mcmc", "combined"} <= set(fcr["estimator"])
    exact = fcr.loc[fcr["estimator"] == "exact", "fcr"].dropna()
    assert len(exact) and exact.between(0, 1).all()
    refusal = read_table(study.context.results / "refusal.csv")
    assert refusal["refusal_rate"].between(0, 1).all()
