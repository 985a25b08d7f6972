"""The tasks: one module each, found by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from inversescope.errors import InputError
from inversescope.tasks.base import SPLITS, Task

if TYPE_CHECKING:
    from inversescope.config import Config

#: Name of a task, which is its key in the configuration too -> its class. One class may serve several priors.
TASKS = {
    "ioi": "inversescope.tasks.ioi:IOITask",
    "ioi_small": "inversescope.tasks.ioi:IOITask",
    "ravel": "inversescope.tasks.ravel:RavelTask",
    "icl_translation": "inversescope.tasks.icl_translation:TranslationTask",
    "icl_words": "inversescope.tasks.icl_words:WordsTask",
    "counting": "inversescope.tasks.counting:CountingTask",
    "addition": "inversescope.tasks.addition:AdditionTask",
    "text": "inversescope.tasks.text:TextTask",
}

__all__ = ["SPLITS", "TASKS", "Task", "get_task"]


def get_task(name: str, config: Config, root: Path = Path(".")) -> Task:
    """Return the task of a name with the configuration's prior; `root` is where fetched data lie below.

    Raises:
        InputError: an unknown name, or the task's data are missing or not sound.
    """
    if name not in TASKS:
        raise InputError(f"unknown task '{name}'", f"choose one of: {', '.join(TASKS)}")
    module, kind = TASKS[name].split(":")
    task: Task = getattr(import_module(module), kind)(getattr(config, name), root)
    return task
