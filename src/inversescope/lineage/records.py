"""Where results come from, as Snakemake and DVC recorded it: their records read together, adopted, restored.

Snakemake keeps a record of each output's job in .snakemake/metadata; DVC keeps the hash of each output in dvc.lock. This module
reads both and adds no book-keeping of its own. DVC versions Snakemake's records beside the outputs, so that a restored study is
judged by the records of the run that made it.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from inversescope.config import Config, load_config
from inversescope.errors import InputError
from inversescope.workflow.plan import ExperimentPlan
from inversescope.workflow.used import value

# The parser in C where PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RECORDS = ".snakemake/metadata"
RECORD_FORMAT = 6
CONFIG_FILE = "config/config.yaml"
#: What is adopted unless asked otherwise: all studies, and the study over dimension, steps and seeds.
TARGETS = ("all", "study")
#: Without --verify a file that DVC has not seen in its present state is hashed only if it is no larger than this.
SMALL = 1 << 22


# -------------------------------------------------------------------------------------------------------- Snakemake's records
@dataclass(frozen=True)
class Record:
    """What Snakemake recorded of the job that wrote a file."""

    output: str
    rule: str
    inputs: tuple[str, ...]
    command: str
    used: dict[str, Any]
    checksums: dict[str, str]
    started: float
    ended: float

    @property
    def options(self) -> dict[str, str]:
        """Options of the command: --task, --model, --variant, ...; of a repeated one the last value."""
        words = self.command.split()
        pairs = zip(words, words[1:], strict=False)
        return {a[2:]: b for a, b in pairs if a.startswith("--") and not b.startswith("--")}


def read_records(root: Path) -> dict[str, Record]:
    """Read Snakemake's records: output file -> record; empty if nothing has run here.

    Raises:
        InputError: a record is damaged, or of a format that this version does not know.
    """
    folder = root / RECORDS
    records: dict[str, Record] = {}
    for directory, _, names in os.walk(folder):
        above = Path(directory).relative_to(folder).parts
        for name in names:
            file = Path(directory) / name
            try:
                # Long names are split into folders whose names begin with @.
                encoded = "".join(part.removeprefix("@") for part in above) + name
                output = base64.urlsafe_b64decode(encoded).decode()
                values = json.loads(file.read_text())
                if values["record_format_version"] != RECORD_FORMAT:
                    raise InputError(
                        f"{file} is a record of format {values['record_format_version']}, not {RECORD_FORMAT}",
                        "use the version of Snakemake in envs/requirements.txt",
                    )
                records[output] = Record(
                    output,
                    values["rule"],
                    tuple(values["input"] or ()),
                    values["shellcmd"] or "",
                    _used(values["params"] or []),
                    values["input_checksums"] or {},
                    float(values["starttime"]),
                    float(values["endtime"]),
                )
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file} is not a record of Snakemake ({type(error).__name__}: {error})",
                    "delete it, and rerun the workflow or run make restore",
                ) from None
    return records


def _used(params: list[Any]) -> dict[str, Any]:
    """The configuration among a job's parameters, which Snakemake keeps as Python literals."""
    used: dict[str, Any] = {}
    for text in params:
        if isinstance(text, str) and text.startswith("{"):
            value = ast.literal_eval(text)
            if isinstance(value, dict):
                used |= value
    return used


def configured(config: Config, record: Record) -> dict[str, tuple[Any, Any]]:
    """Configuration that a job used: key -> (recorded, present) value; keys as rules name them (`workflow.used`), joined by dots.

    A key that is gone has the present value None.
    """
    options = record.options
    task, model = options.get("task", ""), options.get("model", "")
    plan = ExperimentPlan(config.of(task, model), task, model)
    result: dict[str, tuple[Any, Any]] = {}
    for key, recorded in record.used.items():
        try:
            present = value(plan, key)
        except (KeyError, InputError):
            present = None
        result[key.replace("/", ".")] = (recorded, present)
    return result


@dataclass(frozen=True)
class Stale:
    """An output that Snakemake would make again, and why."""

    output: str
    rule: str
    why: str


def summary(root: Path, targets: Iterable[str]) -> dict[str, Stale | None]:
    """Ask Snakemake for all outputs behind some targets: output -> why it would be made again, None if it would not.

    Raises:
        InputError: Snakemake cannot build its graph of jobs; says why.
    """
    done = _snakemake(root, "--summary", *targets)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(
            f"Snakemake cannot tell what is to be done: {lines[-1] if lines else 'no message'}",
            "run snakemake --dry-run",
        )
    found: dict[str, Stale | None] = {}
    for line in done.stdout.splitlines():
        cells = line.split("\t")
        if len(cells) == 6 and cells[0] != "output_file":
            # The state of a file whose inputs will be made anew says "ok".
            why = "an input is to be made again" if cells[4] == "ok" else cells[4]
            pending = cells[5] == "update pending"
            found[cells[0]] = Stale(cells[0], cells[2], why) if pending else None
    return found


def stale(root: Path, targets: Iterable[str]) -> list[Stale]:
    """Ask Snakemake which outputs it would make again for these targets; raises what `summary` does."""
    return [one for one in summary(root, targets).values() if one is not None]


def _snakemake(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def refuse_stale(found: list[Stale], remedy: str) -> None:
    """Raise `InputError` if anything is stale, naming the rules and the first files with the reason."""
    if not found:
        return
    rules = ", ".join(f"{rule} ({n})" for rule, n in Counter(s.rule for s in found).items())
    # What begins it all says more than what follows from it.
    roots = [s for s in found if s.why != "an input is to be made again"] or found
    first = "; ".join(f"{s.output}: {s.why}" for s in roots[:3])
    raise InputError(
        f"{len(found)} outputs are stale or missing, by rule: {rules}. First: {first}{' ...' if len(roots) > 3 else ''}",
        remedy,
    )


# ---------------------------------------------------------------------------------------------------------------- DVC's hashes
def file_md5(path: Path) -> str:
    """A file's MD5, DVC's name for its content; always from the bytes, never from a database."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@dataclass(frozen=True)
class Kept:
    """An output of a DVC stage as dvc.lock has it."""

    stage: str
    path: str
    md5: str
    size: int
    #: Files of a directory with their hashes, below `path`; None if DVC's cache does not have the list.
    listing: dict[str, str] | None = field(default=None, repr=False)

    @property
    def is_folder(self) -> bool:
        """Whether the output is a directory."""
        return self.md5.endswith(".dir")


class Versions:
    """What DVC knows of a repository: dvc.yaml, dvc.lock, its cache's listings and its database of file states.

    Raises:
        InputError: DVC is not installed, this is not a DVC repository, or it has no dvc.lock.
    """

    def __init__(self, root: Path, config: dict[str, Any] | None = None) -> None:
        self.root = root.resolve()
        self.repo = open_repo(root, config)
        self._folders: dict[str, str] = {}
        if not (self.root / "dvc.lock").is_file():
            raise InputError(
                f"{root / 'dvc.lock'} does not exist: no run has been adopted",
                "finish the run and run make adopt, or check out a commit that has one",
            )

    @cached_property
    def stages(self) -> dict[str, Any]:
        """Stages of dvc.yaml, with what dvc.lock says of them."""
        from dvc.exceptions import DvcException

        try:
            return {stage.name: stage for stage in self.repo.index.stages}
        except DvcException as error:
            raise InputError(
                f"dvc.yaml or dvc.lock cannot be read: {error}", "mend or restore it from git"
            ) from error

    @cached_property
    def kept(self) -> list[Kept]:
        """Outputs that dvc.lock has a hash of; read by a loader that takes a tenth of the time of DVC's."""
        try:
            # What yaml.safe_load does, but in C where PyYAML has it.
            lock = _LOADER((self.root / "dvc.lock").read_text()).get_single_data()
            return [
                Kept(stage, out["path"], out["md5"], int(out.get("size") or 0), self._listing(out["md5"]))
                for stage, about in (lock or {}).get("stages", {}).items()
                for out in about.get("outs", [])
            ]
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"dvc.lock cannot be read: {error!r}", "mend or restore it from git") from error

    def _listing(self, md5: str) -> dict[str, str] | None:
        """Files of a directory that DVC versions, from its cache; None of a file, or if the cache has no list of them."""
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree
        from dvc_objects.errors import ObjectFormatError

        if not md5.endswith(".dir"):
            return None
        try:
            tree = Tree.load(self.repo.cache.local, HashInfo("md5", md5))
        except (FileNotFoundError, ObjectFormatError):
            return None
        return {"/".join(key): str(info.value) for key, (_, info) in tree.iteritems()}

    @cached_property
    def recorded(self) -> dict[str, str]:
        """MD5 of every file that DVC has one of."""
        files: dict[str, str] = {}
        for kept in self.kept:
            if kept.listing is not None:
                files.update({f"{kept.path}/{name}": md5 for name, md5 in kept.listing.items()})
            elif not kept.is_folder:
                files[kept.path] = kept.md5
        return files

    @cached_property
    def blobs(self) -> dict[str, str]:
        """Hash of every file that git's index has."""
        listed = git(self.root, "ls-files", "--stage", "-z")
        entries = [entry.partition("\t") for entry in listed.split("\0") if entry]
        return {path: about.split()[1] for about, _, path in entries}

    def kept_as(self, path: str) -> Kept | None:
        """The output that a file is, or lies in."""
        for kept in self.kept:
            if path == kept.path or path.startswith(f"{kept.path}/"):
                return kept
        return None

    def known(self, path: str) -> str:
        """A file's recorded hash with the name of its kind: md5 (DVC), git (blob); empty if none is recorded.

        Of a folder that git has, DVC keeps one hash for the whole.
        """
        if path in self.recorded:
            return f"md5:{self.recorded[path]}"
        kept = self.kept_as(path)
        if kept is not None and kept.listing is None:
            return f"md5:{kept.md5}"
        return f"git:{self.blobs[path]}" if path in self.blobs else ""

    def state(self, path: str, verify: bool) -> str:
        """Whether a file is missing, unchanged, changed, unrecorded (no hash to compare with) or unchecked.

        Without `verify`, DVC's database is believed if a file's size, inode and time are as when DVC hashed it, small files are
        hashed, and large ones that were touched stay unchecked. With it the bytes are hashed in any case.
        """
        file = self.root / path
        if not file.is_file():
            return "missing"
        known = self.known(path)
        if not known:
            return "unrecorded"
        kind, _, value = known.partition(":")
        size = file.stat().st_size
        if value.endswith(".dir"):
            return self._state_of_folder(path, verify)
        if kind == "git":
            data = file.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest()
        elif verify or size <= SMALL:
            found = file_md5(file)
        else:
            from dvc.fs import LocalFileSystem

            _, info = self.repo.state.get(str(file), LocalFileSystem())
            if info is None:
                return "unchecked"
            found = str(info.value)
        return "unchanged" if found == value else "changed"

    def _state_of_folder(self, path: str, verify: bool) -> str:
        """State of a file in a folder that has one hash for the whole: that of the folder."""
        kept = self.kept_as(path)
        assert kept is not None
        if kept.path not in self._folders:
            if kept.size > SMALL and not verify:
                return "unchecked"
            same = folder_md5(self.root / kept.path) == kept.md5
            self._folders[kept.path] = "unchanged" if same else "changed"
        return self._folders[kept.path]

    def check_all(self) -> list[tuple[str, str]]:
        """Hash every file of every output and compare: (file, what is wrong), nothing if all is as dvc.lock says."""
        wrong: list[tuple[str, str]] = []
        for kept in (one for one in self.kept if one.stage in self.stages):
            if kept.is_folder and kept.listing is None:
                if not (self.root / kept.path).is_dir():
                    wrong.append((kept.path, "missing"))
                elif folder_md5(self.root / kept.path) != kept.md5:
                    wrong.append((kept.path, "changed"))
                continue
            files = [f"{kept.path}/{name}" for name in kept.listing or ()] if kept.is_folder else [kept.path]
            states = ((file, self.state(file, verify=True)) for file in files)
            wrong += [(file, state) for file, state in states if state != "unchanged"]
        return wrong

    def check_objects(self) -> list[str]:
        """Hash every object in DVC's cache: those whose content is not what their name says."""
        folder = Path(self.repo.cache.local.path)
        bad = []
        for file in sorted(folder.glob("??/*")):
            name = (file.parent.name + file.name).removesuffix(".dir")
            if len(name) == 32 and file_md5(file) != name:
                bad.append(os.path.relpath(file, self.root))
        return bad


def folder_md5(folder: Path) -> str:
    """The name that DVC gives to a directory's content, from the bytes of its files."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        tree.add(file.relative_to(folder).parts, None, HashInfo("md5", file_md5(file)))
    tree.digest()
    return str(tree.hash_info.value)


def open_repo(root: Path, config: dict[str, Any] | None = None) -> Any:
    """DVC's repository at a folder; every remote verifies what it hands out.

    Raises:
        InputError: DVC is not installed, or there is no repository.
    """
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        raise InputError(
            "DVC is not installed", "run make setup, or pip install 'inversescope[lineage]'"
        ) from None
    try:
        repo = Repo(str(root), config=config)
        for remote in repo.config["remote"].values():
            remote["verify"] = True
        return repo
    except DvcException as error:
        raise InputError(
            f"{root} is not a DVC repository: {error}", "run this in a clone of the project"
        ) from error


def git(root: Path, *arguments: str) -> str:
    """What a git command prints; empty if it fails or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


# -------------------------------------------------------------------------------------------------------------- adopt, restore
def _refuse_other(root: Path) -> None:
    """Check that the configuration that DVC versions is valid, and that no run is going on."""
    load_config([root / CONFIG_FILE])
    if any((root / ".snakemake" / "locks").glob("*")):
        raise InputError(
            f"{root / '.snakemake/locks'} holds a lock: a run is going on, or was killed",
            "wait for it to end, or run snakemake --unlock and finish the run",
        )


def adopt(root: Path, targets: Iterable[str] = TARGETS) -> list[str]:
    """Record a finished run in dvc.lock, provided that Snakemake has nothing left to do. Files keep their times.

    Args:
        root: repository root.
        targets: targets of the workflow that must be up to date: the stages with outputs behind them are committed.

    Returns:
        Names of the stages that were committed.

    Raises:
        InputError: something is stale (says what), a run is going on, or DVC cannot commit.
    """
    root = root.resolve()
    _refuse_other(root)
    asked = list(targets)
    found = summary(root, asked)
    remedy = "run snakemake --cores all -- " + " ".join(asked) + ", then adopt"
    refuse_stale([one for one in found.values() if one is not None], remedy)
    from dvc.exceptions import DvcException
    from dvc.repo import lock_repo

    made = {RECORDS} | {str(path) for output in found for path in (Path(output), *Path(output).parents)}
    times: dict[Path, int] = {}
    repo = open_repo(root)
    try:
        with lock_repo(repo):
            # Without stages of experiments that the targets have nothing of.
            stages = [s for s in repo.index.stages if made & {_below(root, out) for out in s.outs}]
            times = _times(root / _below(root, out) for stage in stages for out in stage.outs)
            for stage in stages:
                stage.save()
                stage.commit()
            # `repo.commit` for each of them would read and write dvc.lock as often.
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
    except DvcException as error:
        raise InputError(f"DVC cannot commit: {error}", "mend that and adopt again") from error
    finally:
        repo.close()
        # A file that has hard links (to a copy of the study, say) is replaced by DVC: as new as it is then, all would be stale.
        replaced = [file for file, time in _times(times).items() if time != times[file]]
        for file in replaced:
            os.utime(file, ns=(times[file], times[file]))
    if replaced:
        _tell_times(Versions(root), replaced)
    return [stage.name for stage in stages]


def _times(paths: Iterable[Path]) -> dict[Path, int]:
    """When files, and those below folders, were written: nanoseconds since the epoch."""
    every = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return {file: file.stat().st_mtime_ns for file in every if file.is_file()}


def _below(root: Path, out: Any) -> str:
    """Path of a DVC output below the repository's root."""
    return Path(out.fs_path).relative_to(root.resolve()).as_posix()


def restore(root: Path, remote: str | None = None) -> tuple[int, list[str]]:
    """Fetch what dvc.lock names, check every byte of it, and give files the times of the run that made them.

    Snakemake's own records come with the data, so that nothing is left to do and an edit of configuration or code since then shows
    as what it is.

    Args:
        root: repository root.
        remote: name of a remote, or a directory or URL to fetch from; the default remote if absent.

    Returns:
        Number of files that were checked, and the targets of Snakemake for which nothing is left to do.

    Raises:
        InputError: there is no dvc.lock, the remote lacks a file, a hash is wrong, or Snakemake would run something.
    """
    _refuse_other(root)
    from dvc.exceptions import DvcException

    settings: dict[str, Any] = {}
    name = remote
    if remote is not None and remote not in open_repo(root).config["remote"]:
        url = remote if "://" in remote else str(Path(remote).resolve())
        if "://" not in url and not Path(url).is_dir():
            raise InputError(
                f"{remote} is neither a remote nor a directory",
                "see dvc remote list, or give a directory or URL",
            )
        name = "asked"
        settings = {"remote": {name: {"url": url}}}
    versions = Versions(root, settings)
    adopted = {
        name: stage.addressing
        for name, stage in versions.stages.items()
        if any(out.hash_info for out in stage.outs)
    }
    try:
        versions.repo.pull(list(adopted.values()), remote=name, force=True)
    except DvcException as error:
        raise InputError(
            f"DVC cannot fetch what dvc.lock names: {error}",
            "check the remote (dvc remote list), and run dvc push where the run was adopted",
        ) from error
    versions = Versions(root, settings)
    wrong = versions.check_all()
    if wrong:
        # What came damaged must not be taken for the real thing, neither here nor from DVC's cache.
        for path, state in wrong:
            if state == "changed" and path in versions.recorded and path not in versions.blobs:
                (root / path).unlink()
                Path(versions.repo.cache.local.oid_to_path(versions.recorded[path])).unlink(missing_ok=True)
        path, state = wrong[0]
        raise InputError(
            f"{path} is {state} after the pull ({len(wrong)} files in all are not what dvc.lock says)",
            "what came damaged was deleted: push it anew from where it was made, and restore again; a file that git has: git "
            "checkout it from the commit of dvc.lock",
        )
    set_times(versions)
    commands = (str(versions.stages[name].cmd) for name in adopted)
    targets = list(
        dict.fromkeys(word for command in commands for word in command.partition(" -- ")[2].split())
    )
    # A stage may have been adopted in part, as when `make study` was not run: what no job ever made is not stale.
    made = read_records(root)
    refuse_stale(
        [one for one in stale(root, targets) if one.output in made],
        "configuration or code differ from those of the run: check out the commit that wrote dvc.lock, or run the workflow",
    )
    return len(versions.recorded), targets


def set_times(versions: Versions) -> None:
    """Give each output the time at which its job wrote it, and tell DVC."""
    found = []
    for output, record in read_records(versions.root).items():
        file = versions.root / output
        if file.is_file():
            os.utime(file, (record.ended, record.ended))
            found.append(file)
    _tell_times(versions, found)


def _tell_times(versions: Versions, files: list[Path]) -> None:
    """Tell DVC's database, which knows files by their times, those of files that are as dvc.lock says."""
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile.hash_info import HashInfo

    for file in files:
        md5 = versions.recorded.get(str(file.relative_to(versions.root)))
        if md5 is not None:
            versions.repo.state.save(str(file), LocalFileSystem(), HashInfo("md5", md5))
