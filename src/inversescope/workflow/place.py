"""Where the workflow and its jobs run, and where they cannot."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from inversescope.errors import InputError

#: Folders that the workflow writes to, which git and DVC look for below the project's root.
FOLDERS = ("data", "results", "docs", ".snakemake")


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
    """Check that folders are where git and DVC take them for the project's, and that jobs run in this environment.

    Args:
        root: the project's root.
        deployment: how Snakemake is asked to make environments for jobs, such as `conda`.

    Raises:
        InputError: a folder is a link, or there is a way of deployment.
    """
    for name in FOLDERS:
        if (root / name).is_symlink():
            raise InputError(
                f"{name} is a link: git and DVC would take what it leads to for another project's",
                "move the whole folder of the project to the larger disk, or mount that at the folder (mount --bind)",
            )
    for way in deployment:
        raise InputError(
            f"--sdm {way} is not offered: jobs run in the environment that runs Snakemake",
            "run make setup, or conda env create --file envs/environment.yaml and pip install --no-deps --editable .",
        )
