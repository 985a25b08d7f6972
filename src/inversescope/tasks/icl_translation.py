r"""In-context translation: prior, parsing, features, splits, grammar (paper, sections 4.3, D.3).

A prompt shows three word pairs of one of six tasks (English to French, Italian or Spanish, and back) and asks for a fourth (D.3.2):

    Input: dog, Output: chien\n Input: cat, Output: chat\n Input: cow, Output: vache\n Input: bird, Output:

The prior is uniform over the task and four independent draws from its dictionary, so that a concept may occur twice. These are
6 n^4 prompts, far too many to enumerate: exact values come from prior draws.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from inversescope.config.tasks import TranslationConfig
from inversescope.errors import InputError
from inversescope.tasks import word_lists
from inversescope.tasks.automata import (
    Grammar,
    TextEncoder,
    check_pieces,
    end_token,
    token_ids,
    write_grammar,
)
from inversescope.tasks.base import Lesson, Task, first, mixed_radix, of_each

#: Words of one meaning in four languages, the embedded study's dictionary (ours): the table's head, then a concept a row.
_TABLE = Path(__file__).parent / "data/icl_translation/concepts.tsv"
LANGUAGES, *CONCEPTS = (tuple(line.split("\t")) for line in _TABLE.read_text(encoding="utf-8").splitlines())
CODES = dict(zip(LANGUAGES, ("en", "fr", "it", "es"), strict=True))
FOREIGN = LANGUAGES[1:]
#: The six tasks of D.3.2, as (source, target) languages.
TASKS = tuple([("English", one) for one in FOREIGN] + [(one, "English") for one in FOREIGN])
TASK_NAMES = tuple(f"{source}-{target}" for source, target in TASKS)
#: Labels of the task feature beside the six: shots of several tasks; no labelled task at all.
MIX, NULL = "mix", "null"
N_SHOTS = 3

#: Somewhere in a prompt: the number of the part that comes next, and the task and the row of the source word before; -1: any.
_State = tuple[int, int, int]

_WORD = r"([^\s,:]+)"
_SHOT = rf"Input: {_WORD}, Output: {_WORD}"
_PROMPT = re.compile("\n ".join([_SHOT] * N_SHOTS + [rf"Input: {_WORD}, Output:"]))
_LAST_INPUT = re.compile(rf"(?s:.*)Input: {_WORD}")
#: Parts of a prompt in order: a piece of the template, or the source or target word of a shot, or the query.
_PARTS = ("Input:", *["source", ", Output:", "target", "\n Input:"] * N_SHOTS, "query", ", Output:")
#: What the workflow's own tokenizer takes for one token: parts of the template, and words with the space before them.
_TOKEN = r"(?:\n )?Input:|, Output:| ?\w+|[^\w\s]"


class TranslationTask(Task):
    """The ICL translation prior of D.3.2: task, three shots and query, each uniform.

    Args:
        config: which words, how many of them, and the split.
        root: where `data/icl_translation/lists` lies, if the words are downloaded lists.

    Raises:
        InputError: a spelling occurs twice in the table, a language pair is missing, or the lists are not the pinned ones.
    """

    name = "icl_translation"
    slot_names = ("task", *(f"shot_{i + 1}" for i in range(N_SHOTS)), "query")
    features: tuple[str, ...] = ("task", "query", "source_language", "target_language")
    word_pattern = _TOKEN
    gate_by = "task"
    enlarging = ("raise icl_translation.n_concepts", "icl_translation.held_out")

    def __init__(self, config: TranslationConfig, root: Path = Path(".")) -> None:
        self.config = config
        self.pairs, rows, self.dropped = _pairs(config, root / "data" / self.name / "lists")
        self.n = n = len(rows)
        self.size = len(TASKS) * n ** (N_SHOTS + 1)
        self._radix = (len(TASKS), *[n] * (N_SHOTS + 1))
        words = list(dict.fromkeys(source for pairs in self.pairs for source, _ in pairs))
        self._queries = {word: code for code, word in enumerate(words)}
        self.slot_values = {"task": list(TASK_NAMES), **{slot: rows for slot in self.slot_names[1:]}}
        self.feature_values = {
            "task": [*TASK_NAMES, MIX, NULL],
            "query": words,
            "source_language": list(LANGUAGES),
            "target_language": list(LANGUAGES),
        }
        if config.words == "own":  # the rows of downloaded dictionaries have nothing in common
            self.features = (*self.features, "concept")
            self.feature_values["concept"] = rows
        self.move_counts = (len(TASKS) - 1, *[n - 1] * (N_SHOTS + 1), 1, 1, 1)
        self._rows = [{source: row for row, (source, _) in enumerate(pairs)} for pairs in self.pairs]
        self._of_pair = {
            pair: (task, row) for task, pairs in enumerate(self.pairs) for row, pair in enumerate(pairs)
        }
        #: Concept of each query word, by its code.
        self._concept = np.arange(len(words)) % n
        self._query_code = np.array([[self._queries[source] for source, _ in pairs] for pairs in self.pairs])
        languages = {language: code for code, language in enumerate(LANGUAGES)}
        self._languages = np.array([[languages[source], languages[target]] for source, target in TASKS])
        self._n_test = max(1, round(config.held_out * n))

    # The prior and its prompts

    def _digits(self, index: np.ndarray) -> np.ndarray:
        """Return task, three shots and query of prompts, int64 (5, N)."""
        return np.stack(np.unravel_index(self.check_index(index), self._radix)).astype(np.int64)

    def slots(self, index: np.ndarray) -> np.ndarray:
        return self._digits(index).T.astype(np.int16)

    def index(self, slots: np.ndarray) -> np.ndarray:
        return mixed_radix(slots, self._radix)

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts' texts, which end behind the last `Output:`, without a trailing space."""
        return [self.text(task, shots, query) for task, *shots, query in self._digits(index).T.tolist()]

    def text(self, task: int, shots: Sequence[int], query: int) -> str:
        """Return a prompt with any number of shots: rows of a task's dictionary."""
        pairs = self.pairs[task]
        lines = [f"Input: {pairs[row][0]}, Output: {pairs[row][1]}" for row in shots]
        return "\n ".join([*lines, f"Input: {pairs[query][0]}, Output:"])

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), len(self._radix)), -1, dtype=np.int64)
        for position, text in enumerate(texts):
            match = _PROMPT.fullmatch(text)
            if match is None:
                continue
            words = match.groups()
            shots = [self._of_pair.get(pair) for pair in zip(words[:-1:2], words[1::2], strict=True)]
            if shots[0] is None:
                continue
            task = shots[0][0]
            query = self._rows[task].get(words[-1], -1)
            if all(shot is not None and shot[0] == task for shot in shots):
                rows[position] = [task, *(shot[1] for shot in shots if shot is not None), query]
        return self.index(rows)

    def answers(self, index: np.ndarray) -> list[str]:
        """Return the translation of each prompt's query."""
        digits = self._digits(index)
        return [self.pairs[task][query][1] for task, query in zip(digits[0], digits[-1], strict=True)]

    # Features

    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        task, *_, query = self._digits(index)
        return {
            "task": task,
            "query": self._query_code[task, query],
            "source_language": self._languages[task, 0],
            "target_language": self._languages[task, 1],
            "concept": query,
        }

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes of any texts, int32 (N,): the rules of D.3.3.

        The task is looked up in the dictionary for each of the three shots: `mix` if they disagree, `null` if one is in no
        dictionary
        or the text does not parse. The query is the word behind the last `Input:`, -1 if there is none or it is in no dictionary.
        """
        labels = {name: np.full(len(texts), -1, np.int32) for name in self.features}
        for position, found in enumerate(of_each(texts, self._read)):
            for name in found.keys() & labels.keys():
                labels[name][position] = found[name]
        return labels

    def _read(self, text: str) -> dict[str, int]:
        """Labels of a text by the rules of D.3.3."""
        last, match = _LAST_INPUT.match(text), _PROMPT.fullmatch(text)
        query = self._queries.get(last[1], -1) if last else -1
        words = match.groups() if match else ()
        tasks = {self._of_pair.get(pair, (-1, -1))[0] for pair in zip(words[:-1:2], words[1::2], strict=True)}
        found = {"query": query, "concept": int(self._concept[query]) if query >= 0 else -1}
        if not tasks or -1 in tasks:
            return {**found, "task": self.feature_values["task"].index(NULL)}
        if len(tasks) > 1:
            return {**found, "task": self.feature_values["task"].index(MIX)}
        task = tasks.pop()
        source, target = self._languages[task].tolist()
        return {**found, "task": task, "source_language": source, "target_language": target}

    def chance(self, feature: str) -> float:
        weight = np.full((len(TASKS), self.n), 1.0 / (len(TASKS) * self.n))
        rows = np.arange(len(TASKS))[:, None]
        code = {
            "task": rows,
            "query": self._query_code,
            "source_language": self._languages[rows, 0],
            "target_language": self._languages[rows, 1],
            "concept": np.arange(self.n),
        }[feature]
        share = np.bincount(np.broadcast_to(code, weight.shape).ravel(), weights=weight.ravel())
        return float((share**2).sum())

    # Splits: by the sum of the four rows modulo n, whatever the task and the order of the shots

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): 0 = train, 1 = test.

        It depends on the rows of shots and query only through their sum modulo n: no (query, shots) combination is in both
        splits, in whatever task and order; and each row, and any three of the four, are uniform in both.
        """
        digits = self._digits(index)
        return (digits[1:].sum(axis=0) % self.n < self._n_test).astype(np.int8)

    def combination(self, index: np.ndarray) -> np.ndarray:
        """Return one number for each (query, unordered shots), whatever the task, int64 (N,)."""
        digits = self._digits(index)
        shots = np.sort(digits[1:-1], axis=0)
        return np.ravel_multi_index((*shots, digits[-1]), self._radix[1:]).astype(np.int64)

    def _width(self, split: str | None) -> int:
        """Queries that a split leaves to given shots."""
        if split is None:
            return self.n
        self.check_split(split)
        return self._n_test if split == "test" else self.n - self._n_test

    def split_size(self, split: str | None = None) -> int:
        return self.size // self.n * self._width(split)

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        rank = np.atleast_1d(np.asarray(rank, dtype=np.int64))
        if split is None or rank.size == 0:
            return self.check_index(rank)
        width = self._width(split)
        front, place = np.divmod(rank, width)
        shots = np.stack(np.unravel_index(front, self._radix[:-1]))[1:]
        # The queries of a split are `width` numbers in a row, modulo n; ascending, what wraps around comes first.
        start = ((0 if split == "test" else self._n_test) - shots.sum(axis=0)) % self.n
        wrapped = np.maximum(start + width - self.n, 0)
        query = np.where(place < wrapped, place, start + place - wrapped)
        return front * self.n + query

    def sample(
        self, n: int, split: str | None, rng: np.random.Generator, replace: bool = False
    ) -> np.ndarray:
        """Draw prompts; distinct ones of the test split are of the six tasks in equal parts (D.3.2), to within one prompt.

        All other draws are independent, uniform over the task as the prior is. Arguments, result and errors: `Task.sample`.
        """
        each = self.split_size(split) // len(TASKS)
        if split != "test" or replace or n > len(TASKS) * each:
            return super().sample(n, split, rng, replace)
        # Tasks follow one another in the split. Which of them have a prompt more, if n is no multiple of six, is drawn.
        counts = n // len(TASKS) + (rng.permutation(len(TASKS)) < n % len(TASKS))
        ranks = [
            task * each + rng.choice(each, size=count, replace=False) for task, count in enumerate(counts)
        ]
        return self.split_index(rng.permutation(np.concatenate(ranks)), split)

    def crossed(self, n_queries: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """Draw test prompts that ask the same queries under each of the three tasks from English, int64 (Q, 3, K).

        In the tasks into English the query itself, by its language, tells the task.

        Args:
            n_queries: Q distinct words that all three dictionaries have.
            n_draws: K draws of the shots; their rows but for the last one's are the same under the three tasks.
            rng: source of randomness.

        Raises:
            InputError: the three dictionaries have fewer than Q words in common.
        """
        rows = self._rows[: len(FOREIGN)]
        common = [word for word in rows[0] if all(word in one for one in rows)]
        if len(common) < n_queries:
            raise InputError(
                f"{n_queries} queries were asked that can be translated into each language, there are {len(common)}",
                f"set patching.n_queries to {len(common)} or less",
            )
        words = [common[place] for place in rng.choice(len(common), n_queries, replace=False)]
        query = np.array([[one[word] for one in rows] for word in words])[..., None]
        shape = (n_queries, len(rows), n_draws)
        free = rng.integers(self.n, size=(N_SHOTS - 1, n_queries, 1, n_draws))
        # The last shot makes it a test prompt.
        last = (rng.integers(self._n_test, size=(n_queries, 1, n_draws)) - free.sum(0) - query) % self.n
        task = np.arange(len(rows))[:, None]
        digits = [np.broadcast_to(one, shape) for one in (task, *free, last, query)]
        return np.ravel_multi_index(digits, self._radix).astype(np.int64)

    # Words, tokens and grammar

    def words(self) -> list[str]:
        """Return the parts of the template and all words, each once, as tokens of `word_pattern`."""
        words = dict.fromkeys(word for pairs in self.pairs for pair in pairs for word in pair)
        return ["Input:", ", Output:", "\n Input:", *(f" {word}" for word in words)]

    def extremes(self, count: Callable[[list[str]], list[int]]) -> np.ndarray:
        """Return prompts of which one is the longest in tokens, int64 (N,): of each task, its longest pair and query."""
        slots = []
        for task, pairs in enumerate(self.pairs):
            pair = int(np.argmax(count([f" {source}, Output: {target}" for source, target in pairs])))
            query = int(np.argmax(count([f" {source}" for source, _ in pairs])))
            slots.append([task, *[pair] * N_SHOTS, query])
        return self.index(np.array(slots))

    def check_tokenizer(self, encode: Callable[[list[str]], list[np.ndarray]]) -> None:
        """Check that a prompt has the same tokens with and without its answer: the prediction is read behind `Output:`.

        Raises:
            InputError: naming the first prompt whose end the tokenizer joins with what follows.
        """
        index = self.index(
            np.array([[task, 0, 1, 2, row] for task in range(len(TASKS)) for row in range(min(self.n, 50))])
        )
        texts = self.texts(index)
        full = [f"{text} {answer}" for text, answer in zip(texts, self.answers(index), strict=True)]
        for text, short, long in zip(texts, encode(texts), encode(full), strict=True):
            if len(long) <= len(short) or not np.array_equal(short, long[: len(short)]):
                raise InputError(
                    f"the tokenizer splits the end of '{text[-24:]}' otherwise when the answer follows",
                    "use a tokenizer whose tokens take the space before a word, as those of GPT-2, Gemma and Llama do",
                )

    def grammar(self, tokenizer: TextEncoder) -> Grammar:
        """Return the automaton of the prior's texts over a tokenizer's ids; words may have several tokens.

        Raises:
            InputError: the tokenizer has no end token, or a prompt's tokens are not those of its parts.
        """
        for text in self.texts(np.random.default_rng(0).integers(self.size, size=256)):
            match = _PROMPT.fullmatch(text)
            assert match is not None
            words = iter(match.groups())
            check_pieces(
                tokenizer,
                text,
                [f" {next(words)}" if part in ("source", "target", "query") else part for part in _PARTS],
            )
        parts = {part: token_ids(tokenizer, part) for part in _PARTS}
        pairs = [
            [tuple(token_ids(tokenizer, f" {word}") for word in pair) for pair in own] for own in self.pairs
        ]

        def ways(state: _State) -> Iterator[tuple[tuple[int, ...], _State]]:
            part, task, row = state
            if part == len(_PARTS):
                return
            kind = _PARTS[part]
            if kind == "target":
                yield pairs[task][row][1], (part + 1, task, -1)
            elif kind in ("source", "query"):
                for one in range(len(pairs)) if task < 0 else (task,):
                    for code, (source, _) in enumerate(pairs[one]):
                        # Nothing depends on the query any more.
                        yield source, (part + 1, one, code) if kind == "source" else (part + 1, -1, -1)
            else:
                yield parts[kind], (part + 1, task, row)

        return write_grammar([(0, -1, -1)], ways, end_token(tokenizer))

    # Training of an embedded target

    def lesson(self, n: int, level: int | None, rng: np.random.Generator) -> Lesson:
        """Draw prompts with answers for training a target: all 12 directions, so that the query alone never tells the target
        language.

        Args:
            n: number of prompts.
            level: how many concepts are used so far (the curriculum); all if None.
            rng: source of randomness.

        Returns:
            Texts; the tokens to be predicted are the four outputs, of zero to three shots. Prompts of the test split do not occur.
        """
        if self.config.words != "own":
            message = "targets are trained on the own table: lists have no common concepts"
            raise InputError(message, "set icl_translation.words: own")
        size = min(level or self.n, self.n)
        directions = [(s, t) for s in range(len(LANGUAGES)) for t in range(len(LANGUAGES)) if s != t]
        rows = np.zeros((0, N_SHOTS + 1), np.int64)
        while len(rows) < n:
            drawn = rng.integers(size, size=(n, N_SHOTS + 1))
            rows = np.concatenate([rows, drawn[drawn.sum(axis=1) % self.n >= self._n_test]])
        texts = []
        for direction, row in zip(rng.integers(len(directions), size=n), rows[:n].tolist(), strict=True):
            source, target = directions[direction]
            lines = [f"Input: {CONCEPTS[c][source]}, Output: {CONCEPTS[c][target]}" for c in row]
            texts.append("\n ".join(lines))
        outputs = np.arange(3, 4 * (N_SHOTS + 1), 4)
        questions = [text.rsplit(" ", 1)[0] for text in texts]
        return Lesson(questions, texts, scored=outputs, hidden=np.stack([outputs - 1, outputs - 2], axis=1))

    # Markov chain

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,).

        Kind 0 puts another task (whatever the rows mean there), kinds 1 to 4 another row into a shot or the query: the
        `value`-th of those that differ. Kinds 5 to 7 swap two shots, or a shot and the query. Each kind is symmetric by itself.
        """
        digits = self._digits(index)
        kind, value = np.asarray(kind, dtype=np.int64), np.asarray(value, dtype=np.int64)
        result = digits.copy()
        for slot in range(len(digits)):
            other = value + (value >= digits[slot])
            result[slot] = np.where(kind == slot, other, result[slot])
        for place, (a, b) in enumerate(((1, 2), (2, 3), (3, 4)), start=len(digits)):
            swap = kind == place
            result[a], result[b] = np.where(swap, digits[b], result[a]), np.where(swap, digits[a], result[b])
        return np.ravel_multi_index(tuple(result), self._radix).astype(np.int64)


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
