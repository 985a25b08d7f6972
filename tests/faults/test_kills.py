"""SIGKILL, thirty times over all stages, in the middle of writing and at random moments: nothing is lost, nothing is half."""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from project import command, copy_workflow, environment, run, same_tables
from recorder import tried

from inversescope.audit import compare
from inversescope.lineage import read_records

pytestmark = pytest.mark.faults

# In the order in which the workflow comes to them; files that each job of it writes.
STAGES = {
    "make_prompts": 1,
    "train_target": 5,
    "score_target": 1,
    "select_target": 6,
    "train_backbone": 4,
    "extract_activations": 6,
    "train_generator": 6,
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


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_thirty_kills_lose_nothing(undisturbed: Path, tmp_path: Path) -> None:
    folder = copy_workflow(tmp_path)
    (folder / "often.yaml").write_text(SAVE_OFTEN)
    files = ("config/config.yaml", "config/test/smallest.yaml", "often.yaml")
    rng = random.Random(6)
    kills = []
    for stage, count in STAGES.items():
        kills += [f"{stage}:write:{rng.randint(1, count)}", f"{stage}:time:{rng.uniform(0.5, 7):.1f}"]
    assert len(kills) == 30
    kept: dict[str, int] = {}
    resumed = 0
    for number, kill in enumerate(kills):
        options = ("--cores", "2") if number == 0 else ("--cores", "2", "--nolock")
        with (tmp_path / "output").open("w") as out:
            process = subprocess.Popen(
                command(*options, files=files),
                cwd=folder,
                env=environment(folder, KILL=kill) | {"PYTHONPATH": f"{INJECT}:{folder / 'src'}"},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            process.wait(600)
        text = (tmp_path / "output").read_text()
        assert process.returncode == -signal.SIGKILL, f"{kill}: {text[-3000:]}"
        assert not alive(process.pid), "jobs died with the driver"
        resumed += text.count("resuming at step")
        for path in outputs(folder):
            if path.suffix in (".png",):
                continue
            found = compare(undisturbed / path, folder / path)
            assert found.startswith("identical") or path.suffix == ".html", f"{kill}: {path} is {found}"
        for output in finished(folder):
            inode = (folder / output).stat().st_ino
            assert kept.setdefault(output, inode) == inode, f"{kill}: {output} was made again"
        stage, how, _ = kill.split(":")
        what = "SIGKILL in the middle of writing a file" if how == "write" else "SIGKILL at a random moment"
        tried(
            "1 kills",
            what,
            stage,
            "ran again, tables byte-identical, no finished job ran twice, no partial file under a final name",
        )
    locked = run(folder, "--cores", "2", files=files, check=False)
    assert "LockException" in locked and "--unlock" in locked, (
        "the first driver's lock is still there, and says what to do"
    )
    run(folder, "--unlock", "--cores", "1", files=files)
    last = run(folder, "--cores", "2", files=files)
    resumed += last.count("resuming at step")
    same_tables(undisturbed, folder)
    for output, inode in kept.items():
        assert (folder / output).stat().st_ino == inode, f"{output} was made again"
    for kind in ("paper", "default"):
        path = f"data/ioi/smallest/checkpoints/inversescope/{kind}/model.safetensors"
        assert (folder / path).read_bytes() == (undisturbed / path).read_bytes()
    assert resumed, "a training went on from its last state"
    left = [p for top in ("data", "results") for p in (folder / top).rglob(".*")]
    assert not left, f"left over: {left}"
    assert "Nothing to be done" in run(folder, "--cores", "1", "--dry-run", files=files)
