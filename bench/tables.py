"""What the benchmarks share: options, the machine in words, a table on the screen and in a file."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# One thread each, fixed before any numerical library is imported: peers must not differ in how many they take.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd  # noqa: E402

from inversescope.store import write_table  # noqa: E402


def options(description: str, stem: str) -> argparse.ArgumentParser:
    """Options that every benchmark takes."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{stem}", description=description)
    parser.add_argument("--out", type=Path, help=f"CSV to write, e.g. results/bench/{stem}.csv")
    return parser


@functools.cache
def installed(peer: str) -> bool:
    """Whether a peer is there; if not, says once how to get it."""
    if importlib.util.find_spec(peer) is not None:
        return True
    print(
        f'{peer} is not installed, so its rows are left out. Install the peers with: pip install "inversescope[bench]"',
        file=sys.stderr,
    )
    return False


def processor() -> str:
    """The processor in words, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run in each of `repeats` turns, turn by turn.

    It is processor time of this process's one thread, which other work on the machine disturbs less than the wall clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def fastest(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each run, the best of `repeats` turns."""
    return {name: min(seconds) for name, seconds in in_turns(runs, repeats).items()}


def spread(ours: Sequence[float], *peers: Sequence[float]) -> dict[str, float]:
    """How much faster ours was than the fastest peer of a turn, by seconds for the same: in the worst turn and in the best."""
    ratios = [min(theirs) / own for own, *theirs in zip(ours, *peers, strict=True)]
    return {"ratio_low": min(ratios), "ratio_high": max(ratios)}


def finish(rows: list[dict[str, object]], out: Path | None) -> None:
    """Print the rows as a table, and write them where asked."""
    table = pd.DataFrame(rows)
    print(f"{processor()}, one thread, processor time")
    with pd.option_context("display.width", 220, "display.max_columns", None, "display.max_colwidth", 60):
        print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep=""))
    if out is not None:
        write_table(table, out)
