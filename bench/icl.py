"""Processor seconds and peak memory of the in-context study by stage.

Run after `snakemake -- icl_translation`: `python -m bench.icl`. Writes results/bench/icl.csv (see `bench.jobs`).
"""

from pathlib import Path

from bench.jobs import report

if __name__ == "__main__":
    report("icl_translation", Path("results/bench/icl.csv"))
