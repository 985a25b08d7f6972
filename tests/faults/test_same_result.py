"""The same tables wherever and however it runs: one core or two, other batches, jobs in another order. (SLURM: test_slurm.py.)"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from project import FILES, MODEL, copy_workflow, run, same_tables

from inversescope.lineage.records import read_records

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def one_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_workflow(tmp_path_factory.mktemp("one_core"))
    run(folder, "--cores", "1", targets=("tables",))
    return folder


def order(folder: Path) -> list[str]:
    """Outputs in the order in which their jobs began."""
    records = read_records(folder)
    return sorted(records, key=lambda output: (records[output].started, output))


@pytest.mark.parametrize("way", ["two cores", "other batches", "shuffled order"])
def test_tables_are_the_same_bytes(one_core: Path, tmp_path: Path, way: str) -> None:
    folder = copy_workflow(tmp_path)
    files, options = FILES, ("--cores", "2")
    if way == "other batches":
        # Samples at a time; states of a training; sites a process reads.
        (folder / "batches.yaml").write_text("sampling: {batch: 7}\nsave_every: 9\n")
        common = folder / "rules/common.smk"
        text = common.read_text()
        assert "\nSITES_PER_JOB = 10\n" in text
        common.write_text(text.replace("\nSITES_PER_JOB = 10\n", "\nSITES_PER_JOB = 2\n"))
        files = (*FILES, "batches.yaml")
    elif way == "shuffled order":
        rng = random.Random(0)
        targets = [f"results/ioi/{MODEL}/exact/{site}.parquet" for site in ("L1H1", "L1.resid_post", "L1H0")]
        targets += [f"data/ioi/{MODEL}/target/candidates/s2/score.csv", "data/ioi/prompts/train.parquet"]
        rng.shuffle(targets)
        options = ("--cores", "1", "--prioritize", *targets)
    run(folder, *options, targets=("tables",), files=files)
    if way == "shuffled order":
        assert order(folder) != order(one_core)
    same_tables(one_core, folder)
