"""SLURM jobs that run out of memory, are cancelled, are requeued: the study goes on, with the same bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, NoCluster
from project import copy_workflow, run
from test_slurm import PROFILE

pytestmark = pytest.mark.slurm

TARGET = "data/ioi/smallest/target/candidates/s1/model.safetensors"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
            yield cluster
    except NoCluster as reason:
        pytest.fail(f"no SLURM: {reason}")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = copy_workflow(tmp_path_factory.mktemp("local"))
    run(folder, "--cores", "1", targets=(TARGET,))
    return (folder / TARGET).read_bytes()


def once_running(slurm: Cluster, *command: str) -> threading.Thread:
    """Give a command the id of the first job that runs its program, as soon as it does."""

    def wait() -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            for job, (state, about) in slurm.jobs().items():
                if state == "RUNNING" and "train_target" in about:
                    time.sleep(1.5)
                    slurm.ask(*command, job)
                    return
            time.sleep(0.2)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_out_of_memory_gets_more(slurm: Cluster, expected: bytes, tmp_path: Path) -> None:
    folder = copy_workflow(tmp_path)
    output = run(
        folder, *PROFILE, "--set-resources", "train_target:mem_mb=300*8**(attempt-1)", targets=(TARGET,)
    )
    # squeue says no more than FAILED; the node knows why.
    assert "failed, SLURM status is" in output, output[-3000:]
    assert "exceeded memory limit" in (slurm.folder / "slurmd.log").read_text()
    assert output.count("submitted with SLURM jobid") == 2
    assert (folder / TARGET).read_bytes() == expected


def test_a_cancelled_job_is_submitted_again(slurm: Cluster, expected: bytes, tmp_path: Path) -> None:
    folder = copy_workflow(tmp_path)
    thread = once_running(slurm, "scancel")
    output = run(folder, *PROFILE, targets=(TARGET,))
    thread.join(1)
    assert "CANCELLED" in output, output[-3000:]
    assert output.count("submitted with SLURM jobid") == 2
    assert (folder / TARGET).read_bytes() == expected


def test_a_requeued_job_runs_again_under_its_number(slurm: Cluster, expected: bytes, tmp_path: Path) -> None:
    folder = copy_workflow(tmp_path)
    thread = once_running(slurm, "scontrol", "requeue")
    output = run(folder, *PROFILE, targets=(TARGET,))
    thread.join(1)
    assert output.count("submitted with SLURM jobid") == 1
    (job,) = [
        line.split("SLURM jobid ")[1].split()[0] for line in output.splitlines() if "SLURM jobid " in line
    ]
    assert "Restarts=1" in slurm.ask("scontrol", "show", "job", job)
    assert (folder / TARGET).read_bytes() == expected
