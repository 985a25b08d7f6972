"""SIGKILL, twice in every stage of all studies, in the midst of writing or at a random moment: nothing is lost, nothing is half."""

from __future__ import annotations

import base64
import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from project import DATA, FILES, command, copy_workflow, environment, run, same_tables
from studies import MIRRORED, TASK_FILES, TASK_TARGETS, copy_of_tasks

from inversescope.lineage.records import read_records
from inversescope.lineage.rerun import compare

pytestmark = pytest.mark.faults

# Stages, and of the first so many files that a job of each writes one is left half-written (a training's first files are states).
STAGES = {
    "make_prompts": 1,
    "train_target": 5,
    "score_target": 1,
    "select_target": 6,
    "train_backbone": 9,
    "extract_activations": 4,
    "train_generator": 7,
    "sample_prompts": 6,
    "run_mcmc": 3,
    "compute_exact": 3,
    "estimate_fcr": 12,
    "collect_tables": 4,
    "draw_exact": 2,
    "plot_figures": 20,
    "make_browser": 1,
    "make_report": 3,
}
# What the other studies bring in, which all the rest is made of.
SOURCES = {"import_checkpoint": 6} | (
    {"fetch_ravel": 1, "fetch_word_lists": 6, "fetch_target": 1} if MIRRORED else {"fetch_target": 1}
)
# Stages that the smallest study of IOI lacks.
FURTHER = {
    "collect_positions": 1,
    "train_sae": 2,  # the second state of the first autoencoder: the next run goes on from the first state
    "classify_attributes": 3,
    "plot_ravel": 20,
    "patch_task_vectors": 3,
    "label_tasks": 2,
    "plot_icl": 8,
    "check_causes": 2,
    "plot_causes": 3,
    "trace_answers": 2,
    "plot_answers": 3,
    "compare_distances": 1,
    "check_completeness": 3,
    "plot_cases": 10,
    "collect_study": 3,
    "plot_study": 4,
    "collect_frontier": 4,
    "plot_frontier": 4,
    "make_studies": 3,
}
INJECT = str(Path(__file__).parent / "inject")
SAVE_OFTEN = "save_every: 4\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest study, run to its end without any fault."""
    folder = copy_workflow(tmp_path_factory.mktemp("undisturbed"))
    run(folder, "--cores", "2")
    return folder


@pytest.fixture(scope="module")
def undisturbed_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest studies of the other tasks, likewise."""
    folder = copy_of_tasks(tmp_path_factory.mktemp("undisturbed_tasks"))
    run(folder, "--cores", "2", targets=TASK_TARGETS, files=TASK_FILES, timeout=3600)
    return folder


def outputs(folder: Path) -> list[Path]:
    """Files under their final names."""
    files = [p for top in ("data", "results") for p in (folder / top).rglob("*") if p.is_file()]
    return [
        p.relative_to(folder) for p in files if ".part" not in p.name and not hidden(p.relative_to(folder))
    ]


def hidden(path: Path) -> bool:
    """Whether a file, or a folder that it is in, is a temporary one, the state of a training, a shard, or labels that were given so
    far: what a killed job goes on from."""
    return any(part.startswith(".") or part in ("state", "shards", "labels") for part in path.parts)


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
    if path.name == "target.json":
        # A local model's says where it lies, which is another folder here; that of a model trained here, how long it took.
        varies = rb'"path": ".*"|"train_seconds": [\d.]+'
        return re.sub(varies, b"", data) == re.sub(varies, b"", reference.read_bytes())
    return compare(reference, path).startswith("identical")


@dataclass
class Kills:
    """A study that is killed again and again.

    Attributes:
        undisturbed: the same study, run to its end without any fault.
        folder: where it runs.
        stages: those that are killed, and how many files a job of each writes, or fewer.
        files: configuration.
        kept: inode of each output that was finished before a kill.
        resumed: trainings that went on from their last states.
    """

    undisturbed: Path
    folder: Path
    stages: dict[str, int]
    files: tuple[str, ...]
    targets: tuple[str, ...]
    seed: int
    kept: dict[str, int] = field(default_factory=dict)
    resumed: int = 0

    def run(self, work: Path) -> None:
        """Kill each stage twice, whatever else runs then, and check after each kill what is left; then go on to the end."""
        plan, rng = work / "plan", random.Random(self.seed)
        plan.mkdir()
        for name, count in self.stages.items():
            (plan / f"{name}-write-{rng.randint(min(2, count), count)}").touch()
            (plan / f"{name}-time-{rng.uniform(0.5, 7):.1f}").touch()
        (self.folder / "often.yaml").write_text(SAVE_OFTEN)
        self.files = (*self.files, "often.yaml")
        kills = 0
        self.keep("nothing was killed yet")
        while left := set(plan.iterdir()):
            gone = left - self.until_killed(plan, work / "output", kills > 0)
            assert gone, "each kill comes to its turn"
            kills += len(gone)
            for path in outputs(self.folder):
                assert whole(self.undisturbed / path, self.folder / path), (
                    f"{gone}: {path} is not what it is to be"
                )
            self.keep(str(gone))
        assert kills == 2 * len(self.stages)
        locked = self.snakemake(check=False)
        assert "LockException" in locked and "--unlock" in locked, (
            "the first driver's lock, and what to do about it"
        )
        run(self.folder, "--unlock", "--cores", "1", targets=self.targets, files=self.files)
        self.resumed += self.snakemake().count("resuming at step")
        self.check_end()

    def snakemake(self, *options: str, check: bool = True) -> str:
        """Run Snakemake as a user would."""
        options = options or ("--cores", "2")
        return run(self.folder, *options, targets=self.targets, files=self.files, check=check, timeout=3600)

    def until_killed(self, plan: Path, output: Path, again: bool) -> set[Path]:
        """Run until a job and its driver are killed; returns the kills that are left."""
        options = ("--cores", "2", "--nolock") if again else ("--cores", "2")
        with output.open("w") as out:
            process = subprocess.Popen(
                command(*options, targets=self.targets, files=self.files),
                cwd=self.folder,
                env={
                    **environment(self.folder, KILLS=str(plan)),
                    "PYTHONPATH": f"{INJECT}:{self.folder / 'src'}",
                },
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            process.wait(1800)
        text = output.read_text()
        assert process.returncode == -signal.SIGKILL, text[-3000:]
        assert died(process.pid), "jobs die with the driver"
        self.resumed += text.count("resuming at step")
        return set(plan.iterdir())

    def keep(self, when: str) -> None:
        """Note the files of finished jobs; those noted before are still the same files."""
        for output in finished(self.folder):
            inode = (self.folder / output).stat().st_ino
            assert self.kept.setdefault(output, inode) == inode, f"{when}: {output} was made again"

    def check_end(self) -> None:
        """All is there, once, and nothing else."""
        for output, inode in self.kept.items():
            assert (self.folder / output).stat().st_ino == inode, f"{output} was made again"
        for output in read_records(self.folder):
            assert whole(self.undisturbed / output, self.folder / output), output
        parts = [p for top in ("data", "results") for p in (self.folder / top).rglob(".*")]
        assert not parts, f"left over: {parts}"
        assert "Nothing to be done" in self.snakemake("--cores", "1", "--dry-run")


def test_thirty_kills_lose_nothing(undisturbed: Path, tmp_path: Path) -> None:
    folder = copy_workflow(tmp_path / "study")
    kills = Kills(undisturbed, folder, STAGES, FILES, ("all",), seed=6)
    kills.run(tmp_path)
    same_tables(undisturbed, folder)
    for kind in ("paper", "default"):
        path = DATA / f"checkpoints/inversescope/{kind}/model.safetensors"
        assert (folder / path).read_bytes() == (undisturbed / path).read_bytes()
    assert kills.resumed, "a training went on from its last state"


def made_by(folder: Path, stages: dict[str, int]) -> list[str]:
    """Outputs of stages; rules that are made in a loop begin with the stage's name."""
    records = read_records(folder)
    return [output for output, record in records.items() if record.stage in stages]


def test_kills_of_what_other_studies_bring_in(undisturbed_tasks: Path, tmp_path: Path) -> None:
    folder = copy_of_tasks(tmp_path / "study")
    targets = tuple(sorted(made_by(undisturbed_tasks, SOURCES)))
    Kills(undisturbed_tasks, folder, SOURCES, TASK_FILES, targets, seed=7).run(tmp_path)


def test_kills_of_further_stages_lose_nothing(undisturbed_tasks: Path, tmp_path: Path) -> None:
    """The other studies are finished but for what the smallest study of IOI lacks."""
    folder = tmp_path / "study"
    shutil.copytree(undisturbed_tasks, folder)
    again = made_by(folder, FURTHER)
    for output in again:
        (folder / output).unlink()
    shutil.rmtree(folder / "data/icl_translation/smallest-llama/labels")  # what label_tasks would go on from
    stages = {stage: count for stage, count in FURTHER.items() if made_by(undisturbed_tasks, {stage: count})}
    assert stages == FURTHER, "the studies have all of the stages"
    kills = Kills(undisturbed_tasks, folder, FURTHER, TASK_FILES, TASK_TARGETS, seed=8)
    kills.run(tmp_path)
    for output in again:
        if output.endswith(".safetensors"):
            assert (folder / output).read_bytes() == (undisturbed_tasks / output).read_bytes()
    assert kills.resumed, "the training of an autoencoder went on from its last state"
