r"""Prompts that show some solved examples of one of several tasks and ask for another (paper, D.3.2):

    Input: dog, Output: chien\n Input: cat, Output: chat\n Input: cow, Output: vache\n Input: bird, Output:

Examples are called shots, the last word the query. A task is a list of pairs; all tasks have as many. The prior is uniform over the
task, the pair of each shot and the query, drawn independently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inversescope.errors import InputError
from inversescope.tasks.automata import (
    Grammar,
    TextEncoder,
    check_pieces,
    end_token,
    token_ids,
    write_grammar,
)
from inversescope.tasks.base import Task, mixed_radix, of_each

#: Labels of the task feature beside the tasks: shots of several tasks; no labelled task at all.
MIX, NULL = "mix", "null"

_WORD = r"([^\s,:]+)"
_SHOT = rf"Input: {_WORD}, Output: {_WORD}"
_LAST_INPUT = re.compile(rf"(?s:.*)Input: {_WORD}")

#: Somewhere in a prompt: the number of the part that comes next, and the task and the row of the source word before; -1: any.
_State = tuple[int, int, int]


@dataclass(frozen=True)
class Examples:
    """What a few-shot prior is made of.

    Attributes:
        pairs: task -> its pairs of input and output, the same number of each.
        shots: rows that each shot may show.
        queries: rows that may be asked.
        of_task: feature -> its labels, and the code of each task (T,).
        of_query: feature -> its labels, and the code of each input word.
    """

    pairs: Mapping[str, Sequence[tuple[str, str]]]
    shots: Sequence[range]
    queries: range
    of_task: Mapping[str, tuple[Sequence[str], Sequence[int]]]
    of_query: Mapping[str, tuple[Sequence[str], Mapping[str, int]]]


class FewShotTask(Task):
    """A prior of few-shot prompts.

    Args:
        examples: tasks, pairs, and which of them may stand where.
        rows: names of the rows.
        held_out: share of the prompts that are kept for the test split.
        unordered: whether two prompts with the same shots in another order are in the same split.

    Attributes:
        pairs: of each task, a list of its pairs.
        task_names: their names.
        n: pairs of a task.
        crossings: tasks that ask the same input words, to tell a query's part from a task's (`crossed`).
    """

    # What the workflow's own tokenizer takes for one token: parts of the template, and words with the space before them.
    word_pattern = r"(?:\n )?Input:|, Output:| ?\w+|[^\w\s]"
    gate_by = "task"
    study_asks = True
    crossings: tuple[tuple[int, ...], ...]

    def __init__(self, examples: Examples, rows: Sequence[str], held_out: float, unordered: bool) -> None:
        self.pairs = [list(one) for one in examples.pairs.values()]
        self.task_names = list(examples.pairs)
        self.n, self.n_shots = len(self.pairs[0]), len(examples.shots)
        self._pools = [*examples.shots, examples.queries]
        self._start = np.array([0, *(pool.start for pool in self._pools)])[:, None]
        self._radix = (len(self.pairs), *map(len, self._pools))
        self.size = int(np.prod(self._radix, dtype=object))
        if self.size > np.iinfo(np.int64).max:
            raise InputError(
                f"{self.name} has {self.size:.1e} prompts, more than 64 bits can number",
                f"lower {self.name}.n_shots, or the words that a shot is drawn from",
            )
        self.move_counts = tuple(number - 1 for number in self._radix)
        shots = self._radix[1:-1]
        #: What a step of each shot's digit adds to the number that the split goes by.
        self._weight = np.array(
            [1 if unordered else int(np.prod(shots[at + 1 :])) for at in range(self.n_shots)]
        )
        self._n_test = max(1, round(held_out * self._radix[-1]))
        self._prompt = re.compile("\n ".join([_SHOT] * self.n_shots + [rf"Input: {_WORD}, Output:"]))
        #: Parts of a prompt in order: a piece of the template, or the source or target word of a shot, or the query.
        self._parts = (
            "Input:",
            *["source", ", Output:", "target", "\n Input:"] * self.n_shots,
            "query",
            ", Output:",
        )
        self._name_slots(rows)
        self._number_labels(examples)

    def _name_slots(self, rows: Sequence[str]) -> None:
        names = [*(f"shot_{at + 1}" for at in range(self.n_shots)), "query"]
        self.slot_names = ("task", *names)
        values = ([rows[row] for row in pool] for pool in self._pools)
        self.slot_values = {"task": self.task_names, **dict(zip(names, values, strict=True))}

    def _number_labels(self, examples: Examples) -> None:
        self._rows = [{source: row for row, (source, _) in enumerate(pairs)} for pairs in self.pairs]
        self._of_pair = {
            pair: (task, row) for task, pairs in enumerate(self.pairs) for row, pair in enumerate(pairs)
        }
        words = list(dict.fromkeys(source for pairs in self.pairs for source, _ in pairs))
        self._queries = {word: code for code, word in enumerate(words)}
        self._of_task = {name: list(codes) for name, (_, codes) in examples.of_task.items()}
        self._of_query = {
            name: [codes[word] for word in words] for name, (_, codes) in examples.of_query.items()
        }
        self.features = ("task", "query", *self._of_task, *self._of_query)
        told = {**examples.of_task, **examples.of_query}
        self.feature_values = {"task": [*self.task_names, MIX, NULL], "query": words}
        self.feature_values |= {name: list(labels) for name, (labels, _) in told.items()}
        code = np.array([[self._queries[source] for source, _ in pairs] for pairs in self.pairs])
        #: Label of each feature by task and row of the query.
        self._codes = {
            "task": np.broadcast_to(np.arange(len(self.pairs))[:, None], code.shape),
            "query": code,
        }
        self._codes |= {
            name: np.broadcast_to(np.array(of)[:, None], code.shape) for name, of in self._of_task.items()
        }
        self._codes |= {name: np.array(of)[code] for name, of in self._of_query.items()}

    # The prior and its prompts

    def _digits(self, index: np.ndarray) -> np.ndarray:
        """Return task, shots and query of prompts, int64 (n_shots + 2, N): positions among what may stand there."""
        return np.stack(np.unravel_index(self.check_index(index), self._radix)).astype(np.int64)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Return task, shots and query of prompts, int64 (n_shots + 2, N): the number of the task, and rows of its pairs."""
        return self._digits(index) + self._start

    def slots(self, index: np.ndarray) -> np.ndarray:
        return self._digits(index).T.astype(np.int16)

    def index(self, slots: np.ndarray) -> np.ndarray:
        return mixed_radix(slots, self._radix)

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts' texts, which end behind the last `Output:`, without a trailing space."""
        return [self.text(task, shots, query) for task, *shots, query in self.rows(index).T.tolist()]

    def text(self, task: int, shots: Sequence[int], query: int) -> str:
        """Return a prompt with any number of shots: rows of a task's pairs."""
        pairs = self.pairs[task]
        lines = [f"Input: {pairs[row][0]}, Output: {pairs[row][1]}" for row in shots]
        return "\n ".join([*lines, f"Input: {pairs[query][0]}, Output:"])

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), len(self._radix)), -1, dtype=np.int64)
        for position, text in enumerate(texts):
            match = self._prompt.fullmatch(text)
            if match is None:
                continue
            words = match.groups()
            shots = [self._of_pair.get(pair) for pair in zip(words[:-1:2], words[1::2], strict=True)]
            if shots[0] is None:
                continue
            task = shots[0][0]
            query = self._rows[task].get(words[-1], -1)
            if query >= 0 and all(shot is not None and shot[0] == task for shot in shots):
                rows[position] = [task, *(shot[1] for shot in shots if shot is not None), query]
        return self.index(rows - self._start[:, 0])

    def answers(self, index: np.ndarray) -> list[str]:
        """Return the output that belongs to each prompt's query."""
        task, *_, query = self.rows(index).tolist()
        return [self.pairs[one][row][1] for one, row in zip(task, query, strict=True)]

    def ask_another(self, index: np.ndarray, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        """Return a prompt without shots for each prompt (N,), and what its task puts out: another query, drawn uniformly."""
        digits = self._digits(index)
        other = rng.integers(self._radix[-1] - 1, size=digits.shape[1])
        query = other + (other >= digits[-1]) + self._start[-1]
        asked = list(zip(digits[0].tolist(), query.tolist(), strict=True))
        return [self.text(task, [], row) for task, row in asked], [
            self.pairs[task][row][1] for task, row in asked
        ]

    # Features

    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        task, *_, query = self.rows(index)
        return {name: codes[task, query] for name, codes in self._codes.items()}

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes of any texts, int32 (N,): the rules of D.3.3.

        The task is looked up for each of the shots: `mix` if they disagree, `null` if one is no task's pair or the text does not
        parse. The query is the word behind the last `Input:`, -1 if there is none or it is no input.
        """
        labels = {name: np.full(len(texts), -1, np.int32) for name in self.features}
        for position, found in enumerate(of_each(texts, self._read)):
            for name, code in found.items():
                labels[name][position] = code
        return labels

    def _read(self, text: str) -> dict[str, int]:
        """Labels of a text by the rules of D.3.3."""
        last, match = _LAST_INPUT.match(text), self._prompt.fullmatch(text)
        query = self._queries.get(last[1], -1) if last else -1
        words = match.groups() if match else ()
        tasks = {self._of_pair.get(pair, (-1, -1))[0] for pair in zip(words[:-1:2], words[1::2], strict=True)}
        found = {"query": query} | {name: of[query] for name, of in self._of_query.items() if query >= 0}
        if not tasks or -1 in tasks:
            return {**found, "task": self.feature_values["task"].index(NULL)}
        if len(tasks) > 1:
            return {**found, "task": self.feature_values["task"].index(MIX)}
        task = tasks.pop()
        return {**found, "task": task, **{name: of[task] for name, of in self._of_task.items()}}

    def chance(self, feature: str) -> float:
        code = self._codes[feature][:, self._pools[-1].start : self._pools[-1].stop]
        share = np.bincount(code.ravel()) / code.size
        return float((share**2).sum())

    # Splits: by a number that shots and query add up to, modulo the number of queries, whatever the task

    def _is_test(self, shots: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Which shots (n_shots, ...) and queries (...), as digits, are of the test split."""
        return (np.tensordot(self._weight, shots, 1) + query) % self._radix[-1] < self._n_test

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): 0 = train, 1 = test.

        It depends on shots and query alone: no combination of them is in both splits, in whatever task. Each query is as frequent
        in one as in the other, or about so.
        """
        digits = self._digits(index)
        return self._is_test(digits[1:-1], digits[-1]).astype(np.int8)

    def combination(self, index: np.ndarray) -> np.ndarray:
        """Return one number for each (query, unordered shots), whatever the task, int64 (N,)."""
        _, *shots, query = self.rows(index)
        return np.ravel_multi_index((*np.sort(shots, axis=0), query), (self.n,) * (self.n_shots + 1)).astype(
            np.int64
        )

    def _width(self, split: str | None) -> int:
        """Queries that a split leaves to given shots."""
        if split is None:
            return self._radix[-1]
        self.check_split(split)
        return self._n_test if split == "test" else self._radix[-1] - self._n_test

    def split_size(self, split: str | None = None) -> int:
        return self.size // self._radix[-1] * self._width(split)

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        rank = np.atleast_1d(np.asarray(rank, dtype=np.int64))
        if split is None or rank.size == 0:
            return self.check_index(rank)
        width, number = self._width(split), self._radix[-1]
        front, place = np.divmod(rank, width)
        shots = np.stack(np.unravel_index(front, self._radix[:-1]))[1:]
        # The queries of a split are `width` numbers in a row, modulo all; ascending, what wraps around comes first.
        start = ((0 if split == "test" else self._n_test) - self._weight @ shots) % number
        wrapped = np.maximum(start + width - number, 0)
        query = np.where(place < wrapped, place, start + place - wrapped)
        return front * number + query

    def sample(
        self, n: int, split: str | None, rng: np.random.Generator, replace: bool = False
    ) -> np.ndarray:
        """Draw prompts; distinct ones are of the tasks in equal parts (D.3.2), to within one prompt.

        Arguments, result and errors: `Task.sample`.
        """
        each = self.split_size(split) // len(self.pairs)
        if replace or n > len(self.pairs) * each:
            return super().sample(n, split, rng, replace)
        # Tasks follow one another in the split. Which of them have a prompt more, if n is no multiple of them, is drawn.
        counts = n // len(self.pairs) + (rng.permutation(len(self.pairs)) < n % len(self.pairs))
        ranks = [
            task * each + rng.choice(each, size=count, replace=False) for task, count in enumerate(counts)
        ]
        return self.split_index(rng.permutation(np.concatenate(ranks)), split)

    def crossed(self, n_queries: int, n_draws: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw test prompts that ask the same queries under each of some tasks, one int64 (Q, T, K) for each of `crossings`.

        Args:
            n_queries: Q distinct words that all tasks of a crossing ask.
            n_draws: K draws of the shots; the tasks have the same rows where the query is in the same row of each.
            rng: source of randomness.

        Raises:
            InputError: the tasks have fewer than Q words in common.
        """
        return [self._cross(tasks, n_queries, n_draws, rng) for tasks in self.crossings]

    def _cross(
        self, tasks: tuple[int, ...], n_queries: int, n_draws: int, rng: np.random.Generator
    ) -> np.ndarray:
        asked = [{self.pairs[task][row][0]: row for row in self._pools[-1]} for task in tasks]
        common = [word for word in asked[0] if all(word in one for one in asked)]
        if len(common) < n_queries:
            raise InputError(
                f"{n_queries} queries were asked under several tasks each, there are {len(common)}",
                f"set patching.n_queries to {len(common)} or less",
            )
        words = [common[place] for place in rng.choice(len(common), n_queries, replace=False)]
        query = np.array([[one[word] for one in asked] for word in words])[..., None] - self._pools[-1].start
        if (query == query[:, :1]).all():
            query = query[:, :1]
        query = np.repeat(query, n_draws, axis=2)
        pools = np.array(self._radix[1:-1])[:, None]
        shots = np.zeros((self.n_shots, *query.shape), np.int64)
        left = np.ones(query.shape, bool)
        while left.any():
            shots[:, left] = rng.integers(pools, size=(self.n_shots, int(left.sum())))
            left = ~self._is_test(shots, query)
        shape = (n_queries, len(tasks), n_draws)
        digits = [np.broadcast_to(one, shape) for one in (np.array(tasks)[:, None], *shots, query)]
        return np.ravel_multi_index(digits, self._radix).astype(np.int64)

    # Words, tokens and grammar

    def words(self) -> list[str]:
        """Return the parts of the template and all words, each once, as tokens of `word_pattern`."""
        words = dict.fromkeys(word for pairs in self.pairs for pair in pairs for word in pair)
        return ["Input:", ", Output:", "\n Input:", *(f" {word}" for word in words)]

    def extremes(self, count: Callable[[list[str]], list[int]]) -> np.ndarray:
        """Return prompts of which one is the longest in tokens, int64 (N,): of each task, its longest pairs and query."""
        slots = []
        for task, pairs in enumerate(self.pairs):
            both = count([f" {source}, Output: {target}" for source, target in pairs])
            asked = count([f" {source}" for source, _ in pairs])
            lengths = [*([both] * self.n_shots), asked]
            longest = [
                int(np.argmax(of[pool.start : pool.stop]))
                for of, pool in zip(lengths, self._pools, strict=True)
            ]
            slots.append([task, *longest])
        return self.index(np.array(slots))

    def check_tokenizer(self, encode: Callable[[list[str]], list[np.ndarray]]) -> None:
        """Check that a prompt has the same tokens with and without its answer: the prediction is read behind `Output:`.

        Raises:
            InputError: naming the first prompt whose end the tokenizer joins with what follows.
        """
        shots = [0] * self.n_shots
        queries = range(min(self._radix[-1], 50))
        index = self.index(
            np.array([[task, *shots, row] for task in range(len(self.pairs)) for row in queries])
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
            match = self._prompt.fullmatch(text)
            assert match is not None
            words = iter(match.groups())
            check_pieces(
                tokenizer,
                text,
                [
                    f" {next(words)}" if part in ("source", "target", "query") else part
                    for part in self._parts
                ],
            )
        parts = {part: token_ids(tokenizer, part) for part in self._parts}
        pairs = [
            [tuple(token_ids(tokenizer, f" {word}") for word in pair) for pair in own] for own in self.pairs
        ]

        def ways(state: _State) -> Iterator[tuple[tuple[int, ...], _State]]:
            part, task, row = state
            if part == len(self._parts):
                return
            kind = self._parts[part]
            if kind == "target":
                yield pairs[task][row][1], (part + 1, task, -1)
            elif kind in ("source", "query"):
                for one in range(len(pairs)) if task < 0 else (task,):
                    for code in self._pools[part // 4]:
                        # Nothing depends on the query any more.
                        yield (
                            pairs[one][code][0],
                            (part + 1, one, code) if kind == "source" else (part + 1, -1, -1),
                        )
            else:
                yield parts[kind], (part + 1, task, row)

        return write_grammar([(0, -1, -1)], ways, end_token(tokenizer))

    # Markov chain

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,).

        Kind 0 puts another task (whatever the rows mean there), the others another row into a shot or the query: the `value`-th of
        those that differ. Each kind is symmetric by itself.
        """
        digits = self._digits(index)
        kind, value = np.asarray(kind, dtype=np.int64), np.asarray(value, dtype=np.int64)
        moved = np.where(kind == np.arange(len(digits))[:, None], value + (value >= digits), digits)
        return np.ravel_multi_index(tuple(moved), self._radix).astype(np.int64)
