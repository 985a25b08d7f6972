"""In-context tasks that an English language model knows: capitals, languages, plurals, capital letters, past tenses, gerunds.

There are four tables of words. Two of them have two tasks each, on the same words: there the query alone does not tell the task.
Each shot has words of its own, and the query others, so that no input stands twice in a prompt. With few words a shot the prior is
small enough to be run as a whole, and most of a prompt's tokens are shared with many others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inversescope.config.tasks import WordsConfig
from inversescope.errors import InputError
from inversescope.tasks.base import first
from inversescope.tasks.few_shot import Examples, FewShotTask

#: Tables of the package: the head, then an input word a row and what each of its tasks makes of it.
_FOLDER = Path(__file__).parent / "data/icl_words"
TABLES = {
    path.stem: [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted(_FOLDER.glob("*.tsv"))
}


class WordsTask(FewShotTask):
    """The prior of word tasks: task, shots and query, each uniform.

    Args:
        config: how many words and shots, and the split.
        root: of no use here.

    Raises:
        InputError: there are too few pairs, or so few prompts that a query is missing from a split.
    """

    name = "icl_words"
    enlarging = ("raise icl_words.n_pairs or icl_words.n_shown", "icl_words.held_out")

    def __init__(self, config: WordsConfig, root: Path = Path(".")) -> None:
        self.config = config
        shown, width = config.n_shots * config.n_shown, config.n_shown
        fewest = min(len(rows) - 1 for rows in TABLES.values())
        number = len(first("icl_words.n_pairs", config.n_pairs, range(fewest)))
        if number - shown < 2:
            raise InputError(
                f"icl_words.n_pairs leaves {number - shown} queries beside {shown} words of the shots",
                f"raise it up to {fewest}, or lower icl_words.n_shown",
            )
        if width**config.n_shots < number - shown:
            raise InputError(
                f"icl_words has {number - shown} queries for {width**config.n_shots} choices of shots: some were never tested",
                "raise icl_words.n_shown",
            )
        pairs, tables = _pairs(number)
        words = {row[0]: kind for kind, table in enumerate(TABLES.values()) for row in table[1:]}
        examples = Examples(
            pairs,
            shots=[range(at * width, (at + 1) * width) for at in range(config.n_shots)],
            queries=range(shown, number),
            of_task={},
            of_query={"kind": (list(TABLES), words)},
        )
        self.crossings = tables
        super().__init__(examples, [str(row) for row in range(number)], config.held_out, unordered=False)

    def single_token_words(self) -> list[str]:
        """Return the outputs: a task is told by the one token that a model predicts."""
        return list(dict.fromkeys(target for pairs in self.pairs for _, target in pairs))


def _pairs(number: int) -> tuple[dict[str, Sequence[tuple[str, str]]], tuple[tuple[int, ...], ...]]:
    """The first pairs of each task, and the numbers of the tasks of each table that has several."""
    pairs: dict[str, Sequence[tuple[str, str]]] = {}
    tables: list[tuple[int, ...]] = []
    for head, *rows in TABLES.values():
        if len(head) > 2:
            tables.append(tuple(range(len(pairs), len(pairs) + len(head) - 1)))
        for column, target in enumerate(head[1:], start=1):
            pairs[f"{head[0]}-{target}"] = [(row[0], row[column]) for row in rows[:number]]
    return pairs, tuple(tables)
