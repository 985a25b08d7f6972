"""The tasks: one module each, found by name."""

from __future__ import annotations

from inversescope.config import Config
from inversescope.errors import InputError
from inversescope.tasks.addition import AdditionTask
from inversescope.tasks.base import SPLITS, Grammar, Task
from inversescope.tasks.counting import CountingTask
from inversescope.tasks.ioi import IOITask

TASKS = ("ioi", "counting", "addition")

__all__ = ["SPLITS", "TASKS", "AdditionTask", "CountingTask", "Grammar", "IOITask", "Task", "get_task"]


def get_task(name: str, config: Config) -> Task:
    """Return the task of a name with the configuration's prior; raises InputError for an unknown name."""
    if name == "ioi":
        return IOITask(config.ioi)
    if name == "counting":
        return CountingTask(config.counting)
    if name == "addition":
        return AdditionTask(config.addition)
    raise InputError(f"unknown task '{name}'", f"choose one of: {', '.join(TASKS)}")
