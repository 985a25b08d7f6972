"""The same tables however it runs: other blocks, order, batch. (Two cores: test_end_to_end.py; SLURM: test_slurm.py.)"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from project import DATA, FILES, MODEL, RESULTS, TABLES, copy_workflow, in_blocks_of, run, same_tables

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


@pytest.mark.parametrize("way", ["other blocks", "shuffled order"])
def test_tables_are_the_same_bytes(one_core: Path, tmp_path: Path, way: str) -> None:
    folder = copy_workflow(tmp_path)
    files, options = FILES, ("--cores", "2")
    if way == "other blocks":
        # Steps between two states of a training; sites a process reads.
        (folder / "blocks.yaml").write_text("save_every: 9\n")
        in_blocks_of(folder, 2)
        files = (*FILES, "blocks.yaml")
    elif way == "shuffled order":
        rng = random.Random(0)
        targets = [f"results/ioi/{MODEL}/exact/{site}.parquet" for site in ("L1H1", "L1.resid_post", "L1H0")]
        targets += [f"data/ioi/{MODEL}/target/candidates/s1/score.csv", "data/ioi/prompts/train.parquet"]
        rng.shuffle(targets)
        options = ("--cores", "1", "--prioritize", *targets)
    run(folder, *options, targets=("tables",), files=files)
    if way == "shuffled order":
        assert order(folder) != order(one_core)
    same_tables(one_core, folder)


def test_tables_agree_within_rounding_for_another_batch_size(one_core: Path, tmp_path: Path) -> None:
    """Candidates are drawn anew in batches of seven, and all that follows from them is made again."""
    folder = tmp_path / "study"
    shutil.copytree(one_core, folder)
    shutil.rmtree(folder / RESULTS / "samples")
    (folder / "batches.yaml").write_text("sampling: {batch: 7}\n")
    run(folder, "--cores", "1", targets=("tables",), files=(*FILES, "batches.yaml"))
    generator = DATA / "checkpoints/inversescope/paper/model.safetensors"
    assert (folder / generator).stat().st_mtime == (one_core / generator).stat().st_mtime
    for table in TABLES:  # of six digits: the last one may be rounded the other way
        one, other = (pd.read_csv(root / table) for root in (folder, one_core))
        pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-6, atol=2e-6)
