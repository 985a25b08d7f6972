"""What a task offers to the rest of the package: a finite prior of prompts and what follows from it.

A prior is a uniform distribution over prompts, each addressed by an integer, its index. Everything downstream
(exact values, log-probabilities, Markov chains, masks) works on indices; texts exist only at the borders.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import pandas as pd

from inversescope.config.functions import parse_function
from inversescope.errors import InputError
from inversescope.streams import stream
from inversescope.tasks.automata import Automaton, TextEncoder
from inversescope.tasks.functions import Corpus

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

SPLITS = ("train", "test")
#: What a target model is trained on, tested on up to its gate, and tested on besides.
TARGET_PARTS = ("train", "gate", "held_out")
#: What ends a text, and what stands for an unknown word, in tokenizers that are made here.
END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<|unknown|>"
#: One token of a word-level tokenizer: a word with the space before it, a mark, or a space that no word follows.
WORD = r" ?\w+|[^\w\s]|\s"

#: Prompts of the prior, at most, that are looked at for the chance of a label function.
_ENUMERATED = 50_000

Value = TypeVar("Value")


@dataclass(frozen=True)
class Lesson:
    """Answered questions that a target model is trained on.

    Attributes:
        questions: B texts without the last answer.
        texts: the same with it.
        scored: positions of the tokens that are to be predicted, the same in each text, int64; None: all.
        hidden: (query, key) positions of attention that `delay_layers` cuts for a time, int64 (n, 2).
    """

    questions: list[str]
    texts: list[str]
    scored: np.ndarray | None = None
    hidden: np.ndarray | None = None


def held_out(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Choose a share of distinct names by a hash of each and the seed, bool (len(names),): no random stream matters."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    chosen = set(ranked[: round(share * len(names))])
    return np.array([name in chosen for name in names], bool)


def first(key: str, number: int | None, values: Sequence[Value]) -> list[Value]:
    """The first of some values, all if `number` is None. Raises `InputError` if there are fewer than a setting asks for."""
    if number is not None and number > len(values):
        raise InputError(
            f"{key} is {number}, but there are {len(values)}", f"set it to {len(values)} or less"
        )
    return list(values[:number])


def of_each(texts: Sequence[str], read: Callable[[str], Value]) -> list[Value]:
    """What a function says of each text, asked once about equal ones."""
    known = {text: read(text) for text in dict.fromkeys(texts)}
    return [known[text] for text in texts]


def mixed_radix(digits: np.ndarray, radix: Sequence[int]) -> np.ndarray:
    """Numbers whose digits (N, n) are given, int64 (N,); -1 where a digit is out of range."""
    digits = np.asarray(digits, np.int64).reshape(-1, len(radix))
    valid = ((digits >= 0) & (digits < np.array(radix))).all(axis=1)
    result = np.full(len(digits), -1, np.int64)
    result[valid] = np.ravel_multi_index(tuple(digits[valid].T), tuple(radix))
    return result


@cache
def splitter(pattern: str = WORD) -> PreTokenizer:
    """What cuts texts into the tokens of a word-level tokenizer: each match of the pattern is one."""
    import tokenizers

    return tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated", invert=False)


def split_words(text: str, pattern: str = WORD) -> list[str]:
    """Cut a text into these tokens. Python's own expressions would part a letter from an accent that combines with it."""
    return [word for word, _ in splitter(pattern).pre_tokenize_str(text)]


class Task(ABC):
    """A finite prior of prompts, addressed by an index in [0, size); all alike, unless the task says otherwise.

    A task sets the attributes, and `split_rows` where it keeps its splits as lists. What an overridden method takes and returns
    is written here, once.

    Attributes:
        name: the task's name, as in paths and in the configuration.
        slot_names: slots of a prompt, in the order of the columns of `slots`.
        slot_values: values of each slot; `slots` holds their positions in these lists.
        features: names of the feature functions, without the prefix `feature_`.
        feature_values: labels of each feature; `features_of` holds their positions in these lists.
        size: number of prompts in the prior.
        splits: names of the splits; `split_of` holds their positions.
        split_rows: split -> indices of its prompts, ascending, int64.
        enlarging: what makes the prior larger, and the key of the share that is held out, for error messages.
        scan_sites: patterns of the sites by which candidates of the target scan are told apart.
        names: names of which a prompt never holds one twice in a row, each a single token after a space; may be empty.
        move_counts: number of equally likely values of each kind of move (see `move`).
        word_pattern: regular expression of one token of the word-level tokenizer that a target trained here gets; None: a word
            with the space before it, or a punctuation mark.
        gate_by: feature for each label of which a target trained here must pass the accuracy gate; None: on the whole.
        token_unit: what a tokenizer that is made for the task takes for a token.
        uniform: whether all prompts are equally probable; if not, `log_prior` and `draw` say how probable they are.
        question_end: position after which the answer is predicted.
        study_asks: whether the task's own study asks for answers; those of other tasks are asked where sites are patched.
        counterfactual_features: features of which `counterfactuals` knows how to change one alone.
        position_names: names of positions in a prompt, beside token indices (see `offsets`).
    """

    name: str
    slot_names: tuple[str, ...]
    slot_values: dict[str, list[str]]
    features: tuple[str, ...]
    feature_values: dict[str, list[str]]
    size: int
    move_counts: tuple[int, ...]
    split_rows: Mapping[str, np.ndarray]
    splits: tuple[str, ...] = SPLITS
    enlarging: tuple[str, str] = ("enlarge the prior in the configuration", "")
    scan_sites: tuple[str, ...] = ("L*H*",)
    names: Sequence[str] = ()
    word_pattern: str | None = None
    gate_by: str | None = None
    token_unit: Literal["word", "character"] = "word"
    uniform: bool = True
    question_end: str = "last"
    study_asks: bool = False
    counterfactual_features: tuple[str, ...] = ()
    position_names: tuple[str, ...] = ()

    # The prior and its prompts

    @abstractmethod
    def slots(self, index: np.ndarray) -> np.ndarray:
        """Return the slot codes of prompts, int (N, n_slots); raises IndexError outside the prior."""

    @abstractmethod
    def index(self, slots: np.ndarray) -> np.ndarray:
        """Return the indices of slot codes (N, n_slots), int64; -1 where no prompt has these codes."""

    @abstractmethod
    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts' texts; raises IndexError outside the prior."""

    @abstractmethod
    def parse(self, texts: Sequence[str]) -> np.ndarray:
        """Return the index of each text, int64 (N,), or -1 if it is not exactly a text of the prior."""

    @abstractmethod
    def answers(self, index: np.ndarray) -> list[str]:
        """Return what should follow each question, without a leading space."""

    def questions(self, index: np.ndarray) -> list[str]:
        """Return what a target model is asked: the prompts' texts, unless these hold the answer too."""
        return self.texts(index)

    def completed(self, index: np.ndarray) -> list[str]:
        """Return the questions with their answers: what target models are trained on."""
        return [a + b for a, b in zip(self.questions(index), self.continuations(index), strict=True)]

    def continuations(self, index: np.ndarray) -> list[str]:
        """Return what follows each question when it is answered: its answer, after a space between words."""
        space = " " if self.token_unit == "word" else ""
        return [f"{space}{answer}" for answer in self.answers(index)]

    @property
    def universe(self) -> int:
        """Number of prompts that have an index; a task may number further ones behind its prior."""
        return self.size

    def in_prior(self, index: np.ndarray) -> np.ndarray:
        """Return which indices (N,) are prompts of the prior."""
        index = np.asarray(index)
        return (index >= 0) & (index < self.size)

    def check_index(self, index: np.ndarray) -> np.ndarray:
        """Return the indices as int64 (N,), or raise IndexError if one is no prompt's."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if index.size and (index.min() < 0 or index.max() >= self.universe):
            raise IndexError(f"prompt index outside [0, {self.universe}): {index.min()} to {index.max()}")
        return index

    def offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """Return which character of each text stands at a named position, int64 (N,), -1 where there is none.

        Raises:
            InputError: the task has no position of that name.
        """
        if name not in self.position_names:
            known = ", ".join(f"@{known}" for known in ("last", *self.position_names, "any"))
            raise InputError(
                f"task {self.name} has no position '@{name}'", f"use one of {known}, or an index such as @4"
            )
        return self._offsets(name, self.check_index(index))

    def _offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """`offsets` of one of `position_names`."""
        raise NotImplementedError

    # Features

    @abstractmethod
    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the label codes (N,) of each feature of prompts, index (N,)."""

    def features_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return the label codes of each feature, int32 (N,); -1 where the index is -1."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        known = index != -1
        codes = self.labels(self.check_index(np.where(known, index, 0)))
        return {name: np.where(known, codes[name], -1).astype(np.int32) for name in self.features}

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes of texts in the prior or not, int32 (N,); -1 where a feature is undefined."""
        return self.features_of(self.parse(texts))

    def functions_of(self, functions: Sequence[str], index: np.ndarray) -> dict[str, np.ndarray]:
        """Return the label codes of functions of the grammar (`config.functions`), int32 (N,); -1 where the index is -1.

        `feature_values` grows by the labels as they are met, so codes are those of this task object alone.

        Raises:
            InputError: one is no function of the grammar, or names a slot that the task does not have.
        """
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        known = index != -1
        distinct, place = np.unique(index[known], return_inverse=True)
        codes = self.slots(distinct) if len(distinct) else np.zeros((0, len(self.slot_names)), int)
        slots = {
            name: np.array(self.slot_values[name], object)[codes[:, i]]
            for i, name in enumerate(self.slot_names)
        }
        corpus = Corpus(self.texts(distinct) if len(distinct) else [], slots)
        result = {}
        for function in functions:
            found = corpus.labels(parse_function(function))
            result[function] = np.full(len(index), -1, np.int32)
            result[function][known] = self._numbers_of(function, found.values)[found.codes][place]
        return result

    def functions_of_texts(self, functions: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the label codes of functions of the grammar, int32 (N,), of texts in the prior or not; -1 for those of slots."""
        result, corpus = {}, Corpus(texts)
        for function in functions:
            try:
                found = corpus.labels(parse_function(function))
            except InputError:
                result[function] = np.full(len(texts), -1, np.int32)
            else:
                result[function] = self._numbers_of(function, found.values)[found.codes]
        return result

    def _numbers_of(self, function: str, values: Sequence[str]) -> np.ndarray:
        """Codes (n,) of some labels of a function, int32: their positions in `feature_values`, where new ones are added."""
        known = self.feature_values.setdefault(function, [])
        number = {value: code for code, value in enumerate(known)}
        known += [value for value in values if value not in number]
        number = {value: code for code, value in enumerate(known)}
        return np.array([number[value] for value in values], np.int32)

    def chance_of(self, function: str) -> float:
        """Return the probability that two draws from the prior share a function's label: exact in a small prior, else estimated."""
        if self.uniform and self.size <= _ENUMERATED:
            share = np.bincount(self.functions_of([function], np.arange(self.size))[function]) / self.size
            return float((share**2).sum())
        drawn = self.draw(_ENUMERATED, None, stream(0, "chance_of", function))
        count = np.bincount(self.functions_of([function], drawn)[function]).astype(float)
        return float((count * (count - 1)).sum() / (_ENUMERATED * (_ENUMERATED - 1)))

    @cached_property
    def _chances(self) -> dict[str, float]:
        every = self.features_of(np.arange(self.size))
        return {name: float(((np.bincount(label) / self.size) ** 2).sum()) for name, label in every.items()}

    def chance(self, feature: str) -> float:
        """Return the probability that two independent draws from the prior share a feature's label."""
        return self._chances[feature]

    # Splits

    def check_split(self, split: str) -> str:
        """Return the split's name. Raises `InputError` if the task has no such split."""
        if split not in self.splits:
            raise InputError(f"unknown split '{split}' of {self.name}", f"it has {', '.join(self.splits)}")
        return split

    @cached_property
    def _split_codes(self) -> np.ndarray:
        codes = np.full(self.universe, -1, np.int8)
        for code, split in enumerate(self.splits):
            codes[self.split_rows[split]] = code
        return codes

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): the position in `splits`; -1 for prompts that are in none."""
        return self._split_codes[self.check_index(index)]

    def split_size(self, split: str | None = None) -> int:
        """Return the number of prompts of a split, or of the prior if `split` is None."""
        return self.size if split is None else len(self.split_rows[self.check_split(split)])

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return the prompts at the given ranks of a split in ascending order, int64 (N,)."""
        rank = np.atleast_1d(np.asarray(rank, np.int64))
        return self.check_index(rank) if split is None else self.split_rows[self.check_split(split)][rank]

    def split_remedy(self, split: str | None) -> str:
        """Return what makes a split larger, in words, for error messages."""
        larger, share = self.enlarging
        change = {"test": "raise", "train": "lower"}.get(split or "")
        return f"{change} {share}, or {larger}" if change and share else larger

    def log_prior(self, index: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return log P(x) in nats, float64 (N,), -inf where the index is -1 or outside the split given."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if split is None:
            return np.where(self.in_prior(index), -np.log(self.size), -np.inf)
        result = np.full(len(index), -np.inf)
        known = np.flatnonzero(index >= 0)
        inside = known[self.split_of(index[known]) == self.splits.index(split)]
        result[inside] = -np.log(max(1, self.split_size(split)))
        return result

    def sample(
        self, n: int, split: str | None, rng: np.random.Generator, replace: bool = False
    ) -> np.ndarray:
        """Draw prompts from a split, or from the whole prior if `split` is None.

        Args:
            n: number of prompts.
            split: one of `splits`, or None.
            rng: source of randomness.
            replace: whether a prompt may be drawn twice.

        Returns:
            Indices in random order, int64 (n,), distinct unless `replace`.

        Raises:
            InputError: the split is empty, or has fewer than n prompts.
        """
        number = self.split_size(split)
        where = f"the {split} split of task {self.name}" if split else f"the prior of task {self.name}"
        if number == 0:
            raise InputError(f"{where} is empty", self.split_remedy(split))
        if replace:
            return self.draw(n, split, rng)
        if n > number:
            raise InputError(
                f"{n} distinct prompts were asked of {where}, which has {number}",
                f"lower the number of prompts, or {self.split_remedy(split)}",
            )
        if not self.uniform:
            index = np.zeros(0, np.int64)
            while len(index) < n:
                more = np.concatenate([index, self.draw(n, split, rng)])
                index = more[np.sort(np.unique(more, return_index=True)[1])]
            return index[:n]
        return self.split_index(rng.choice(number, size=n, replace=False), split)

    def combination(self, index: np.ndarray) -> np.ndarray:
        """Return what no cached prompt may share with a test prompt, int64 (N,): itself, unless a task asks for more."""
        return np.asarray(index, dtype=np.int64)

    def draw(self, n: int, split: str | None, rng: np.random.Generator) -> np.ndarray:
        """Draw prompts independently from a split, or from the whole prior if `split` is None, int64 (n,)."""
        return self.split_index(rng.integers(0, self.split_size(split), size=n), split)

    def enumerate(self, split: str | None = None) -> np.ndarray:
        """Return the indices of all prompts of the prior, or of a split, ascending, int64."""
        return self.split_index(np.arange(self.split_size(split), dtype=np.int64), split)

    def counted(self, index: np.ndarray) -> np.ndarray:
        """Return which target prompts (N,) enter the rates of fcr.csv and refusal.csv; a task reports the others apart."""
        return np.ones(len(np.atleast_1d(index)), bool)

    def target_sample(self, n: int, part: str, rng: np.random.Generator) -> np.ndarray:
        """Draw prompts, with replacement, of one of `TARGET_PARTS` for the target model's own training; none if it is empty."""
        if part == "held_out":
            return np.zeros(0, np.int64)
        return self.sample(n, "test" if part == "gate" else "train", rng, replace=True)

    # Tables

    def frame(self, index: np.ndarray) -> pd.DataFrame:
        """Return prompts as a table: `prompt_id`, `text`, a column a slot, and `feature_<name>`.

        `prompt_id` is the index (int64); slots and features are categorical columns of strings.
        """
        index = self.check_index(index)
        columns: dict[str, object] = {"prompt_id": index, "text": self.texts(index)}
        codes = self.slots(index)
        for position, slot in enumerate(self.slot_names):
            categories = pd.Index(self.slot_values[slot])
            columns[slot] = pd.Categorical.from_codes(codes[:, position], categories=categories)
        for feature, labels in self.features_of(index).items():
            categories = pd.Index(self.feature_values[feature])
            columns[f"feature_{feature}"] = pd.Categorical.from_codes(labels, categories=categories)
        return pd.DataFrame(columns)

    # Words and grammar

    @abstractmethod
    def words(self) -> list[str]:
        """Return all words, with the space before them if there is one, and punctuation marks, each once.

        They are the vocabulary of a word-level tokenizer: "When", " and", " Mary", ",".
        """

    def single_token_words(self) -> list[str]:
        """Return the words, without spaces, that a tokenizer must encode as one token after a space."""
        return []

    def extremes(self, count: Callable[[list[str]], list[int]]) -> np.ndarray:
        """Return prompts of which one is about the longest in tokens, int64 (N,).

        Args:
            count: texts -> their numbers of tokens.
        """
        # In a small prior few prompts may be the longest.
        return np.arange(0, self.size, 997 if self.size > 100_000 else 1)

    def check_tokenizer(self, encode: Callable[[list[str]], list[np.ndarray]]) -> None:
        """Check what the task needs of the target's tokenizer beyond single tokens; raises InputError.

        Args:
            encode: texts -> their token ids.
        """
        return None

    def lesson(self, n: int, level: int | None, rng: np.random.Generator) -> Lesson:
        """Draw answered questions of the train split for training a target.

        Args:
            n: number of texts.
            level: where the curriculum is (`TargetTraining.curriculum`); None: there is none.
            rng: source of randomness.
        """
        index = self.target_sample(n, "train", rng)
        return Lesson(self.questions(index), self.completed(index))

    @abstractmethod
    def grammar(self, tokenizer: TextEncoder) -> Automaton:
        """Return the automaton of the prior's texts over a tokenizer's ids; raises InputError."""

    def counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a partner (N,) of each prompt that differs in a feature and keeps the rest as far as can be; -1 = none found.

        Raises:
            InputError: the task does not know how to change that feature alone.
        """
        if feature not in self.counterfactual_features:
            known = ", ".join(self.counterfactual_features) or "none"
            raise InputError(f"task {self.name} has no counterfactuals for {feature!r}", f"it has: {known}")
        return self._counterfactuals(feature, self.check_index(index), rng)

    def _counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`counterfactuals` of one of `counterfactual_features`."""
        raise NotImplementedError

    # Markov chain

    @abstractmethod
    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,); deterministic, so that the kernel can be written down.

        Args:
            index: prompts (N,).
            kind: kind of the move, in [0, len(move_counts)) (N,).
            value: value of the move, in [0, move_counts[kind]) (N,).
        """

    def moves(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Propose one move a prompt, int64 (N,): its kind uniformly, then its value uniformly.

        The proposal is symmetric: P(i -> j) = P(j -> i), so that a Metropolis chain needs no correction for it.
        """
        index = self.check_index(index)
        counts = np.asarray(self.move_counts, dtype=np.int64)
        kind = rng.integers(0, len(counts), size=len(index))
        return self.move(index, kind, rng.integers(0, counts[kind]))
