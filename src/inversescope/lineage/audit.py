"""The lineage of a figure, a table or one number: a tree of jobs back to data set, model and seed, and what became of each.

A node stands for the jobs of one stage that the result depends on. Nodes come from the records of jobs; hashes are DVC's.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inversescope import __version__
from inversescope.config import Config, load_config
from inversescope.errors import InputError
from inversescope.lineage.adopt import SHOWN
from inversescope.lineage.dvc import LOCK, damaged_objects
from inversescope.lineage.records import CONFIG_FILE, Record, adopted_records, configured, read_records
from inversescope.lineage.rerun import SAME, run_again
from inversescope.lineage.stale import stale

#: States of a file that has its recorded hash ("unchecked": large, touched since), and all states from best to worst.
GOOD = ("unchanged", "unchecked")
STATES = (*GOOD, "unrecorded", "changed")


@dataclass
class Node:
    """The jobs of one stage that a result depends on."""

    name: str
    files: list[dict[str, str]] = field(default_factory=list)
    #: present: all files are there. unchanged: the worst state of those that are.
    present: bool = True
    unchanged: str = "unchanged"
    #: Code, configuration and inputs are those of the record, so that the jobs can be run again.
    reproducible: bool = True
    why: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.present and self.reproducible and self.unchanged in GOOD

    def doubt(self, reason: str) -> None:
        """Note why the jobs would not give the same again."""
        self.reproducible = False
        if reason not in self.why:
            self.why.append(reason)


@dataclass
class Audit:
    """The lineage of one result."""

    path: str
    hash: str
    state: str
    row: dict[str, str]
    row_from: str
    git_commit: str
    lock_commit: str
    package_version: str
    seed: int
    nodes: dict[str, Node]
    verified: bool
    damaged_objects: list[str] = field(default_factory=list)
    rerun: dict[str, str] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether everything is present, unchanged and reproducible, and what was rerun came out the same."""
        return (
            self.state in GOOD
            and all(node.fine for node in self.nodes.values())
            and not self.damaged_objects
            and set(self.rerun.values()) <= set(SAME)
        )

    def to_json(self) -> str:
        """Everything, as JSON in ASCII."""
        values = asdict(self)
        for name, node in self.nodes.items():
            values["nodes"][name]["fine"] = node.fine
        return json.dumps({**values, "fine": self.fine}, indent=2)


def audit(root: Path, what: str, verify: bool = False, rerun: str | None = None) -> Audit:
    """Trace a result.

    Args:
        root: repository root.
        what: a file below root, or a file and the line of one of its rows: `results/ioi/gpt2-embedded/fcr.csv:12`. A file of
            docs/results is a copy from the adopted run: its jobs are that run's, whatever ran here since.
        verify: hash every file of the lineage and every object of DVC's cache, and ask Snakemake what it would run.
        rerun: a stage of the lineage or an output of one, to be recomputed in a temporary folder and compared.

    Raises:
        InputError: the file is unknown or the row out of range, a record is damaged, or the node to rerun is not one job of this
            lineage.
    """
    root = Path(root)
    asked, line = _parse(root, what)
    row = _row(root, asked, line)
    path = re.sub(f"^{SHOWN}/", "results/", asked)
    records = read_records(root) if path == asked else adopted_records(root)
    if path not in records:
        raise InputError(f"{asked} is an output of no recorded job", "name a file of a job or of make adopt")
    row_from = _part_with_row(root, records[path], asked, line) if line is not None else ""
    nodes = _Tree(root, records, verify).nodes(path, row_from)
    result = Audit(
        path=asked,
        hash=records[path].md5,
        state=records[path].state(root / asked, verify),
        row=row,
        row_from=row_from,
        git_commit=_commit(root),
        lock_commit=_git(root, "log", "-1", "--format=%h", "--", LOCK).strip() or "not committed",
        package_version=__version__,
        seed=_seed(nodes, root),
        nodes=nodes,
        verified=verify,
    )
    if verify:
        result.damaged_objects = damaged_objects(root)
        _ask_snakemake(root, nodes, path)
    if rerun is not None:
        files = {name: [file["path"] for file in node.files] for name, node in nodes.items()}
        result.rerun = run_again(root, records, files, rerun)
    return result


def _seed(nodes: dict[str, Node], root: Path) -> int:
    """The seed that the jobs were given, which the configuration need not say any more."""
    recorded = [node.config["seed"] for node in nodes.values() if "seed" in node.config]
    return int(recorded[0] if recorded else load_config([root / CONFIG_FILE]).seed)


def _parse(root: Path, what: str) -> tuple[str, int | None]:
    """A path below root, and a line number if one is given."""
    match = re.fullmatch(r"(.+):(\d+)", what)
    name, line = (match[1], int(match[2])) if match and not Path(what).exists() else (what, None)
    base = root.resolve()
    given = Path(name)
    full = given if given.is_absolute() else base / given
    try:
        path = Path(os.path.normpath(full)).relative_to(base).as_posix()
    except ValueError:
        raise InputError(f"{name} is not below {root}", "name a file of this repository") from None
    if (base / path).is_dir():
        raise InputError(f"{path} is a folder", "name one of its files")
    return path, line


def _row(root: Path, path: str, line: int | None) -> dict[str, str]:
    """Fields of a row of a CSV file; lines are counted as an editor counts them, the header being the first."""
    if line is None:
        return {}
    if not path.endswith(".csv"):
        raise InputError(f"{path} is no CSV file, so it has no row {line}", "name the file alone")
    file = root / path
    if not file.is_file():
        raise InputError(f"{path} does not exist here", "run make restore, or name the file alone")
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.reader(text))
    if not 2 <= line <= len(rows):
        raise InputError(f"{path} has no row at line {line}", f"its rows are at lines 2 to {len(rows)}")
    return dict(zip(rows[0], rows[line - 1], strict=False))


def _part_with_row(root: Path, record: Record, path: str, line: int) -> str:
    """The input that holds the very same row under the same header: the number then comes by way of that file alone."""
    lines = (root / path).read_text(encoding="utf-8").splitlines()
    for name in record.inputs:
        if name.endswith(".csv") and (root / name).is_file():
            part = (root / name).read_text(encoding="utf-8").splitlines()
            if part[:1] == lines[:1] and lines[line - 1] in part[1:]:
                return name
    return ""


def _git(root: Path, *arguments: str) -> str:
    """What a git command prints; empty if it fails or there is no git. A repository above the root is another project's."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, env=environment, capture_output=True, encoding="utf-8"
        )
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _commit(root: Path) -> str:
    commit = _git(root, "rev-parse", "--short", "HEAD").strip()
    parts = ("src", "rules", "Snakefile", "config")
    edited = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *parts).strip()
    return f"{commit or 'none'}{', with uncommitted edits' if edited else ''}"


class _Tree:
    """Builds the nodes of a result, from the records of jobs."""

    def __init__(self, root: Path, records: dict[str, Record], verify: bool) -> None:
        self.root, self.records, self.verify = root, records, verify
        self.sha256 = functools.cache(self._sha256)
        self.config = functools.cache(self._config)

    def _sha256(self, path: str) -> str:
        file = self.root / path
        return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" if file.is_file() else "missing"

    def _config(self, files: tuple[str, ...]) -> Config:
        return load_config([self.root / file for file in files or (CONFIG_FILE,)])

    def nodes(self, path: str, row_from: str) -> dict[str, Node]:
        """Nodes of everything that an output depends on; the first is its own. With `row_from` only by way of that input."""
        outputs: dict[str, list[str]] = {}
        parents: dict[str, list[str]] = {}
        pending, seen = [path], {path}
        while pending:
            output = pending.pop(0)
            record = self.records[output]
            outputs.setdefault(record.stage, []).append(output)
            above = parents.setdefault(record.stage, [])
            for name in [row_from] if row_from and output == path else record.inputs:
                if name in self.records:
                    parent = self.records[name].stage
                    if parent != record.stage and parent not in above:
                        above.append(parent)
                    if name not in seen:
                        seen.add(name)
                        pending.append(name)
        nodes = {stage: self._node(stage, sorted(outputs[stage]), parents[stage]) for stage in outputs}
        for stage, node in nodes.items():
            read = {name for output in outputs[stage] for name in self.records[output].inputs}
            for parent in node.parents:
                _doubt_inputs(node, nodes[parent], read)
        return nodes

    def _node(self, stage: str, outputs: list[str], parents: list[str]) -> Node:
        node = Node(stage, parents=parents)
        for path in outputs:
            state = self.records[path].state(self.root / path, self.verify)
            node.files.append({"path": path, "hash": self.records[path].md5, "state": state})
            if state == "missing":
                node.present = False
            else:
                node.unchanged = max(node.unchanged, state, key=STATES.index)
        jobs = {self.records[path].command: self.records[path] for path in outputs}
        node.commands = sorted(jobs)
        node.ran = [
            _when(min(self.records[path].started for path in outputs)),
            _when(max(self.records[path].ended for path in outputs)),
        ]
        for record in jobs.values():
            for name, checksum in record.checksums.items():
                if name not in self.records:
                    node.code[name] = checksum
                    if self.sha256(name) != checksum:
                        node.doubt(f"{name} is not what it was")
            for key, (recorded, present) in configured(self.config(record.configs), record).items():
                node.config[key] = recorded
                if recorded != present:
                    node.doubt(f"configuration {key} was {short(recorded)}, now {short(present)}")
            self._describe(node, record)
        processors = {about["processor"] for about in map(self._described, outputs) if "processor" in about}
        if processors:
            node.about["processor"] = "; ".join(sorted(processors))
        return node

    def _described(self, output: str) -> dict[str, Any]:
        """What a job wrote about its own result beside it, if it did."""
        if Path(output).name not in ("meta.json", "target.json"):
            return {}
        try:
            return dict(json.loads((self.root / output).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def _describe(self, node: Node, record: Record) -> None:
        """Say in words what begins a lineage: the data set, the target model."""
        config = self.config(record.configs)
        task, model = record.options.get("task", ""), record.options.get("model", "")
        if node.name == "make_prompts":
            node.about[f"data set {task}"] = (
                f"draws from its prior, by seed {node.config.get('seed', config.seed)}"
            )
        if node.name in ("select_target", "fetch_target", "import_checkpoint") and model in config.models:
            settings = config.models[model]
            words = [f"source {settings.source}", settings.path or "", settings.weights]
            words.append(f"revision {settings.revision}" if settings.revision else "")
            found = self._described(f"data/{task}/{model}/target/target.json")
            words += [f"{key} {found[key]}" for key in ("candidate", "seed") if key in found]
            node.about[f"target model {model}"] = ", ".join(word for word in words if word)


def _doubt_inputs(node: Node, parent: Node, read: set[str]) -> None:
    """Doubt a node if what it reads of a parent is not what it was; `read` are its inputs by name."""
    bad = [f for f in parent.files if f["state"] in ("missing", "changed") and f["path"] in read]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        node.doubt(f"input {bad[0]['path']} is {bad[0]['state']}{more}")


def _ask_snakemake(root: Path, nodes: dict[str, Node], path: str) -> None:
    """Add what Snakemake would run again for the result."""
    pending = {s.output: s.why for s in stale(root, [path])}
    for node in nodes.values():
        for entry in node.files:
            if entry["path"] in pending:
                node.doubt(f"Snakemake would make {entry['path']} again: {pending[entry['path']]}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(value: Any) -> str:
    """A configuration value on one line: its beginning and hash if it is long."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    text = text.replace('"', "")
    if len(text) <= 90:
        return text
    return f"{text[:60]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
