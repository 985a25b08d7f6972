"""Files removed, cut short, changed by a bit; a full disk: recovery, or one error that names file and remedy."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, VARIANTS, each, make_target, run

from inversescope.errors import InputError
from inversescope.lineage.rerun import compare
from inversescope.store import save_checkpoint, write_activations, write_json, write_table

Copied = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
DATA = Path("data/ioi") / MODEL
RESULTS = Path("results/ioi") / MODEL
SAMPLES = RESULTS / "samples/inversescope/told"
ESTIMATE = ["estimate_fcr", *each("--variant", VARIANTS), "--site", "L0H0"]
SAMPLE = ["sample_prompts", "--variant", "told", "--site", "L0H0", "--site", "L0H1"]
# Kind of artifact: the file, a stage that reads it, the stage that makes it.
KINDS: dict[str, tuple[Path, list[str], list[str]]] = {
    "prompts": (
        Path("data/ioi/prompts/test.parquet"),
        ["compute_exact", "--site", "L0H0"],
        ["make_prompts", "--split", "test"],
    ),
    "activations": (
        DATA / "activations/reference/L0H0.safetensors",
        ["compute_exact", "--site", "L0H0"],
        ["extract_activations", "--split", "reference"],
    ),
    "target weights": (
        DATA / "target/model.safetensors",
        ["extract_activations", "--split", "reference"],
        [],
    ),
    "target tokenizer": (DATA / "target/tokenizer.json", ["extract_activations", "--split", "reference"], []),
    "backbone": (
        DATA / "checkpoints/backbone/model.safetensors",
        ["train_generator", "--variant", "told"],
        ["train_backbone"],
    ),
    "generator": (
        DATA / "checkpoints/inversescope/told/model.safetensors",
        ["sample_prompts", "--variant", "told", "--site", "L0H0"],
        ["train_generator", "--variant", "told"],
    ),
    "candidates": (
        SAMPLES / "L0H0.parquet",
        ESTIMATE,
        ["sample_prompts", "--variant", "told", "--site", "L0H0"],
    ),
    "neighbours' log q": (
        SAMPLES / "L0H0.cache.parquet",
        ESTIMATE,
        ["sample_prompts", "--variant", "told", "--site", "L0H0"],
    ),
    "chains": (RESULTS / "mcmc/L0H0.parquet", ESTIMATE, ["run_mcmc", "--site", "L0H0"]),
    "exact values": (RESULTS / "exact/L0H0.parquet", ESTIMATE, ["compute_exact", "--site", "L0H0"]),
}
# Read by the same functions, but text: half of it, or none, is noticed; a changed digit only by its hash (audit --verify).
TEXTS: dict[str, tuple[Path, list[str], list[str]]] = {
    "checkpoint description": (
        DATA / "checkpoints/inversescope/told/meta.json",
        ["sample_prompts", "--variant", "told", "--site", "L0H0"],
        ["train_generator", "--variant", "told"],
    ),
    "rates of a site": (RESULTS / "fcr/L0H0.csv", ["collect_tables"], ESTIMATE),
}


# What the readers of Parquet files make of them.
MADE = {"compute_exact": "exact/L0H0.parquet", "estimate_fcr": "fcr/L0H0.csv"}


def told(capsys: Capture, root: Path, stage: list[str], name: str) -> str:
    """The one line in which a stage refuses, which names the file and says what to do."""
    capsys.readouterr()
    status = run(root, *stage)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1, (status, lines)
    assert name in lines[0], lines[0]
    assert any(word in lines[0] for word in ("run the rule", "rerun", "Rerun", "Run the stage")), lines[0]
    return lines[0]


def remade(root: Path, study: Path, kind: str, path: Path, maker: list[str]) -> None:
    """Follow the remedy: the file is as it was."""
    (root / path).unlink(missing_ok=True)
    if maker:
        assert run(root, *maker) == 0
    else:
        make_target(root)
    assert compare(study / path, root / path).startswith("identical"), kind


@pytest.mark.parametrize("kind", [*KINDS, *TEXTS])
def test_a_lost_or_halved_file_is_named_and_made_again(
    study: Path, copied: Copied, capsys: Capture, kind: str
) -> None:
    path, reader, maker = (KINDS | TEXTS)[kind]
    root = copied()
    whole = (root / path).read_bytes()
    (root / path).unlink()
    told(capsys, root, reader, path.name if "target" not in kind else "target")
    (root / path).write_bytes(whole[: len(whole) // 2])
    if path.suffix == ".csv":
        # Half a table may end at the end of a line, where nothing tells; anywhere else its last line is not whole.
        (root / path).write_bytes(whole[: whole.rindex(b",")][:-1])
    told(capsys, root, reader, path.name if "target" not in kind else "target")
    remade(root, study, kind, path, maker)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_refused_or_harmless(
    study: Path, copied: Copied, capsys: Capture, kind: str
) -> None:
    path, reader, _ = KINDS[kind]
    root = copied()
    whole = (root / path).read_bytes()
    rng = random.Random(kind)
    refused = 0
    for position in (len(whole) // 2, 3, *(rng.randrange(len(whole)) for _ in range(4))):
        data = bytearray(whole)
        data[position] ^= 1 << rng.randrange(8)
        (root / path).write_bytes(data)
        capsys.readouterr()
        status = run(root, *reader)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if status == 2:
            assert len(lines) == 1 and (path.name in lines[0] or path.stem in lines[0]), lines
            refused += 1
        else:
            # What Parquet's footer says besides the data (statistics, names of encodings) has no checksum.
            assert status == 0 and path.suffix == ".parquet", (status, position)
            result = RESULTS / MADE[reader[0]]
            assert (root / result).read_bytes() == (study / result).read_bytes(), position
    # Of the targets' prompts only the numbers are read here: their activations are looked up by them.
    assert refused >= (1 if kind == "prompts" else 2)
    (root / path).write_bytes(whole)
    assert run(root, *reader) == 0


# ----------------------------------------------------------------------------------------------------------------- a full disk
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


BIG: dict[str, Callable[[Path], Any]] = {
    "table.parquet": lambda path: write_table(
        pd.DataFrame({"x": np.random.default_rng(0).random(90_000)}), path
    ),
    "table.csv": lambda path: write_table(pd.DataFrame({"x": np.random.default_rng(0).random(90_000)}), path),
    "z.safetensors": lambda path: write_activations(path, np.ones((90_000, 2), np.float32), {"site": "L0H0"}),
    "model.safetensors": lambda path: save_checkpoint(path.parent, {"w": np.ones(90_000)}, {}),
    "about.json": lambda path: write_json(list(range(90_000)), path),
}


@pytest.mark.parametrize("name", BIG)
def test_a_full_disk_is_told_and_leaves_the_old_file(disk: Path, name: str) -> None:
    path = disk / name
    path.write_text("old")
    with pytest.raises(
        InputError, match=rf"{name} cannot be written \(No space left on device\)\. Free some space"
    ):
        BIG[name](path)
    assert path.read_text() == "old" and [p.name for p in disk.iterdir()] == [name]


def test_a_stage_goes_on_once_there_is_room(disk: Path, study: Path, copied: Copied, capsys: Capture) -> None:
    root = copied()
    link = root / DATA / "activations"
    for path in link.rglob("*.safetensors"):
        path.unlink()
    for folder in sorted(link.iterdir()):
        folder.rmdir()
    link.rmdir()
    link.symlink_to(disk)
    (disk / "filling").write_bytes(b"x" * 240 * 1024)
    capsys.readouterr()
    assert run(root, "extract_activations", "--split", "reference") == 2
    err = capsys.readouterr().err
    assert "cannot be written (No space left on device)" in err and "Traceback" not in err
    assert not [p for p in disk.rglob("*") if ".part" in p.name]
    (disk / "filling").unlink()
    assert run(root, "extract_activations", "--split", "reference") == 0
    for path in (study / DATA / "activations/reference").glob("*.safetensors"):
        assert (disk / "reference" / path.name).read_bytes() == path.read_bytes()
