"""What a task offers to the rest of the package: a finite prior of prompts and what follows from it.

A prior is a uniform distribution over prompts, each addressed by an integer, its index. Everything downstream
(exact values, log-probabilities, Markov chains, masks) works on indices; texts exist only at the borders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import pandas as pd

from inversescope.errors import InputError

SPLITS = ("train", "test")
#: What a target model is trained on, tested on up to its gate, and tested on besides.
TARGET_PARTS = ("train", "gate", "held_out")

State = TypeVar("State", bound=Hashable)


class TextEncoder(Protocol):
    """The part of a Hugging Face tokenizer that a grammar needs."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""


class Automaton(ABC):
    """A deterministic automaton whose language is exactly the prior's texts, each followed by the end token.

    Attributes:
        tokens: sorted ids of the tokens that occur, in the tokenizer's numbering, int64 (n_tokens,).
        start: state before the first token of a text.
        accept_token: id of the end token.
    """

    tokens: np.ndarray
    start: int
    accept_token: int

    @abstractmethod
    def permitted(self, state: np.ndarray) -> np.ndarray:
        """Return which of `tokens` may follow in each state (n,), bool (n, n_tokens)."""

    @abstractmethod
    def step(self, state: int | np.ndarray, token: int | np.ndarray) -> np.ndarray:
        """Return the next states, -1 where a token is forbidden or the state is -1; broadcasts."""


class NextTokens(Protocol):
    """Exact next-token distributions of a prior."""

    @property
    def tokens(self) -> np.ndarray:
        """Sorted ids of the tokens that occur, int64 (n_tokens,)."""

    def along(self, tokens: np.ndarray) -> np.ndarray:
        """Return the distributions (B, T - 1, n_tokens) along paths (B, T) that begin with the start token."""


@dataclass(frozen=True)
class Grammar(Automaton):
    """An automaton as a table.

    Attributes:
        tokens: sorted ids of the tokens that occur, in the tokenizer's numbering, int64 (n_tokens,).
        table: next state, int32 (n_states, n_tokens); column j belongs to `tokens[j]`; -1 = forbidden.
        start: state before the first token of a text (no begin token is expected).
        final: state after the end token; nothing is allowed there.
        accept_token: id of the end token.
    """

    tokens: np.ndarray
    table: np.ndarray
    start: int
    final: int
    accept_token: int

    @property
    def n_states(self) -> int:
        """Number of states."""
        return int(self.table.shape[0])

    def permitted(self, state: np.ndarray) -> np.ndarray:
        """Return which of `tokens` may follow in each state (n,), bool (n, n_tokens)."""
        return np.asarray(self.table[state] >= 0)

    def allowed(self, state: int) -> np.ndarray:
        """Return the ids of the tokens that may follow in a state, int64."""
        return self.tokens[self.table[state] >= 0]

    def step(self, state: int | np.ndarray, token: int | np.ndarray) -> np.ndarray:
        """Return the next states, int32, -1 where a token is forbidden or the state is -1; broadcasts."""
        state, token = np.asarray(state), np.asarray(token)
        column = np.minimum(np.searchsorted(self.tokens, token), len(self.tokens) - 1)
        known = (self.tokens[column] == token) & (state >= 0)
        return np.where(known, self.table[state, column], np.int32(-1)).astype(np.int32)


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


def build_grammar(
    start: State, successors: Callable[[State], Mapping[int, State]], final: State, accept_token: int
) -> Grammar:
    """Number the states that can be reached from `start` and fill the transition table.

    Args:
        start: first state.
        successors: next states of a state by token id; the automaton must have no cycle.
        final: the state after `accept_token`; it has no successors.
        accept_token: id of the end token.
    """
    numbers: dict[State, int] = {start: 0}
    queue: list[State] = [start]
    source: list[int] = []
    token: list[int] = []
    target: list[int] = []
    for state in queue:  # grows while it is read
        if state == final:
            continue
        number = numbers[state]
        for token_id, following in successors(state).items():
            reached = numbers.get(following)
            if reached is None:
                reached = numbers[following] = len(queue)
                queue.append(following)
            source.append(number)
            token.append(token_id)
            target.append(reached)
    tokens, column = np.unique(np.asarray(token, dtype=np.int64), return_inverse=True)
    table = np.full((len(queue), len(tokens)), -1, dtype=np.int32)
    table[np.asarray(source), column] = np.asarray(target, dtype=np.int32)
    return Grammar(tokens=tokens, table=table, start=0, final=numbers[final], accept_token=accept_token)


def character_ids(tokenizer: TextEncoder, characters: Sequence[str]) -> dict[str, int]:
    """Return the token of each character.

    Raises:
        InputError: a character is not one token, or the tokenizer has no end token; names it.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no end token", "set its eos_token")
    unusable = {end, getattr(tokenizer, "unk_token_id", None)}
    ids = {}
    for character in characters:
        found = [int(t) for t in tokenizer.encode(character, add_special_tokens=False)]
        if len(found) != 1 or found[0] in unusable:
            raise InputError(
                f"the tokenizer does not encode the character '{character}' as one token but as {found}",
                "use a tokenizer of single characters, with all of the task's in its vocabulary",
            )
        ids[character] = found[0]
    return ids


def completions(grammar: Grammar) -> np.ndarray:
    """Number of texts that can follow each state, float64 (n_states,). Raises `InputError` if the automaton has a cycle."""
    table = grammar.table
    final = ~(table >= 0).any(axis=1)
    count: np.ndarray = np.where(final, 1.0, 0.0)
    for _ in range(10_000):
        following = np.where(table >= 0, count[np.maximum(table, 0)], 0.0).sum(axis=1)
        new: np.ndarray = np.where(final, 1.0, following)
        if np.array_equal(new, count):
            return count
        count = new
    raise InputError("the task's grammar has a cycle", "use backbone.targets: samples")


class UniformNextTokens:
    """Exact next-token distributions of a task's uniform prior, from its grammar.

    Attributes:
        rows: (n_states, n_tokens) float32 probability of each of the grammar's tokens in each state.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.tokens = grammar.tokens
        ways = completions(grammar)
        count = np.where(grammar.table >= 0, ways[np.maximum(grammar.table, 0)], 0.0)
        self.rows = (count / np.maximum(count.sum(1, keepdims=True), 1.0)).astype(np.float32)

    def along(self, tokens: np.ndarray) -> np.ndarray:
        """Distributions (B, T - 1, n_tokens) of the next token along paths (B, T) that begin with the start token."""
        state = np.full(len(tokens), self.grammar.start, np.int64)
        states = np.empty(tokens[:, 1:].shape, np.int64)
        for position in range(tokens.shape[1] - 1):
            states[:, position] = state
            state = np.asarray(self.grammar.step(state, tokens[:, position + 1]))
        return self.rows[np.maximum(states, 0)]


class Task(ABC):
    """A finite prior of prompts, addressed by an index in [0, size); all alike, unless the task says otherwise.

    Attributes:
        name: the task's name, as in paths and in the configuration.
        slot_names: slots of a prompt, in the order of the columns of `slots`.
        slot_values: values of each slot; `slots` holds their positions in these lists.
        features: names of the feature functions, without the prefix `feature_`.
        feature_values: labels of each feature; `features_of` holds their positions in these lists.
        size: number of prompts in the prior.
        splits: names of the splits; `split_of` holds their positions.
        scan_sites: patterns of the sites by which candidates of the target scan are told apart.
        names: names of which a prompt never holds one twice in a row, each a single token after a space; may be empty.
        move_counts: number of equally likely values of each kind of move (see `move`).
        word_pattern: regular expression of one token of the word-level tokenizer that a target trained here gets; None: a word
            with the space before it, or a punctuation mark.
        gate_by: feature for each label of which a target trained here must pass the accuracy gate; None: on the whole.
        token_unit: what a tokenizer that is made for the task takes for a token.
        uniform: whether all prompts are equally probable; if not, `log_prior` and `draw` say how probable they are.
        question_end: position after which the answer is predicted.
        counterfactual_features: features of which `counterfactuals` knows how to change one alone.
        position_names: names of positions in a prompt, beside token indices (see `offsets`).
    """

    token_unit: Literal["word", "character"] = "word"
    uniform: bool = True
    position_names: tuple[str, ...] = ()
    question_end: str = "last"
    counterfactual_features: tuple[str, ...] = ()

    name: str
    slot_names: tuple[str, ...]
    slot_values: dict[str, list[str]]
    features: tuple[str, ...]
    feature_values: dict[str, list[str]]
    size: int
    splits: tuple[str, ...] = SPLITS
    scan_sites: tuple[str, ...] = ("L*H*",)
    names: list[str]
    move_counts: tuple[int, ...]
    word_pattern: str | None = None
    gate_by: str | None = None

    # The prior and its prompts

    @abstractmethod
    def slots(self, index: np.ndarray) -> np.ndarray:
        """Return the slot codes of prompts, int16 (N, n_slots); raises IndexError outside the prior."""

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

    def in_prior(self, index: np.ndarray) -> np.ndarray:
        """Return which indices (N,) are prompts of the prior; tasks may number further prompts behind it."""
        index = np.asarray(index)
        return (index >= 0) & (index < self.size)

    def offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """Return which character of each text stands at a named position, int64 (N,), -1 where there is none.

        Raises:
            InputError: the task has no position of that name.
        """
        known = ", ".join(f"@{known}" for known in ("last", *self.position_names, "any"))
        raise InputError(
            f"task {self.name} has no position '@{name}'", f"use one of {known}, or a token index such as @4"
        )

    def check_index(self, index: np.ndarray) -> np.ndarray:
        """Return the indices as int64 (N,), or raise IndexError if one lies outside the prior."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if index.size and (index.min() < 0 or index.max() >= self.size):
            raise IndexError(f"prompt index outside [0, {self.size}): {index.min()} to {index.max()}")
        return index

    # Features

    @abstractmethod
    def features_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return the label codes of each feature, int32 (N,); -1 where the index is -1."""

    @abstractmethod
    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes of texts in the prior or not, int32 (N,); -1 where a feature is undefined."""

    @abstractmethod
    def chance(self, feature: str) -> float:
        """Return the probability that two independent draws from the prior share a feature's label."""

    # Splits

    @abstractmethod
    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): the position in `splits`."""

    @abstractmethod
    def split_size(self, split: str | None = None) -> int:
        """Return the number of prompts of a split, or of the prior if `split` is None."""

    @abstractmethod
    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return the prompts at the given ranks of a split in ascending order, int64 (N,)."""

    def log_prior(self, index: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return log P(x) in nats, float64 (N,), -inf where the index is -1 or outside the split given."""
        if split is not None:
            return self.split_log_prior(index, split)
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        return np.where(self.in_prior(index), -np.log(self.size), -np.inf)

    def split_log_prior(self, index: np.ndarray, split: str) -> np.ndarray:
        """Return log P(x) in nats under the uniform distribution on a split, float64 (N,), -inf outside."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        number = self.split_size(split)
        result = np.full(len(index), -np.inf)
        known = np.flatnonzero(index >= 0)
        inside = known[self.split_of(index[known]) == self.splits.index(split)]
        if number:
            result[inside] = -np.log(number)
        return result

    def sample(
        self, n: int, split: str | None, rng: np.random.Generator, replace: bool = False
    ) -> np.ndarray:
        """Draw prompts from a split, or from the whole prior if `split` is None.

        Args:
            n: number of prompts.
            split: "train", "test" or None.
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

    def split_remedy(self, split: str | None) -> str:
        """Return what makes a split larger, in words, for error messages."""
        return "enlarge the prior in the configuration"

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

    @abstractmethod
    def single_token_words(self) -> list[str]:
        """Return the words, without spaces, that a tokenizer must encode as one token after a space."""

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

    def next_tokens(self, tokenizer: TextEncoder) -> NextTokens:
        """Return the exact next-token distributions of the prior over a tokenizer's ids; raises InputError."""
        grammar = self.grammar(tokenizer)
        if not self.uniform or not isinstance(grammar, Grammar):
            raise InputError(
                f"task {self.name} has no exact next-token distribution", "use backbone.targets: samples"
            )
        return UniformNextTokens(grammar)

    def counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a partner (N,) of each prompt that differs in a feature and keeps the rest as far as can be; -1 = none found.

        Raises:
            InputError: the task does not know how to change that feature alone.
        """
        known = ", ".join(self.counterfactual_features) or "none"
        raise InputError(
            f"task {self.name} has no counterfactuals for {feature!r}", f"it has them for: {known}"
        )

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
