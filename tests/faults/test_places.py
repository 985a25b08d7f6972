"""Machines as people have them: where a checkout lies, who runs it, its locale, its home, its Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from project import FILES, ROOT, SNAKEMAKE, copy_workflow, execute, same_tables, snakemake

from inversescope.errors import InputError
from inversescope.workflow.place import check_place

pytestmark = pytest.mark.faults
#: What is planned where nothing is to be run.
SMALL = ("--configfile", *FILES, "--", "prompts_ioi")


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


def test_a_python_that_has_no_other_name_is_found(tmp_path: Path) -> None:
    """All that make needs is in one folder, and there is no python3."""
    for name in ("make", "bash", "sh", "env", "nproc", "cat", "cksum", "tr", "mkdir", "test", "rm", "touch"):
        place = shutil.which(name)
        assert place is not None
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(place)
    found = shim(tmp_path / "bin", "python", 'case "$2" in *version*) echo 3.11;; esac')
    done = make(tmp_path, "--dry-run", path=str(tmp_path / "bin"))
    assert f"with {found}" in done.stdout, done.stderr


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


def repository(folder: Path) -> Path:
    """A git repository of the sources."""
    root = copy_workflow(folder)
    execute(root, "git", "init", "-q")
    execute(root, "git", "add", ".")
    execute(root, "git", "-c", "user.name=t", "-c", "user.email=t@e.org", "commit", "-qm", "1")
    return root


@dataclass(frozen=True)
class Place:
    """Where a study is run, and how.

    Attributes:
        root: the project's folder.
        wrapper: what every command is started by.
        around: variables of the environment.
    """

    root: Path
    wrapper: tuple[str, ...]
    around: dict[str, str]

    def run(self, *command: str) -> str:
        """All that a command prints in this place."""
        return execute(self.root, *self.wrapper, *command, timeout=3600, PYTHONUTF8="", **self.around)


def stranger(folder: Path) -> Place:
    """A downloaded archive, unpacked by a user who is not root, whose home cannot be written and whose locale is C."""
    first = repository(folder / "first")
    execute(first, "git", "archive", "--output", str(folder / "sources.tar"), "HEAD")
    with tarfile.open(folder / "sources.tar") as sources:
        sources.extractall(folder / "sources", filter="data")
    home = folder / "home"
    home.mkdir(mode=0o500)
    # Root is somebody else in a namespace of users, and may do there no more than an owner of files may.
    wrapper = ("unshare", "--user", f"--map-user={USER}", f"--map-group={USER}") if os.getuid() == 0 else ()
    around = {"HOME": str(home), "LC_ALL": "C"}
    # Where caches are kept then is what make says.
    asked = ("make", "--no-print-directory", "--eval", "cache: ; @echo $$XDG_CACHE_HOME", "cache")
    shutil.copy2(ROOT / "Makefile", folder / "sources")
    made = Place(folder / "sources", wrapper, around)
    return replace(made, around={**around, "XDG_CACHE_HOME": made.run(*asked).splitlines()[-1]})


def moved(folder: Path) -> Place:
    """A git worktree in a folder with an umlaut, its data on another disk, under an ISO-8859-1 locale."""
    root, disk = folder / "Übung", folder / "disk"
    execute(repository(folder / "first"), "git", "worktree", "add", "-q", str(root))
    for one in (root / "data", disk):
        one.mkdir()
    script = f'mount --bind "{disk}" data && exec "$@"'
    return Place(root, ("unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh"), latin(folder))


PLACES: dict[str, Callable[[Path], Place]] = {"stranger": stranger, "moved": moved}
#: Whom root becomes.
USER = 1000
#: What a process finds in a place.
PROBE = """
import json, locale, os, pathlib
home = pathlib.Path.home()
git = pathlib.Path(".git")
print(json.dumps({
    "uid": os.getuid(), "home": os.access(home, os.W_OK), "git": "file" if git.is_file() else git.is_dir(),
    "mounted": b"/data " in pathlib.Path("/proc/self/mountinfo").read_bytes(), "locale": locale.setlocale(locale.LC_ALL, ""),
    "encoding": locale.nl_langinfo(locale.CODESET)}))
"""
#: Condition -> the place where it holds, what the probe then finds, and its value.
CONDITIONS: dict[str, tuple[str, str, object]] = {
    "source archive": ("stranger", "git", False),
    "user without root": ("stranger", "uid", os.getuid() or USER),
    "HOME that cannot be written": ("stranger", "home", False),
    "LC_ALL=C": ("stranger", "locale", "C"),
    "git worktree": ("moved", "git", "file"),
    "data on another disk": ("moved", "mounted", True),
    "ISO-8859-1": ("moved", "encoding", "ISO-8859-1"),
}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Place, dict[str, object]]]:
    """The smallest study, run whole in a place when it is first asked for; with what a process finds there."""

    @cache
    def run_in(name: str) -> tuple[Place, dict[str, object]]:
        place = PLACES[name](tmp_path_factory.mktemp(name))
        try:
            place.run("true")
        except AssertionError as error:
            pytest.skip(f"this place cannot be had here: {error}")
        seen: dict[str, object] = json.loads(place.run(sys.executable, "-c", PROBE).splitlines()[-1])
        said = place.run(*SNAKEMAKE, "--cores", "2", "--configfile", *FILES, "--", "all")
        assert "(100%) done" in said
        return place, seen

    return run_in


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_smallest_study_runs_in_every_place(
    studied: Callable[[str], tuple[Place, dict[str, object]]], condition: str
) -> None:
    """Several conditions hold in each place, so that two runs of the whole study try them all."""
    name, key, value = CONDITIONS[condition]
    place, seen = studied(name)
    assert seen[key] == value
    assert "<html" in (place.root / "results/report.html").read_text(encoding="utf-8")


def test_numbers_do_not_depend_on_the_place(
    studied: Callable[[str], tuple[Place, dict[str, object]]],
) -> None:
    one, other = (studied(name)[0].root for name in PLACES)
    same_tables(one, other)
    shown = [file for part in ("figures", "tables") for file in sorted((one / "results" / part).iterdir())]
    assert len(shown) > 50
    for file in shown:
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes(), file


def test_what_snakemake_says_is_understood_in_another_locale(tmp_path: Path) -> None:
    root = copy_workflow(tmp_path / "Übung")
    code = (
        "from pathlib import Path; from inversescope.lineage.stale import stale; "
        "stale(Path('.'), ['results/\\u00fcbrig.csv'])"
    )
    around = {**latin(tmp_path), "PYTHONUTF8": ""}
    said = execute(root, sys.executable, "-c", code, check=False, **around)
    assert "InputError: Snakemake cannot tell what is to be done" in said, said[-3000:]


def test_data_may_be_no_link(tmp_path: Path) -> None:
    root = copy_workflow(tmp_path / "project")
    (tmp_path / "large").mkdir()
    (root / "data").symlink_to(tmp_path / "large")
    with pytest.raises(InputError, match="data is a link.*mount --bind"):
        check_place(root)
    assert "data is a link" in snakemake(root, "--dry-run", *SMALL, check=False)


@pytest.mark.parametrize("way", ["conda", "apptainer"])
def test_environments_for_jobs_are_not_offered(tmp_path: Path, way: str) -> None:
    root = copy_workflow(tmp_path / "project")
    assert f"--sdm {way} is not offered" in snakemake(root, "--dry-run", "--sdm", way, *SMALL, check=False)
