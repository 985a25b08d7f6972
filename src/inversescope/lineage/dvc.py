"""What DVC does for lineage: it hashes and keeps outputs, fetches them, and remembers the hashes of large files."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from inversescope.errors import InputError

LOCK = "dvc.lock"
#: Without --verify a file that DVC has not seen in its present state is hashed only if it has no more bytes than this.
SMALL = 1 << 22


def file_md5(path: Path) -> str:
    """A file's MD5, DVC's name for its content; always from the bytes, never from a database."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def git(root: Path, *arguments: str) -> str:
    """What a git command prints; empty if it fails or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


class Store:
    """DVC's repository at a folder, opened when first needed.

    Args:
        root: repository root.
        remote: name of a remote, or a directory or URL to fetch from; the default remote if absent.

    Raises:
        InputError: DVC is not installed, this is not a DVC repository, or DVC fails; also of every method.
    """

    def __init__(self, root: Path, remote: str | None = None) -> None:
        self.root = root.resolve()
        self.remote = remote

    @cached_property
    def repo(self) -> Any:
        """The repository."""
        try:
            from dvc.exceptions import DvcException
            from dvc.repo import Repo
        except ImportError:
            raise InputError("DVC is not installed", "pip install 'inversescope[lineage]'") from None
        try:
            repo = Repo(str(self.root))
            if self.remote is None or self.remote in repo.config["remote"]:
                return repo
            url, self.remote = self.remote, "asked"
            if "://" not in url and not Path(url).is_dir():
                raise InputError(f"{url} is neither a remote nor a directory", "see dvc remote list")
            url = url if "://" in url else str(Path(url).resolve())
            return Repo(str(self.root), config={"remote": {self.remote: {"url": url, "verify": True}}})
        except DvcException as error:
            raise InputError(f"{self.root} is not a DVC repository: {error}", "run it in a clone") from error

    def commit(self) -> tuple[list[str], dict[str, str]]:
        """Keep the outputs of all stages that have some here, and write dvc.lock anew.

        Returns:
            Names of the stages, and the MD5 of each of their files.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import lock_repo

        hashes: dict[str, str] = {}
        try:
            with lock_repo(self.repo):
                stages = [
                    stage
                    for stage in self.repo.index.stages
                    if any(Path(out.fs_path).exists() for out in stage.outs)
                ]
                for stage in stages:
                    stage.save(allow_missing=True, run_cache=False)
                    # Files stay as they are: Snakemake knows them by their times.
                    stage.commit(allow_missing=True, relink=False)
                    for out in stage.outs:
                        hashes |= _hashes(out)
                _write_lock(self.root / LOCK, stages)
        except DvcException as error:
            raise InputError(f"DVC cannot commit: {error}", "mend that and adopt again") from error
        return [stage.name for stage in stages], hashes

    def fetch(self) -> None:
        """Bring what dvc.lock names into the cache and to its place."""
        from dvc.exceptions import DvcException

        if not (self.root / LOCK).is_file():
            raise InputError(
                f"{self.root / LOCK} does not exist: no run has been adopted",
                "finish the run and run make adopt, or check out a commit that has one",
            )
        try:
            adopted = [s for s in self.repo.index.stages if any(out.hash_info for out in s.outs)]
            self.repo.pull([stage.addressing for stage in adopted], remote=self.remote, force=True)
        except DvcException as error:
            raise InputError(
                f"DVC cannot fetch what dvc.lock names: {error}",
                "check the remote (dvc remote list), and run dvc push where the run was adopted",
            ) from error

    def state(self, path: str, md5: str, verify: bool) -> str:
        """Whether a file is missing, unchanged, changed, unrecorded (no hash to compare with) or unchecked.

        Without `verify` a large file is not read: DVC's database is believed if size, inode and time are as when DVC hashed it, and
        a file that was touched since stays unchecked. With it the bytes are hashed in any case.
        """
        file = self.root / path
        if not file.is_file():
            return "missing"
        if not md5:
            return "unrecorded"
        if verify or file.stat().st_size <= SMALL:
            found = file_md5(file)
        else:
            from dvc.fs import LocalFileSystem

            _, info = self.repo.state.get(str(file), LocalFileSystem())
            if info is None:
                return "unchecked"
            found = str(info.value)
        return "unchanged" if found == md5 else "changed"

    def remember(self, hashes: Mapping[str, str]) -> None:
        """Tell DVC's database, which knows files by their times, the MD5 of files as they are now."""
        from dvc.fs import LocalFileSystem
        from dvc_data.hashfile.hash_info import HashInfo

        for path, md5 in hashes.items():
            self.repo.state.save(str(self.root / path), LocalFileSystem(), HashInfo("md5", md5))

    def forget(self, path: str, md5: str) -> None:
        """Delete a file and its object in DVC's cache."""
        (self.root / path).unlink(missing_ok=True)
        Path(self.repo.cache.local.oid_to_path(md5)).unlink(missing_ok=True)

    def damaged_objects(self) -> list[str]:
        """Objects of DVC's cache whose content is not what their name says."""
        bad = []
        for file in sorted(Path(self.repo.cache.local.path).glob("??/*")):
            name = (file.parent.name + file.name).removesuffix(".dir")
            if len(name) == 32 and file_md5(file) != name:
                bad.append(os.path.relpath(file, self.root))
        return bad


def _hashes(out: Any) -> dict[str, str]:
    """MD5 of the files of one DVC output, below the repository's root."""
    if not out.hash_info:
        return {}
    if not out.hash_info.isdir:
        return {out.def_path: str(out.hash_info.value)}
    return {"/".join((out.def_path, *key)): str(info.value) for key, (_, info) in out.get_obj().iteritems()}


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
