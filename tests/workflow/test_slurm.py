"""The small study through a real SLURM: the same tables as a local run, whatever happens to its jobs. `make test-slurm`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, NoCluster, why_not
from project import copy_workflow, in_blocks_of, run, same_tables

from inversescope.workflow.stages import stage_of

pytestmark = pytest.mark.slurm

# What differs from a real cluster: a job takes seconds, so they are asked after more often and waited for less.
PROFILE = (
    "--profile",
    "profiles/slurm",
    "--jobs",
    "20",
    "--latency-wait",
    "10",
    "--seconds-between-status-checks",
    "1",
    "--slurm-init-seconds-before-status-checks",
    "2",
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node that lives as long as these tests."""
    try:
        with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
            yield cluster
    except NoCluster as reason:
        pytest.fail(f"no SLURM: {reason}")
    assert why_not() == "", "what was started is gone"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study, run locally."""
    folder = copy_workflow(tmp_path_factory.mktemp("local"))
    run(folder, "--cores", "2")
    return folder


def test_the_study_runs_from_prompts_to_figures_with_the_tables_of_a_local_run(
    slurm: Cluster, local: Path, tmp_path: Path
) -> None:
    folder = copy_workflow(tmp_path)
    in_blocks_of(folder, 2)
    output = run(folder, *PROFILE, "--group-components", "sites=2")
    assert "slurm jobid" in output.lower()
    same_tables(local, folder)
    for name in ("fig2", "fig4", "fig8", "layers", "heads"):
        assert (folder / f"results/figures/ioi_smallest_{name}.png").stat().st_size > 1000
    assert "<html" in (folder / "results/report.html").read_text()
    assert "Nothing to be done" in run(folder, "--cores", "1")
    # Jobs of some sites come in groups of as many as the knob says, the short ones at the end in one; all others one by one.
    stats = dict(re.findall(r"^(\w+) +(\d+)$", output.rpartition("Job stats:")[2], flags=re.M))
    assert (
        Counter(map(stage_of, stats))["compute_exact"] == Counter(map(stage_of, stats))["estimate_fcr"] == 2
    )
    abouts = list(slurm.submitted().values())
    assert sum("compute_exact" in about and "estimate_fcr" in about for about in abouts) == 1
    assert (
        sum("_collect_tables_draw_exact_make_browser_make_report_plot_figures" in about for about in abouts)
        == 1
    )
    assert len(abouts) == int(stats["total"]) - int(stats["all"]) - (4 - 1) - (7 - 1), abouts
    assert slurm.jobs() == {}
