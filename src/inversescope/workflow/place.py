"""Where the workflow and its jobs run, and where they cannot."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from inversescope.errors import InputError
from inversescope.workflow.sources import PACKAGE

#: Folders which git and DVC look for below the project's root.
FOLDERS = ("data", "results", "docs", ".snakemake")
#: Folders that the workflow writes to.
WRITTEN = ("data", "results", "logs", "benchmarks", ".snakemake")


def options(files: Iterable[str], gpus: int | str | None) -> str:
    """Options of a job's command: files of the configuration, and the processor as its device if it was given no GPU."""
    told = [f"--config {shlex.quote(file)}" for file in files]
    return " ".join(told if int(gpus or 0) else [*told, "--device cpu"])


def launcher(gpus: int | str | None) -> str:
    """What starts a training: a process for each GPU that the job was given, if there are several."""
    if int(gpus or 0) < 2:
        return ""
    # Port 0: a free one, so that trainings may share a node.
    several = f"accelerate launch --multi_gpu --num_machines 1 --num_processes {gpus} --main_process_port 0"
    return f"{several} --mixed_precision no --dynamo_backend no --no_python "


def check_place(root: Path, deployment: Iterable[str] = ()) -> None:
    """Check that jobs run the project's own code in this environment, and may write where git and DVC look.

    Args:
        root: the project's root.
        deployment: how Snakemake is asked to make environments for jobs, such as `conda`.

    Raises:
        InputError: a folder is a link, cannot be written or is a file, its path has a brace, the package is another project's, or
            there is a way of deployment.
    """
    for name in FOLDERS:
        if (root / name).is_symlink():
            raise InputError(
                f"{name} is a link: git and DVC would take what it leads to for another project's",
                "move the whole folder of the project to the larger disk, or mount that at the folder (mount --bind)",
            )
    whole = root.resolve()
    if set("{}") & set(str(whole)):
        raise InputError(
            f"the project lies in {whole}: Snakemake takes braces in a path for wildcards",
            "rename that folder",
        )
    if PACKAGE != whole / "src/inversescope":
        raise InputError(
            f"the package inversescope is that of {PACKAGE}, and not this project's",
            f"run make setup in {whole} and use its environment, or pip install --no-deps --editable {shlex.quote(str(whole))}",
        )
    for name in WRITTEN:
        place = whole / name if (whole / name).exists() else whole
        if not place.is_dir():
            raise InputError(f"{place} is no folder, but the workflow writes into it", "move it away")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(
                f"{place} cannot be written",
                "give yourself permission, or copy the project to where you have it",
            )
    for way in deployment:
        raise InputError(
            f"--sdm {way} is not offered: jobs run in the environment that runs Snakemake",
            "run make setup; or conda env create --file envs/environment.yaml, then pip install --no-deps --editable . in it",
        )
