"""All benchmarks, one after the other, each in a process of its own: `python -m bench [--out results/bench] [NAME ...]`.

Every comparison with a peer is a ratio measured in one run on one thread; `study` and `overhead` sum up
the last `make figures`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

#: Name -> whether it takes --out; the others read what Snakemake wrote about the last run of the workflow.
BENCHMARKS = {
    "extraction": True,
    "sampling": True,
    "neighbours": True,
    "training": True,
    "sae": True,
    "device": True,
    "study": False,
    "overhead": False,
    "icl": False,
    "ravel": False,
    "goals": True,
}


def main() -> int:
    """Run the benchmarks that are asked for; the status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(BENCHMARKS)})"
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of the CSV files")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - BENCHMARKS.keys())
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: choose of {', '.join(BENCHMARKS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    failed = []
    for name in arguments.names or BENCHMARKS:
        if not BENCHMARKS[name] and not Path("benchmarks").is_dir():
            print(f"\n== {name}: left out, since the workflow has not run here (make figures)", flush=True)
            continue
        print(f"\n== {name}", flush=True)
        out = ["--out", str(arguments.out / f"{name}.csv")] if BENCHMARKS[name] else []
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *out], env=environment).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
