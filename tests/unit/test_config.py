"""The configuration: generated files have not drifted from the models, and bad values end in one clear error."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from inversescope.config import (
    Config,
    default_config,
    load_config,
    merge,
    parse_config,
    published_yaml,
    to_schema,
    to_yaml,
)
from inversescope.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", to_yaml(default_config())),
        ("published.yaml", published_yaml()),
        ("schema.json", to_schema()),
    ],
    ids=["yaml", "published", "schema"],
)
def test_generated_files_have_not_drifted(name: str, text: str) -> None:
    found = (CONFIG / name).read_text()
    difference = "\n".join(
        difflib.unified_diff(found.splitlines(), text.splitlines(), f"config/{name}", "models", lineterm="")
    )
    assert found == text, f"run `inversescope config --write`:\n{difference}"


def test_yaml_points_editors_at_the_schema() -> None:
    assert (CONFIG / "config.yaml").read_text().splitlines()[
        0
    ] == "# yaml-language-server: $schema=schema.json"


def test_default_survives_yaml() -> None:
    assert load_config([CONFIG / "config.yaml"]) == default_config()


@pytest.mark.parametrize("file", sorted(p.relative_to(CONFIG).as_posix() for p in CONFIG.rglob("*.yaml")))
def test_every_delta_is_valid(file: str) -> None:
    load_config([CONFIG / "config.yaml", CONFIG / file])


def test_deltas_are_layered_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kernel: {epsilon: 0.2}\n")
    (tmp_path / "b.yaml").write_text("kernel: {distance: euclidean}\nseed: 3\n")
    config = load_config([CONFIG / "config.yaml", tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert (config.kernel.epsilon, config.kernel.distance, config.seed) == (0.2, "euclidean", 3)
    assert config.kernel.epsilons == default_config().kernel.epsilons


def test_merge_replaces_lists_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": [1, 2], "c": 3}}
    assert merge(base, {"a": {"b": [4]}}) == {"a": {"b": [4], "c": 3}}
    assert base == {"a": {"b": [1, 2], "c": 3}}


def with_delta(delta: dict) -> Config:
    return parse_config(merge(default_config().model_dump(mode="json"), delta), "delta.yaml")


BAD = {
    "unknown key at the top": ({"sede": 1}, ["'sede'", "schema.json"]),
    "unknown nested key": ({"kernel": {"bandwith": 0.1}}, ["kernel.bandwith", "schema.json"]),
    "bandwidth of zero": ({"kernel": {"epsilon": 0}}, ["kernel.epsilon", "positive"]),
    "negative bandwidth": ({"kernel": {"epsilon": -0.1}}, ["kernel.epsilon", "positive"]),
    "bandwidth that is not finite": ({"kernel": {"epsilon": float("nan")}}, ["kernel.epsilon", "finite"]),
    "one of the bandwidths": ({"kernel": {"epsilons": [0.1, 0.0]}}, ["kernel.epsilons", "positive"]),
    "hub model without revision": (
        {"models": {"far": {"source": "hub", "path": "org/name"}}},
        ["models.far", "revision"],
    ),
    "hub model without path": (
        {"models": {"far": {"source": "hub", "revision": "0" * 40}}},
        ["models.far", "path"],
    ),
    "model without candidates": ({"models": {"near": {"source": "trained"}}}, ["models.near", "candidates"]),
    "experiment on an unknown model": ({"experiments": {"ioi": {"model": "nobody"}}}, ["nobody"]),
    "studied variant that is not there": ({"studied_variants": ["paper", "papre"]}, ["papre"]),
    "name that is a path": ({"variants": {"../up": {"base": "paper"}}}, ["../up"]),
    "wrong type": ({"sampling": {"candidates": "many"}}, ["sampling.candidates"]),
    "share out of range": ({"ioi": {"held_out_pairs": 1.0}}, ["ioi.held_out_pairs"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_one_clear_error(case: str) -> None:
    delta, words = BAD[case]
    with pytest.raises(InputError) as error:
        with_delta(delta)
    assert error.value.culprit and error.value.remedy
    assert "\n" not in str(error.value)
    for word in ["delta.yaml", *words]:
        assert word in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml does not exist.*--config"):
        load_config([tmp_path / "absent.yaml"])


def test_broken_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML"):
        load_config([tmp_path / "broken.yaml"])


def test_unknown_names_list_what_there_is() -> None:
    config = default_config()
    with pytest.raises(InputError, match="unknown variant 'nope'.*paper"):
        config.variant("nope")
    with pytest.raises(InputError, match="no experiment reads model 'nope'"):
        config.experiment("ioi", "nope")


def test_the_budget_scales_counts() -> None:
    config = with_delta({"budget": 0.001})
    assert config.scaled(5000) == 5 and config.scaled(10) == 1


def test_schema_forbids_unknown_keys_too() -> None:
    schema = yaml.safe_load(to_schema())
    assert schema["additionalProperties"] is False
    assert all(part.get("additionalProperties") in (False, None) for part in schema["$defs"].values())


def two_studies(settings: dict[str, Any]) -> dict[str, Any]:
    """The default configuration with a second experiment that sets something for itself."""
    values = default_config().model_dump(mode="json")
    values["models"]["other"] = values["models"]["gpt2-embedded"]
    values["experiments"]["second"] = {"model": "other", "sites": ["L0H0"], "settings": settings}
    return values


def test_an_experiment_sets_what_is_its_own() -> None:
    config = parse_config(
        two_studies(
            {
                "kernel": {"epsilon": 0.3},
                "variants": {"default": {"steps": 7}},
                "studied_variants": ["default"],
            }
        )
    )
    own, rest = config.of("ioi", "other"), config.of("ioi", "gpt2-embedded")
    assert (own.kernel.epsilon, own.variants["default"].steps, own.studied_variants) == (0.3, 7, ["default"])
    assert own.kernel.epsilons == config.kernel.epsilons and own.variants["paper"] == config.variants["paper"]
    assert rest == config
    assert own.of("ioi", "other") == own


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"ioi": {"n_names": 9}}, "experiment second sets 'ioi'"),
        ({"kernel": {"epsilon": -1}}, "settings of experiment ioi on other: kernel.epsilon"),
        ({"fcr": {"feature": []}}, "unknown key 'fcr.feature'"),
        ({"studied_variants": ["none"]}, "variant 'none' is studied"),
    ],
)
def test_settings_of_an_experiment_are_checked_at_load(
    tmp_path: Path, settings: dict[str, Any], fault: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(two_studies(settings)))
    with pytest.raises(InputError, match=re.escape(fault)):
        load_config([file])


def test_a_delta_leaves_an_experiment_out(tmp_path: Path) -> None:
    base, delta = tmp_path / "config.yaml", tmp_path / "delta.yaml"
    base.write_text(yaml.safe_dump(two_studies({})))
    delta.write_text("experiments: {ioi: null}\n")
    kept = load_config([base, delta]).experiments
    assert kept.keys() == load_config([base]).experiments.keys() - {"ioi"} and "second" in kept


def test_a_delta_runs_some_experiments_alone(tmp_path: Path) -> None:
    base, delta = tmp_path / "config.yaml", tmp_path / "delta.yaml"
    base.write_text(yaml.safe_dump(two_studies({})))
    delta.write_text("only: [second]\n")
    kept = load_config([base, delta])
    assert list(kept.experiments) == ["second"] == list(kept.of("ioi", "other").experiments)
    delta.write_text("only: [third]\n")
    with pytest.raises(InputError, match="'only' names experiment 'third'"):
        load_config([base, delta])


def test_decoders_of_other_sizes_are_default_but_for_their_size() -> None:
    """They are read by the case studies alone, and grow in order."""
    config = default_config()
    sized = [name for name, variant in config.variants.items() if variant.study == "capacity"]
    assert sized == ["default_small", "default_large"]
    assert not set(sized) & {*config.studied_variants, *config.study_variants}
    for task in ("counting", "addition"):
        (model,) = [e.model for e in config.experiments.values() if e.task == task]
        own = config.of(task, model)
        small, default, large = (own.variant(f"default{suffix}") for suffix in ("_small", "", "_large"))
        grown = ["n_heads", "d_head", "d_condition", "site_map_blocks"]
        for field in grown:
            assert getattr(small, field) <= getattr(default, field) <= getattr(large, field)
        told = {*grown, "change", "study"}
        assert (
            small.model_dump(exclude=told)
            == default.model_dump(exclude=told)
            == large.model_dump(exclude=told)
        )
