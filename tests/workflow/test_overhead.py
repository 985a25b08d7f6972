"""Where the core seconds of a run went: what of it can be told from made-up records."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inversescope.lineage.records import Record

sys.path.append(str(Path(__file__).resolve().parents[2]))
from bench.overhead import between_jobs, profile


def job(output: str, started: float, ended: float, *inputs: str) -> Record:
    return Record(output, inputs, f"inversescope {output}", {}, {}, started, ended)


def test_a_free_core_waits_for_snakemake_only_once_inputs_are_there() -> None:
    jobs = [
        job("a", 10, 20),
        job("b", 10, 14),
        job("c", 15, 30, "b"),  # a second after b, on its core
        job("d", 21, 25, "c_of_another_run"),  # a second after a
        job("e", 32, 33, "c"),  # its core was free from 30 on, when its input was there: two seconds
        job("f", 40, 41, "e"),  # seven seconds after its input, whatever else was free
    ]
    assert between_jobs(jobs, jobs, cores=2) == pytest.approx(1 + 1 + 2 + 7)


def test_imports_that_a_function_makes_count_and_a_long_job_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/slow.py").write_text("import time\ntime.sleep(0.3)\n")
    code = "def later():\n    import slow\nlater()\nimport time\ntime.sleep(60)\n"
    assert 0.3 < profile([sys.executable, "-c", code], tmp_path, limit=3) < 3
