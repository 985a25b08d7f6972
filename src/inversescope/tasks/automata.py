"""Automata of priors: which token may follow, and with which probability.

States and tokens are integers; texts end with the tokenizer's end token, and no begin token is expected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from inversescope.errors import InputError

State = TypeVar("State", bound=Hashable)
Item = TypeVar("Item", bound=Hashable)


class TextEncoder(Protocol):
    """The part of a Hugging Face tokenizer that a grammar needs."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""


class Automaton(ABC):
    """A deterministic automaton whose language is exactly the prior's texts, each followed by the end token, with the prior's
    probabilities.

    Attributes:
        tokens: sorted ids of the tokens that occur, in the tokenizer's numbering, int64 (n_tokens,).
        start: state before the first token of a text.
        accept_token: id of the end token.
    """

    tokens: np.ndarray
    start: int
    accept_token: int

    @abstractmethod
    def probabilities(self, state: np.ndarray) -> np.ndarray:
        """Return P(next token | state) under the prior, (n, n_tokens); zero rows for dead states (-1) and behind the end."""

    @abstractmethod
    def step(self, state: int | np.ndarray, token: int | np.ndarray) -> np.ndarray:
        """Return the next states, -1 where a token is forbidden or the state is -1; broadcasts."""

    def permitted(self, state: np.ndarray) -> np.ndarray:
        """Return which of `tokens` may follow in each state (n,), bool (n, n_tokens)."""
        return self.probabilities(state) > 0

    def along(self, tokens: np.ndarray) -> np.ndarray:
        """Return the distributions of the next token, float32 (B, T - 1, n_tokens), along paths (B, T) that begin with the start
        token."""
        state = np.full(len(tokens), self.start, np.int64)
        result = np.empty((*tokens[:, 1:].shape, len(self.tokens)), np.float32)
        for position in range(tokens.shape[1] - 1):
            result[:, position] = self.probabilities(state)
            state = self.step(state, tokens[:, position + 1])
        return result

    def columns(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of each token in `tokens`, and whether it is there at all."""
        column = np.minimum(np.searchsorted(self.tokens, token), len(self.tokens) - 1)
        return column, self.tokens[column] == token


@dataclass(frozen=True)
class Grammar(Automaton):
    """The automaton of a uniform prior as a table.

    Attributes:
        tokens: sorted ids of the tokens that occur, in the tokenizer's numbering, int64 (n_tokens,).
        table: next state, int32 (n_states, n_tokens); column j belongs to `tokens[j]`; -1 = forbidden.
        start: state before the first token of a text.
        final: state after the end token; nothing is allowed there.
        accept_token: id of the end token.
    """

    tokens: np.ndarray
    table: np.ndarray
    start: int
    final: int
    accept_token: int

    @cached_property
    def rows(self) -> np.ndarray:
        """Probability of each token in each state, float32 (n_states + 1, n_tokens); the last row is that of dead states."""
        following = self.table >= 0
        count = np.where(following, self.completions()[np.maximum(self.table, 0)], 0.0)
        rows = (count / np.maximum(count.sum(1, keepdims=True), 1.0)).astype(np.float32)
        return np.concatenate([rows, np.zeros_like(rows[:1])])

    def completions(self) -> np.ndarray:
        """Number of texts that can follow each state, float64 (n_states,). Raises `InputError` if there is a cycle."""
        count: np.ndarray = np.where(np.arange(len(self.table)) == self.final, 1.0, 0.0)
        for _ in range(10_000):
            new = np.where(self.table >= 0, count[np.maximum(self.table, 0)], 0.0).sum(axis=1)
            new[self.final] = 1.0
            if np.array_equal(new, count):
                return count
            count = new
        raise InputError("the task's grammar has a cycle", "use backbone.targets: samples")

    def probabilities(self, state: np.ndarray) -> np.ndarray:
        return self.rows[state]

    def permitted(self, state: np.ndarray) -> np.ndarray:
        return np.asarray(self.table[state] >= 0)

    def step(self, state: int | np.ndarray, token: int | np.ndarray) -> np.ndarray:
        state = np.asarray(state)
        column, known = self.columns(np.asarray(token))
        known = known & (state >= 0)
        return np.where(known, self.table[state, column], np.int32(-1)).astype(np.int32)


class PromptTree(Automaton):
    """The tree of some prompts' tokens, and their exact next-token distributions.

    Args:
        tokenizer: any tokenizer that tells the prompts apart.
        texts: N prompts.
        weight: how often each counts (N,); all alike if absent.

    Raises:
        InputError: the tokenizer has no end token, or a prompt holds it, or two prompts have the same tokens.
    """

    def __init__(
        self, tokenizer: TextEncoder, texts: Sequence[str], weight: np.ndarray | None = None
    ) -> None:
        self.accept_token, self.start = end_token(tokenizer), 0
        weight = np.ones(len(texts)) if weight is None else weight
        rows = [token_ids(tokenizer, text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if self.accept_token in row:
                raise InputError(
                    f"the prompt '{text[:80]}' holds the tokenizer's end token", "remove it there"
                )
        self.tokens = np.unique(np.array([self.accept_token, *(t for row in rows for t in row)], np.int64))
        lengths = np.array([len(row) + 1 for row in rows])
        node = np.zeros(len(rows), np.int64)
        keys, weights, known = [], [], 0
        for depth in range(int(lengths.max())):
            alive = np.flatnonzero(lengths > depth)
            written = [rows[i][depth] if depth < len(rows[i]) else self.accept_token for i in alive.tolist()]
            key = node[alive] * len(self.tokens) + np.searchsorted(self.tokens, written)
            unique, inverse = np.unique(key, return_inverse=True)
            keys.append(unique)
            weights.append(np.bincount(inverse, weights=weight[alive]))
            node[alive] = known + 1 + inverse
            known += len(unique)
        if len(np.unique(node)) < len(set(texts)):
            raise InputError("the tokenizer gives two prompts the same tokens", "use a lossless tokenizer")
        # Edge e leads to node e + 1; nodes are numbered by depth, so that the keys are in order throughout.
        self._keys, self._weights = np.concatenate(keys), np.concatenate(weights)
        self._total = np.concatenate([[float(weight.sum())], self._weights])

    def probabilities(self, state: np.ndarray) -> np.ndarray:
        state = np.atleast_1d(np.asarray(state, np.int64))
        width = len(self.tokens)
        low, high = (np.searchsorted(self._keys, (state + more) * width) for more in (0, 1))
        count = np.where(state >= 0, high - low, 0)
        owner = np.repeat(np.arange(len(state)), count)
        edge = np.arange(len(owner)) + np.repeat(low - (np.cumsum(count) - count), count)
        result = np.zeros((len(state), width))
        result[owner, self._keys[edge] % width] = self._weights[edge] / self._total[state[owner]]
        return result

    def step(self, state: int | np.ndarray, token: int | np.ndarray) -> np.ndarray:
        state, token = np.asarray(state, np.int64), np.asarray(token, np.int64)
        column, known = self.columns(token)
        key = state * len(self.tokens) + column
        edge = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return np.where(known & (state >= 0) & (self._keys[edge] == key), edge + 1, -1)


# --------------------------------------------------------------------------------------------------------------- building


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


def write_grammar(
    first: Iterable[Item], ways: Callable[[Item], Iterable[tuple[tuple[int, ...], Item]]], accept_token: int
) -> Grammar:
    """The automaton of texts that are written piece by piece, a piece being one or several tokens.

    A state is the set of all that the tokens so far may have come to: tokens of a piece that are still to be written, and the item
    behind it. So pieces may begin alike, or one with another.

    Args:
        first: what a text may begin as.
        ways: item -> pieces that may be written next, as tokens, each with the item behind it; none where a text is whole.
        accept_token: id of the end token.
    """
    final: frozenset[tuple[tuple[int, ...], Item]] = frozenset()

    def successors(
        state: frozenset[tuple[tuple[int, ...], Item]],
    ) -> dict[int, frozenset[tuple[tuple[int, ...], Item]]]:
        following: dict[int, set[tuple[tuple[int, ...], Item]]] = {}
        for rest, item in state:
            pieces = [(rest, item)] if rest else list(ways(item))
            if not pieces:
                following.setdefault(accept_token, set())
            for tokens, behind in pieces:
                following.setdefault(tokens[0], set()).add((tokens[1:], behind))
        return {token: frozenset(reached) for token, reached in following.items()}

    return build_grammar(frozenset(((), item) for item in first), successors, final, accept_token)


# --------------------------------------------------------------------------------------------------------- reading tokenizers


def end_token(tokenizer: TextEncoder) -> int:
    """Return the id of the end token. Raises `InputError` if there is none."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token", "set its eos_token")
    return int(tokenizer.eos_token_id)


def token_ids(tokenizer: TextEncoder, text: str) -> tuple[int, ...]:
    """Return the tokens of a text, without special ones."""
    return tuple(int(token) for token in tokenizer.encode(text, add_special_tokens=False))


def single_tokens(tokenizer: TextEncoder, words: Sequence[str], remedy: str) -> dict[str, int]:
    """Return the token of each word. Raises `InputError` naming the first that is not one token, or if there is no end token."""
    unusable = {end_token(tokenizer), getattr(tokenizer, "unk_token_id", None)}
    ids = {}
    for word in words:
        found = token_ids(tokenizer, word)
        if len(found) != 1 or found[0] in unusable:
            raise InputError(f"the tokenizer does not encode '{word}' as one token but {list(found)}", remedy)
        ids[word] = found[0]
    return ids


def character_ids(tokenizer: TextEncoder, characters: Sequence[str]) -> dict[str, int]:
    """Return the token of each character. Raises `InputError` as `single_tokens` does."""
    remedy = "use a tokenizer of single characters, with all of the task's in its vocabulary"
    return single_tokens(tokenizer, characters, remedy)


def check_pieces(tokenizer: TextEncoder, text: str, pieces: Iterable[str]) -> None:
    """Check that a text's tokens are those of its pieces.

    Raises:
        InputError: naming the piece that is encoded otherwise by itself.
    """
    found, at = token_ids(tokenizer, text), 0
    for piece in pieces:
        tokens = token_ids(tokenizer, piece)
        if found[at : at + len(tokens)] != tokens:
            raise InputError(
                f"the tokenizer encodes '{piece}' by itself otherwise than within '{text}'",
                "use a tokenizer that splits text at spaces, as GPT-2's does, or set backbone.targets: samples",
            )
        at += len(tokens)
    if at != len(found):
        raise InputError(
            f"the tokenizer puts {len(found) - at} more tokens behind the prompt '{text}'",
            "use a tokenizer that adds no special tokens when it is told not to",
        )
