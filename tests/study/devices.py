"""Stages and their parts on the processor and on the device DEVICE, from the same files of the finished tiny study STUDY.

Run by `test_device.py`, or by hand: STUDY=folder DEVICE=cuda pytest tests/study/devices.py
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MODEL, SITES, VARIANTS, each, run, write_config
from test_capture import VOCABULARY, make_target
from twin import DEVICE, second_device

from inversescope import device
from inversescope.activations.capture import capture
from inversescope.activations.patching import Cut, Inputs, Intervention, Patch, patch
from inversescope.config.methods import SaeConfig
from inversescope.config.targets import ArchitectureConfig
from inversescope.kernel.bandwidths import epsilons_of_shares
from inversescope.kernel.distances import DISTANCES, distance_of
from inversescope.kernel.neighbours import Cache
from inversescope.sites import Site
from inversescope.store import read_activations, read_table
from inversescope.studies.icl.labeller import Labeller
from inversescope.studies.ravel.sae import representatives
from inversescope.studies.ravel.sae_training import train_sae
from inversescope.targets.architectures import ARCHITECTURES
from inversescope.targets.models import build_model
from inversescope.targets.tokenizers import word_tokenizer

STUDY, NAME = Path(os.environ["STUDY"]), os.environ["DEVICE"]
T = TypeVar("T")


@pytest.fixture(autouse=True)
def second() -> Iterator[None]:
    """The device, if it is made of the processor."""
    with second_device() if NAME == DEVICE else nullcontext():
        yield
    device.choose("cpu")


def both(made: Callable[[], T]) -> tuple[T, T]:
    """What a function makes on the processor, and on the device."""
    results = []
    for name in ("cpu", NAME):
        device.choose(name)
        assert device.on_cpu() == (name == "cpu")
        results.append(made())
    return results[0], results[1]


def close(was: Any, now: Any) -> None:
    np.testing.assert_allclose(now, was, atol=1e-4)


def again(root: Path, stage: str, *options: str, delta: dict[str, Any] | None = None) -> Path:
    """Run a stage of the study again on the device, on a copy; with a delta of the configuration on the processor too."""
    folders = [STUDY]
    for name in [NAME] if delta is None else ["cpu", NAME]:
        folder = root / name.replace(":", "")
        shutil.copytree(STUDY, folder)
        write_config(folder, delta)
        assert run(folder, stage, *options, "--device", name) == 0
        folders.append(folder)
    (root / "was").symlink_to(folders[-2])
    (root / "now").symlink_to(folders[-1])
    return root


def tables(root: Path, file: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table as it was, and made again."""
    was, now = (read_table(root / name / f"results/ioi/{MODEL}/{file}") for name in ("was", "now"))
    return was, now


# ----------------------------------------------------------------------------------------------------------------- stages


def test_activations(tmp_path: Path) -> None:
    root = again(tmp_path, "extract_activations", "--split", "reference")
    for label in SITES:
        file = f"data/ioi/{MODEL}/activations/reference/{label}.safetensors"
        close(*(read_activations(root / name / file)[0] for name in ("was", "now")))


def test_exact_values_are_the_same_bits(tmp_path: Path) -> None:
    root = again(tmp_path, "compute_exact", *each("--site", SITES))
    for label in SITES:
        pd.testing.assert_frame_equal(*tables(root, f"exact/{label}.parquet"), check_exact=True)


def test_rates_are_the_same_bits(tmp_path: Path) -> None:
    root = again(tmp_path, "estimate_fcr", *each("--variant", VARIANTS), "--site", "L1H1")
    for table in ("fcr", "refusal", "coverage"):
        pd.testing.assert_frame_equal(*tables(root, f"{table}/L1H1.csv"), check_exact=True)


def test_chains_are_the_same(tmp_path: Path) -> None:
    root = again(tmp_path, "run_mcmc", "--site", "L1H1")
    pd.testing.assert_frame_equal(*tables(root, "mcmc/L1H1.parquet"), check_exact=True)


def test_candidates(tmp_path: Path) -> None:
    root = again(tmp_path, "sample_prompts", *each("--variant", ["paper", "default"]), "--site", "L1H1")
    for variant in ("paper", "default"):
        was, now = tables(root, f"samples/inversescope/{variant}/L1H1.parquet")
        same = (was["text"] == now["text"]).to_numpy()
        # A draw on the edge between two tokens may fall to the other side.
        assert len(was) == len(now) and same.mean() > 0.99
        for column in ("logq", "distance"):
            close(was[column][same], now[column][same])
        was, now = tables(root, f"samples/inversescope/{variant}/L1H1.cache.parquet")
        np.testing.assert_array_equal(now["row"], was["row"])
        close(was["logq"], now["logq"])


@pytest.mark.parametrize("variant", ["paper", "default"])
def test_training_of_a_generator(tmp_path: Path, variant: str) -> None:
    few = {"variants": {variant: {"steps": 4}}}
    root = again(tmp_path, "train_generator", "--variant", variant, delta=few)
    was, now = tables(root, f"training/inversescope/{variant}.csv")
    close(was["loss"], now["loss"])
    np.testing.assert_array_equal(now["bayes_floor"], was["bayes_floor"])


@pytest.mark.parametrize("targets", ["grammar", "samples"])
def test_training_of_the_backbone(tmp_path: Path, targets: str) -> None:
    few = {"steps": 5, "targets": targets, "gate_in_prior": 0.0}
    root = again(tmp_path, "train_backbone", delta={"backbone": few})
    was, now = tables(root, "training/backbone.csv")
    close(was["loss"], now["loss"])
    assert len(tables(root, "samples/backbone.parquet")[1]) == 2048


def test_training_and_score_of_a_target(tmp_path: Path) -> None:
    few = {"max_steps": 5, "extra_steps": 1, "gate_accuracy": 0.0}
    delta = {"models": {MODEL: {"training": few}}}
    root = again(tmp_path, "train_target", "--candidate", "s0", delta=delta)
    folders = [root / name for name in ("was", "now")]
    for folder, name in zip(folders, ("cpu", NAME), strict=True):
        assert run(folder, "score_target", "--candidate", "s0", "--device", name) == 0
    file = f"data/ioi/{MODEL}/target/candidates/s0/score.csv"
    was, now = (read_table(folder / file) for folder in folders)
    # Weights differ in their last digits, and a pair of prompts on the edge of a ball may be on its other side.
    np.testing.assert_allclose(now.filter(like="fcr_"), was.filter(like="fcr_"), atol=1e-2)


def test_causes(tmp_path: Path) -> None:
    delta = {"experiments": {"ioi": {"patched": SITES}}, "patching": {"n_partners": 30}}
    root = again(tmp_path, "check_causes", delta=delta)
    was, now = tables(root, "causes.csv")
    close(was["effect"], now["effect"])
    close(was["fcr"], now["fcr"])


# ------------------------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("positions", [None, 3])
def test_distances_and_neighbours_are_the_same_bits(distance: str, positions: int | None) -> None:
    rng = np.random.default_rng(0)
    shape = (300, 16) if positions is None else (300, positions, 16)
    z, queries = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((7, 16))
    radius = np.quantile(distance_of(distance).paired(queries[:1].repeat(300, 0), z), 0.3)

    def made() -> list[np.ndarray]:
        cache = Cache(z, distance, block=50)
        asked = cache.prepare(queries)
        found = cache.search(asked, radius, exclude=np.arange(7), limit=20, span=(200, 250))
        counts = cache.counts(asked, np.array([radius / 2, radius]))
        parts = [found.rows, found.distance, found.scanned, counts, *cache.nearest(asked)]
        shares = epsilons_of_shares(cache.distance, queries, z, [0.1, 0.5])
        return [*parts, cache.distance.between(asked, cache.keys), np.array(shares)]

    for was, now in zip(*both(made), strict=True):
        assert was.dtype == now.dtype
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_target_is_read_and_patched(family: str) -> None:
    rng = np.random.default_rng(0)
    inputs, sources = (
        Inputs([rng.integers(1, 8, size) for size in (9, 9, 7, 9, 5)], {"word": np.array([4, 3, 2, 1, 2])})
        for _ in range(2)
    )
    sites = [Site.parse(label) for label in ("L1H1", "L1H0.z", "L1.resid_post@word", "L0.mlp_out@any")]
    cut = (Cut("word", layers=(1,)),)
    asked = [
        Intervention(),
        Intervention((Patch(Site.parse("L1H1.z")),)),
        Intervention((Patch(Site.parse("L0.resid_post@word")),), cut_target=cut),
    ]

    def made() -> list[np.ndarray]:
        target = make_target(family)
        target.model.requires_grad_(False).to(device.device())
        z = capture(target, inputs.token_ids, sites, positions={"word": inputs.resolve("word")})
        return [
            *z.values(),
            patch(target, inputs, sources, asked, np.tile(np.arange(VOCABULARY), (5, 1))).logits,
        ]

    for was, now in zip(*both(made), strict=True):
        close(was, now)


def test_a_chat_model_labels() -> None:
    words = "red green blue null name the colour of sky grass user model".split()
    tokenizer = word_tokenizer([*words, *(f" {word}" for word in words), "\n"], r" ?\w+|\n")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% endfor %} model"
    labels = ["red", "red green", "green", "null"]

    def made() -> list[str]:
        shape = ArchitectureConfig(architecture="gemma2", n_layers=2, n_heads=2, d_model=16, n_positions=64)
        model = build_model(shape, len(tokenizer), 3, initializer_range=0.6).to(device.device())
        asked = Labeller(model, tokenizer, "name the colour of", labels, "null", "tiny@1")
        return asked(["the sky", "the grass", "sky sky", "the colour of grass"]).labels

    was, now = both(made)
    assert was == now


def test_an_autoencoder_is_trained_and_read() -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((256, 12)).astype(np.float32), rng.integers(4, size=256)
    config = SaeConfig(width=24, steps=5, batch_size=64)

    def made() -> list[np.ndarray]:
        some = (lambda step: z[step * 32 : step * 32 + 64], 12, 3.5, config, 1e-2, 0, "sae", lambda _: None)
        model, log = train_sae(*some)
        _, f1 = representatives(model, z, labels, 4)
        return [log["loss"].to_numpy(), model.reconstruct(model.features(z)), f1]

    for was, now in zip(*both(made), strict=True):
        close(was, now)


@pytest.mark.skipif(NAME != DEVICE, reason="of the stand-in alone")
def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(3), torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="lie on the processor"):
        here + there
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert (there + 1).cpu().tolist() == [2, 2, 2] and (there * torch.tensor(2)).device == there.device
