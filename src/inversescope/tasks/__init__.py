"""The tasks: one module each, found by name."""

from __future__ import annotations

from inversescope.config import Config
from inversescope.errors import InputError
from inversescope.tasks.base import SPLITS, Grammar, Task
from inversescope.tasks.ioi import IOITask

TASKS = ("ioi",)

__all__ = ["SPLITS", "TASKS", "Grammar", "IOITask", "Task", "get_task"]


def get_task(name: str, config: Config) -> Task:
    """Return the task of a name with the configuration's prior; raises InputError for an unknown name."""
    if name == "ioi":
        return IOITask(config.ioi)
    raise InputError(f"unknown task '{name}'", f"choose one of: {', '.join(TASKS)}")
