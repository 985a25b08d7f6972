"""Processor seconds and peak memory of the in-context study by stage, from Snakemake's own benchmark files.

Run after `snakemake -- icl_translation`: `python -m bench.icl`. Writes results/bench/icl.csv. Processor seconds, unlike wall
time, do not depend on what else the machine does.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

TASK = "icl_translation"


def measure(root: Path) -> pd.DataFrame:
    """A row a stage: number of jobs, processor and wall seconds, largest resident set in MiB."""
    rows = []
    for path in sorted((root / "benchmarks").rglob("*.tsv")):
        if TASK not in path.parts and path.stem != TASK:
            continue
        row = pd.read_csv(path, sep="\t", na_values="-").iloc[-1]
        stage = path.relative_to(root / "benchmarks").parts[0]
        rows.append({"stage": stage, "cpu": row["cpu_time"], "wall": row["s"], "rss": row["max_rss"]})
    if not rows:
        raise SystemExit(f"no benchmark files: run `snakemake --cores 2 -- {TASK}` first")
    grouped = pd.DataFrame(rows).groupby("stage")
    table = grouped.agg(
        jobs=("cpu", "size"),
        cpu_seconds=("cpu", "sum"),
        wall_seconds=("wall", "sum"),
        max_rss_mib=("rss", "max"),
    )
    return table.round(1).reset_index()


def main() -> None:
    """Print and write the table."""
    table = measure(Path("."))
    out = Path("results/bench/icl.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    print(table.to_string(index=False))
    print(f"in all: {table['cpu_seconds'].sum():.0f} processor seconds, {table['jobs'].sum()} jobs")


if __name__ == "__main__":
    main()
