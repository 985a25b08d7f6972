"""Folders that the workflow runs in, and those where it says at once why it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from inversescope.errors import InputError
from inversescope.workflow import place


def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, whose package is the one that is imported."""
    (folder / "src/inversescope").mkdir(parents=True)
    monkeypatch.setattr(place, "PACKAGE", (folder / "src/inversescope").resolve())
    return folder


def linked(root: Path) -> None:
    (root.parent / "large").mkdir()
    (root / "results").symlink_to(root.parent / "large")


#: What was done to the project, and what is said.
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (linked, "results is a link: .*mount --bind"),
    "file": (lambda root: (root / "logs").write_text(""), r"logs is no folder.*\. move it away"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_in_the_way_is_said(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, said = ODD[case]
    root = project(tmp_path / "it's a #project", monkeypatch)
    place.check_place(root)
    spoil(root)
    with pytest.raises(InputError, match=said):
        place.check_place(root)


def test_a_path_with_braces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"lies in .*\{task\}: Snakemake takes braces"):
        place.check_place(project(tmp_path / "my {task}", monkeypatch))


def test_the_package_of_another_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the environment of another clone is active: its code would run, and this one's would be recorded."""
    mine = project(tmp_path / "mine", monkeypatch)
    project(tmp_path / "other", monkeypatch)
    with pytest.raises(
        InputError, match="package inversescope is that of .*other/src.*run make setup in .*mine"
    ):
        place.check_place(mine)


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_that_cannot_be_written_is_said(
    made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(tmp_path / "project", monkeypatch)
    closed = root.resolve() / "benchmarks" if made else root.resolve()
    for name in place.WRITTEN if made else ():
        (root / name).mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and allowed(path, mode))
    with pytest.raises(InputError, match=f"{closed.name} cannot be written. give yourself permission"):
        place.check_place(root)
