"""Recomputing one job of a lineage elsewhere, and comparing what comes out."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inversescope.config import load_config
from inversescope.errors import InputError
from inversescope.lineage.records import CONFIG_FILE, Record, file_md5
from inversescope.workflow.stages import STAGES

#: Fields that hold measured times; a rerun repeats everything else.
MEASURED = re.compile(r"seconds|per_second|_at$")
SAME = ("identical", "identical but for measured times")
#: What a run makes.
MADE = ("data", "results", "logs", "benchmarks")
#: They vouch for files beside them that a rule need not name.
DESCRIPTIONS = ("target.json", "meta.json")


def run_again(
    root: Path, records: dict[str, Record], files: Mapping[str, list[str]], what: str
) -> dict[str, str]:
    """Recompute one job of a lineage in a temporary folder and compare its outputs: path -> what came out.

    Args:
        root: repository root.
        records: output -> its job.
        files: stage -> files of the lineage.
        what: one of these stages or files.

    Raises:
        InputError: `what` is not one job of the lineage, an input is missing, or the job fails.
    """
    record = _job(records, files, what)
    words = shlex.split(record.command)
    if words[:2] == ["accelerate", "launch"] and "inversescope" in words:
        words = words[words.index("inversescope") :]  # without the processes of a training
    if words[:1] != ["inversescope"] or len(words) < 2 or words[1] not in STAGES:
        raise InputError(f"the recorded command of {what} is no stage of inversescope", "restore the records")
    for needed in record.inputs:
        if not (root / needed).is_file():
            raise InputError(f"{needed}, an input of {what}, is missing", "run make restore first")
    outputs = sorted(name for name, other in records.items() if other.command == record.command)
    with tempfile.TemporaryDirectory(prefix="inversescope-audit-") as name:
        folder = Path(name) / "study"
        link_inputs(root, folder, [records[output] for output in outputs], records)
        done = subprocess.run(
            [sys.executable, "-m", "inversescope.cli", *words[1:]],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str((root / "src").resolve()),
                "PYTHONHASHSEED": "0",
                "PYTHONUTF8": "1",
            },
            capture_output=True,
            encoding="utf-8",
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{words[1]} failed when run again: {last}", "see --verify for causes")
        return {output: compare(root / output, folder / output) for output in outputs}


def link_inputs(root: Path, folder: Path, job: list[Record], records: dict[str, Record]) -> None:
    """Make a folder in which a job (its records, one an output) finds its inputs, and none of its outputs.

    A page is told the figures and reads the tables behind them too, so what inputs were made from is there as well.
    """
    inputs: dict[str, None] = {}
    left = list(job[0].inputs)
    while left:
        path = left.pop()
        if path not in inputs:
            inputs[path] = None
            left += records[path].inputs if path in records else ()
    described = [(root / path).parent for path in inputs if Path(path).name in DESCRIPTIONS]
    unnamed = [
        str(file.relative_to(root)) for place in described for file in place.iterdir() if file.is_file()
    ]
    mirror = load_config([root / CONFIG_FILE]).mirror
    beside = [mirror] if mirror is not None and not Path(mirror).is_absolute() else []
    whole = [path.name for path in root.iterdir() if path.name not in MADE and not path.name.startswith(".")]
    own = {record.output for record in job}
    for path in (*whole, *beside, *unnamed, *inputs):
        source, link = (root / path).resolve(), Path(os.path.normpath(folder / path))
        if path not in own and source.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    for path in own:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)


def _job(records: dict[str, Record], files: Mapping[str, list[str]], what: str) -> Record:
    """The one job that is meant by a stage or a file of a lineage."""
    if any(what in made for made in files.values()):
        return records[what]
    if what not in files:
        raise InputError(
            f"{what} is not a recorded job of this lineage", f"name a file or stage ({', '.join(files)})"
        )
    jobs = {records[path].command: records[path] for path in files[what]}
    if len(jobs) > 1:
        raise InputError(f"{what} stands for {len(jobs)} recorded jobs", f"name an output: {files[what][0]}")
    return next(iter(jobs.values()))


def compare(old: Path, new: Path) -> str:
    """How two files compare: identical, but for measured times, different, or missing."""
    if not old.is_file() or not new.is_file():
        return "missing"
    if file_md5(old) == file_md5(new):
        return SAME[0]
    try:
        return SAME[1] if _timeless(old) == _timeless(new) else "different"
    except (InputError, ValueError):  # one of them is no longer such a file
        return "different"


def _timeless(file: Path) -> object:
    """The content of a file without measured times."""
    if file.suffix == ".json":
        return _drop(json.loads(file.read_text(encoding="utf-8")))
    if file.suffix in (".csv", ".parquet"):
        from inversescope.store import read_table

        table = read_table(file)
        return table[[c for c in table.columns if not MEASURED.search(str(c))]].to_csv(index=False)
    return file.read_bytes()


def _drop(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop(v) for k, v in value.items() if not MEASURED.search(str(k))}
    return [_drop(v) for v in value] if isinstance(value, list) else value
