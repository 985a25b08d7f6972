"""Statistics of docs/claims.md on tables whose answers are known, and what its studies change."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from inversescope.config import load_config
from inversescope.config.tasks import TranslationConfig
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.generator.backbone import BackboneShape
from inversescope.generator.inversescope import ControlLayer, GeneratorShape
from inversescope.store import write_table
from inversescope.studies.ioi.stability import plateau, rank_agreement
from inversescope.studies.variants.claims import METRICS, changes, training_losses
from inversescope.studies.variants.frontier import heads_won
from inversescope.tasks.icl_translation import TranslationTask
from inversescope.workflow.plan import Plan

CONFIG = Path(__file__).resolve().parents[2] / "config"


def test_changes_are_compared_seed_by_seed() -> None:
    """Seeds differ by more than the change does: paired, the change is seen all the same."""
    rows = []
    for seed, level in enumerate((0.1, 0.5, 0.9)):
        for change, add in ((np.nan, 0.0), ("no noise", 0.02)):
            values = {name: level + add for name in METRICS}
            rows.append({"change": change, "group": "heads", "seed": seed, **values})
    found = changes(pd.DataFrame(rows)).set_index("metric")
    assert list(found.index) == list(METRICS) and (found["change"] == "no noise").all()
    row = found.loc["refusal_rate"]
    assert row["n_seeds"] == 3 and row["value"] == pytest.approx(0.52)
    assert row["difference"] == pytest.approx(0.02) and row["low"] > 0.0199 and row["high"] < 0.0201
    assert row["spread"] == pytest.approx(0.4)


def test_losses_of_a_training(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    write_table(pd.DataFrame({"step": range(50, 550, 50), "loss": [9, 8, 8.5, 7, 6, 5, 4, 3, 2, 1.0]}), file)
    variant = SimpleNamespace(generator="inversescope")
    made_up = SimpleNamespace(training_log=lambda *_: file, config=SimpleNamespace(variant=lambda _: variant))
    found = training_losses(cast(Context, made_up), "any")
    assert found == {"loss_start": 9.0, "loss_end": 1.5, "loss_rise": 0.5}


def of_heads(bandwidth: str, row: str, rates: list[float]) -> pd.DataFrame:
    sites = {"site": [f"L0H{h}" for h in range(len(rates))], "head": range(len(rates))}
    return pd.DataFrame({**sites, "fcr": rates, "bandwidth": bandwidth, "row": row})


def test_ranks_of_heads() -> None:
    """The same order, the reversed one; a head without a rate is left out, and so is a row with one head."""
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    parts = [of_heads("epsilon 0.1", row, rates) for row in ("same", "reversed")]
    parts += [of_heads("epsilon 0.2", "same", [x**2 for x in rates[:-1]] + [np.nan])]
    parts += [of_heads("epsilon 0.2", "reversed", rates[::-1])]
    lone = [of_heads(f"epsilon {epsilon}", "lone", [0.5, np.nan]) for epsilon in (0.1, 0.2)]
    assert rank_agreement(pd.concat(lone)).empty
    found = rank_agreement(pd.concat([*parts, *lone])).set_index("row")
    assert found["spearman"].to_dict() == pytest.approx({"same": 1.0, "reversed": -1.0})
    assert found["n_heads"].to_dict() == {"same": 6, "reversed": 7}
    assert found["shared"].to_dict() == {"same": 4, "reversed": 3}
    assert found.loc["same", "change"] == pytest.approx(np.mean([x**2 - x for x in rates[:-1]]))
    assert (found["low"] <= found["spearman"] + 1e-9).all()
    assert (found["high"] >= found["spearman"] - 1e-9).all()


def test_a_plateau_and_a_slope_are_told_apart() -> None:
    distance = np.tile(np.arange(0.0, 0.4, 0.01) + 0.005, 20)
    about = {"target_id": np.repeat(np.arange(20), 40), "distance": distance, "variant": "paper"}
    parts = []
    for site, agreement in (("edge", distance < 0.2), ("slope", distance < 0.05)):
        dots = pd.DataFrame({**about, "site": site, "kind": "sample", "agreement": agreement.astype(float)})
        curve = dots.drop_duplicates("distance").assign(kind="smoothed", target_id=pd.NA)
        parts += [dots, curve]
    exact = pd.DataFrame(
        {"distance": [0.05, 0.06, 0.15], "agreement": [1.0, 0.0, 0.25], "n": [3.0, 1.0, 9.0]}
    )
    parts.append(exact.assign(site="edge", variant="exact", kind="exact"))
    found = plateau(pd.concat(parts)).set_index(["site", "variant"])
    edge, slope, truth = (
        found.loc[key] for key in (("edge", "paper"), ("slope", "paper"), ("edge", "exact"))
    )
    assert (edge["near"], edge["next"], edge["beyond"]) == (1.0, 1.0, 0.0)
    assert edge["half"] == pytest.approx(0.205) and slope["half"] == pytest.approx(0.055)
    assert slope["near"] == pytest.approx(0.5) and slope["near_low"] == pytest.approx(0.5)
    assert (truth["near"], truth["next"]) == (0.75, 0.25) and np.isnan(truth["near_low"])


def test_heads_won() -> None:
    rates = {("inversescope", "paper"): [0.1, 0.2, 0.3, 0.6], ("inversionview", "view"): [0.2, 0.3, 0.4, 0.5]}
    rows = [
        {"generator": generator, "variant": variant, "site": f"L0H{h}", "refusal_rate": rate}
        for (generator, variant), own in rates.items()
        for h, rate in enumerate(own)
    ]
    (row,) = heads_won(pd.DataFrame(rows)).to_dict("records")
    assert (row["variant"], row["other"], row["won"], row["n_heads"]) == ("paper", "view", 3, 4)
    assert row["share_low"] < row["share_won"] == 0.75 < row["share_high"]
    assert row["difference"] == pytest.approx(-0.05) and row["worst"] == pytest.approx(0.1)
    assert row["low"] <= row["difference"] <= row["high"]


def test_values_that_start_at_random() -> None:
    """Values alone differ at the start; zero ones leave the backbone as it is."""
    layers, backbone = [], BackboneShape(9, 4, n_layers=1, n_heads=2, d_model=8, d_mlp=16)
    for zero in (True, False):
        torch.manual_seed(3)
        shape = GeneratorShape(backbone, {}, {}, n_heads=2, d_head=4, d_condition=6, zero_values=zero)
        layers.append(ControlLayer(shape))
    told, h = torch.randn(1, 6), torch.randn(1, 3, 8)
    silent, loud = (layer(h, *layer.fold(told)) for layer in layers)
    assert not silent.any() and loud.abs().min() > 0
    assert all(
        torch.equal(getattr(layers[0], n).weight, getattr(layers[1], n).weight) for n in ("query", "key")
    )


@pytest.mark.parametrize(
    ("name", "tokens"), [("length", 15), ("length_23", 23), ("length_43", 43), ("length_79", 79)]
)
def test_prompts_of_the_length_study(name: str, tokens: int) -> None:
    """They have the tokens that the configuration is named after, read back, and leave room for the end."""
    config = load_config([CONFIG / "config.yaml", CONFIG / f"{name}.yaml"])
    (experiment,) = Plan(config).experiments
    assert experiment.model == f"length-{tokens}"
    task = TranslationTask(config.icl_translation)
    index = np.random.default_rng(0).integers(task.size, size=20)
    texts = task.texts(index)
    assert {len(re.findall(task.word_pattern, text)) for text in texts} == {tokens}
    assert (task.parse(texts) == index).all()
    assert experiment.config.backbone.shape.n_positions >= tokens + 2


def test_more_prompts_than_can_be_numbered_are_refused() -> None:
    with pytest.raises(InputError, match="icl_translation has .* more than 64 bits can number"):
        TranslationTask(TranslationConfig(n_shots=19, n_concepts=9))
