"""The whole workflow on the smallest study, from prompts to figures and report, twice: on one core and on two."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from project import FILES, MODEL, RESULTS, copy_workflow, run


@pytest.fixture(scope="module")
def two_cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The complete study, with figures and report, on two cores."""
    folder = copy_workflow(tmp_path_factory.mktemp("two"))
    run(folder, "--cores", "2")
    return folder


def test_the_workflow_ends_in_figures_tables_and_a_report(two_cores: Path) -> None:
    """Every promised file is there, not empty, and nothing is left to be done."""
    report = (two_cores / "results/report.html").read_text()
    assert "<html" in report and "http://" not in report.replace("http://www.w3.org", "")
    for name in (
        "fig2",
        "fig4",
        "fig8",
        "fcr_vs_eps",
        "scatter",
        "refusal",
        "estimators",
        "training",
    ):
        for suffix in ("png", "pdf", "csv"):
            path = two_cores / f"results/figures/ioi_{MODEL}_{name}.{suffix}"
            assert path.stat().st_size > 100, path
    for name in ("table1", "failures", "headline"):
        assert (two_cores / f"results/tables/ioi_{MODEL}_{name}.csv").exists()
    assert "Nothing to be done" in run(two_cores, "--cores", "2")


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
    """Two runs with the same seed, one of them on a single core: the same tables, figures and report."""
    one_core = copy_workflow(tmp_path)
    run(one_core, "--cores", "1")
    shown = [path for kind in ("figures", "tables") for path in (one_core / "results" / kind).iterdir()]
    assert {".png", ".pdf", ".csv", ".md"} == {path.suffix for path in shown}
    rates = [one_core / RESULTS / name for name in ("fcr.csv", "refusal.csv", "coverage.csv")]
    for path in (
        *shown,
        *rates,
        one_core / "results/report.html",
        one_core / f"results/browser/ioi_{MODEL}.html",
    ):
        same = path.relative_to(one_core)
        assert path.read_bytes() == (two_cores / same).read_bytes(), same


def test_the_study_adds_its_figures(two_cores: Path) -> None:
    """Ablations, dimension and frontier, on top of what was made: nothing of that is made again."""
    before = (two_cores / RESULTS / "fcr.csv").stat().st_mtime_ns
    run(two_cores, "--cores", "2", targets=("study",), files=(*FILES, "config/test/smallest_study.yaml"))
    assert (two_cores / RESULTS / "fcr.csv").stat().st_mtime_ns == before
    for name in ("ablations", "misleads", "frontier"):
        assert list((two_cores / "results/figures").glob(f"*{name}*.png")), name
