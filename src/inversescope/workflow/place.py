"""Where the workflow cannot work, said before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from inversescope.errors import InputError

#: Folders that the workflow writes to, which git and DVC look for below the project's root.
FOLDERS = ("data", "results", "docs", ".snakemake")


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
