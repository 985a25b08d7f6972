"""The lineage of a figure, a table or one number: a tree of jobs back to data set, model and seed, and what became of each.

A node stands for the jobs of one stage that the result depends on. Nodes come from Snakemake's records of jobs; where these are
not at hand (a fresh clone), from the stages of dvc.lock. Hashes are DVC's, and git's for what only git has.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inversescope import __version__
from inversescope.config import Config, load_config
from inversescope.errors import InputError, neutral
from inversescope.lineage.records import (
    CONFIG_FILE,
    Record,
    Versions,
    configured,
    file_md5,
    folder_md5,
    git,
    read_records,
    stale,
)
from inversescope.workflow.stages import STAGES

#: Fields that hold measured times; a rerun repeats everything else.
MEASURED = re.compile(r"seconds|per_second|_at$")
WIDTH = 116


@dataclass
class Node:
    """The jobs of one stage that a result depends on."""

    name: str
    files: list[dict[str, str]] = field(default_factory=list)
    #: present: all files are there. unchanged: none differs from its recorded hash ("unchecked": large, touched since).
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
        return self.present and self.reproducible and self.unchanged in ("unchanged", "unchecked")

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
    source: str
    git_commit: str
    lock_commit: str
    package_version: str
    seed: int
    nodes: dict[str, Node]
    root: str
    verified: bool
    damaged_objects: list[str] = field(default_factory=list)
    rerun: dict[str, str] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether everything is present, unchanged and reproducible, and what was rerun came out the same."""
        good = {"identical", "identical but for measured times"}
        return (
            self.state in ("unchanged", "unchecked")
            and all(node.fine for node in self.nodes.values())
            and not self.damaged_objects
            and set(self.rerun.values()) <= good
        )

    def to_json(self) -> str:
        """Everything, as JSON in ASCII."""
        values = asdict(self)
        for name, node in self.nodes.items():
            values["nodes"][name]["fine"] = node.fine
        return json.dumps({**values, "fine": self.fine}, indent=2)


# ------------------------------------------------------------------------------------------------------------------- building
def audit(root: Path, what: str, verify: bool = False, rerun: str | None = None) -> Audit:
    """Trace a result.

    Args:
        root: repository root.
        what: a file below root, or a file and the line of one of its rows: `results/ioi/gpt2-embedded/fcr.csv:12`.
        verify: hash every file of the lineage and every object of DVC's cache, and ask Snakemake what it would run.
        rerun: a stage of the lineage or an output of one, to be recomputed in a temporary folder and compared.

    Raises:
        InputError: the file is unknown or the row out of range, there is no dvc.lock, a record is damaged, or the node to rerun is
            not one job of this lineage.
    """
    root = Path(root)
    path, line = _parse(root, what)
    versions = Versions(root)
    config = load_config([root / CONFIG_FILE])
    records = read_records(root)
    row = _row(root, path, line)
    row_from = ""
    if path in records:
        source = "snakemake"
        if line is not None:
            row_from = _part_with_row(root, records[path], path, line)
        nodes = _from_records(versions, records, config, path, row_from, verify)
    elif versions.kept_as(path) is not None:
        source = "dvc.lock"
        nodes = _from_stages(versions, config, path, verify)
    else:
        raise InputError(
            f"{path} is an output of no recorded job",
            "name a file that the workflow makes, or run make restore first",
        )
    result = Audit(
        path=path,
        hash=versions.known(path),
        state=versions.state(path, verify),
        row=row,
        row_from=row_from,
        source=source,
        git_commit=_commit(root),
        lock_commit=git(root, "log", "-1", "--format=%h", "--", "dvc.lock").strip() or "not committed",
        package_version=__version__,
        seed=config.seed,
        nodes=nodes,
        root=path,
        verified=verify,
    )
    if verify:
        result.damaged_objects = versions.check_objects()
        if source == "snakemake":
            _ask_snakemake(root, nodes, path)
    if rerun is not None:
        result.rerun = run_again(root, records, nodes, rerun)
    return result


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
    with file.open(newline="") as text:
        rows = list(csv.reader(text))
    if not 2 <= line <= len(rows):
        raise InputError(
            f"{path} has no row at line {line}", f"its rows are at lines 2 to {len(rows)}, below the header"
        )
    return dict(zip(rows[0], rows[line - 1], strict=False))


def _part_with_row(root: Path, record: Record, path: str, line: int) -> str:
    """The input that holds the very same row under the same header: the number then comes by way of that file alone."""
    lines = (root / path).read_text().splitlines()
    for name in record.inputs:
        if name.endswith(".csv") and (root / name).is_file():
            part = (root / name).read_text().splitlines()
            if part[:1] == lines[:1] and lines[line - 1] in part[1:]:
                return name
    return ""


def _commit(root: Path) -> str:
    commit = git(root, "rev-parse", "--short", "HEAD").strip()
    if not commit:
        return "none"
    edited = git(
        root, "status", "--porcelain", "--untracked-files=no", "--", "src", "rules", "Snakefile", "config"
    )
    return f"{commit}, with uncommitted edits" if edited.strip() else commit


def stage_of(rule: str) -> str:
    """The stage of a rule: rules that are made in a loop carry more behind its name."""
    fitting = [s for s in STAGES if rule == s or rule.startswith(f"{s}_")]
    return max(fitting, key=len, default=rule)


def _from_records(
    versions: Versions,
    records: dict[str, Record],
    config: Config,
    path: str,
    row_from: str,
    verify: bool,
) -> dict[str, Node]:
    """Nodes of everything that an output depends on, by Snakemake's records; the first is its own."""
    needed: dict[str, list[str]] = {}
    jobs: dict[str, dict[str, Record]] = {}
    parents: dict[str, list[str]] = {}
    pending, seen = [path], {path}
    while pending:
        output = pending.pop(0)
        record = records[output]
        stage = stage_of(record.rule)
        needed.setdefault(stage, []).append(output)
        jobs.setdefault(stage, {})[record.command] = record
        inputs = [row_from] if row_from and output == path else list(record.inputs)
        for name in inputs:
            if name in records:
                parent = stage_of(records[name].rule)
                if parent not in parents.setdefault(stage, []) and parent != stage:
                    parents[stage].append(parent)
                if name not in seen:
                    seen.add(name)
                    pending.append(name)
    nodes: dict[str, Node] = {}
    sources: dict[str, str] = {}
    for stage, outputs in needed.items():
        node = nodes[stage] = Node(stage, parents=parents.get(stage, []))
        for name in sorted(outputs):
            _add_file(node, versions, name, verify)
        node.commands = sorted(jobs[stage])
        times = [(records[output].started, records[output].ended) for output in outputs]
        node.ran = [_when(min(s for s, _ in times)), _when(max(e for _, e in times))]
        for record in jobs[stage].values():
            for name, checksum in record.checksums.items():
                if name not in records:
                    _add_code(node, versions.root, name, checksum, sources)
            for key, (recorded, present) in configured(config, record).items():
                node.config[key] = recorded
                if recorded != present:
                    node.doubt(f"configuration {key} was {_short(recorded)}, now {_short(present)}")
        _describe(node, versions.root, config)
    for stage, node in nodes.items():
        read = {name for record in jobs[stage].values() for name in record.inputs}
        for parent in node.parents:
            _doubt_inputs(node, nodes[parent], read)
    return nodes


def _from_stages(versions: Versions, config: Config, path: str, verify: bool) -> dict[str, Node]:
    """Nodes by the stages of dvc.lock: coarser, but they need nothing beside git."""
    kept = versions.kept_as(path)
    assert kept is not None
    by_stage: dict[str, list[Any]] = {}
    for each in versions.kept:
        by_stage.setdefault(each.stage, []).append(each)
    everything = config.model_dump(mode="json")
    nodes: dict[str, Node] = {}
    pending = [kept.stage]
    while pending:
        name = pending.pop(0)
        if name in nodes:
            continue
        node = nodes[name] = Node(name, commands=[str(versions.stages[name].cmd)])
        for each in by_stage[name]:
            if name == kept.stage and each.path != kept.path:
                continue
            if each.is_folder:
                _add_folder(node, versions, each, verify)
            else:
                _add_file(node, versions, each.path, verify)
        for dependency in versions.stages[name].deps:
            if getattr(dependency, "params", None):
                recorded = dependency.hash_info.value if dependency.hash_info else {}
                for key, value in recorded.items():
                    node.config[key] = value
                    present = everything
                    for part in key.split("."):
                        present = present.get(part) if isinstance(present, dict) else None  # type: ignore[assignment]
                    if present != value:
                        node.doubt(f"configuration {key} is not what it was")
                continue
            where = Path(dependency.fs_path).relative_to(versions.root).as_posix()
            makers = [
                each.stage
                for each in versions.kept
                if each.stage != name
                and (
                    where == each.path
                    or where.startswith(f"{each.path}/")
                    or each.path.startswith(f"{where}/")
                )
            ]
            if makers:
                node.parents += [maker for maker in dict.fromkeys(makers) if maker not in node.parents]
            elif dependency.hash_info:
                node.code[where] = f"md5:{dependency.hash_info.value}"
                if dependency.workspace_status():
                    node.doubt(f"{where} is not what it was")
        pending += node.parents
        _describe(node, versions.root, config)
    for node in nodes.values():
        for name in node.parents:
            _doubt_inputs(node, nodes[name])
    return nodes


def _add_file(node: Node, versions: Versions, path: str, verify: bool) -> None:
    state = versions.state(path, verify)
    node.files.append({"path": path, "hash": versions.known(path), "state": state})
    _count(node, path, state)


def _add_folder(node: Node, versions: Versions, kept: Any, verify: bool) -> None:
    """A directory of dvc.lock: as one entry where its list of files is not at hand."""
    folder = versions.root / kept.path
    if kept.listing is not None:
        for name in kept.listing:
            _add_file(node, versions, f"{kept.path}/{name}", verify)
        return
    state = "missing" if not folder.is_dir() else "unchecked" if kept.size > 1 << 24 and not verify else ""
    state = state or ("unchanged" if folder_md5(folder) == kept.md5 else "changed")
    node.files.append({"path": kept.path, "hash": f"md5:{kept.md5}", "state": state})
    _count(node, kept.path, state)


def _count(node: Node, path: str, state: str) -> None:
    """Take a file's state into that of its node: the worst counts."""
    order = ["unchanged", "unchecked", "unrecorded", "changed"]
    if state == "missing":
        node.present = False
        return
    if order.index(state) > order.index(node.unchanged):
        node.unchanged = state


def _add_code(node: Node, root: Path, path: str, checksum: str, hashes: dict[str, str]) -> None:
    """Compare a source file with the checksum that Snakemake recorded."""
    node.code[path] = checksum
    if path not in hashes:
        file = root / path
        hashes[path] = (
            f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" if file.is_file() else "missing"
        )
    if hashes[path] != checksum:
        node.doubt(f"{path} is not what it was")


def _doubt_inputs(node: Node, parent: Node, read: set[str] | None = None) -> None:
    """Doubt a node whose inputs are not what they were; `read` are its inputs, if known, by name."""
    bad = [
        f
        for f in parent.files
        if f["state"] in ("missing", "changed") and (read is None or f["path"] in read)
    ]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        node.doubt(f"input {bad[0]['path']} is {bad[0]['state']}{more}")


def _describe(node: Node, root: Path, config: Config) -> None:
    """Say in words what begins a lineage: the data set, the target model."""
    name, _, of = node.name.partition("@")
    pairs = {(m[1], m[2]) for c in node.commands if (m := re.search(r"--task (\S+) --model (\S+)", c))}
    pairs |= {(e.task, e.model) for key, e in config.experiments.items() if of in (key, e.task) and of}
    if name in ("make_prompts", "prompts"):
        tasks = sorted({task for task, _ in pairs})
        node.about["data set"] = f"draws from the prior of {', '.join(tasks)}, by seed {config.seed}"
    if name in ("select_target", "fetch_target", "import_checkpoint", "targets"):
        for task, model in sorted(pairs):
            if model not in config.models:
                continue
            settings = config.models[model]
            words = [f"source {settings.source}"]
            if settings.path:
                words.append(settings.path)
            if settings.revision:
                words.append(f"revision {settings.revision}")
            try:
                found = json.loads((root / f"data/{task}/{model}/target/target.json").read_text())
                words += [f"{key} {found[key]}" for key in ("candidate", "seed") if key in found]
            except (OSError, ValueError):
                pass
            node.about[f"target model {model}"] = ", ".join(words)


def _ask_snakemake(root: Path, nodes: dict[str, Node], path: str) -> None:
    """Add what Snakemake would run again for the result."""
    pending = {s.output: s.why for s in stale(root, [path])}
    for node in nodes.values():
        for entry in node.files:
            if entry["path"] in pending:
                node.doubt(f"Snakemake would make {entry['path']} again: {pending[entry['path']]}")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# -------------------------------------------------------------------------------------------------------------------- rerunning
def run_again(root: Path, records: dict[str, Record], nodes: dict[str, Node], what: str) -> dict[str, str]:
    """Recompute one job of a lineage in a temporary folder and compare its outputs: path -> what came out.

    Raises:
        InputError: `what` is not one job of the lineage, an input is missing, or the job fails.
    """
    within = {f["path"]: f["path"] for node in nodes.values() for f in node.files}
    if what in nodes:
        made = [f["path"] for f in nodes[what].files if f["path"] in records]
        commands = {records[path].command for path in made}
        if len(commands) != 1:
            first = f", such as {made[0]}" if made else ""
            raise InputError(
                f"{what} stands for {len(commands)} recorded jobs", f"name an output of one of them{first}"
            )
        path = made[0]
    elif what in within and what in records:
        path = what
    else:
        raise InputError(
            f"{what} is not a recorded job of this lineage",
            f"name one of its files or stages ({', '.join(nodes)})",
        )
    record = records[path]
    words = shlex.split(record.command)
    if words[:2] == ["accelerate", "launch"] and "inversescope" in words:
        words = words[words.index("inversescope") :]  # without the processes of a training
    if words[:1] != ["inversescope"] or len(words) < 2 or words[1] not in STAGES:
        raise InputError(f"the recorded command of {path} is no stage of inversescope", "restore the records")
    outputs = sorted(name for name, other in records.items() if other.command == record.command)
    with tempfile.TemporaryDirectory(prefix="inversescope-audit-") as name:
        folder = Path(name)
        configs = [b for a, b in zip(words, words[1:], strict=False) if a == "--config"]
        for needed in [*record.inputs, *configs]:
            source, copy = (root / needed).resolve(), folder / needed
            if not source.is_file():
                raise InputError(f"{needed}, an input of {path}, is missing", "run make restore first")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                copy.symlink_to(source)
        environment = {**os.environ, "PYTHONPATH": str((root / "src").resolve()), "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "inversescope.cli", *words[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise InputError(
                f"{words[1]} failed when run again: {lines[-1] if lines else 'no message'}",
                "see --verify for causes",
            )
        return {output: compare(root / output, folder / output) for output in outputs}


def compare(old: Path, new: Path) -> str:
    """How two files compare: identical, but for measured times, different, or missing."""
    if not old.is_file() or not new.is_file():
        return "missing"
    if file_md5(old) == file_md5(new):
        return "identical"
    if old.suffix == ".pdf":
        return "identical but for measured times" if _pdf(old) == _pdf(new) else "different"
    if old.suffix in (".json", ".csv", ".parquet"):
        try:
            same = _timeless(old) == _timeless(new)
        except (InputError, ValueError):  # one of them is no longer such a file
            same = False
        return "identical but for measured times" if same else "different"
    return "different"


def _pdf(file: Path) -> bytes:
    """A PDF without the date at which it was written."""
    return re.sub(rb"/(CreationDate|ModDate) \([^)]*\)", b"", file.read_bytes())


def _timeless(file: Path) -> str:
    """A table or JSON file without its measured times."""
    if file.suffix == ".json":
        return json.dumps(_drop(json.loads(file.read_text())), sort_keys=True)
    from inversescope.store import read_table

    table = read_table(file)
    return str(table[[c for c in table.columns if not MEASURED.search(str(c))]].to_csv(index=False))


def _drop(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop(v) for k, v in value.items() if not MEASURED.search(str(k))}
    return [_drop(v) for v in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------------------- printing
def render(result: Audit) -> str:
    """The lineage as a tree, each stage in full where it first appears."""
    lines = [f"{result.path}  {result.hash or 'no recorded hash'}  {result.state}"]
    if result.row:
        shown = ", ".join(f"{key} {value}" for key, value in result.row.items() if value != "")
        lines += _wrapped(f"row: {shown}", "  ")
        if result.row_from:
            lines.append(f"  the row stands in {result.row_from}: only what that file depends on is shown")
    lines.append(
        f"  seed {result.seed}; inversescope {result.package_version}; git commit {result.git_commit}; "
        f"dvc.lock of {result.lock_commit}; jobs by {result.source}"
    )
    if result.source == "dvc.lock":
        lines.append(
            "  Snakemake's records of single jobs are not here (make restore brings them): stages of dvc.lock"
        )
    shown_already: set[str] = set()
    first = next(iter(result.nodes))
    _tree(result, first, "", "", shown_already, lines)
    for path in result.damaged_objects:
        lines.append(f"DAMAGED object in DVC's cache: {path}")
    for path, outcome in result.rerun.items():
        lines.append(f"rerun: {path}  {outcome}")
    bad = [name for name, node in result.nodes.items() if not node.fine]
    if result.fine:
        checked = "every byte hashed" if result.verified else "--verify hashes every byte"
        lines.append(f"all of {len(result.nodes)} stages are present, unchanged and reproducible ({checked})")
    else:
        lines.append(f"NOT all fine: {', '.join(bad) or 'see above'}")
    return "\n".join(neutral(line) for line in lines)


def _tree(result: Audit, name: str, branch: str, below: str, shown: set[str], lines: list[str]) -> None:
    node = result.nodes[name]
    if name in shown:
        lines.append(f"{branch}{name} (above)")
        return
    shown.add(name)
    verdict = [
        "present" if node.present else "MISSING",
        node.unchanged if node.unchanged in ("unchanged", "unchecked") else node.unchanged.upper(),
        "reproducible" if node.reproducible else "NOT REPRODUCIBLE",
    ]
    lines.append(f"{branch}{name}: {', '.join(verdict)}")
    inner = below + ("│ " if node.parents else "  ")
    for what, words in node.about.items():
        lines += _wrapped(f"{what}: {words}", inner)
    lines += [f"{inner}{text}" for text in _files(node)]
    if node.config:
        text = "; ".join(f"{key} {_short(value)}" for key, value in node.config.items())
        lines += _wrapped(f"config {text}", inner)
    if node.code:
        digest = hashlib.sha256("".join(f"{k}{v}" for k, v in sorted(node.code.items())).encode()).hexdigest()
        what = "1 file" if len(node.code) == 1 else f"{len(node.code)} files"
        lines.append(f"{inner}code {what}, sha256 of their hashes {digest[:16]}")
    if node.ran:
        lines.append(f"{inner}{len(node.commands)} job(s), {node.ran[0]} to {node.ran[1]}")
    for reason in node.why[:4]:
        lines += _wrapped(f"! {reason}", inner)
    if len(node.why) > 4:
        lines.append(f"{inner}! and {len(node.why) - 4} more reasons (--json has all)")
    for position, parent in enumerate(node.parents):
        last = position == len(node.parents) - 1
        _tree(
            result,
            parent,
            f"{below}{'└─' if last else '├─'}",
            f"{below}{'  ' if last else '│ '}",
            shown,
            lines,
        )


def _files(node: Node) -> Iterable[str]:
    """The files of a node: all if few, else how many and a hash of their hashes; whatever is wrong by name."""
    wrong = [f for f in node.files if f["state"] not in ("unchanged", "unchecked")]
    if len(node.files) <= 4:
        return [f"{f['path']}  {f['hash'] or 'no recorded hash'}  {f['state']}" for f in node.files]
    digest = hashlib.sha256("".join(f"{f['path']}{f['hash']}" for f in node.files).encode()).hexdigest()
    folder = os.path.commonpath([f["path"] for f in node.files])
    below = f" below {folder}" if folder else ""
    lines = [f"{len(node.files)} files{below}, sha256 of their hashes {digest[:16]}"]
    lines += [f"{f['path']}  {f['state']}" for f in wrong[:4]]
    return lines + ([f"and {len(wrong) - 4} more"] if len(wrong) > 4 else [])


def _short(value: Any) -> str:
    """A configuration value on one line."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    text = text.replace('"', "")
    return (
        text
        if len(text) <= 90
        else f"{text[:60]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
    )


def _wrapped(text: str, indent: str) -> list[str]:
    """Break a line at blanks; further lines are indented by two more."""
    lines, current = [], ""
    for word in text.split(" "):
        if current and len(indent) + len(current) + len(word) > WIDTH:
            lines.append(current)
            current = "  " + word
        else:
            current = f"{current} {word}" if current else word
    return [indent + line for line in [*lines, current]]
