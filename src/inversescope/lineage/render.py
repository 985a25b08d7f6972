"""A lineage as text."""

from __future__ import annotations

import hashlib
import os
import textwrap
from collections.abc import Iterable

from inversescope.errors import neutral
from inversescope.lineage.audit import GOOD, Audit, Node, short

WIDTH = 116


def render(result: Audit) -> str:
    """The lineage as a tree, each stage in full where it first appears."""
    lines = [f"{result.path}  {_hash(result.hash)}  {result.state}"]
    if result.row:
        shown = ", ".join(f"{key} {value}" for key, value in result.row.items() if value != "")
        lines += _wrapped(f"row: {shown}", "  ")
        if result.row_from:
            lines.append(f"  the row stands in {result.row_from}: only what that file depends on is shown")
    lines.append(
        f"  seed {result.seed}; inversescope {result.package_version}; git commit {result.git_commit}; "
        f"dvc.lock of {result.lock_commit}"
    )
    _tree(result, next(iter(result.nodes)), "", "", set(), lines)
    lines += [f"DAMAGED object in DVC's cache: {path}" for path in result.damaged_objects]
    lines += [f"rerun: {path}  {outcome}" for path, outcome in result.rerun.items()]
    if any(not node.present for node in result.nodes.values()):
        lines.append("files are missing: make restore fetches those of the adopted run")
    bad = [name for name, node in result.nodes.items() if not node.fine]
    if result.fine:
        checked = "every byte hashed" if result.verified else "--verify hashes every byte"
        lines.append(f"all of {len(result.nodes)} stages are present, unchanged and reproducible ({checked})")
    else:
        lines.append(f"NOT all fine: {', '.join(bad) or 'see above'}")
    return "\n".join(neutral(line) for line in lines)


def _tree(result: Audit, name: str, branch: str, below: str, shown: set[str], lines: list[str]) -> None:
    """Add a node and what it depends on to the lines; `branch` and `below` begin its first and its other lines."""
    node = result.nodes[name]
    if name in shown:
        lines.append(f"{branch}{name} (above)")
        return
    shown.add(name)
    lines.append(f"{branch}{name}: {_verdict(node)}")
    inner = below + ("│ " if node.parents else "  ")
    lines += [line for text in _about(node) for line in _wrapped(text, inner)]
    for parent in node.parents:
        last = parent == node.parents[-1]
        corner, under = ("└─", "  ") if last else ("├─", "│ ")
        _tree(result, parent, f"{below}{corner}", f"{below}{under}", shown, lines)


def _verdict(node: Node) -> str:
    return ", ".join(
        [
            "present" if node.present else "MISSING",
            node.unchanged if node.unchanged in GOOD else node.unchanged.upper(),
            "reproducible" if node.reproducible else "NOT REPRODUCIBLE",
        ]
    )


def _about(node: Node) -> Iterable[str]:
    """What is said of a node."""
    yield from (f"{what}: {words}" for what, words in node.about.items())
    yield from _files(node)
    if node.config:
        yield "config " + "; ".join(f"{key} {short(value)}" for key, value in node.config.items())
    if node.code:
        count = "1 file" if len(node.code) == 1 else f"{len(node.code)} files"
        yield f"code {count}, sha256 of their hashes {_digest(node.code.items())}"
    yield f"{len(node.commands)} job(s), {node.ran[0]} to {node.ran[1]}"
    yield from (f"! {reason}" for reason in node.why[:4])
    if len(node.why) > 4:
        yield f"! and {len(node.why) - 4} more reasons (--json has all)"


def _files(node: Node) -> Iterable[str]:
    """The files of a node: all if few, else how many and a hash of their hashes; whatever is wrong by name."""
    if len(node.files) <= 4:
        yield from (f"{f['path']}  {_hash(f['hash'])}  {f['state']}" for f in node.files)
        return
    folder = os.path.commonpath([f["path"] for f in node.files])
    below = f" below {folder}" if folder else ""
    digest = _digest((f["path"], f["hash"]) for f in node.files)
    yield f"{len(node.files)} files{below}, sha256 of their hashes {digest}"
    wrong = [f for f in node.files if f["state"] not in GOOD]
    yield from (f"{f['path']}  {f['state']}" for f in wrong[:4])
    if len(wrong) > 4:
        yield f"and {len(wrong) - 4} more"


def _hash(md5: str) -> str:
    return f"md5:{md5}" if md5 else "no recorded hash"


def _digest(pairs: Iterable[tuple[str, str]]) -> str:
    text = "".join(f"{name}{value}" for name, value in sorted(pairs))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _wrapped(text: str, indent: str) -> list[str]:
    """Break a line at blanks; further lines are indented by two more."""
    wrapper = textwrap.TextWrapper(
        WIDTH, indent, f"{indent}  ", break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(text)
