"""Commands for other readers than ours: `inversescope questions` and `inversescope score`."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from inversescope.context import Context
from inversescope.errors import neutral
from inversescope.figures.study import Study
from inversescope.reader import shown
from inversescope.reader.command import texts_table
from inversescope.reader.predictions import answers_to
from inversescope.reader.questions import write_questions
from inversescope.reader.study import open_study


def questions(arguments: argparse.Namespace) -> None:
    """Write what another reader needs to be scored."""
    write_questions(_context(arguments), arguments.out_folder, arguments.examples)


def score(arguments: argparse.Namespace) -> None:
    """Score the answers of another reader, and print them beside those of controls and variants."""
    context = _context(arguments)
    compared = shown.Compared(Study(context), answers_to(context, arguments.predictions))
    if arguments.json:
        print(compared.scores.to_json(orient="records", indent=1))
    else:
        console = Console()
        console.print(Text(neutral(shown.about(compared))), soft_wrap=True)
        console.print(texts_table(shown.texts(compared, narrow=True)))
    if arguments.drawn:
        shown.save(compared, arguments.drawn)


def _context(arguments: argparse.Namespace) -> Context:
    return open_study(arguments.task, arguments.model, arguments.root, arguments.config).context
