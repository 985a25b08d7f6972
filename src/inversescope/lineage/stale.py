"""What Snakemake would run again, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from inversescope.errors import InputError


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
    done = snakemake(root, "--summary", *targets)
    refuse_failed(done)
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


def snakemake(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a project, with the package that the project holds."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    # Its words are read as UTF-8, whatever the locale.
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(root.resolve() / "src"), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, encoding="utf-8")


def refuse_failed(done: subprocess.CompletedProcess[str]) -> None:
    """Raise `InputError` if Snakemake could not build its graph of jobs."""
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"Snakemake cannot tell what is to be done: {last}", "run snakemake --dry-run")


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
