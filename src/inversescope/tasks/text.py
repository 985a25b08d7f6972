"""A corpus as a prior: its prompts, as often as they stand in it (InversionView's factual recall; Huang et al., 2024).

Prompts are rows of a data set (`tasks.corpus`), written by a template of its columns (named slots). The prior is the
corpus's empirical distribution, weighted where a column says so, so that it can be looked through: exact values are exact. Features
are columns, regular expressions, or functions that the project holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.tasks import FETCHED, TextConfig
from inversescope.errors import InputError
from inversescope.tasks.automata import PromptTree, TextEncoder
from inversescope.tasks.base import Task, held_out, split_words
from inversescope.tasks.corpus import COPY, as_strings, check_text, inside, read_corpus
from inversescope.tasks.labels import Labeller, labeller

#: Label of prompts of the corpus in which a regular expression finds nothing.
NONE = "(none)"
#: Copies of prompts that `enumerate` writes out at most, each prompt as often as it counts.
MOST_COPIES = 5_000_000
#: Corpora up to this size are tokenized to find their longest prompt; of larger ones, so many of the longest in characters.
MOST_MEASURED = 200_000
#: Columns of the tables of prompts, which a slot of that name must not write over.
_TAKEN = ("prompt_id", "text")


class TextTask(Task):
    """The prior of a corpus.

    Indices count the distinct prompts in order of their first occurrence. Equal prompts are one, of as much weight as all together.

    Args:
        config: the data set, what of it is prompt, answer, weight and feature, and the split.
        root: the project's root, which a local file and the functions must lie in.

    Raises:
        InputError: the corpus is missing, outside the project, unreadable or empty, lacks a column, or holds an empty prompt or a
            weight that is no whole number; equal prompts differ in a column that is used; or a feature cannot be read.
    """

    name = "text"
    enlarging = ("give a larger corpus", "text.held_out")

    def __init__(self, config: TextConfig, root: Path = Path(".")) -> None:
        self.config, self.features = config, config.feature_names
        self.token_unit = config.token_unit
        self._where = config.named
        local = config.source == "local"
        path = inside(root, config.path, "text.path") if local else root / "data" / self.name / FETCHED / COPY
        frame = read_corpus(config, path, config.used_columns, "text.path")
        if frame.empty:
            raise InputError(f"{self._where} has no prompt", "give a file with one prompt a row")
        pieces, described = config.pieces, config.described
        check_text("".join(text for text, _ in pieces), "text.prompt")
        columns = list(dict.fromkeys(column for _, column in pieces if column is not None))
        used = [*columns, *described.values(), config.answer, config.split_by]
        rows = {column: self._strings(frame, column) for column in dict.fromkeys(c for c in used if c)}
        texts = [
            "".join(text + (rows[column][i] if column else "") for text, column in pieces)
            for i in range(len(frame))
        ]
        first = self._distinct(texts, rows, self._weights(frame), frame.index)
        rows = {column: [values[row] for row in first] for column, values in rows.items()}
        self._texts = [texts[row] for row in first]
        self.size = len(first)
        self._index_of = {text: number for number, text in enumerate(self._texts)}
        self._cumulative = np.cumsum(self.weight)
        self.uniform = bool((self.weight == self.weight[0]).all())
        self._answers = rows[config.answer] if config.answer else [""] * self.size
        self._lay_out_slots(pieces, columns, rows)
        self._lay_out_features(described, rows, root)
        self.counterfactual_features = tuple(
            name
            for name, column in described.items()
            if config.answer and len(columns) > 1 and column in columns
        )
        self._slot_of_feature = {name: columns.index(c) for name, c in described.items() if c in columns}
        self._held_out = self._hold_out(rows[config.split_by] if config.split_by else self._texts)
        self.split_rows = {"train": np.flatnonzero(~self._held_out), "test": np.flatnonzero(self._held_out)}
        sizes = [len(self.slot_values[name]) for name in self.slot_names]
        self.move_counts = (self.size, *(sizes if len(sizes) > 1 else ()))

    # Reading

    def _strings(self, frame: pd.DataFrame, column: str) -> list[str]:
        """A column as strings. Raises `InputError` if it is empty somewhere, or no column of one kind (`as_strings`)."""
        return as_strings(self._values(frame, column), frame.index.tolist(), self._where, column)

    def _values(self, frame: pd.DataFrame, column: str) -> list[Any]:
        """A column. Raises `InputError` if it is empty somewhere."""
        values = frame[column].tolist()
        for line, value in zip(frame.index, values, strict=True):
            if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
                raise InputError(f"{self._where}, line {line}: column '{column}' is empty", "fill it in")
        return list(values)

    def _weights(self, frame: pd.DataFrame) -> np.ndarray:
        if self.config.weight is None:
            return np.ones(len(frame), np.int64)
        column = self.config.weight
        values = [None if isinstance(value, bool) else value for value in self._values(frame, column)]
        numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(float)
        bad = ~(np.isfinite(numbers) & (numbers >= 0) & (numbers == np.floor(numbers)) & (numbers < 2**31))
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                f"{self._where}, line {frame.index[row]}: weight '{values[row]}' in column '{column}' is no count",
                "give whole numbers of 0 or more: how often the row counts",
            )
        return numbers.astype(np.int64)

    def _distinct(
        self, texts: list[str], rows: dict[str, list[str]], weights: np.ndarray, lines: pd.Index
    ) -> list[int]:
        """First row of each distinct prompt that counts; sets `weight` (size,)."""
        first: dict[str, int] = {}
        total: dict[str, int] = {}
        for row, (text, weight) in enumerate(zip(texts, weights.tolist(), strict=True)):
            if not text.strip():
                raise InputError(f"{self._where}, line {lines[row]}: the prompt is empty", "fill it in")
            if not weight:
                continue
            known = first.setdefault(text, row)
            total[text] = total.get(text, 0) + weight
            for column, values in rows.items():
                if values[known] != values[row]:
                    raise InputError(
                        f"{self._where}, lines {lines[known]} and {lines[row]}: the same prompt, but column '{column}' is "
                        f"'{values[known]}' and '{values[row]}'",
                        "let equal prompts agree in all columns that are used, or use fewer",
                    )
        if not first:
            raise InputError(f"{self._where} has no prompt", "give a file with one prompt a row")
        self.weight = np.array(list(total.values()), np.int64)
        return list(first.values())

    def _lay_out_slots(
        self, pieces: list[tuple[str, str | None]], columns: list[str], rows: dict[str, list[str]]
    ) -> None:
        names = {column: f"slot_{column}" if column in _TAKEN else column for column in columns}
        self.slot_names = tuple(names.values())
        self.slot_values, codes = {}, []
        for column in columns:
            self.slot_values[names[column]], code = _coded(rows[column])
            codes.append(code)
        self._slots = np.stack(codes, 1)
        self._of_slots = {tuple(row): number for number, row in enumerate(self._slots.tolist())}
        # A slot's position is that of its last character, so that it is the last of its tokens.
        self.position_names = self.slot_names
        ends: dict[str, np.ndarray] = {}
        at = np.zeros(self.size, np.int64)
        for text, filled in pieces:
            at = at + len(text)
            if filled is not None:
                lengths = np.array([len(value) for value in rows[filled]], np.int64)
                at = at + lengths
                ends.setdefault(names[filled], np.where(lengths > 0, at - 1, -1))
        self._ends = ends

    # Features

    def _lay_out_features(self, described: dict[str, str], rows: dict[str, list[str]], root: Path) -> None:
        self._labellers: dict[str, Labeller] = {}
        labels: dict[str, list[str]] = {name: rows[column] for name, column in described.items()}
        for name, feature in self.config.features.items():
            if feature.column:
                continue
            label = self._labellers[name] = labeller(name, feature, self.config.functions, root)
            found = [label(text) for text in self._texts]
            if all(one is None for one in found):
                raise InputError(
                    f"pattern '{feature.pattern}' of feature '{name}' is in no prompt of {self._where}",
                    f"correct text.features.{name}.pattern",
                )
            labels[name] = [NONE if one is None else one for one in found]
        if not self.features:
            raise InputError(f"{self._where} has no feature", "name some in text.features or text.prompt")
        self.feature_values = {}
        columns = []
        for name, values in labels.items():
            self.feature_values[name], code = _coded(values)
            columns.append(code)
        self._labels = np.stack(columns, 1)

    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        return dict(zip(self.features, self._labels[index].T, strict=True))

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes of texts, int32 (N,).

        Outside the corpus, what patterns and functions say; -1 for columns, and for labels that the corpus does not have.
        """
        index = self.parse(texts)
        result = self.features_of(index)
        for name, label in self._labellers.items():
            codes = {value: code for code, value in enumerate(self.feature_values[name])}
            for row in np.flatnonzero(index < 0).tolist():
                told = label(texts[row])
                result[name][row] = -1 if told is None else codes.get(told, -1)
        return result

    def chance(self, feature: str) -> float:
        labels = self._labels[:, self.features.index(feature)]
        share = np.bincount(labels, weights=self.weight) / self.weight.sum()
        return float((share**2).sum())

    # The prior and its prompts

    def slots(self, index: np.ndarray) -> np.ndarray:
        return self._slots[self.check_index(index)]

    def index(self, slots: np.ndarray) -> np.ndarray:
        rows = np.asarray(slots, np.int64).reshape(-1, len(self.slot_names)).tolist()
        return np.array([self._of_slots.get(tuple(row), -1) for row in rows], np.int64)

    def texts(self, index: np.ndarray) -> list[str]:
        return [self._texts[number] for number in self.check_index(index).tolist()]

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self._index_of.get(text, -1) for text in texts], np.int64)

    def answers(self, index: np.ndarray) -> list[str]:
        """Return what should follow each prompt, "" where the corpus does not say."""
        return [self._answers[number] for number in self.check_index(index).tolist()]

    def continuations(self, index: np.ndarray) -> list[str]:
        """Return what follows each prompt: its answer, after a space between words unless there is one."""
        return [
            f" {answer}"
            if answer and self.token_unit == "word" and not (text[-1].isspace() or answer[0].isspace())
            else answer
            for text, answer in zip(self.texts(index), self.answers(index), strict=True)
        ]

    def log_prior(self, index: np.ndarray, split: str | None = None) -> np.ndarray:
        index = np.atleast_1d(np.asarray(index, np.int64))
        inside = self.in_prior(index)
        at = np.where(inside, index, 0)
        total = self.weight.sum()
        if split is not None:
            rows = self.split_rows[self.check_split(split)]
            inside &= np.isin(at, rows)
            total = self.weight[rows].sum()
        return np.where(inside, np.log(self.weight[at]) - np.log(total), -np.inf)

    def draw(self, n: int, split: str | None, rng: np.random.Generator) -> np.ndarray:
        """Draw prompts independently by their weights, int64 (n,)."""
        if split is None:
            drawn = rng.integers(self._cumulative[-1], size=n)
            return np.searchsorted(self._cumulative, drawn, side="right").astype(np.int64)
        rows = self.split_rows[self.check_split(split)]
        cumulative = np.cumsum(self.weight[rows])
        return rows[np.searchsorted(cumulative, rng.integers(cumulative[-1], size=n), side="right")]

    def sample(
        self, n: int, split: str | None, rng: np.random.Generator, replace: bool = False
    ) -> np.ndarray:
        """Draw prompts as `Task.sample` does; of a weighted corpus, not of a split, they may repeat.

        The cache stands for the prior, so it must hold prompts as often as the prior does: where weights differ, these are
        independent draws, as many as it takes for n of the train split, since test prompts are taken out of the cache.
        """
        if replace or self.uniform or n > self.split_size(split):
            return super().sample(n, split, rng, replace)
        if split is None:
            drawn = self.draw(2 * n, None, rng)
            while (enough := np.cumsum(~self._held_out[drawn]))[-1] < n:
                drawn = np.concatenate([drawn, self.draw(n, None, rng)])
            return drawn[: int(np.searchsorted(enough, n)) + 1]
        # The largest of log w + Gumbel noise are successive draws without replacement, whatever the weights.
        rows = self.split_rows[self.check_split(split)]
        keys = np.log(self.weight[rows]) + rng.gumbel(size=len(rows))
        return rows[np.argsort(-keys, kind="stable")[:n]]

    def enumerate(self, split: str | None = None) -> np.ndarray:
        """Return all prompts of the prior, or of a split, ascending, each as often as it counts: means over them are the prior's.

        Raises:
            InputError: these are too many.
        """
        rows = self.split_index(np.arange(self.split_size(split)), split)
        counts = self.weight[rows] // np.gcd.reduce(self.weight[rows])
        if counts.sum() > MOST_COPIES:
            raise InputError(
                f"{self._where} counts {counts.sum():,} prompts, too many to look through one by one",
                "set the experiment's n_reference to a number of draws, or scale the weights down",
            )
        return np.repeat(rows, counts)

    # Splits

    def _hold_out(self, groups: list[str]) -> np.ndarray:
        """Which prompts are held out, bool (size,): groups are ranked by a hash, so that no random stream matters."""
        config, distinct = self.config, sorted(set(groups))
        number = round(config.held_out * len(distinct))
        if not 0 < number < len(distinct):
            of = f"values of column '{config.split_by}'" if config.split_by else "prompts"
            raise InputError(
                f"{self._where} has {len(distinct)} {of}, of which a share of {config.held_out:g} is {number}",
                "change text.held_out, or give a larger corpus: both splits need some",
            )

        chosen = set(np.array(distinct, object)[held_out(distinct, config.held_out, config.split_seed)])
        return np.array([group in chosen for group in groups])

    # Words and grammar

    def words(self) -> list[str]:
        """Return all tokens of a tokenizer made for the corpus: its words or characters, those of the answers too."""
        completed = self.completed(np.arange(self.size))
        if self.token_unit == "character":
            return sorted(set().union(*completed))
        return sorted({word for text in completed for word in split_words(text)})

    def extremes(self, count: Callable[[list[str]], list[int]]) -> np.ndarray:
        length = np.array([len(text) for text in self._texts])
        longest = np.argsort(-length, kind="stable")[:MOST_MEASURED]
        return longest[[int(np.argmax(count(self.texts(longest))))]]

    def _offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """Where the last character of a slot stands; -1 where the slot is empty."""
        return self._ends[name][index]

    def grammar(self, tokenizer: TextEncoder) -> PromptTree:
        return PromptTree(tokenizer, self._texts, self.weight)

    def _counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Prompts of the corpus that differ in one slot alone; -1 where there is none."""
        slot = self._slot_of_feature[feature]
        partners = self._alike_but_for[slot]
        result = np.full(len(index), -1, np.int64)
        for row, number in enumerate(index.tolist()):
            others = partners[self._rest(number, slot)]
            if len(others) > 1:  # slots and prompts determine each other: all others differ in this one
                at = int(rng.integers(len(others) - 1))
                result[row] = others[at + (at >= others.index(number))]
        return result

    def _rest(self, number: int, slot: int) -> tuple[int, ...]:
        codes = self._slots[number].tolist()
        return (*codes[:slot], *codes[slot + 1 :])

    @cached_property
    def _alike_but_for(self) -> list[dict[tuple[int, ...], list[int]]]:
        """A slot each: codes of all other slots -> the prompts that have them."""
        result = []
        for slot in range(len(self.slot_names)):
            groups: dict[tuple[int, ...], list[int]] = {}
            for number in range(self.size):
                groups.setdefault(self._rest(number, slot), []).append(number)
            result.append(groups)
        return result

    # Markov chain

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,).

        Kind 0 leads to prompt `value`; kind i puts the `value`-th value into slot i - 1, where the corpus has that prompt, and else
        nowhere. Each kind is symmetric by itself.
        """
        index, kind, value = (np.asarray(a, np.int64) for a in (index, kind, value))
        slots = self.slots(index).astype(np.int64)
        rows = np.flatnonzero(kind > 0)
        slots[rows, kind[rows] - 1] = value[rows]
        found = np.where(kind == 0, value, self.index(slots))
        return np.where(found >= 0, found, index)


def _coded(values: list[str]) -> tuple[list[str], np.ndarray]:
    """Distinct values in order, and the place of each among them, int32 (N,)."""
    distinct, code = np.unique(np.array(values, object), return_inverse=True)
    return distinct.tolist(), code.astype(np.int32)
