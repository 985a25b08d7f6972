"""The tasks: one module each, found by name."""

from __future__ import annotations

from pathlib import Path

from inversescope.config import Config
from inversescope.errors import InputError
from inversescope.tasks.addition import AdditionTask
from inversescope.tasks.base import SPLITS, Grammar, Task
from inversescope.tasks.counting import CountingTask
from inversescope.tasks.icl_translation import TranslationTask
from inversescope.tasks.ioi import IOITask
from inversescope.tasks.ravel import RavelTask
from inversescope.tasks.text import TextTask

TASKS = ("ioi", "ravel", "icl_translation", "counting", "addition", "text")

__all__ = [
    "SPLITS",
    "TASKS",
    "AdditionTask",
    "CountingTask",
    "Grammar",
    "IOITask",
    "RavelTask",
    "Task",
    "TextTask",
    "TranslationTask",
    "get_task",
]


def get_task(name: str, config: Config, root: Path = Path(".")) -> Task:
    """Return the task of a name with the configuration's prior; `root` is where fetched data lie below.

    Raises:
        InputError: an unknown name, or the task's data are missing or not sound.
    """
    if name == "ioi":
        return IOITask(config.ioi)
    if name == "ravel":
        return RavelTask(config.ravel, root)
    if name == "icl_translation":
        return TranslationTask(config.icl_translation, root)
    if name == "counting":
        return CountingTask(config.counting)
    if name == "addition":
        return AdditionTask(config.addition)
    if name == "text":
        return TextTask(config.text, root)
    raise InputError(f"unknown task '{name}'", f"choose one of: {', '.join(TASKS)}")
