"""`inversescope show TASK`: headline numbers on the terminal, as the workflow wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inversescope.config import Config
from inversescope.errors import InputError, neutral
from inversescope.figures.headline import by_section, headline_files, read_headlines
from inversescope.workflow.figures import all_of
from inversescope.workflow.plan import Plan, weights_note


def show_task(
    root: Path,
    config: Config,
    task: str,
    console: Console | None = None,
    otherwise: Callable[[Path], str | None] = lambda file: None,
) -> None:
    """Print the headline numbers of every experiment of a task: of this configuration, or none.

    Args:
        root: repository root.
        config: the whole configuration.
        task: a task, or the beginning of one's name.
        console: where to.
        otherwise: how the job that wrote a file differs from this configuration's, None if it does not.

    Raises:
        InputError: no experiment reads such a task, nothing was run of it, or it was run with another configuration.
    """
    console = console or Console()
    tasks = sorted({e.task for e in config.experiments.values()})
    found = [name for name in tasks if name == task] or [name for name in tasks if name.startswith(task)]
    if len(found) != 1:
        raise InputError(f"no experiment reads task {task!r}", f"use one of: {', '.join(tasks)}")
    plans = [one for one in Plan(config).experiments if one.task == found[0]]
    prefixes = {"ravel_": plans[0]} if found == ["ravel"] else {f"{found[0]}_{p.model}_": p for p in plans}
    shown = {}
    for prefix, plan in prefixes.items():
        files = [file for file in headline_files(root, prefix, all_of(plan)) if file.exists()]
        for file, why in [(file, why) for file in files if (why := otherwise(file))]:
            raise InputError(
                f"{file} was made by another configuration: {why}",
                "name the configuration that made it by --config, or run the workflow with this one",
            )
        if files and (frame := read_headlines(files)) is not None:
            shown[prefix] = frame
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
