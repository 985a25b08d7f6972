"""Machines as people have them: where a checkout lies, who runs it, its locale, its home, its Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from project import FILES, ROOT, copy_workflow, environment, execute, snakemake

from inversescope.errors import InputError
from inversescope.workflow.place import check_place

pytestmark = pytest.mark.faults
PROMPTS = Path("data/ioi/prompts/train.parquet")
#: What is run where a whole study would take minutes.
SMALL = ("--configfile", *FILES, "--", "prompts_ioi")
REAL = shutil.which("python3.11") or sys.executable


def shim(folder: Path, name: str, script: str) -> Path:
    """A program of that name in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def make(tmp_path: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """`make setup` in this checkout, into an environment that is not there."""
    return subprocess.run(
        ["make", "--no-print-directory", "setup", f"VENV={tmp_path / 'venv'}", *arguments],
        cwd=ROOT,
        env={**os.environ, **({"PATH": path} if path else {})},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("version,said", [("3.10", "is 3.10"), ("3.14", "is 3.14"), (None, "does not run")])
def test_another_python_is_refused_in_one_line_before_anything_is_installed(
    tmp_path: Path, version: str | None, said: str
) -> None:
    python = shim(
        tmp_path / "bin", "python3", f"echo {version}" if version else "echo no version set >&2; exit 127"
    )
    done = make(tmp_path, f"PYTHON={python}")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"needs Python 3.11 to 3.13, but {python} {said}" in line
    assert not (tmp_path / "venv").exists()


def test_a_shim_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    shim(tmp_path / "bin", "python3.11", "exit 127")
    found = shim(tmp_path / "bin", "python3.12", 'case "$2" in *version*) echo 3.12;; esac')
    done = make(tmp_path, "--dry-run", path=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert f"with {found}" in done.stdout, done.stderr


def archive(folder: Path) -> Path:
    """This checkout's sources as a downloaded archive holds them: no repository."""
    subprocess.run(["git", "archive", "--output", str(folder / "sources.tar"), "HEAD"], cwd=ROOT, check=True)
    with tarfile.open(folder / "sources.tar") as sources:
        sources.extractall(folder / "sources", filter="data")
    return folder / "sources"


def worktree(folder: Path) -> Path:
    """A git worktree of a repository of the sources."""
    first = copy_workflow(folder / "first")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@e.org", "commit", "-qm", "1"],
    ):
        execute(first, "git", *command)
    execute(first, "git", "worktree", "add", "-q", str(folder / "tree"))
    return folder / "tree"


@pytest.mark.parametrize("place", [archive, worktree])
def test_other_checkouts(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    root = place(tmp_path)
    snakemake(root, *SMALL)
    assert (root / PROMPTS).is_file()


def latin(folder: Path) -> dict[str, str]:
    """An ISO-8859-1 locale, made here."""
    made = folder / "en_US.ISO-8859-1"
    if shutil.which("localedef") is None:
        pytest.skip("there is no localedef")
    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(made)], capture_output=True)
    if not made.is_dir():
        pytest.skip("no locale can be made")
    return {"LOCPATH": str(folder), "LC_ALL": made.name, "LANG": made.name}


SURROUNDINGS: dict[str, Callable[[Path], dict[str, str]]] = {
    "C": lambda folder: {"LC_ALL": "C"},
    "ISO-8859-1": latin,
    "no home": lambda folder: {
        "HOME": "/dev/null",
        "XDG_CACHE_HOME": str(folder / "cache"),
    },  # as make sets it
}


@pytest.mark.parametrize("which", SURROUNDINGS)
def test_other_surroundings(tmp_path: Path, which: str) -> None:
    """Prompts of a Hindi corpus, whose every file is UTF-8, in a folder with an umlaut."""
    root = copy_workflow(tmp_path / "Übung")
    word = "भारत"
    (root / "data/text").mkdir(parents=True)
    rows = [f'{{"form": "{form}", "country": "{word}{n}"}}\n' for form in ("a", "b") for n in range(8)]
    (root / "data/text/corpus.jsonl").write_text("".join(rows), encoding="utf-8")
    shape = {"n_layers": 1, "n_heads": 1, "d_model": 8}
    delta = {
        "only": ["hindi"],
        "experiments": {
            "hindi": {"task": "text", "model": "tiny", "sites": ["L0H0"], "n_train": 8, "n_test": 2}
        },
        "models": {"tiny": {"shape": shape, "seeds": [0]}},
        "text": {"prompt": "{form} {country}", "features": {"word": {"pattern": "^(a|b) "}}},
        "fcr": {"features": ["country", "word"]},
    }
    (root / "config/मेरा.yaml").write_text(yaml.safe_dump(delta, allow_unicode=True), encoding="utf-8")
    around = SURROUNDINGS[which](tmp_path)
    snakemake(root, "--configfile", "config/config.yaml", "config/मेरा.yaml", "--", "prompts_text", **around)
    shown = execute(root, sys.executable, "-m", "inversescope.cli", "config", "show", "text", **around)
    assert "corpus.jsonl" in shown
    import pandas as pd

    texts = pd.read_parquet(root / "data/text/prompts/train.parquet")["text"]
    assert texts.str.contains(word).all()


def test_a_user_without_root(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("this user is one")
    try:
        subprocess.run([REAL, "-c", ""], user="nobody", check=True, env={"PATH": os.environ["PATH"]})
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nobody may run this Python")
    root = copy_workflow(tmp_path / "project")
    for path in (tmp_path, root, *root.rglob("*")):
        shutil.chown(path, "nobody")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *SMALL]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment(root, HOME="/nonexistent", XDG_CACHE_HOME=str(root / ".cache")),
        user="nobody",
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_data_on_another_disk_is_a_mount_and_not_a_link(tmp_path: Path) -> None:
    root = copy_workflow(tmp_path / "project")
    (tmp_path / "large").mkdir()
    (root / "data").symlink_to(tmp_path / "large")
    with pytest.raises(InputError, match="data is a link.*mount --bind"):
        check_place(root)
    assert "data is a link" in snakemake(root, "--dry-run", *SMALL, check=False)
    (root / "data").unlink()
    (root / "data").mkdir()
    script = f'mount --bind {tmp_path / "large"} data && exec "$@"'
    mounted = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh"]
    if subprocess.run([*mounted, "true"], cwd=root, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    execute(root, *mounted, sys.executable, "-m", "snakemake", "--cores", "1", *SMALL)
    assert (tmp_path / "large" / PROMPTS.relative_to("data")).is_file()


@pytest.mark.parametrize("way", ["conda", "apptainer"])
def test_environments_for_jobs_are_not_offered(tmp_path: Path, way: str) -> None:
    root = copy_workflow(tmp_path / "project")
    assert f"--sdm {way} is not offered" in snakemake(root, "--dry-run", "--sdm", way, *SMALL, check=False)
