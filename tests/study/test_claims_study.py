"""The study of what the paper says of its training: from runs to the table."""

from __future__ import annotations

import shutil
from pathlib import Path

from conftest import MODEL, each, run, write_config

from inversescope.store import read_table
from inversescope.studies.variants.claims import METRICS

SITES = ["L0H0", "L1.resid_post"]
RUNS = {
    "same": {"base": "paper"},
    "clean": {"base": "paper", "change": "no noise", "pairs": "clean"},
    "values": {"base": "paper", "change": "values start at random", "zero_values": False},
}
STUDY = {
    "sites": SITES,
    "steps": {"paper": 60},
    "sweeps": [{"name": "{run}_s{seed}", "seeds": [0, 1]}],
    "runs": RUNS,
}


def test_changes_beside_runs_that_change_nothing(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "root")
    root = tmp_path / "root"
    names = [f"{name}_s{seed}" for name in RUNS for seed in (0, 1)]
    write_config(root, {"studies": {"claims": STUDY}, "experiments": {"ioi": {"studies": ["claims"]}}})
    assert run(root, "compute_exact", *each("--site", SITES)) == 0
    for name in names:
        assert run(root, "train_generator", "--variant", name) == 0
        assert run(root, "sample_prompts", "--variant", name, *each("--site", SITES)) == 0
    assert run(root, "estimate_fcr", *each("--variant", names), *each("--site", SITES), "--out", "study") == 0
    assert run(root, "collect_study") == 0 and run(root, "plot_claims") == 0
    results = root / "results"
    rows = read_table(results / f"ioi/{MODEL}/claims.csv")
    assert len(rows) == len(names) * 2 and set(rows["seed"]) == {0, 1}
    table = read_table(results / f"tables/ioi_{MODEL}_claims.csv")
    assert len(table) == 2 * 2 * len(METRICS) and set(table["change"]) == {
        "no noise",
        "values start at random",
    }
    told = table.set_index(["change", "group", "metric"])
    refused = rows[(rows["change"].fillna("") == "") & (rows["group"] == "heads")]["refusal_rate"].mean()
    assert abs(told.loc[("no noise", "heads", "refusal_rate"), "unchanged"] - refused) < 1e-6
    logs = [read_table(results / f"ioi/{MODEL}/training/inversescope/clean_s{seed}.csv") for seed in (0, 1)]
    started = sum(log["loss"].iloc[0] for log in logs) / 2
    assert abs(told.loc[("no noise", "residual", "loss_start"), "value"] - started) < 1e-4
    assert "no noise" in (results / f"tables/ioi_{MODEL}_claims.md").read_text()
