"""Records of jobs: those that Snakemake keeps here, and those of the adopted run, which git holds in one file.

Snakemake keeps a record of each output's job in .snakemake/metadata. `adopt` packs these records, with the hash that DVC gives each
output, into docs/results/jobs.json.xz. So a clone knows every job of the adopted run before any data is fetched.
"""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import json
import lzma
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inversescope.config import Config
from inversescope.errors import InputError
from inversescope.workflow.plan import ExperimentPlan
from inversescope.workflow.used import value

RECORDS = ".snakemake/metadata"
#: Version of Snakemake's records that is understood.
RECORD_FORMAT = 6
#: Records of the adopted run.
ADOPTED = "docs/results/jobs.json.xz"
CONFIG_FILE = "config/config.yaml"
#: Without --verify a file of more bytes is not read if its time is that of its record.
SMALL = 1 << 22


def file_md5(path: Path) -> str:
    """A file's MD5, DVC's name for its content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@dataclass(frozen=True)
class Record:
    """What Snakemake recorded of the job that wrote a file, and the hash that DVC gave the file when it was adopted."""

    output: str
    inputs: tuple[str, ...]
    command: str
    #: Configuration that the job used: key -> value.
    used: dict[str, Any]
    #: Input -> hash, with the name of its kind before a colon; of source files and other small inputs.
    checksums: dict[str, str]
    #: Seconds since the epoch.
    started: float
    ended: float
    #: Empty if the file has not been adopted.
    md5: str = ""

    @property
    def stage(self) -> str:
        """The stage that the job ran."""
        found = re.search(r"\binversescope (\w+)", self.command)
        return found[1] if found else ""

    @property
    def options(self) -> dict[str, str]:
        """Options of the command: --task, --model, --variant, ...; of a repeated one the last value."""
        words = self.command.split()
        pairs = zip(words, words[1:], strict=False)
        return {a[2:]: b for a, b in pairs if a.startswith("--") and not b.startswith("--")}

    @property
    def configs(self) -> tuple[str, ...]:
        """Configuration files that the command was given."""
        return tuple(re.findall(r"--config (\S+)", self.command))

    def dated(self, file: Path) -> bool:
        """Whether a file has the time at which the job wrote it."""
        # Times are kept in milliseconds.
        return abs(file.stat().st_mtime - self.ended) < 0.002

    def state(self, file: Path, verify: bool) -> str:
        """How a file compares with what was adopted: missing, unchanged, changed, or unrecorded (no hash to compare with).

        Without `verify` a large file is not read. It is unchanged if it has the time of the record, else unchecked.
        """
        if not file.is_file():
            return "missing"
        if not self.md5:
            return "unrecorded"
        about = file.stat()
        if not verify and about.st_size > SMALL:
            return "unchanged" if self.dated(file) else "unchecked"
        return "unchanged" if file_md5(file) == self.md5 else "changed"


def read_records(root: Path) -> dict[str, Record]:
    """Read the records of the adopted run and of what ran here since: output -> record.

    Raises:
        InputError: a record is damaged, or of a format that this version does not know.
    """
    adopted = adopted_records(root)
    here = {
        output: _record(output, values, adopted[output].md5 if output in adopted else "")
        for output, values in snakemake_records(root).items()
    }
    return adopted | here


def snakemake_records(root: Path) -> dict[str, dict[str, Any]]:
    """Snakemake's records of this checkout as they are: output -> fields; raises what `read_records` does."""
    folder = root / RECORDS
    records: dict[str, dict[str, Any]] = {}
    for directory, _, names in os.walk(folder):
        above = Path(directory).relative_to(folder).parts
        for file in (Path(directory) / name for name in names):
            try:
                # Long names are split into folders whose names begin with @.
                encoded = "".join(part.removeprefix("@") for part in above) + file.name
                values = json.loads(file.read_text(encoding="utf-8"))
                if values["record_format_version"] != RECORD_FORMAT:
                    raise InputError(
                        f"{file} is a record of format {values['record_format_version']}, not {RECORD_FORMAT}",
                        "use the version of Snakemake in envs/requirements.txt",
                    )
                records[base64.urlsafe_b64decode(encoded).decode()] = values
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file} is not a record of Snakemake ({type(error).__name__}: {error})",
                    "delete it, and rerun the workflow or run make restore",
                ) from None
    return records


def _record_path(root: Path, output: str) -> Path:
    """Where Snakemake keeps the record of an output."""
    # Names of Snakemake's records are cut into pieces of this length.
    length = 254
    encoded = base64.urlsafe_b64encode(output.encode()).decode()
    pieces = [encoded[i : i + length] for i in range(0, len(encoded), length)]
    return Path(root, RECORDS, *(f"@{piece}" for piece in pieces[:-1]), pieces[-1])


def _record(output: str, values: dict[str, Any], md5: str) -> Record:
    """A record from Snakemake's fields; the configuration is among a job's parameters, which are Python literals."""
    return Record(
        output=output,
        inputs=tuple(values["input"] or ()),
        command=values["shellcmd"] or "",
        used=_used(tuple(values["params"] or ())),
        checksums=values["input_checksums"] or {},
        started=float(values["starttime"]),
        ended=float(values["endtime"]),
        md5=md5,
    )


@functools.cache
def _used(params: tuple[Any, ...]) -> dict[str, Any]:
    used: dict[str, Any] = {}
    for text in params:
        value = ast.literal_eval(text) if isinstance(text, str) and text.startswith("{") else None
        used |= value if isinstance(value, dict) else {}
    return used


# --------------------------------------------------------------------------------------------------------- the adopted run
def write_adopted(root: Path, hashes: dict[str, str]) -> None:
    """Pack the records of outputs with a hash: file -> MD5. Times are rounded to milliseconds.

    Of the inputs' checksums those of source files are kept: outputs have their MD5.
    """
    jobs: dict[str, int] = {}
    outputs: dict[str, list[Any]] = {}
    for output, values in sorted(snakemake_records(root).items()):
        if output in hashes:
            times = [round(1000 * values.pop(name)) for name in ("starttime", "endtime")]
            checksums = values["input_checksums"] or {}
            values["input_checksums"] = {k: v for k, v in checksums.items() if k not in hashes}
            values.pop("job_hash", None)  # records that were restored have none
            number = jobs.setdefault(json.dumps(values), len(jobs))
            outputs[output] = [number, hashes[output], *times]
    text = json.dumps({"format": 1, "jobs": [json.loads(job) for job in jobs], "outputs": outputs})
    file = root / ADOPTED
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_bytes(lzma.compress(text.encode(), preset=9))
    part.replace(file)


def _adopted(root: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Output -> Snakemake's fields and MD5, of the adopted run; empty if no run has been adopted."""
    file = root / ADOPTED
    if not file.is_file():
        return {}
    try:
        packed = json.loads(lzma.decompress(file.read_bytes()))
        return {
            output: (packed["jobs"][job] | {"starttime": started / 1000, "endtime": ended / 1000}, md5)
            for output, (job, md5, started, ended) in packed["outputs"].items()
        }
    except (lzma.LZMAError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{file} cannot be read: {error!r}", "restore it from git") from None


def adopted_records(root: Path) -> dict[str, Record]:
    """Records of the adopted run: output -> record. Raises `InputError` if their file is damaged."""
    return {output: _record(output, values, md5) for output, (values, md5) in _adopted(root).items()}


def restore_records(root: Path) -> dict[str, Record]:
    """Put the records of the adopted run where Snakemake looks for them; returns them."""
    for output, (values, _) in _adopted(root).items():
        file = _record_path(root, output)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    return adopted_records(root)


# ----------------------------------------------------------------------------------------------------------- configuration
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


def made_otherwise(root: Path, config: Config, file: Path) -> str | None:
    """How the configuration of the job that wrote a file here differs from a given one; None if it does not, or no job did.

    Raises:
        InputError: the record is damaged.
    """
    output = file.relative_to(root).as_posix()
    try:
        values = json.loads(_record_path(root, output).read_text(encoding="utf-8"))
        record = _record(output, values, "")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the record of {output} is damaged ({error!r})", "rerun the workflow") from None
    for key, (recorded, present) in configured(config, record).items():
        if recorded != present:
            return f"{key} was {json.dumps(recorded, default=str)[:80]}, not {json.dumps(present, default=str)[:80]}"
    return None
