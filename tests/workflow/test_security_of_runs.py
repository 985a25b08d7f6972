"""No job leaves the tree, and no token is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from project import FILES, copy_workflow, snakemake
from snakemake.io import regex_from_filepattern

from inversescope.sites import SITE_PATTERN


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_workflow(tmp_path_factory.mktemp("workflow"))


def test_no_rule_makes_a_path_that_leaves_the_tree(workflow: Path) -> None:
    targets = (
        "data/../../prompts/test.parquet",
        "data/ioi/prompts/../../../evil.parquet",
        "data/ioi/gpt2-embedded/activations/test/../../evil.safetensors",
        "results/ioi/gpt2-embedded/exact/..%2Fevil.parquet",
        "data/ioi/gpt2-embedded/checkpoints/inversescope/$(touch evil)/meta.json",
    )
    for target in targets[1:3]:
        assert "MissingRuleException" in snakemake(workflow, "--dry-run", "--", target, check=False)
    pattern = f"data/{{task,ioi}}/{{model,gpt2-embedded}}/{{rest}}/{{site,{SITE_PATTERN}}}.safetensors"
    for path in targets:
        assert not re.match(regex_from_filepattern(pattern), path)
    assert not list(workflow.rglob("*evil*"))


TOKEN = "hf_averysecrettokenthatmustnotbewritten"
SECRETS = {
    name: TOKEN for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN")
}


def files_with(text: str, folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def test_no_token_is_written(workflow: Path, tmp_path: Path) -> None:
    """By a workflow that succeeds, one that fails, and a model that cannot be fetched; nor is it printed."""
    files = ["--configfile", *FILES]
    done = snakemake(workflow, *files, "--", "data/ioi/prompts/test.parquet", **SECRETS)
    far = {"source": "hub", "path": "no/such", "revision": "0" * 40, "n_layers": 2, "n_heads": 2}
    delta = {"models": {"far": far}, "experiments": {"ioi": {"model": "far"}}}
    (workflow / "far.yaml").write_text(json.dumps(delta))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    target = "data/ioi/far/target/target.json"
    verbose = ["--verbose", "--", target]
    failed = snakemake(workflow, *files, "far.yaml", *verbose, check=False, **SECRETS, **offline)
    assert "no/such" in failed
    assert (workflow / "logs/fetch_target/ioi/far.log").read_text().startswith("error: ")
    assert not files_with(TOKEN, workflow) and not files_with(TOKEN, tmp_path)
    assert TOKEN not in done + failed
