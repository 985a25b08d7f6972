"""Wall time, core seconds and peak memory of the last run of the IOI study, from Snakemake's own benchmark files.

Run after `make figures STUDIES=ioi`, or after all studies if they ran one after the other: `python -m bench.study`. Writes
results/bench/study.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd


def measure(root: Path, task: str = "ioi") -> dict[str, float]:
    """Of a task's jobs: wall seconds (in which any of them ran), job seconds, number of jobs, largest and two largest resident sets
    in bytes."""
    starts, ends, seconds, memory = [], [], [], []
    for path in sorted((root / "benchmarks").rglob("*.tsv")):
        parts = path.relative_to(root / "benchmarks").parts
        if task not in parts or "study" in parts[0]:
            continue
        row = pd.read_csv(path, sep="\t").iloc[-1]
        end = path.stat().st_mtime
        ends.append(end)
        starts.append(end - float(row["s"]))
        seconds.append(float(row["s"]))
        memory.append(pd.to_numeric(row["max_rss"], errors="coerce") * 2**20)
    if not ends:
        raise SystemExit("no benchmark files: run `make figures` first")
    wall, reached = 0.0, 0.0
    for start, end in sorted(zip(starts, ends, strict=True)):
        wall += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    largest = sorted((m for m in memory if m == m), reverse=True)
    return {
        "wall_seconds": round(wall, 1),
        "job_seconds": round(sum(seconds), 1),
        "jobs": len(ends),
        "peak_bytes": int(largest[0]),
        "peak_bytes_of_two_jobs": int(sum(largest[:2])),
    }


def main() -> None:
    """Print and write the figures."""
    values = measure(Path("."))
    out = Path("results/bench/study.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(values, indent=2))


if __name__ == "__main__":
    main()
