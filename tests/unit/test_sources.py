"""Source files that a stage depends on: all that it imports, and of the tasks its own alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from inversescope.workflow.sources import (
    PACKAGE,
    imports_of,
    literal,
    module_of,
    modules_of,
    path_of,
    source_files,
)
from inversescope.workflow.stages import STAGES

TASKS = literal("tasks", "TASKS")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_function_of_its_module(stage: str) -> None:
    home = STAGES[stage].module.replace(".", "/")
    assert f"def {stage}(context: Context" in path_of(home).read_text()
    assert home in modules_of(stage, "ioi")


def test_modules_are_followed_through_imports() -> None:
    found = set(modules_of("compute_exact", "ioi"))
    assert {"fcr/stages", "fcr/exact", "kernel/kernel", "tasks/ioi", "tasks/base"} <= found
    for module in found - {"fcr/stages"}:
        others = imports_of(module) - found
        assert {name.split("/")[0] for name in others} <= {"config", "errors", "workflow", "tasks"}, module


def test_a_task_is_no_dependency_of_another_tasks_jobs() -> None:
    for task in TASKS:
        found = {name for name in modules_of("compute_exact", task) if name.startswith("tasks/")}
        assert found & {module_of(other) for other in TASKS} == {module_of(task)}
    assert module_of("ioi_small") == module_of("ioi") == "tasks/ioi"
    assert not {module_of(task) for task in TASKS} & set(modules_of("make_studies", None))


def test_a_stage_depends_on_what_its_own_function_imports() -> None:
    """Two stages of one module may read different ones; training is nothing to a table."""
    assert "targets/train" in modules_of("train_target", "ioi")
    assert "targets/train" not in modules_of("select_target", "ioi")
    for stage in ("compute_exact", "estimate_fcr", "plot_figures", "make_report"):
        assert not [name for name in modules_of(stage, "ioi") if name.startswith("generator/")], stage


def test_files_are_relative_and_tables_are_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE.parents[1])
    source_files.cache_clear()
    files, page = source_files("make_prompts", "ravel"), source_files("make_browser", "ioi")
    source_files.cache_clear()
    here = "src/inversescope/reader/browser/document"
    assert {f"{here}.py", f"{here}.html", f"{here}.css", f"{here}.panel.js"} <= set(page)
    assert "src/inversescope/tasks/ravel.py" in files
    assert [file for file in files if file.startswith("src/inversescope/tasks/data/ravel/")]
    assert all(Path(file).is_file() for file in files)
    with pytest.raises(LookupError):
        literal("tasks", "NO_SUCH_TABLE")
