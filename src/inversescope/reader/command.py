"""`inversescope read PROMPT`: a reading on the terminal, as JSON, or as a page."""

from __future__ import annotations

import argparse

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inversescope.errors import InputError, neutral
from inversescope.reader.reading import (
    SHOWN_SITES,
    Reading,
    shown_best,
    shown_features,
    shown_hypotheses,
    shown_rates,
    shown_samples,
    summary,
)
from inversescope.reader.study import Study, open_study
from inversescope.store import atomic_path


def read(arguments: argparse.Namespace) -> None:
    """Read a prompt as the options say, and print what was read."""
    reading = _study(arguments).read(
        arguments.prompt,
        arguments.read_sites,
        share=arguments.share,
        epsilon=arguments.epsilon,
        variants=() if arguments.cached else None,
    )
    hypotheses = reading.hypotheses if arguments.hypotheses else None
    if arguments.html is not None:
        with atomic_path(arguments.html) as part:
            part.write_text(reading.html(), encoding="utf-8")
    if arguments.json:
        print(reading.to_json())
    else:
        show(reading, Console(), hypotheses)


def _study(arguments: argparse.Namespace) -> Study:
    if arguments.prompts is None:
        for option, given in (
            ("template", arguments.template),
            ("feature", arguments.features),
            ("folder", arguments.folder),
        ):
            if given is not None:
                raise InputError(
                    f"--{option} is for prompts of your own", "give their file by --prompts, or leave it out"
                )
        return open_study(arguments.task, arguments.model, arguments.root, arguments.config)
    from inversescope.reader.scope import Scope

    named = dict(one.partition("=")[::2] for one in arguments.features or ())
    columns = {name: {"column": name} for name, pattern in named.items() if not pattern}
    template = {} if arguments.template is None else {"prompt": arguments.template}
    return Scope(
        arguments.model,
        arguments.prompts,
        features={name: pattern for name, pattern in named.items() if pattern},
        folder=arguments.folder,
        text={"features": columns, **template},
    )


def show(reading: Reading, console: Console, hypotheses: pd.DataFrame | None = None) -> None:
    """Print a reading: features of each site with their controls, some samples, hypotheses if they are given, notes.

    Of more than `SHOWN_SITES` sites the rates alone are printed, and where they are highest.
    """
    console.print(Text(neutral(reading.prompt), style="bold"), soft_wrap=True)
    if len(reading.parts) > SHOWN_SITES:
        for table in (shown_best(reading), shown_rates(reading)):
            console.print(texts_table(table))
    for part in reading.shown:
        console.print(Text(neutral(summary(part.about))), soft_wrap=True)
        for table in (shown_features(part), shown_samples(part)):
            console.print(texts_table(table))
    if hypotheses is not None:
        accepted = shown_hypotheses(hypotheses)
        console.print(texts_table(accepted) if len(accepted) else "No hypothesis stood the test here.")
    for note in reading.notes:
        console.print(Text(neutral(note), style="italic"), soft_wrap=True)


def texts_table(frame: pd.DataFrame) -> Table:
    """A table of texts, none of which can steer the terminal."""
    table = Table(header_style="dim", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in frame.columns:
        wraps = name in ("value", "likeliest", "text", "hypothesis", "highest rates")
        widest = max(map(len, name.split()), default=0)
        table.add_column(Text(name.replace(" ", "\n")), overflow="fold", no_wrap=not wraps, min_width=widest)
    for row in frame.itertuples(index=False):
        table.add_row(*(Text(neutral(str(cell))) for cell in row))
    return table
