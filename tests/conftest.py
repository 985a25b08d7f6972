"""A complete tiny study, made once a session by calling every stage of the command line, from prompts to tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from inversescope.config import merge
from inversescope.config.load import read_layers
from inversescope.config.targets import ArchitectureConfig
from inversescope.tasks import get_task

MODEL = "tiny"
SITES = ["L0H0", "L1H1", "L1.resid_post"]
VARIANTS = ["paper", "default", "told", "few"]
SHAPE = {"n_layers": 2, "n_heads": 2, "d_model": 16}
BASE: dict[str, Any] = {
    "experiments": {
        "ioi": {"model": MODEL, "sites": SITES, "n_train": 200, "n_test": 6, "variants": VARIANTS}
    },
    "models": {MODEL: {"shape": SHAPE, "seeds": [0]}},
    "ioi": {"n_names": 6, "n_templates": 3, "n_places": 2, "n_items": 2, "held_out_pairs": 0.2},
    "kernel": {"epsilon": 0.1, "epsilons": [0.02, 0.1]},
    "backbone": {
        "shape": SHAPE,
        "targets": "grammar",
        "steps": 250,
        "learning_rate": 0.01,
        "warmup": 10,
        "batch_size": 32,
        "gate_in_prior": 0.2,
        "gate_repeated_name": 1.0,
    },
    "variants": {
        # As published; with all inputs; told epsilon alone; a cache so small and strict that most targets are lonely.
        "paper": {"steps": 20, "n_heads": 4, "d_head": 4},
        "default": {
            "pairs": "kernel",
            "eps_input": True,
            "mean_embedding": True,
            "neighbour_logits": True,
            "soft_targets": True,
            "freeze_backbone": False,
            "site_map_blocks": 1,
            "steps": 20,
            "n_heads": 4,
            "d_head": 4,
        },
        "told": {
            "pairs": "kernel",
            "eps_input": True,
            "steps": 10,
            "sites": ["L0H0", "L1H1"],
            "n_heads": 2,
        },
        "few": {
            "pairs": "kernel",
            "mean_embedding": True,
            "steps": 10,
            "sites": ["L1H1"],
            "n_heads": 2,
            "cache_size": 12,
            "cache_pairs": "train",
            "empty_anchors": "skip",
            "epsilon": 0.02,
        },
    },
    "sampling": {
        "candidates": 30,
        "candidates_elsewhere": 20,
        "max_candidates": 30,
        "decodings": ["mixed", "masked", "noised"],
    },
    "fcr": {"bootstrap": 100, "mcmc_evaluations": 15},
    "figures": {"noised_draws": 4},
}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """One seed of PyTorch's for each test, whatever ran before it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def write_config(root: Path, delta: dict[str, Any] | None = None) -> None:
    """Write root/config/config.yaml: the tiny study, and a delta laid over it."""
    (root / "config").mkdir(parents=True, exist_ok=True)
    (root / "config/config.yaml").write_text(yaml.safe_dump(merge(BASE, delta or {})))


def default_values(delta: dict[str, Any] | None = None) -> dict[str, Any]:
    """The values of config/config.yaml and of the files that it includes, as they are written, and a delta laid over them."""
    file = Path(__file__).resolve().parents[1] / "config/config.yaml"
    values = json.loads(json.dumps(read_layers([file])))
    values.pop("include", None)
    return merge(values, delta or {})  # type: ignore[no-any-return]


def make_target(root: Path, seed: int = 0) -> None:
    """A target with random weights, large enough to tell prompts apart, where `select_target` would put its winner."""
    from inversescope.config import load_config
    from inversescope.targets.models import build_model, save_trained
    from inversescope.targets.tokenizers import word_tokenizer

    task = get_task("ioi", load_config([root / "config/config.yaml"]))
    tokenizer = word_tokenizer(task.words())
    model = build_model(ArchitectureConfig(**SHAPE), len(tokenizer), seed, initializer_range=0.3)
    folder = root / "data/ioi" / MODEL / "target"
    save_trained(folder, model, tokenizer, MODEL, SHAPE)


def run(root: Path, stage: str, *options: str) -> int:
    """One stage through the command line, in this process."""
    from inversescope.cli import main

    return main(
        [
            *(stage, "--model", MODEL, "--root", str(root), "--config", str(root / "config/config.yaml")),
            *("--device", "cpu"),
            *options,
        ]
    )


def each(option: str, values: list[str]) -> list[str]:
    return [part for value in values for part in (option, value)]


def run_all(root: Path) -> None:
    """Every stage from prompts to tables, in order."""
    for split in ("train", "test", "reference"):
        assert run(root, "make_prompts", "--split", split) == 0
    make_target(root)
    assert run(root, "extract_activations", "--split", "reference") == 0
    assert run(root, "train_backbone") == 0
    run_from_generators(root, VARIANTS)


def run_from_generators(root: Path, variants: list[str]) -> None:
    """Every stage from the generators of some variants to tables, in order."""
    for variant in variants:
        assert run(root, "train_generator", "--variant", variant) == 0
    assert run(root, "sample_prompts", *each("--variant", variants), *each("--site", SITES)) == 0
    assert run(root, "run_mcmc", *each("--site", SITES)) == 0
    assert run(root, "compute_exact", *each("--site", SITES)) == 0
    assert run(root, "estimate_fcr", *each("--variant", variants), *each("--site", SITES)) == 0
    assert run(root, "collect_tables") == 0


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished tiny study. Read it; to change it, take a `copied` one."""
    root = tmp_path_factory.mktemp("study")
    write_config(root)
    run_all(root)
    return root


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Copies of the finished study, with the configuration changed by a delta."""
    made: list[Path] = []

    def copy(delta: dict[str, Any] | None = None) -> Path:
        root = tmp_path / f"copy{len(made)}"
        shutil.copytree(study, root)
        write_config(root, delta)
        made.append(root)
        return root

    yield copy
    for root in made:
        shutil.rmtree(root)
