"""What of a run's core seconds went into Snakemake, process start-up and DVC instead of the stages' work.

Run after `make figures`: `python -m bench.overhead [--adopt [TARGET ...]]`. It reads Snakemake's records, benchmark files and log
of the run with the most jobs here, and starts the shortest job of each stage again, elsewhere, to see how long its imports take.
Writes results/bench/overhead.csv.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pandas as pd

from inversescope.errors import InputError
from inversescope.lineage.records import Record, read_records
from inversescope.lineage.rerun import link_inputs
from inversescope.store import write_table

GOAL = 0.15
# Stages import what they need first. A job that goes on for longer is stopped.
LIMIT = 30.0


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


def profile(command: list[str], folder: Path, limit: float) -> float:
    """Seconds of all imports that a process makes before it ends or is stopped."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    with (folder / "imports").open("w+") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path, "PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": "src"},
            stdout=subprocess.DEVNULL,
            stderr=out,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        text = out.read()
    if process.returncode not in (0, -signal.SIGKILL):
        said = [line for line in text.splitlines() if not line.startswith("import time:")]
        raise InputError(f"{command[-1]} failed: {' '.join(said[-3:])}", "rerun the workflow, then this")
    return sum(int(us) for us in re.findall(r"^import time: +(\d+) \|", text, flags=re.M)) / 1e6


def bare_interpreter() -> float:
    """Seconds that an interpreter takes to begin and end, beside its imports."""
    with tempfile.TemporaryDirectory() as name:
        taken = []
        for _ in range(3):
            clock = time.monotonic()
            imports = profile([sys.executable, "-c", "pass"], Path(name), LIMIT)
            taken.append(time.monotonic() - clock - imports)
    return max(0.0, sorted(taken)[1])


def seconds_of_start_up(root: Path, jobs: list[Record], limit: float = LIMIT) -> dict[str, float]:
    """Seconds that a process of each stage spends on the interpreter and all imports, also those that a function makes.

    The shortest job of each stage is started again in a folder of links to its inputs; after `limit` seconds it is stopped.

    Raises:
        InputError: a job fails.
    """
    bare, found = bare_interpreter(), {}
    records = read_records(root)
    for stage in sorted({job.stage for job in jobs} - {""}):
        shortest = min((j for j in jobs if j.stage == stage), key=lambda j: (j.ended - j.started, j.output))
        with tempfile.TemporaryDirectory(prefix="inversescope-overhead-") as name:
            folder = Path(name) / "study"
            folder.mkdir()
            link_inputs(root, folder, [r for r in records.values() if r.command == shortest.command], records)
            command = f"inversescope {shortest.command.partition('inversescope ')[2]}"
            found[stage] = bare + profile(["bash", "-c", f"exec {command}"], folder, limit)
    return found


def between_jobs(jobs: list[Record], outputs: list[Record], cores: int) -> float:
    """Core seconds for which a core was free although the job that it got next had all its inputs."""
    ended = {record.output: record.ended for record in outputs}
    first = min(job.started for job in jobs)
    free, waited = [first] * cores, 0.0
    for job in sorted(jobs, key=lambda job: job.started):
        ready = max((ended[path] for path in job.inputs if path in ended), default=first)
        # It takes the core that has been free for the shortest time.
        core = max((c for c in range(cores) if free[c] <= job.started), key=lambda c: free[c], default=None)
        if core is not None:
            waited += max(0.0, job.started - max(free[core], ready))
            free[core] = job.ended
    return waited


def largest_run(root: Path) -> tuple[list[Record], tuple[float, float, int]]:
    """Jobs of the run that had most of them; its beginning, end and cores.

    Raises:
        InputError: no run has left its log and records here.
    """
    jobs = jobs_of(root)
    best: tuple[list[Record], tuple[float, float, int]] = ([], (0.0, 0.0, 1))
    for run in runs(root):
        inside = [job for job in jobs if run[0] - 1 <= job.started and job.ended <= run[1] + 1]
        if len(inside) > len(best[0]):
            best = inside, run
    if not best[0]:
        raise InputError("no run of the workflow has left its records here", "run make figures first")
    return best


def measure(
    root: Path,
    inside: list[Record],
    run: tuple[float, float, int],
    start_ups: dict[str, float],
    adopt: list[str] | None = None,
) -> pd.DataFrame:
    """Where the core seconds of a run went: part, seconds, share, whether it counts as overhead.

    `adopt` has the targets that are adopted, and is timed, too: an empty list for all, None to leave it out.
    """
    began, ended, cores = run
    whole = cores * (ended - began)
    in_jobs = sum(job.ended - job.started for job in inside)
    commands = 0.0
    for job in inside:
        name = next((root / "benchmarks").glob(benchmark_of(job)), None)
        commands += float(pd.read_csv(name, sep="\t")["s"].iloc[-1]) if name else job.ended - job.started
    start = cores * (min(job.started for job in inside) - began)
    start_up = sum(start_ups.get(job.stage, 0.0) for job in inside)
    commanded = {job.command for job in inside}
    outputs = [record for record in read_records(root).values() if record.command in commanded]
    between = between_jobs(inside, outputs, cores)
    dvc = 0.0
    if adopt is not None:
        clock = time.monotonic()
        subprocess.run([sys.executable, "-m", "inversescope.cli", "adopt", *adopt], cwd=root, check=True)
        dvc = cores * (time.monotonic() - clock)  # nothing else runs meanwhile
    rows = [
        ("Snakemake: until the first job starts", start, True),
        ("Snakemake: around commands (shell, records)", in_jobs - commands, True),
        ("Snakemake: between jobs, the next one's inputs ready", between, True),
        (f"process start-up: interpreter and imports of {len(inside)} jobs", start_up, True),
        ("DVC: not asked for (--adopt)" if adopt is None else "DVC: adopt", dvc, True),
        ("work of the stages", commands - start_up, False),
        (
            "a core without a job (what was left had to wait, or nothing was left)",
            whole - start - in_jobs - between,
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
        "--adopt",
        nargs="*",
        metavar="TARGET",
        help="time `inversescope adopt [TARGET ...]` too (it writes dvc.lock)",
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench/overhead.csv"))
    arguments = parser.parse_args()
    jobs, run = largest_run(Path("."))
    start_ups = seconds_of_start_up(Path("."), jobs)
    for stage, seconds in sorted(start_ups.items(), key=lambda item: -item[1]):
        count = sum(job.stage == stage for job in jobs)
        print(f"start-up of {stage:22s} {seconds:6.2f} s, {count:4d} jobs")
    table = measure(Path("."), jobs, run, start_ups, arguments.adopt)
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
