"""SIGKILL, thirty times over all stages, in the middle of writing and at random moments: nothing is lost, nothing is half."""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import DATA, command, copy_workflow, environment, run, same_tables
from recorder import tried

from inversescope.audit import compare
from inversescope.lineage import read_records

pytestmark = pytest.mark.faults

# Stages, and of the first so many files that a job of each writes one is left half-written (a training's first files are states).
STAGES = {
    "make_prompts": 1,
    "train_target": 5,
    "score_target": 1,
    "select_target": 6,
    "train_backbone": 9,
    "extract_activations": 6,
    "train_generator": 7,
    "sample_prompts": 6,
    "run_mcmc": 3,
    "compute_exact": 1,
    "estimate_fcr": 4,
    "collect_tables": 4,
    "draw_exact": 2,
    "plot_figures": 20,
    "make_report": 3,
}
INJECT = str(Path(__file__).parent / "inject")
OUTCOME = "went on: tables byte-identical, no finished job ran twice, no partial file under a final name"
SAVE_OFTEN = "save_every: 4\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest study, run to its end without any fault."""
    folder = copy_workflow(tmp_path_factory.mktemp("undisturbed"))
    run(folder, "--cores", "2")
    return folder


def outputs(folder: Path) -> list[Path]:
    """Files under their final names."""
    files = [p for top in ("data", "results") for p in (folder / top).rglob("*") if p.is_file()]
    return [
        p.relative_to(folder) for p in files if ".part" not in p.name and not hidden(p.relative_to(folder))
    ]


def hidden(path: Path) -> bool:
    """Whether a file, or a folder that it is in, is a temporary one, the state of a training, or a shard."""
    return any(part.startswith(".") or part in ("state", "shards") for part in path.parts)


def finished(folder: Path) -> set[str]:
    """Outputs of jobs that Snakemake recorded as done."""
    incomplete = {
        base64.urlsafe_b64decode(name.name).decode()
        for name in (folder / ".snakemake/incomplete").glob("*")
        if name.is_file()
    }
    return {
        output for output in read_records(folder) if output not in incomplete and (folder / output).exists()
    }


def died(group: int) -> bool:
    """Whether a killed process group is gone, after some time."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def whole(reference: Path, path: Path) -> bool:
    """Whether a file is all there: what a table or checkpoint has in common with that of an undisturbed run is everything but
    measured times; pictures and pages, in which these are written, have their ends."""
    data = path.read_bytes()
    if path.suffix == ".png":
        return data[-8:-4] == b"IEND"
    if path.suffix == ".pdf":
        return data.rstrip().endswith(b"%%EOF")
    if path.suffix == ".html":
        return data.rstrip().endswith(b"</html>")
    if path.stem.endswith("headline"):
        return len(data) > 0
    return compare(reference, path).startswith("identical")


def test_thirty_kills_lose_nothing(undisturbed: Path, tmp_path: Path) -> None:
    folder, plan = copy_workflow(tmp_path / "study"), tmp_path / "plan"
    (folder / "often.yaml").write_text(SAVE_OFTEN)
    files = ("config/config.yaml", "config/test/smallest.yaml", "often.yaml")
    rng = random.Random(6)
    plan.mkdir()
    for stage, count in STAGES.items():
        (plan / f"{stage}-write-{rng.randint(min(2, count), count)}").touch()
        (plan / f"{stage}-time-{rng.uniform(0.5, 7):.1f}").touch()
    kept: dict[str, int] = {}
    kills = resumed = 0
    while left := set(plan.iterdir()):
        assert kills < 60, "each kill comes to its turn"
        options = ("--cores", "2") if kills == 0 else ("--cores", "2", "--nolock")
        with (tmp_path / "output").open("w") as out:
            process = subprocess.Popen(
                command(*options, files=files),
                cwd=folder,
                env={**environment(folder, KILLS=str(plan)), "PYTHONPATH": f"{INJECT}:{folder / 'src'}"},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            process.wait(900)
        text = (tmp_path / "output").read_text()
        assert process.returncode == -signal.SIGKILL, text[-3000:]
        assert died(process.pid), "jobs die with the driver"
        gone = left - set(plan.iterdir())
        assert gone
        kills += len(gone)
        resumed += text.count("resuming at step")
        for path in outputs(folder):
            assert whole(undisturbed / path, folder / path), f"{gone}: {path} is not what it is to be"
        for output in finished(folder):
            inode = (folder / output).stat().st_ino
            assert kept.setdefault(output, inode) == inode, f"{gone}: {output} was made again"
        for kill in gone:
            stage, how, _ = kill.name.split("-")
            what = (
                "SIGKILL in the middle of writing a file" if how == "write" else "SIGKILL at a random moment"
            )
            tried("1 kills", what, stage, OUTCOME)
    assert kills == 30
    locked = run(folder, "--cores", "2", files=files, check=False)
    assert "LockException" in locked and "--unlock" in locked, (
        "the first driver's lock, and what to do about it"
    )
    run(folder, "--unlock", "--cores", "1", files=files)
    resumed += run(folder, "--cores", "2", files=files).count("resuming at step")
    same_tables(undisturbed, folder)
    for output, inode in kept.items():
        assert (folder / output).stat().st_ino == inode, f"{output} was made again"
    for kind in ("paper", "default"):
        path = DATA / f"checkpoints/inversescope/{kind}/model.safetensors"
        assert (folder / path).read_bytes() == (undisturbed / path).read_bytes()
    assert resumed, "a training went on from its last state"
    parts = [p for top in ("data", "results") for p in (folder / top).rglob(".*")]
    assert not parts, f"left over: {parts}"
    assert "Nothing to be done" in run(folder, "--cores", "1", "--dry-run", files=files)
