"""Processor seconds and peak memory of one task's study by stage, from Snakemake's own benchmark files.

Processor seconds, unlike wall time, do not depend on what else the machine does.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def measure(root: Path, task: str) -> pd.DataFrame:
    """A row a stage of a task's last run: number of jobs, processor and wall seconds, largest resident set in MiB.

    Raises:
        SystemExit: the task has not run here.
    """
    rows = []
    folder = root / "benchmarks"
    for path in sorted(folder.rglob("*.tsv")):
        parts = path.relative_to(folder).with_suffix("").parts
        # A job's file lies below its task, or is named after it (plot_ravel, fetch_ravel).
        if task not in parts and not parts[-1].endswith(f"_{task}"):
            continue
        row = pd.read_csv(path, sep="\t", na_values="-").iloc[-1]
        rows.append({"stage": parts[0], "cpu": row["cpu_time"], "wall": row["s"], "rss": row["max_rss"]})
    if not rows:
        raise SystemExit(f"no benchmark files: run `snakemake --cores 2 -- {task}` first")
    grouped = pd.DataFrame(rows).groupby("stage")
    table = grouped.agg(
        jobs=("cpu", "size"),
        cpu_seconds=("cpu", "sum"),
        wall_seconds=("wall", "sum"),
        max_rss_mib=("rss", "max"),
    )
    return table.round(1).reset_index()


def report(task: str, out: Path) -> None:
    """Print and write the table of a task."""
    table = measure(Path("."), task)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    print(table.to_string(index=False))
    print(f"in all: {table['cpu_seconds'].sum():.0f} processor seconds, {table['jobs'].sum()} jobs")
