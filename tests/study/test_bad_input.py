"""Bad input ends in exit status 2 and one line that names culprit and remedy: no traceback, no half-written results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import MODEL, run, write_config
from safetensors.torch import load_file, save_file

from inversescope.errors import InputError
from inversescope.store import (
    file_hash,
    read_activations,
    read_json,
    read_table,
    write_activations,
    write_json,
    write_table,
)

Copied = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
DATA = Path("data/ioi") / MODEL


def refused(capsys: Capture, *arguments: Any, culprit: str, remedy: str, before: int = 0) -> None:
    """The command exits 2 and its last line is the only one about it; `before` it there may be lines of progress."""
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 1 + before, err
    assert [line.startswith("error: ") for line in lines] == [False] * before + [True]
    told = lines[-1].removeprefix("error: ")
    assert culprit in told and remedy in told and told.endswith("."), told
    assert "Traceback" not in err


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A configured project in which nothing has run."""
    write_config(tmp_path)
    return tmp_path


# Configuration


@pytest.mark.parametrize(
    ("delta", "culprit", "remedy"),
    [
        (
            {"kernel": {"epsilon": -0.1}},
            "kernel.epsilon: kernel bandwidth epsilon must be",
            "see config/schema",
        ),
        ({"variants": {"paper": {"step": 1}}}, "unknown key 'variants.paper.step'", "check its spelling"),
    ],
)
def test_configuration(empty: Path, capsys: Capture, delta: dict, culprit: str, remedy: str) -> None:
    """What is wrong with one, with file and line, is in unit/test_config.py; here that every command says so before work starts."""
    write_config(empty, delta)
    refused(capsys, empty, "make_prompts", "--split", "test", culprit=culprit, remedy=remedy)
    assert not (empty / "data").exists()


def test_configuration_that_is_no_yaml(empty: Path, capsys: Capture) -> None:
    (empty / "config/config.yaml").write_text("seed: [1\nkernel: }")
    refused(
        capsys,
        empty,
        "make_prompts",
        "--split",
        "test",
        culprit="config/config.yaml:2 is not valid YAML",
        remedy="mend the file",
    )
    (empty / "config/config.yaml").unlink()
    refused(
        capsys, empty, "train_backbone", culprit="config/config.yaml does not exist", remedy="check --config"
    )


# Sites, variants, models


@pytest.mark.parametrize(
    ("site", "culprit"),
    [
        ("L0X1", "L0X1"),
        ("nonsense", "nonsense"),
        ("L0H7", "L0H7"),
        ("L5H0", "L5H0"),
        ("L9.resid_post", "L9.resid_post"),
        ("blocks.1.attn.hook_result.2", "blocks.1.attn.hook_result.2"),
        ("../../etc", "../../etc"),
        ("L*H*", "L*H* names 4 sites"),
    ],
)
@pytest.mark.parametrize("stage", ["compute_exact", "sample_prompts"])
def test_sites_that_there_are_not(empty: Path, capsys: Capture, stage: str, site: str, culprit: str) -> None:
    variant = ["--variant", "paper"] if stage == "sample_prompts" else []
    refused(capsys, empty, stage, "--site", site, *variant, culprit=culprit, remedy=". ")


def test_head_out_of_range_names_the_range(empty: Path, capsys: Capture) -> None:
    refused(capsys, empty, "compute_exact", "--site", "L1H2", culprit="L1H2", remedy="0 to 1")
    write_config(empty, {"experiments": {"ioi": {"sites": ["L0H0", "L2H0"]}}})
    refused(capsys, empty, "make_prompts", "--split", "test", culprit="L2H0", remedy="0 to 1")


def test_unknown_names(empty: Path, capsys: Capture) -> None:
    refused(
        capsys,
        empty,
        "train_generator",
        "--variant",
        "papre",
        culprit="unknown variant 'papre'",
        remedy="choose one of default, few, paper, told",
    )
    refused(
        capsys,
        empty,
        "train_target",
        "--candidate",
        "x",
        culprit="unknown candidate 'x'",
        remedy="choose one of s",
    )
    config = str(empty / "config/config.yaml")
    from inversescope.cli import main

    for options, culprit in (
        (["--model", "gpt5"], "no experiment reads model 'gpt5' on task 'ioi'"),
        (["--model", MODEL, "--task", "ravel"], f"no experiment reads model '{MODEL}' on task 'ravel'"),
    ):
        assert main(["train_backbone", "--config", config, "--root", str(empty), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert culprit in line and f"beside ioi/{MODEL}" in line


def test_unknown_generator(study: Path, capsys: Capture) -> None:
    refused(
        capsys,
        study,
        "train_generator",
        "--variant",
        "paper",
        "--generator",
        "vec2text",
        culprit="unknown generator 'vec2text'",
        remedy="choose inversescope",
    )


def test_variant_on_a_site_that_is_not_read(copied: Copied, capsys: Capture) -> None:
    root = copied({"variants": {"told": {"sites": ["L0H1"]}}})
    refused(
        capsys,
        root,
        "train_generator",
        "--variant",
        "told",
        culprit="variant told is trained on site L0H1, which the experiment does not read",
        remedy="add it",
    )


# Prompts


def test_split_without_any_name_pair(empty: Path, capsys: Capture) -> None:
    write_config(empty, {"ioi": {"held_out_pairs": 0.001}})
    for split in ("test", "train"):
        refused(
            capsys,
            empty,
            "make_prompts",
            "--split",
            split,
            culprit="the test split of task ioi is empty",
            remedy="held_out_pairs",
        )
    assert not list(empty.glob("data/**/*.parquet"))


def test_more_prompts_than_there_are(empty: Path, capsys: Capture) -> None:
    write_config(empty, {"experiments": {"ioi": {"n_test": 100_000}}})
    refused(
        capsys,
        empty,
        "make_prompts",
        "--split",
        "test",
        culprit="100000 distinct prompts were asked of the test split",
        remedy="lower",
    )
    write_config(empty, {"experiments": {"ioi": {"n_train": 720}}})
    refused(
        capsys,
        empty,
        "make_prompts",
        "--split",
        "train",
        culprit="the prior has 720 prompts, too few for n_train = 720",
        remedy="lower n_train",
    )


def test_too_many_names(empty: Path, capsys: Capture) -> None:
    write_config(empty, {"ioi": {"n_names": 5000}})
    refused(
        capsys, empty, "make_prompts", "--split", "test", culprit="n_names is 5000, but there are", remedy=""
    )


# Upstream files


@pytest.mark.parametrize(
    ("gone", "stage", "rule"),
    [
        (
            "data/ioi/prompts/reference.parquet",
            ["extract_activations", "--split", "reference"],
            "make_prompts",
        ),
        ("data/ioi/prompts/train.parquet", ["train_generator", "--variant", "paper"], "make_prompts"),
        (DATA / "target/target.json", ["extract_activations", "--split", "reference"], "select_target"),
        (DATA / "target/target.json", ["train_backbone"], "select_target"),
        (
            DATA / "checkpoints/backbone/meta.json",
            ["train_generator", "--variant", "paper"],
            "train_backbone",
        ),
        (
            DATA / "activations/reference/L0H0.safetensors",
            ["train_generator", "--variant", "paper"],
            "extract_activations",
        ),
        (
            DATA / "checkpoints/inversescope/told/meta.json",
            ["sample_prompts", "--variant", "told", "--site", "L0H0"],
            "train_generator",
        ),
        (
            DATA / "activations/reference/L0H0.safetensors",
            ["run_mcmc", "--site", "L0H0"],
            "extract_activations",
        ),
        (
            DATA / "activations/reference/L0H0.safetensors",
            ["compute_exact", "--site", "L0H0"],
            "extract_activations",
        ),
        (
            Path("results/ioi") / MODEL / "exact/L0H0.parquet",
            ["estimate_fcr", "--variant", "paper", "--site", "L0H0"],
            "compute_exact",
        ),
        (
            Path("results/ioi") / MODEL / "samples/inversescope/paper/L0H0.parquet",
            ["estimate_fcr", "--variant", "paper", "--site", "L0H0"],
            "sample_prompts",
        ),
        (Path("results/ioi") / MODEL / "fcr/L1H1.csv", ["collect_tables"], "estimate_fcr"),
        (DATA / "target/candidates/s0/target.json", ["score_target", "--candidate", "s0"], "train_target"),
    ],
)
def test_missing_file_names_the_rule_that_makes_it(
    copied: Copied, capsys: Capture, gone: Path | str, stage: list[str], rule: str
) -> None:
    root = copied()
    (root / gone).unlink(missing_ok=True)
    refused(capsys, root, *stage, culprit=f"{gone} does not exist", remedy=f"run the rule {rule}")


# Activations


def test_activations_with_nan(copied: Copied, capsys: Capture) -> None:
    root = copied()
    path = root / DATA / "activations/reference/L1H1.safetensors"
    z, meta = read_activations(path)
    z = np.array(z)
    z[41, 2] = np.nan
    write_activations(path, z, meta)
    before = sorted((root / DATA / "checkpoints").rglob("*"))
    refused(
        capsys,
        root,
        "train_generator",
        "--variant",
        "paper",
        culprit="L1H1.safetensors holds NaN or infinity, first in row 41",
        remedy="rerun extract_activations",
    )
    assert sorted((root / DATA / "checkpoints").rglob("*")) == before


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_activations(copied: Copied, capsys: Capture, kept: int) -> None:
    root = copied()
    path = root / DATA / "activations/reference/L0H0.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(
        capsys,
        root,
        "compute_exact",
        "--site",
        "L0H0",
        culprit="L0H0.safetensors is cut short",
        remedy="Delete it and rerun extract_activations",
    )


@pytest.mark.parametrize(
    "stage",
    [
        ["compute_exact", "--site", "L0H0"],
        ["train_generator", "--variant", "paper"],
        ["sample_prompts", "--variant", "paper", "--site", "L0H0"],
        ["run_mcmc", "--site", "L0H0"],
        ["estimate_fcr", "--variant", "paper", "--site", "L0H0"],
    ],
)
def test_activations_of_other_prompts(copied: Copied, capsys: Capture, stage: list[str]) -> None:
    root = copied()
    path = root / "data/ioi/prompts/reference.parquet"
    write_table(read_table(path).iloc[::-1], path)  # the same prompts in another order
    refused(
        capsys,
        root,
        *stage,
        culprit="activations/reference/L0H0.safetensors: prompt hash is",
        remedy="rerun the stage that writes it",
    )


def test_prompts_that_were_not_run(copied: Copied, capsys: Capture) -> None:
    """Part of the prior was extracted, as if all of it had been."""
    root = copied()
    path = root / "data/ioi/prompts/reference.parquet"
    write_table(read_table(path).iloc[::2], path)
    assert run(root, "extract_activations", "--split", "reference") == 0
    for stage in (["compute_exact", "--site", "L0H0"], ["train_generator", "--variant", "paper"]):
        refused(
            capsys,
            root,
            *stage,
            culprit="is not among those whose activations were extracted",
            remedy="rerun make_prompts for all splits, then extract_activations",
        )


def test_a_split_of_an_enumerated_prior_is_not_extracted(copied: Copied, capsys: Capture) -> None:
    stage = ["extract_activations", "--split", "train"]
    refused(capsys, copied(), *stage, culprit="activations of split train", remedy="extract split reference")


def test_truncated_checkpoints_and_tables(copied: Copied, capsys: Capture) -> None:
    root = copied()
    model = root / DATA / "checkpoints/inversescope/told/model.safetensors"
    model.write_bytes(model.read_bytes()[:-8])
    stage = ["sample_prompts", "--variant", "told", "--site", "L0H0"]
    refused(
        capsys,
        root,
        *stage,
        culprit="told/model.safetensors is cut short",
        remedy="rerun the stage that trains it",
    )
    meta = root / DATA / "checkpoints/inversescope/told/meta.json"
    meta.write_text(meta.read_text()[:-40])
    shutil.copy(root / DATA / "checkpoints/inversescope/paper/model.safetensors", model)
    refused(
        capsys, root, *stage, culprit="told/meta.json is not JSON", remedy="rerun the stage that writes it"
    )
    exact = root / "results/ioi" / MODEL / "exact/L0H0.parquet"
    exact.write_bytes(exact.read_bytes()[:-30])
    refused(
        capsys,
        root,
        "estimate_fcr",
        "--variant",
        "paper",
        "--site",
        "L0H0",
        culprit="exact/L0H0.parquet cannot be read",
        remedy="rerun the stage that writes it",
    )


# Models and tokenizers


def other_tokenizer(root: Path, vouched: bool = True) -> None:
    """The target's tokenizer with two words swapped; `vouched` as if the target had been written with it."""
    path = root / DATA / "target/tokenizer.json"
    about = read_json(path)
    words = about["model"]["vocab"]
    a, b = [word for word in words if word.startswith(" ")][:2]
    words[a], words[b] = words[b], words[a]
    write_json(about, path)
    if vouched:
        target = read_json(path.with_name("target.json"))
        target["sha256"]["tokenizer.json"] = file_hash(path)
        write_json(target, path.with_name("target.json"))


def test_tokenizer_that_was_changed_under_the_target(copied: Copied, capsys: Capture) -> None:
    root = copied()
    other_tokenizer(root, vouched=False)
    for stage in (
        ["extract_activations", "--split", "reference"],
        ["sample_prompts", "--variant", "paper", "--site", "L0H0"],
    ):
        culprit = "target/tokenizer.json is not the file that"
        refused(capsys, root, *stage, culprit=culprit, remedy="rerun the stage that writes it")


def test_generator_of_another_tokenizer(copied: Copied, capsys: Capture) -> None:
    root = copied()
    other_tokenizer(root)
    refused(
        capsys,
        root,
        "sample_prompts",
        "--variant",
        "paper",
        "--site",
        "L0H0",
        culprit="inversescope/paper/meta.json: target is",
        remedy="rerun the stage that writes it",
    )
    refused(
        capsys,
        root,
        "train_generator",
        "--variant",
        "paper",
        culprit="checkpoints/backbone was trained with another tokenizer",
        remedy="rerun train_backbone",
    )


def other_weights(root: Path) -> None:
    """The target with other weights, as if it had been made so."""
    path = root / DATA / "target/model.safetensors"
    save_file({name: 1.1 * value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    target = read_json(path.with_name("target.json"))
    target["sha256"]["model.safetensors"] = file_hash(path)
    write_json(target, path.with_name("target.json"))


def test_what_was_made_of_another_target_is_refused(copied: Copied, capsys: Capture) -> None:
    """Activations, then, when these are made anew, all that was made of the old ones."""
    root = copied()
    other_weights(root)
    variant, site = ["--variant", "paper"], ["--site", "L0H0"]
    stages = (["compute_exact", *site], ["train_generator", *variant], ["sample_prompts", *variant, *site])
    for stage in (*stages, ["run_mcmc", *site], ["estimate_fcr", *variant, *site]):
        refused(capsys, root, *stage, culprit=": target is '", remedy="rerun the stage that writes it")
    assert run(root, "extract_activations", "--split", "reference") == 0
    made = {
        "paper/meta.json": ["sample_prompts", *variant, *site],
        "exact/L0H0.parquet": ["estimate_fcr", *variant, *site],
        "mcmc/L0H0.parquet": ["estimate_fcr", *variant, *site],
        "samples/inversescope/paper/L0H0.parquet": ["estimate_fcr", *variant, *site],
    }
    again = {"exact/L0H0.parquet": "compute_exact", "mcmc/L0H0.parquet": "run_mcmc"}
    for file, stage in made.items():
        refused(capsys, root, *stage, culprit=f"{file}: target is '", remedy="rerun the stage that writes it")
        if file in again:
            assert run(root, again[file], *site) == 0


def test_local_model_whose_weights_are_exchanged_between_two_jobs(
    study: Path, empty: Path, capsys: Capture
) -> None:
    there = empty / "model"
    shutil.copytree(
        study / DATA / "target", there, ignore=shutil.ignore_patterns("candidates", "target.json")
    )
    write_config(
        empty, {"models": {MODEL: {"source": "local", "path": str(there), "n_layers": 2, "n_heads": 2}}}
    )
    assert run(empty, "make_prompts", "--split", "reference") == 0
    assert run(empty, "fetch_target") == 0
    weights = load_file(there / "model.safetensors")
    changed = {name: value + 0.1 for name, value in weights.items()}
    save_file(changed, there / "model.safetensors", metadata={"format": "pt"})
    stage = ["extract_activations", "--split", "reference"]
    culprit = "model/model.safetensors is not the file that"
    refused(capsys, empty, *stage, culprit=culprit, remedy="run fetch_target again")
    assert run(empty, "fetch_target") == run(empty, *stage) == 0


def test_backbone_that_does_not_learn_the_prior(copied: Copied, capsys: Capture) -> None:
    root = copied({"backbone": {"gate_in_prior": 0.9, "steps": 2}})
    before = (root / DATA / "checkpoints/backbone/model.safetensors").read_bytes()
    refused(
        capsys,
        root,
        "train_backbone",
        before=2,
        culprit="the backbone does not know the prior: in-prior rate 0.0",
        remedy="raise backbone.steps",
    )
    assert (root / DATA / "checkpoints/backbone/model.safetensors").read_bytes() == before


def test_backbone_too_short_for_the_prompts(copied: Copied, capsys: Capture) -> None:
    root = copied({"backbone": {"shape": {"n_positions": 8}}})
    refused(
        capsys,
        root,
        "train_backbone",
        culprit="the backbone has 8 positions, but prompts take up to",
        remedy="raise backbone.shape.n_positions",
    )


def test_target_too_short_for_the_prompts(empty: Path, capsys: Capture) -> None:
    write_config(empty, {"models": {MODEL: {"shape": {"n_positions": 6}}}})
    refused(
        capsys,
        empty,
        "train_target",
        "--candidate",
        "s0",
        culprit="candidate s0 has 6 positions, but prompts take up to",
        remedy="raise models.tiny.shape.n_positions",
    )


def test_diverging_training(copied: Copied, capsys: Capture) -> None:
    root = copied({"variants": {"paper": {"learning_rate": 1e30, "clip": None, "warmup": 0}}})
    refused(
        capsys,
        root,
        "train_generator",
        "--variant",
        "paper",
        culprit="train_generator paper: the loss is",
        remedy="lower the learning rate",
    )


def test_no_candidate_target_passes_the_gate(tmp_path: Path, capsys: Capture) -> None:
    shape = {"n_layers": 1, "n_heads": 2, "d_model": 16}
    training = {"max_steps": 2, "gate_accuracy": 1.0, "batch_size": 8}
    delta = {
        "models": {MODEL: {"shape": shape, "training": training}},
        "experiments": {"ioi": {"sites": ["L0H*"]}},
        "variants": {name: {"sites": None} for name in ("paper", "default", "told", "few")},
    }
    write_config(tmp_path, delta)
    assert run(tmp_path, "train_target", "--candidate", "s0") == 0
    assert run(tmp_path, "score_target", "--candidate", "s0") == 0
    refused(
        capsys,
        tmp_path,
        "select_target",
        culprit=f"no candidate of {MODEL} reached the gate",
        remedy=f"raise models.{MODEL}.training.max_steps",
    )


def test_local_model_that_is_not_there(empty: Path, capsys: Capture) -> None:
    write_config(empty, {"models": {MODEL: {"source": "local", "path": str(empty / "nowhere")}}})
    refused(capsys, empty, "fetch_target", culprit="nowhere holds no model", remedy="Check 'path'")


def test_local_model_whose_tokenizer_splits_names(study: Path, empty: Path, capsys: Capture) -> None:
    """A model that is there, but knows fewer names than the task has."""
    model = {"source": "local", "path": str(study / DATA / "target")}
    write_config(empty, {"models": {MODEL: model}, "ioi": {"n_names": 12}})
    refused(capsys, empty, "fetch_target", culprit="cannot encode '", remedy="Remove that word from the task")
    write_config(empty, {"models": {MODEL: model}})
    assert run(empty, "fetch_target") == 0
    assert read_json(empty / DATA / "target/target.json")["n_heads"] == 2


def test_hub_models_that_cannot_be_downloaded(empty: Path) -> None:
    """Without a network and with an empty cache; in a process of its own, since the hub's client reads its settings once."""
    hub = {"path": "nobody/no-such-model", "revision": "0" * 40}
    write_config(
        empty,
        {
            "models": {MODEL: {"source": "hub", **hub, "n_layers": 2, "n_heads": 2}},
            "backbone": {"init": "hub", **hub},
        },
    )
    stages = ("fetch_target", "train_backbone")
    code = f"from conftest import Path, run; print([run(Path({str(empty)!r}), stage) for stage in {stages}])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(empty / "hub"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[2, 2]\n", done.stderr
    for line in done.stderr.splitlines():
        assert line.startswith("error: ") and "nobody/no-such-model" in line and "HF_HOME" in line
    assert done.stderr.count("\n") == 2 and not list(empty.glob("data/ioi/*/target/target.json"))


# The error itself and the log


def test_errors_are_one_sentence_for_the_culprit_and_one_for_the_remedy() -> None:
    error = InputError("file x is bad:\n  line 3\n", "mend it.")
    assert str(error) == "file x is bad: line 3. mend it." and error.remedy == "mend it"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full here")
def test_printing_to_a_full_disk_is_one_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "inversescope.cli", "config", "show", "kernel.epsilon"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "error: there is no room for what is written. Make room, then run it again\n"


def test_log_holds_the_error_too(empty: Path, capsys: Capture) -> None:
    log = empty / "logs/deep/x.log"
    refused(
        capsys,
        empty,
        "train_backbone",
        "--log",
        str(log),
        culprit="target.json does not exist",
        remedy="select_target",
    )
    assert log.read_text().startswith("error: ") and len(log.read_text().splitlines()) == 1


def test_a_fault_of_ours_is_told_apart(empty: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 1 and a traceback: a bug is not the reader's bad input."""
    from inversescope.prompts import stages as prompts

    monkeypatch.setattr(prompts, "write_table", lambda *arguments: 1 / 0)
    assert run(empty, "make_prompts", "--split", "test") == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_config_command_tells_the_same(tmp_path: Path, capsys: Capture) -> None:
    from inversescope.cli import main

    write_config(tmp_path)
    assert main(["config", "--root", str(tmp_path)]) == 0
    assert "valid" in capsys.readouterr().out
    (tmp_path / "delta.yaml").write_text(yaml.safe_dump({"kernel": {"epsilon": -1}}))
    files = [str(tmp_path / "config/config.yaml"), str(tmp_path / "delta.yaml")]
    assert main(["config", "--config", files[0], "--config", files[1]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "kernel.epsilon" in line and "delta.yaml" in line
