"""The plan, its paths and the keys that jobs depend on: what the rules make of a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BASE, MODEL, SITES

from inversescope.config import Config, load_config, merge, parse_config
from inversescope.errors import InputError
from inversescope.tasks import TASKS, get_task
from inversescope.workflow import paths
from inversescope.workflow.paths import fill
from inversescope.workflow.plan import JOBS, OUTSIDE, SITES_PER_JOB, ExperimentPlan, Plan, blocks, one_of
from inversescope.workflow.stages import STAGES
from inversescope.workflow.used import used, value

LARGE = {"source": "hub", "path": "org/name", "revision": "0" * 40, "n_layers": 3, "n_heads": 4}


def configuration(delta: dict[str, Any] | None = None) -> Config:
    return parse_config(merge(BASE, delta or {}))


def planned(delta: dict[str, Any] | None = None) -> ExperimentPlan:
    return Plan(configuration(delta))["ioi", MODEL]


def test_fill_leaves_other_names() -> None:
    assert fill(paths.PROMPTS, split=["train", "test"]) == [
        "data/{task}/prompts/train.parquet",
        "data/{task}/prompts/test.parquet",
    ]
    assert fill("{a}/{b}/{c}", b="x", c=["1", "2"]) == ["{a}/x/1", "{a}/x/2"]
    assert fill("{a}{b}", a=["1", "2"], b=["x", "y"]) == ["1x", "1y", "2x", "2y"]


def test_one_of_matches_names_and_nothing_else() -> None:
    import re

    pattern = one_of(["paper_eps0.05", "gpt2-small"])
    assert re.fullmatch(pattern, "paper_eps0.05") and re.fullmatch(pattern, "gpt2-small")
    assert not re.fullmatch(pattern, "paper_eps0x05")
    assert not re.fullmatch(one_of([]), "")


def test_sites_and_variants_of_an_experiment() -> None:
    plan = planned()
    assert plan.labels == SITES
    assert [site.label for site in plan.sites_of("told")] == ["L0H0", "L1H1"]
    assert plan.labels_of(["few", "told"]) == ["L0H0", "L1H1"]
    assert plan.studied == plan.variants == ["paper", "default", "told", "few"]
    assert plan.ablations == plan.frontier == []


def epsilons(plan: ExperimentPlan) -> list[float]:
    assert all(one.kind == "epsilon" for one in plan.bandwidths) and not plan.bandwidth_table
    return [one.value for one in plan.bandwidths]


def test_bandwidths_are_those_of_the_kernel_and_of_all_variants() -> None:
    assert epsilons(planned()) == [0.02, 0.1]
    assert epsilons(planned({"variants": {"few": {"epsilon": 0.07}}})) == [0.02, 0.07, 0.1]


@pytest.mark.parametrize(
    ("delta", "culprit"),
    [
        ({"variants": {"few": {"sites": ["L0H1"]}}}, "variant few is trained on site L0H1"),
        ({"experiments": {"ioi": {"sites": ["L2H0"]}}}, "L2H0"),
        ({"models": {MODEL: {"source": "local", "path": "x"}}}, f"models.{MODEL} has no n_layers or n_heads"),
        (
            {
                "experiments": {"more": {"model": "far", "sites": ["L0H0"], "n_test": 7}},
                "models": {"far": LARGE},
            },
            "more.n_train: is 100000, but 200 in experiment ioi",
        ),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(delta: dict[str, Any], culprit: str) -> None:
    with pytest.raises(InputError) as raised:
        Plan(configuration(delta))
    assert culprit in str(raised.value)


def test_a_block_holds_sites_that_the_same_variants_read() -> None:
    found = blocks([planned()], by_variant=True)
    assert {(block.sites, block.variants) for block in found} == {
        (tuple(SITES), ("paper", "default")),
        (("L0H0", "L1H1"), ("told",)),
        (("L1H1",), ("few",)),
    }
    assert len({block.name for block in found}) == 3
    assert found[0].constraints == {"task": "ioi", "model": MODEL, "variant": "paper|default"}
    assert found[0].options == "--site L0H0 --site L1H1 --site L1.resid_post"


def test_a_job_reads_few_sites_of_a_small_model_and_one_of_a_large_one() -> None:
    shape = {"n_layers": 4, "n_heads": 4, "d_model": 16}
    many = {"experiments": {"ioi": {"sites": ["L*H*"], "variants": []}}}
    small = planned(merge(many, {"models": {MODEL: {"shape": shape}}}))
    found = blocks([small])
    assert [len(block.sites) for block in found] == [SITES_PER_JOB, 16 - SITES_PER_JOB]
    assert sum((block.sites for block in found), ()) == tuple(small.labels)
    deep = planned(merge(many, {"models": {MODEL: {"shape": shape | {"n_layers": 33}}}}))
    sizes = [len(block.sites) for block in blocks([deep])]
    assert len(sizes) == JOBS and sum(sizes) == 33 * 4 and max(sizes) == 14
    (block,) = blocks([planned(merge(many, {"models": {MODEL: LARGE}}))])
    assert block.sites == ("{site}",)
    assert block.options == "--site {site}"
    assert len(blocks([planned(merge(many, {"models": {MODEL: LARGE | {"large": False}}}))])) == 2


def test_estimates_of_further_variants_are_blocks_of_their_own_sites_and_files() -> None:
    further = {
        "studies": {"few": {"sites": ["L1H1"], "runs": {"short": {"base": "paper", "steps": 3}}}},
        "experiments": {"ioi": {"studies": ["few"]}},
    }
    plan = planned(further)
    (main,), (study,) = blocks([plan]), blocks([plan], group="study")
    assert blocks([plan], group="frontier") == []
    assert (main.sites, main.folder) == (tuple(SITES), "")
    assert (study.sites, study.folder) == (("L1H1",), "study/")
    assert main.tables == ["fcr", "refusal", "coverage"] and study.tables == ["study/fcr", "study/refusal"]
    assert main.name != study.name
    assert study.samples_of(["paper", "few"])({}) == plan.samples(["paper", "few"], "L1H1")
    assert main.samples_of(["few"])({}) == plan.samples(["few"])
    (large,) = blocks([planned(merge(further, {"models": {MODEL: LARGE}}))], group="study")
    assert large.samples_of(["few"])({"site": "L1H1"}) and not large.samples_of(["few"])({"site": "L0H0"})


def test_files_of_an_experiment() -> None:
    plan = planned()
    assert plan.samples(["few"], "L1H1") == plan.samples(["few"])
    assert plan.samples(["few"], "L0H0") == []
    assert plan.samples(["few"])[0] == f"results/ioi/{MODEL}/samples/inversescope/few/L1H1.parquet"
    assert len(plan.target_files) == len(paths.TARGET_FILES)
    described = f"data/ioi/{MODEL}/target/target.json"
    assert planned({"models": {MODEL: LARGE}}).target_files == [described]
    quantised = planned({"models": {MODEL: LARGE | {"file": "x.gguf"}}})
    assert quantised.weights == [f"data/models/{MODEL}/{file}" for file in paths.TARGET_FILES]
    assert quantised.target_files == [described, *quantised.weights]


def test_an_enumerated_prior_is_run_once() -> None:
    plan = planned()
    assert plan.extracted == ["reference"]
    assert plan.activations(["train", "test", "reference"], ["L0H0"]) == [
        f"data/ioi/{MODEL}/activations/reference/L0H0.safetensors"
    ]
    assert plan.prompts(["train"]) == ["data/ioi/prompts/train.parquet", "data/ioi/prompts/reference.parquet"]
    drawn = planned({"experiments": {"ioi": {"n_reference": 40}}})
    assert drawn.extracted == ["train", "test", "reference"] and not drawn.looked_up
    assert drawn.prompts(["train"]) == ["data/ioi/prompts/train.parquet"]
    assert len(drawn.activations(["train", "test"], ["L0H0", "L1H1"])) == 4


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"text"}))
def test_the_plan_knows_whose_splits_are_outside_of_the_prior(name: str) -> None:
    task = get_task(name, parse_config({}), Path())
    outside = {s for s in task.splits if not task.in_prior(task.sample(1, s, np.random.default_rng(0))).all()}
    assert outside == set(OUTSIDE.get(name, ()))


def test_parts_come_in_pipeline_order_and_a_control_has_no_generators() -> None:
    def outputs_of(rule: str) -> list[str]:
        return [f"results/{{task}}/{{model}}/{rule}"]

    assert list(planned().parts(outputs_of)) == [
        "targets",
        "activations",
        "exact",
        "layers",
        "heads",
        "generators",
        "samples",
        "hypotheses",
        "estimates",
        "tables",
        "readers",
        "figures",
        "browser",
    ]
    assert planned().parts(outputs_of)["figures"] == [f"results/ioi/{MODEL}/plot_figures"]
    control = planned({"experiments": {"ioi": {"variants": []}}}).parts(outputs_of)
    assert list(control) == ["targets", "activations", "exact", "layers", "heads", "hypotheses"]
    assert not [file for file in control["activations"] if "/train/" in file]


def test_no_chain_is_planned_where_it_has_no_evaluations() -> None:
    assert planned().has_chains
    assert not planned({"fcr": {"mcmc_evaluations": 0}}).has_chains


def test_used_values_are_those_that_the_experiment_sees() -> None:
    own = {"experiments": {"ioi": {"settings": {"kernel": {"epsilon": 0.3}}}}}
    assert used(planned(own), "kernel/epsilon", "n_test", "bandwidths") == {
        "kernel/epsilon": 0.3,
        "n_test": 6,
        "bandwidths": ["epsilon 0.02", "epsilon 0.1", "epsilon 0.3"],
    }
    with pytest.raises(KeyError):
        value(planned(), "kernel/bandwith")


@pytest.mark.parametrize(
    ("delta", "training", "drawing"),
    [
        ({"variants": {"default": {"steps": 21}}}, True, False),
        ({"variants": {"default": {"change": "nothing", "label": "ours"}}}, False, False),
        ({"variants": {"paper": {"steps": 21}}}, False, False),
        ({"variants": {"default": {"settings": ["masked"]}}}, False, True),
        ({"sampling": {"temperature": 0.9}}, False, True),
        ({"sampling": {"batch": 7}}, False, False),
        ({"kernel": {"epsilons": [0.1]}}, False, True),
    ],
)
def test_a_variant_is_made_and_drawn_by_its_own_settings(
    delta: dict[str, Any], training: bool, drawing: bool
) -> None:
    changed = {
        key: value(planned(), key) != value(planned(delta), key)
        for key in ("training/default", "drawing/default")
    }
    assert changed == {"training/default": training, "drawing/default": drawing}


def test_every_option_of_a_stage_is_one_of_the_command_line() -> None:
    from inversescope.cli import COMMANDS, OPTIONS

    taken = {name for stage in STAGES.values() for name in stage.takes}
    taken |= {name for command in COMMANDS.values() for name in command.takes}
    assert taken <= set(OPTIONS)


def test_a_changed_file_of_a_local_model_is_another_input(tmp_path: Path) -> None:
    """Its size or time alone; pinned files are compared by their hash."""
    (tmp_path / "model.safetensors").write_text("a")
    model = {"source": "local", "path": str(tmp_path), "n_layers": 2, "n_heads": 2}
    values = {"experiments": {"ioi": {"task": "ioi", "model": "mine", "sites": ["L0H0"], "variants": []}}}
    config = parse_config({**values, "models": {"mine": model}})
    one = used(Plan(config)["ioi", "mine"], "model_files")
    assert list(one["model_files"]) == ["model.safetensors"]
    os.utime(tmp_path / "model.safetensors", (1, 1))
    other = used(Plan(config)["ioi", "mine"], "model_files")
    assert other != one
    pinned = parse_config({**values, "models": {"mine": {**model, "sha256": {"model.safetensors": "0"}}}})
    assert used(Plan(pinned)["ioi", "mine"], "model_files") == {"model_files": {}}


def test_files_of_a_chat_model_in_a_folder_are_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "notes.txt"):
        (folder / name).write_text("{}")
    chat = {"path": str(folder)}
    files = [f"{folder}/config.json", f"{folder}/model.safetensors"]
    assert planned().proposer_files == planned().labeller_files == []
    assert planned({"hypotheses": {"proposer": chat}}).proposer_files == files
    assert planned({"labeller": chat}).labeller_files == files
    absent = {"path": str(tmp_path / "absent")}
    assert planned({"hypotheses": {"proposer": absent}}).proposer_files == [absent["path"]], (
        "named if missing"
    )
    hub = {"source": "hub", "path": "some/chat", "revision": "0" * 40}
    assert planned({"hypotheses": {"proposer": hub}, "labeller": hub}).proposer_files == []


def test_weights_of_a_gguf_file_that_label_are_inputs() -> None:
    plan = Plan(load_config([Path(__file__).parents[2] / "config/config.yaml"]))
    (one,) = [e for e in plan.experiments if e.name == "icl_smollm2"]
    assert one.labeller_files == one.weights != []


def test_captions_name_each_bandwidth_with_its_experiments() -> None:
    """Of a variant that is shown at another one too."""
    plan = Plan(load_config([Path(__file__).parents[2] / "config/config.yaml"]))
    told = plan.bandwidth_label
    assert "1% of the prior (paper: ε = 0.1) (ioi_smollm2, icl_smollm2)" in told
    assert "1% of the prior (ravel_smollm2)" in told and "ε = 0.02 (counting_embedded)" in told
    one = Plan(
        plan.config.model_copy(update={"experiments": {"addition": plan.config.experiments["addition"]}})
    )
    assert one.bandwidth_label == "ε = 0.05"
