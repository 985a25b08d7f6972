"""What of a run's core seconds went into Snakemake, process start-up and DVC instead of the stages' work.

Run after `make figures`: `python -m bench.overhead [--adopt]`. It reads Snakemake's records, benchmark files and log of the run
with the most jobs here, and runs the smallest study once in a temporary folder to see how long each stage's imports take.
Writes results/bench/overhead.csv.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path

import pandas as pd

from inversescope.errors import InputError
from inversescope.lineage import Record, read_records
from inversescope.store import write_table

PARTS = ("Snakefile", "rules", "src", "config", "report", "profiles", "envs")
GOAL = 0.15


def runs(root: Path) -> list[tuple[float, float, int]]:
    """Runs of Snakemake that left a log, as they began and ended (seconds since the epoch), with their cores."""
    found = []
    for log in sorted((root / ".snakemake/log").glob("*.snakemake.log")):
        began = datetime.strptime(log.name.partition(".")[0], "%Y-%m-%dT%H%M%S").timestamp()
        cores = re.search(r"^Provided cores: (\d+)", log.read_text(errors="replace"), flags=re.M)
        if cores:
            found.append((began, log.stat().st_mtime, int(cores[1])))
    return found


def jobs_of(root: Path) -> list[Record]:
    """One record of each job."""
    return list({record.command: record for record in read_records(root).values() if record.command}.values())


def stage_of(record: Record) -> str:
    """The stage that a job ran."""
    found = re.search(r"\binversescope (\w+)", record.command)
    return found[1] if found else ""


def seconds_of_imports() -> dict[str, float]:
    """Seconds that a process of each stage spends on imports, mean over its jobs in the smallest study."""
    with tempfile.TemporaryDirectory(prefix="inversescope-overhead-") as name:
        for part in PARTS:
            copy = shutil.copytree if Path(part).is_dir() else shutil.copy2
            copy(part, Path(name) / part)
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--printshellcmds", "--configfile"]
        done = subprocess.run(
            [*command, "config/config.yaml", "config/test/smallest.yaml", "--", "all"],
            cwd=name,
            env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": f"{name}/src"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode:
        raise InputError("the smallest study failed", f"see why: {done.stdout[-500:]}")
    total: defaultdict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    stage = ""
    for line in done.stdout.splitlines():
        started = re.search(r"\binversescope (\w+) --task", line)
        if started:
            stage = started[1]
            count[stage] += 1
        taken = re.match(r"import time: +(\d+) \|", line)
        if taken and stage:
            total[stage] += int(taken[1]) / 1e6
    return {stage: total[stage] / n for stage, n in count.items()}


def measure(root: Path, imports: dict[str, float], adopt: bool = False) -> pd.DataFrame:
    """Where the core seconds of the largest run went: part, seconds, share, whether it counts as overhead.

    Raises:
        InputError: no run has left its log and records here.
    """
    jobs = jobs_of(root)
    best: tuple[list[Record], tuple[float, float, int]] = ([], (0.0, 0.0, 1))
    for run in runs(root):
        inside = [job for job in jobs if run[0] - 1 <= job.started and job.ended <= run[1] + 1]
        if len(inside) > len(best[0]):
            best = inside, run
    inside, (began, ended, cores) = best
    if not inside:
        raise InputError("no run of the workflow has left its records here", "run make figures first")
    whole = cores * (ended - began)
    in_jobs = sum(job.ended - job.started for job in inside)
    commands = 0.0
    for job in inside:
        name = next((root / "benchmarks").glob(benchmark_of(job)), None)
        commands += float(pd.read_csv(name, sep="\t")["s"].iloc[-1]) if name else job.ended - job.started
    start = cores * (min(job.started for job in inside) - began)
    # Stages that the smallest study lacks count as the slowest that it has.
    slowest = max(imports.values(), default=0.0)
    start_up = sum(imports.get(stage_of(job), slowest) for job in inside)
    dvc = 0.0
    if adopt:
        clock = time.monotonic()
        subprocess.run([sys.executable, "-m", "inversescope.cli", "adopt"], cwd=root, check=True)
        dvc = time.monotonic() - clock
    rows = [
        ("Snakemake: until the first job starts", start, True),
        ("Snakemake: around commands (shell, records)", in_jobs - commands, True),
        (f"process start-up: interpreter and imports of {len(inside)} jobs", start_up, True),
        ("DVC: adopt" if adopt else "DVC: not asked for (--adopt)", dvc, True),
        ("work of the stages", commands - start_up, False),
        (
            "a core without a job (what was left had to wait, or nothing was left)",
            whole - start - in_jobs,
            False,
        ),
    ]
    table = pd.DataFrame(rows, columns=["part", "core_seconds", "overhead"])
    table["share"] = table["core_seconds"] / (whole + dvc)
    return table


def benchmark_of(job: Record) -> str:
    """Where the benchmark file of a job lies below benchmarks/: as its log, by another suffix."""
    log = re.search(r"--log logs/(\S+)\.log", job.command)
    return f"{log[1]}.tsv" if log else "none"


def main() -> int:
    """Print the breakdown and write it; the status is 1 if overhead takes more than the goal."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.overhead", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--adopt", action="store_true", help="time `inversescope adopt` too (it writes dvc.lock)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench/overhead.csv"))
    arguments = parser.parse_args()
    imports = seconds_of_imports()
    table = measure(Path("."), imports, arguments.adopt)
    for stage, seconds in sorted(imports.items(), key=lambda item: -item[1]):
        print(f"imports of {stage:22s} {seconds:6.2f} s")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    share = table.loc[table["overhead"], "share"].sum()
    print(
        f"overhead: {share:.1%} of {table['core_seconds'].sum():.0f} core seconds (goal: at most {GOAL:.0%})"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, arguments.out)
    return int(share > GOAL)


if __name__ == "__main__":
    sys.exit(main())
