"""`inversescope show TASK`: headline numbers on the terminal, as the workflow wrote them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inversescope.config import Config
from inversescope.errors import InputError, neutral
from inversescope.figures.headline import by_section, read_headlines
from inversescope.workflow.plan import weights_note


def show_task(root: Path, config: Config, task: str, console: Console | None = None) -> None:
    """Print the headline numbers of every experiment of a task.

    Args:
        root: repository root.
        config: the whole configuration.
        task: a task, or the beginning of one's name.
        console: where to.

    Raises:
        InputError: no experiment reads such a task, or nothing was run of it.
    """
    console = console or Console()
    tasks = sorted({e.task for e in config.experiments.values()})
    found = [name for name in tasks if name == task] or [name for name in tasks if name.startswith(task)]
    if len(found) != 1:
        raise InputError(f"no experiment reads task {task!r}", f"use one of: {', '.join(tasks)}")
    models = [e.model for e in config.experiments.values() if e.task == found[0]]
    prefixes = ["ravel_"] if found == ["ravel"] else [f"{found[0]}_{model}_" for model in models]
    shown = {prefix: frame for prefix in prefixes if (frame := read_headlines(root, prefix)) is not None}
    if not shown:
        raise InputError(
            f"there are no headline numbers of {found[0]}", f"run `make figures STUDIES={found[0]}`"
        )
    for prefix, frame in shown.items():
        console.rule(Text(prefix.removesuffix("_")), align="left")
        if note := weights_note(config, prefix):
            console.print(Text(neutral(note)))
        for title, part in by_section(frame).items():
            table = Table(
                title=Text(neutral(title)), title_justify="left", title_style="bold", header_style="dim"
            )
            for name in part.columns:
                table.add_column(Text(neutral(str(name))), overflow="fold")
            for row in part.itertuples(index=False):
                table.add_row(*(Text(neutral(str(cell))) for cell in row))
            console.print(table)
