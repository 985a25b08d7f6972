"""Source files that a stage's result depends on, read from the code's own imports: editing one reruns what it changes."""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inversescope.workflow.stages import STAGES

PACKAGE = Path(__file__).resolve().parents[1]
#: What they say reaches a job by `params`, by its command line, or not at all.
WITHOUT_EFFECT = ("__init__", "config", "errors", "cli", "workflow")


def path_of(module: str) -> Path:
    """Source file of a module, given as `kernel/noise`."""
    package = PACKAGE / module / "__init__.py"
    return package if package.is_file() else PACKAGE / f"{module}.py"


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Modules of the package that a module imports, anywhere in it."""
    return _imports_in(_tree(module))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Statements of a piece of code and those within them, but what is for type checking alone. No expression holds an import."""
    for part in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, part, ()):
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in vars(child.test).values()):
                yield child
                yield from _statements(child)


def _imports_in(tree: ast.AST) -> frozenset[str]:
    """Modules of the package that a piece of code imports."""
    names: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "inversescope":
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names if alias.name.startswith("inversescope."))
    modules = {name.removeprefix("inversescope").strip(".").replace(".", "/") for name in names}
    return frozenset(m for m in modules if m and path_of(m).is_file())


def _imports_of_stage(tree: ast.Module, stage: str) -> frozenset[str]:
    """Modules imported at the top of a stage's module, in the stage's function, or in functions that this one calls."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    needed: set[str] = set()
    pending = {stage}
    while pending:
        name = pending.pop()
        needed.add(name)
        names = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
        pending |= (names & functions.keys()) - needed
    rest: list[Any] = [node for node in tree.body if node not in functions.values()]
    return _imports_in(
        ast.Module(body=[*rest, *(functions[name] for name in sorted(needed))], type_ignores=[])
    )


def module_of(task: str | None) -> str:
    """The module of a task; empty if there is no such task."""
    place = literal("tasks", "TASKS").get(task, "")
    return str(place).partition(":")[0].removeprefix("inversescope.").replace(".", "/")


@functools.cache
def modules_of(stage: str, task: str | None) -> tuple[str, ...]:
    """Modules that a stage's result can depend on: its own and all that it imports, directly or not.

    Of the tasks, and of what they alone import, only the one that is asked for: a new task makes nothing stale.

    Raises:
        KeyError: there is no such stage.
    """
    own = module_of(task)
    others = {module_of(name) for name in literal("tasks", "TASKS")} - {own}
    home = STAGES[stage].module.replace(".", "/")
    found = {home}
    pending = set(_imports_of_stage(_tree(home), stage))
    while pending:
        name = pending.pop()
        if name not in others and name.split("/")[0] not in WITHOUT_EFFECT:
            found.add(name)
            pending |= imports_of(name) - found
        if name == "tasks" and own:  # found there by its name, not imported
            pending.add(own)
    # Packages' own files list what there is and hold no code.
    return tuple(sorted(m for m in found if path_of(m).name != "__init__.py"))


@functools.cache
def source_files(stage: str, task: str | None) -> list[str]:
    """Paths, relative to the working directory, of the files that a stage depends on."""
    modules = modules_of(stage, task)
    paths = [path_of(part) for part in modules]
    # Tables, templates and scripts lie beside the module of their name.
    beside = [file for path in paths for file in sorted(path.parent.glob(f"{path.stem}.*")) if file != path]
    if module_of(task) in modules:
        # Tables that come with the package; those that are fetched are files of their own.
        beside += sorted((PACKAGE / "tasks/data" / str(task)).glob("*"))
    return [os.path.relpath(path) for path in paths + beside if path.is_file()]


def literal(module: str, name: str) -> Any:
    """A table that a module spells out, read without importing the module.

    Raises:
        LookupError: the module has no such table.
    """
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise LookupError(f"{path_of(module)} has no table {name}")


def source_file(module: str) -> str:
    """Path of one module's file, relative to the working directory."""
    return os.path.relpath(path_of(module))
