"""Processor seconds and peak memory of the RAVEL study by stage.

Run after `snakemake -- ravel`: `python -m bench.ravel`. Writes results/bench/ravel.csv (see `bench.jobs`).
"""

from pathlib import Path

from bench.jobs import report

if __name__ == "__main__":
    report("ravel", Path("results/bench/ravel.csv"))
