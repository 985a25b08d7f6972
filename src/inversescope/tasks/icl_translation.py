r"""In-context translation: words and features of its prior (paper, sections 4.3, D.3).

A prompt shows three word pairs of one of six tasks (English to French, Italian or Spanish, and back) and asks for a fourth (D.3.2).
The prior is uniform over the task and independent draws from its dictionary, so that a concept may occur twice. With three shots
these are 6 n^4 prompts, far too many to enumerate: exact values come from prior draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inversescope.config.tasks import TranslationConfig
from inversescope.errors import InputError
from inversescope.tasks import word_lists
from inversescope.tasks.base import Lesson, first
from inversescope.tasks.few_shot import Examples, FewShotTask

#: Words of one meaning in four languages, the embedded study's dictionary (ours): the table's head, then a concept a row.
_TABLE = Path(__file__).parent / "data/icl_translation/concepts.tsv"
LANGUAGES, *CONCEPTS = (tuple(line.split("\t")) for line in _TABLE.read_text(encoding="utf-8").splitlines())
CODES = dict(zip(LANGUAGES, ("en", "fr", "it", "es"), strict=True))
FOREIGN = LANGUAGES[1:]
#: The six tasks of D.3.2, as (source, target) languages.
TASKS = tuple([("English", one) for one in FOREIGN] + [(one, "English") for one in FOREIGN])


class TranslationTask(FewShotTask):
    """The ICL translation prior of D.3.2: task, shots and query, each uniform.

    Args:
        config: which words, how many of them, and the split.
        root: where `data/icl_translation/lists` lies, if the words are downloaded lists.

    Raises:
        InputError: a spelling occurs twice in the table, a language pair is missing, or the lists are not the pinned ones.
    """

    name = "icl_translation"
    enlarging = ("raise icl_translation.n_concepts", "icl_translation.held_out")
    #: In the tasks into English the query itself, by its language, tells the task.
    crossings = (tuple(range(len(FOREIGN))),)

    def __init__(self, config: TranslationConfig, root: Path = Path(".")) -> None:
        self.config = config
        pairs, rows, self.dropped = _pairs(config, root / "data" / self.name / "lists")
        code = {language: place for place, language in enumerate(LANGUAGES)}
        of_task = {
            "source_language": (LANGUAGES, [code[source] for source, _ in TASKS]),
            "target_language": (LANGUAGES, [code[target] for _, target in TASKS]),
        }
        # The rows of downloaded dictionaries have nothing in common.
        meant = {source: row for own in pairs for row, (source, _) in enumerate(own)}
        of_query = {"concept": (rows, meant)} if config.words == "own" else {}
        names = [f"{source}-{target}" for source, target in TASKS]
        every = range(len(rows))
        examples = Examples(
            dict(zip(names, pairs, strict=True)), [every] * config.n_shots, every, of_task, of_query
        )
        # The split goes by the sum of all rows, so that all of them but one are uniform in both.
        super().__init__(examples, rows, config.held_out, unordered=True)

    # Training of an embedded target

    def lesson(self, n: int, level: int | None, rng: np.random.Generator) -> Lesson:
        """Draw prompts with answers for training a target: all 12 directions, so that the query alone never tells the target
        language.

        Args:
            n: number of prompts.
            level: how many concepts are used so far (the curriculum); all if None.
            rng: source of randomness.

        Returns:
            Texts; the tokens to be predicted are the outputs, of the shots and the query. Prompts of the test split do not occur.
        """
        if self.config.words != "own":
            message = "targets are trained on the own table: lists have no common concepts"
            raise InputError(message, "set icl_translation.words: own")
        size = min(level or self.n, self.n)
        directions = [(s, t) for s in range(len(LANGUAGES)) for t in range(len(LANGUAGES)) if s != t]
        rows = np.zeros((0, self.n_shots + 1), np.int64)
        while len(rows) < n:
            drawn = rng.integers(size, size=(n, self.n_shots + 1))
            rows = np.concatenate([rows, drawn[drawn.sum(axis=1) % self.n >= self._n_test]])
        texts = []
        for direction, row in zip(rng.integers(len(directions), size=n), rows[:n].tolist(), strict=True):
            source, target = directions[direction]
            lines = [f"Input: {CONCEPTS[c][source]}, Output: {CONCEPTS[c][target]}" for c in row]
            texts.append("\n ".join(lines))
        outputs = np.arange(3, 4 * (self.n_shots + 1), 4)
        questions = [text.rsplit(" ", 1)[0] for text in texts]
        return Lesson(questions, texts, scored=outputs, hidden=np.stack([outputs - 1, outputs - 2], axis=1))


def _pairs(
    config: TranslationConfig, lists: Path
) -> tuple[list[list[tuple[str, str]]], list[str], dict[str, int]]:
    """Pairs of each task, names of their rows, and how many pairs of downloaded lists were left out, by the reason."""
    key, number = "icl_translation.n_concepts", config.n_concepts
    if config.words == "own":
        return (*_own_pairs(first(key, number, CONCEPTS)), {})
    found = word_lists.read(lists, [(CODES[source], CODES[target]) for source, target in TASKS])
    pairs = [first(key, number, one) for one in found.words]
    return pairs, [str(row) for row in range(len(pairs[0]))], found.dropped


def _own_pairs(table: Sequence[Sequence[str]]) -> tuple[list[list[tuple[str, str]]], list[str]]:
    """Pairs of each task from a table of concepts, and the concepts' English names."""
    for row, concept in enumerate(table):
        if len(concept) != len(LANGUAGES) or not all(concept):
            raise InputError(
                f"concept {row} ({', '.join(concept)}) has {len(concept)} words, not one for each of {', '.join(LANGUAGES)}",
                "complete or remove it",
            )
    counts = Counter(word for concept in table for word in concept)
    if twice := [word for word, count in counts.items() if count > 1]:
        raise InputError(
            f"the spelling '{twice[0]}' occurs twice in the table of concepts",
            "remove one of its concepts: a prompt must say which language a word is in",
        )
    at = {language: column for column, language in enumerate(LANGUAGES)}
    pairs = [[(c[at[source]], c[at[target]]) for c in table] for source, target in TASKS]
    return pairs, [concept[0] for concept in table]
