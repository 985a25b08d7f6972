"""Copies of the workflow that tests run as a user would: by Snakemake, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from inversescope.config import merge

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "src", "config", "report", "profiles", "envs")
SNAKEMAKE = (sys.executable, "-m", "snakemake")
FILES = ("config/config.yaml", "config/test/smallest.yaml")
#: Where upstream's files lie that some tests read, and are skipped without: RAVEL's tables, word lists, a published model.
UPSTREAM = Path(os.environ.get("INVERSESCOPE_MIRROR", ROOT.parent / "shared/data"))
MODEL = "smallest"
DATA = Path("data/ioi") / MODEL
RESULTS = Path("results/ioi") / MODEL
TABLES = [RESULTS / name for name in ("fcr.csv", "refusal.csv", "coverage.csv")]


def copy_workflow(folder: Path) -> Path:
    """The workflow in a folder of its own, nothing run."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / part, folder / part)
    return folder


def in_blocks_of(folder: Path, sites: int) -> None:
    """Have a job of a copy of the workflow read so many sites."""
    plan = folder / "src/inversescope/workflow/plan.py"
    text = plan.read_text()
    assert "\nSITES_PER_JOB = 10\n" in text
    plan.write_text(text.replace("\nSITES_PER_JOB = 10\n", f"\nSITES_PER_JOB = {sites}\n"))


def edit_config(root: Path, delta: dict[str, Any]) -> None:
    """Lay a delta over the default configuration, in place."""
    file = root / "config/config.yaml"
    file.write_text(yaml.safe_dump(merge(yaml.safe_load(file.read_text()), delta), sort_keys=False))


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What a shell in the folder would have."""
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "src"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONHASHSEED": "0",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **more,
    }


def execute(folder: Path, *command: str, check: bool = True, timeout: float = 900, **more: str) -> str:
    """Run a command in the folder, with more in its environment; returns all that it prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",  # a locale may be another one than UTF-8
        timeout=timeout,
    )
    assert not check or done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def snakemake(folder: Path, *arguments: str, check: bool = True, **more: str) -> str:
    """Run Snakemake in the folder, on the default configuration unless told otherwise."""
    return execute(folder, *SNAKEMAKE, "--cores", "2", *arguments, check=check, **more)


def planned(folder: Path, *targets: str) -> list[str]:
    """Files that the jobs behind some targets write."""
    summary = snakemake(folder, "--summary", *targets)
    files = [line.split("\t")[0] for line in summary.splitlines() if line.startswith(("data/", "results/"))]
    assert len(files) > 100
    return files


def command(
    *options: str, targets: tuple[str, ...] = ("all",), files: tuple[str, ...] = FILES
) -> tuple[str, ...]:
    """Snakemake's command line for a study."""
    return (*SNAKEMAKE, "--configfile", *files, *(options or ("--cores", "2")), "--", *targets)


def run(
    folder: Path,
    *options: str,
    targets: tuple[str, ...] = ("all",),
    files: tuple[str, ...] = FILES,
    check: bool = True,
    timeout: float = 900,
) -> str:
    """Run a study in the folder, the smallest unless told otherwise; returns all that Snakemake prints."""
    return execute(folder, *command(*options, targets=targets, files=files), check=check, timeout=timeout)


def same_tables(one: Path, other: Path) -> None:
    """Tables of two folders, byte for byte."""
    for table in TABLES:
        assert (one / table).read_bytes() == (other / table).read_bytes(), table
