"""Adopting a finished run, so that git and DVC hold it, and restoring an adopted run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from inversescope.config import load_config
from inversescope.errors import InputError
from inversescope.lineage.dvc import LOCK, commit, endangered, fetch, forget, of_another_run
from inversescope.lineage.records import ADOPTED, CONFIG_FILE, adopted_records, restore_records, write_adopted
from inversescope.lineage.stale import refuse_stale, stale, summary
from inversescope.report.results import write_results

#: What is adopted unless asked otherwise: all studies, and the study over dimension, steps and seeds.
TARGETS = ("all", "study")
#: Where git holds copies of what README and docs show. No rule writes there.
SHOWN = "docs/results"
#: What is copied there from results/: folder -> suffixes of its files.
COPIED = {"figures": (".png", ".csv"), "tables": (".csv", ".md"), "bench": (".csv", ".json")}
#: Tables of more bytes than this are DVC's alone.
MAX_TABLE = 250_000


def adopt(root: Path, targets: Iterable[str] = TARGETS) -> tuple[list[str], list[str]]:
    """Record a finished run, provided that Snakemake has nothing left to do. Files of the run are not touched.

    Everything that the outputs of dvc.yaml's stages hold here is kept by DVC and named in dvc.lock. The records of its jobs, and
    copies of what README and docs show, go to docs/results; docs/results.md is written from these.

    Args:
        root: repository root.
        targets: targets of the workflow that must be up to date.

    Returns:
        Names of the stages that dvc.lock has, and files of docs/results that are of an earlier run.

    Raises:
        InputError: something is stale (says what), a run is going on, or DVC cannot commit.
    """
    root = root.resolve()
    _refuse_other(root)
    asked = list(targets)
    found = summary(root, asked)
    remedy = f"run snakemake --cores all -- {' '.join(asked)}, then adopt"
    refuse_stale([one for one in found.values() if one is not None], remedy)
    names, hashes = commit(root)
    write_adopted(root, hashes)
    left = copy_shown(root)
    write_results(root)
    return names, left


def copy_shown(root: Path) -> list[str]:
    """Copy figures and summary tables from results/ to docs/results; returns what is there that this run did not make."""
    left = []
    for folder, suffixes in COPIED.items():
        source, copies = root / "results" / folder, root / SHOWN / folder
        made = [file for file in sorted(source.glob("*")) if file.suffix in suffixes]
        shown = [file for file in made if file.suffix == ".png" or file.stat().st_size <= MAX_TABLE]
        copies.mkdir(parents=True, exist_ok=True)
        for file in shown:
            shutil.copyfile(file, copies / file.name)
        left += sorted({file.name for file in copies.iterdir()} - {file.name for file in shown})
    return left


def restore(root: Path, remote: str | None = None, overwrite: bool = False) -> int:
    """Fetch what dvc.lock names, check every byte of it, and give files the times of the run that made them.

    Snakemake's records are restored too, so that nothing is left to do, and an edit of configuration or code since then shows as
    what it is.

    Args:
        root: repository root.
        remote: name of a remote, or a directory or URL to fetch from; the default remote if absent.
        overwrite: replace or delete what was made here since, and is kept nowhere else.

    Returns:
        Number of files that were checked.

    Raises:
        InputError: no run has been adopted, dvc.lock and records are of two runs, results were made here since (nothing is changed
            in these cases), the remote lacks a file, a hash is wrong, or Snakemake would run something.
    """
    _refuse_other(root)
    records = adopted_records(root)
    if other := of_another_run(root, records):
        raise InputError(
            f"{other[0]} has another hash in {LOCK} than in {ADOPTED}: they are of two runs",
            "check out both from one commit",
        )
    if not overwrite:
        _refuse_newer(endangered(root, records))
    fetch(root, remote)
    states = {path: record.state(root / path, verify=True) for path, record in records.items()}
    wrong = {path: state for path, state in states.items() if state != "unchanged"}
    if wrong:
        # What came damaged must not be taken for the real thing, neither here nor from DVC's cache.
        for path in wrong:
            forget(root, path, records[path].md5)
        path, state = next(iter(wrong.items()))
        raise InputError(
            f"{path} is {state} after the pull ({len(wrong)} files in all are not what was adopted)",
            "what came damaged was deleted: push it anew from where it was made, and restore again",
        )
    restore_records(root)
    for path, record in records.items():
        os.utime(root / path, (record.ended, record.ended))
    # A run may have been adopted in part, as when `make study` was not run: what no job ever made is not stale.
    refuse_stale(
        [one for one in stale(root, TARGETS) if one.output in records],
        "configuration or code differ from those of the run: check out the commit that wrote dvc.lock, or run the workflow",
    )
    return len(records)


def _refuse_newer(files: list[str]) -> None:
    """Raise `InputError` if results would be lost; names the first."""
    if files:
        raise InputError(
            f"{len(files)} files are not those of the adopted run, and are kept nowhere else: {', '.join(files[:3])}"
            f"{' ...' if len(files) > 3 else ''}",
            "move data and results away to keep them, or run make restore OVERWRITE=1 (inversescope restore --overwrite), which "
            "replaces or deletes these files",
        )


def _refuse_other(root: Path) -> None:
    """Check that the configuration that DVC versions is valid, and that no run is going on."""
    load_config([root / CONFIG_FILE])
    if any((root / ".snakemake" / "locks").glob("*")):
        raise InputError(
            f"{root / '.snakemake/locks'} holds a lock: a run is going on, or was killed",
            "wait for it to end, or run snakemake --unlock and finish the run",
        )
