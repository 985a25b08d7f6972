"""What DVC does for lineage: it keeps outputs under the hash of their content, and fetches them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inversescope.errors import InputError
from inversescope.lineage.records import Record, file_md5

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
        InputError: there are none, or DVC fails.
    """
    repo = open_repo(root)
    from dvc.exceptions import DvcException
    from dvc.repo import lock_repo

    try:
        with lock_repo(repo):
            stages = [
                stage for stage in repo.index.stages if any(Path(out.fs_path).exists() for out in stage.outs)
            ]
            if not stages:
                raise InputError(
                    "no output of a stage of dvc.yaml is here", "run a study that it names, then adopt"
                )
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


def _locked(repo: Any) -> list[Any]:
    """Outputs that dvc.lock holds. Raises `InputError` if it, or dvc.yaml, cannot be read."""
    from dvc.exceptions import DvcException

    try:
        return [out for stage in repo.index.stages for out in stage.outs if out.hash_info]
    except DvcException as error:
        raise InputError(
            f"DVC cannot read its pipeline: {error}", f"restore dvc.yaml and {LOCK} from git"
        ) from error


def _files_in_place(repo: Any) -> Iterator[str]:
    """Files that are where dvc.lock has outputs, below the repository's root, but those that DVC ignores."""
    for out in _locked(repo):
        if os.path.isfile(out.fs_path):
            yield os.path.relpath(out.fs_path, repo.root_dir)
        else:
            for file in repo.dvcignore.find(repo.fs, out.fs_path):
                yield os.path.relpath(file, repo.root_dir)


def of_another_run(root: Path, records: Mapping[str, Record]) -> list[str]:
    """Outputs that have another hash in dvc.lock than in records, folders aside: of these dvc.lock does not tell."""
    locked = {out.def_path: out.hash_info for out in _locked(open_repo(root))}
    return [
        path
        for path, info in locked.items()
        if not info.isdir and path in records and info.value != records[path].md5
    ]


def endangered(root: Path, records: Mapping[str, Record]) -> list[str]:
    """Files that `fetch` would replace or delete, and that could not be had back: DVC's cache does not hold their content.

    A file that has the time of its record is not newer than the run: if it differs, it was damaged, and is not worth keeping.

    Args:
        root: repository root.
        records: of the run that is fetched.

    Raises:
        InputError: DVC cannot read what it is to fetch.
    """
    repo = open_repo(root)
    found = []
    for path in sorted(_files_in_place(repo)):
        record = records.get(path)
        if record is not None and record.dated(root / path):
            continue
        md5 = file_md5(root / path)
        kept = record is not None and md5 == record.md5
        if not kept and not Path(repo.cache.local.oid_to_path(md5)).is_file():
            found.append(path)
    return found


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
        # Of a stage that was adopted in part no more than what there was.
        repo.pull([out.fs_path for out in _locked(repo)], remote=remote, force=True)
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
