"""What DVC does for lineage: it keeps outputs under the hash of their content, and fetches them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from inversescope.errors import InputError
from inversescope.lineage.records import file_md5

LOCK = "dvc.lock"


def open_repo(root: Path, config: dict[str, Any] | None = None) -> Any:
    """DVC's repository at a folder. Raises `InputError` if DVC is not installed, or there is no repository."""
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        raise InputError("DVC is not installed", "pip install 'inversescope[lineage]'") from None
    try:
        return Repo(str(root.resolve()), config=config)
    except DvcException as error:
        raise InputError(f"{root} is not a DVC repository: {error}", "run it in a clone") from error


def commit(root: Path) -> tuple[list[str], dict[str, str]]:
    """Keep the outputs of all stages that have some here, and write dvc.lock anew.

    Returns:
        Names of the stages, and the MD5 of each of their files.

    Raises:
        InputError: DVC fails.
    """
    repo = open_repo(root)
    from dvc.exceptions import DvcException
    from dvc.repo import lock_repo

    try:
        with lock_repo(repo):
            stages = [
                stage for stage in repo.index.stages if any(Path(out.fs_path).exists() for out in stage.outs)
            ]
            for stage in stages:
                stage.save(allow_missing=True, run_cache=False)
                # Files stay as they are: Snakemake knows them by their times.
                stage.commit(allow_missing=True, relink=False)
            hashes = {file: md5 for stage in stages for out in stage.outs for file, md5 in _hashes(out)}
            _write_lock(root / LOCK, stages)
    except DvcException as error:
        raise InputError(f"DVC cannot commit: {error}", "mend that and adopt again") from error
    return [stage.name for stage in stages], hashes


def _hashes(out: Any) -> list[tuple[str, str]]:
    """Files of one DVC output, below the repository's root, with their MD5."""
    if not out.hash_info.isdir:
        return [(out.def_path, str(out.hash_info.value))] if out.hash_info else []
    return [("/".join((out.def_path, *key)), str(info.value)) for key, (_, info) in out.get_obj().iteritems()]


def _write_lock(lock: Path, stages: list[Any]) -> None:
    """Write dvc.lock with these stages and no others; if that fails, the old one stays."""
    old = lock.read_bytes() if lock.is_file() else None
    lock.unlink(missing_ok=True)
    try:
        # One by one, DVC would read and write the file as often.
        stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
    except BaseException:
        if old is not None:
            lock.write_bytes(old)
        raise


def fetch(root: Path, remote: str | None) -> None:
    """Bring what dvc.lock names into the cache and to its place.

    Args:
        root: repository root.
        remote: name of a remote, or a directory or URL; the default remote if absent.

    Raises:
        InputError: no run has been adopted, there is no such remote, or it lacks a file.
    """
    if not (root / LOCK).is_file():
        raise InputError(
            f"{root / LOCK} does not exist: no run has been adopted",
            "finish the run and run make adopt, or check out a commit that has one",
        )
    repo = open_repo(root)
    if remote is not None and remote not in repo.config["remote"]:
        if "://" not in remote and not Path(remote).is_dir():
            raise InputError(f"{remote} is neither a remote nor a directory", "see dvc remote list")
        url = remote if "://" in remote else str(Path(remote).resolve())
        remote = "asked"
        repo = open_repo(root, {"remote": {remote: {"url": url, "verify": True}}})
    from dvc.exceptions import DvcException

    try:
        adopted = [stage for stage in repo.index.stages if any(out.hash_info for out in stage.outs)]
        repo.pull([stage.addressing for stage in adopted], remote=remote, force=True)
    except DvcException as error:
        raise InputError(
            f"DVC cannot fetch what dvc.lock names: {error}",
            "check the remote (dvc remote list), and run dvc push where the run was adopted",
        ) from error


def forget(root: Path, path: str, md5: str) -> None:
    """Delete a file, and the object in DVC's cache that should be its content."""
    (root / path).unlink(missing_ok=True)
    Path(open_repo(root).cache.local.oid_to_path(md5)).unlink(missing_ok=True)


def damaged_objects(root: Path) -> list[str]:
    """Objects of DVC's cache whose content is not what their name says."""
    bad = []
    for file in sorted(Path(open_repo(root).cache.local.path).glob("??/*")):
        name = (file.parent.name + file.name).removesuffix(".dir")
        if len(name) == 32 and file_md5(file) != name:
            bad.append(os.path.relpath(file, root.resolve()))
    return bad
