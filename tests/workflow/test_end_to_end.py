"""The whole workflow on the tiny study, from prompts to figures and report, twice: on one core and on two."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[2]
PARTS = ("Snakefile", "rules", "src", "config", "report", "profiles", "envs", "pyproject.toml")
TABLES = ("fcr.csv", "refusal.csv", "coverage.csv")
RESULTS = Path("results/ioi/gpt2-embedded")


def run_workflow(folder: Path, cores: int, *targets: str) -> str:
    """Run Snakemake on the tiny study in a folder of its own; returns what it printed."""
    for part in PARTS:
        source = REPOSITORY / part
        if not (folder / part).exists():
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / part)
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--configfile", "config/config.yaml"]
    result = subprocess.run(
        [*command, "config/test/tiny.yaml", "--", *targets],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(folder / "src"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def two_cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete tiny study, with figures and report, on two cores."""
    folder = tmp_path_factory.mktemp("two")
    run_workflow(folder, 2, "all", "study")
    return folder


def test_the_workflow_ends_in_figures_tables_and_a_report(two_cores: Path) -> None:
    """Every promised file is there, not empty, and nothing is left to be done."""
    report = (two_cores / "results/report.html").read_text()
    assert "<html" in report and "http://" not in report.replace("http://www.w3.org", "")
    for name in (
        "fig2",
        "fig4",
        "fig8",
        "fig9",
        "fcr_vs_eps",
        "scatter",
        "refusal",
        "estimators",
        "training",
    ):
        for suffix in ("png", "pdf", "csv"):
            path = two_cores / f"results/figures/ioi_gpt2-embedded_{name}.{suffix}"
            assert path.stat().st_size > 100, path
    for name in ("table1", "failures", "headline"):
        assert (two_cores / f"results/tables/ioi_gpt2-embedded_{name}.csv").exists()
    assert "Nothing to be done" in run_workflow(two_cores, 2, "all")


def test_every_rate_stands_beside_its_exact_value_and_controls(two_cores: Path) -> None:
    """fcr.csv holds all estimators and controls, rates within [0, 1], intervals around them, and the exact value repeated."""
    fcr = pd.read_csv(two_cores / RESULTS / "fcr.csv")
    estimators = {"generated", "reweighted", "cache", "combined", "exact", "mcmc"}
    assert set(fcr["estimator"]) == estimators | {"prior", "shuffled", "nearest", "majority"}
    known = fcr.dropna(subset=["fcr"])
    assert known["fcr"].between(0, 1).all()
    assert (known["ci_low"] <= known["fcr"] + 1e-9).all() and (known["fcr"] <= known["ci_high"] + 1e-9).all()
    exact = known[known["estimator"] == "exact"].set_index(["site", "epsilon", "feature"])["fcr"]
    for key, row in (
        known[known["estimator"] == "combined"].set_index(["site", "epsilon", "feature"]).iterrows()
    ):
        assert row["exact"] == pytest.approx(exact[key], abs=1e-5)
    refusal = pd.read_csv(two_cores / RESULTS / "refusal.csv")
    assert {"plain", "mixed"} <= set(refusal["decoding"])
    total = refusal["parse_refusal"] + refusal["distance_refusal"]
    assert total.to_numpy() == pytest.approx(refusal["refusal_rate"].to_numpy(), abs=1e-5)


def test_one_core_and_two_give_the_same_bytes(two_cores: Path, tmp_path: Path) -> None:
    """Two runs with the same seed, one of them on a single core, write byte-identical tables."""
    run_workflow(tmp_path, 1, "tables")
    for name in TABLES:
        assert (tmp_path / RESULTS / name).read_bytes() == (two_cores / RESULTS / name).read_bytes(), name
