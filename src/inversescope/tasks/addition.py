"""Addition: prior, parsing, features, splits, grammar (InversionView's third case study; Huang et al., 2024).

A prompt is a question, `B362+405=`, or a whole equation, `B362+405=767`, so that activations at the digits of the answer can be
read too. Columns count from the left: F1 and S1 are the operands' leading digits, A1 is the first digit that is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from inversescope.config.tasks import AdditionConfig
from inversescope.errors import InputError
from inversescope.tasks.automata import Grammar, TextEncoder, build_grammar, character_ids, end_token
from inversescope.tasks.base import Task, mixed_radix

# Kinds of moves: write a digit; exchange the operands; exchange a column's digits; take from one operand and give to the other.
_WRITE, _SWAP, _SWAP_COLUMN, _GIVE = range(4)
# Where a text is: a stage, the operand's digits so far, and what is still to be written (in the second operand: the first one).
_State = tuple[str, int, str]


class AdditionTask(Task):
    """All pairs of operands of so many digits, none beginning with 0, uniform.

    Args:
        config: digits of the operands, mark before them, and the split.
        root: not used.

    Raises:
        InputError: the begin mark has a character of the equation.
    """

    name = "addition"
    token_unit = "character"
    question_end = "equals"
    enlarging = ("raise addition.n_digits", "addition.held_out_pairs")

    def __init__(self, config: AdditionConfig, root: Path = Path(".")) -> None:
        if set(config.begin) & set("0123456789+="):
            raise InputError("addition.begin has a character of the equation", "use another one, such as B")
        self.config, self.features = config, config.feature_names
        n = self.n = config.n_digits
        self.low = 10 ** (n - 1)
        self.count = 9 * self.low  # operands
        self.size = self.count**2
        columns = range(1, n + 1)
        operands = [str(self.low + code) for code in range(self.count)]
        digits = [str(digit) for digit in range(10)]
        labels = {"F": digits, "S": digits, "T": [str(t) for t in range(19)], "C": ["0", "1"], "A": digits}
        self.feature_values = {
            **{name: labels[name[0]] for name in self.features if name[0] in labels},
            "first": operands,
            "second": operands,
            "sum": [str(number) for number in range(2 * self.low, 2 * (self.low + self.count - 1) + 1)],
        }
        self.slot_names = ("first", "second")
        self.slot_values = {"first": operands, "second": operands}
        self.position_names = (
            *(f"F{i}" for i in columns),
            "plus",
            *(f"S{i}" for i in columns),
            "equals",
            *(f"A{i}" for i in range(1, n + 2) if config.with_answer),
        )
        self.counterfactual_features = (*(f"F{i}" for i in columns), *(f"S{i}" for i in columns))
        self.move_counts = (20 * n, 1, n, 19 * n)
        self._text = re.compile(rf"{re.escape(config.begin)}(\d{{{n}}})\+(\d{{{n}}})=(\d*)", re.ASCII)
        first, second = np.divmod(np.arange(self.size), self.count)
        pair = np.minimum(first, second) * self.count + np.maximum(first, second)
        held_out = _mixed(pair, config.split_seed) < config.held_out_pairs
        self.split_rows = {"train": np.flatnonzero(~held_out), "test": np.flatnonzero(held_out)}

    # The prior and its prompts

    def _operands(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = np.divmod(self.check_index(index), self.count)
        return first + self.low, second + self.low

    def slots(self, index: np.ndarray) -> np.ndarray:
        return (np.stack(self._operands(index), 1) - self.low).astype(np.int16)

    def index(self, slots: np.ndarray) -> np.ndarray:
        return mixed_radix(slots, (self.count, self.count))

    def questions(self, index: np.ndarray) -> list[str]:
        """Return the equations up to the equals sign."""
        first, second = (operand.tolist() for operand in self._operands(index))
        return [f"{self.config.begin}{a}+{b}=" for a, b in zip(first, second, strict=True)]

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts' texts: the equations as far as the configuration says."""
        return self.completed(index) if self.config.with_answer else self.questions(index)

    def answers(self, index: np.ndarray) -> list[str]:
        """Return the sums."""
        return [str(total) for total in np.add(*self._operands(index)).tolist()]

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        result = np.full(len(texts), -1, np.int64)
        for row, text in enumerate(texts):
            match = self._text.fullmatch(text)
            if match is None:
                continue
            first, second = int(match[1]), int(match[2])
            told = str(first + second) if self.config.with_answer else ""
            if min(first, second) >= self.low and match[3] == told:
                result[row] = (first - self.low) * self.count + second - self.low
        return result

    # Features

    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        """Fi, Si digits of the operands, Ti = Fi + Si, Ci whether column i carries, Ai digits of the sum as written."""
        first, second = self._operands(index)
        total = first + second
        written = np.where(total >= 10 * self.low, self.n + 1, self.n)
        codes = {"first": first - self.low, "second": second - self.low, "sum": total - 2 * self.low}
        for i in range(1, self.n + 1):
            place = 10 ** (self.n - i)
            f, s = first // place % 10, second // place % 10
            carries = first % (10 * place) + second % (10 * place) >= 10 * place
            digit = total // 10 ** (written - i) % 10
            codes |= {f"F{i}": f, f"S{i}": s, f"T{i}": f + s, f"C{i}": carries, f"A{i}": digit}
        return codes

    def _offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """Where a digit or mark stands; -1 where the sum has no such digit."""
        total = np.add(*self._operands(index))
        place = len(self.config.begin) + self.position_names.index(name)
        missing = (name == f"A{self.n + 1}") & (total < 10 * self.low)
        return np.where(missing, -1, place).astype(np.int64)

    # Words and grammar

    def words(self) -> list[str]:
        """Return all characters of equations."""
        return [*self.config.begin, *"0123456789+="]

    def grammar(self, tokenizer: TextEncoder) -> Grammar:
        """Return the automaton of the prior's texts over a tokenizer's ids.

        Raises:
            InputError: a character is not one token, or the tokenizer has no end token.
        """
        ids = character_ids(tokenizer, self.words())
        end = end_token(tokenizer)
        low = self.low

        def successors(state: _State) -> dict[int, _State]:
            stage, number, rest = state
            if stage in ("first", "rest") and rest:
                return {ids[rest[0]]: (stage, 0, rest[1:])}
            if stage == "rest":
                return {end: ("end", 0, "")}
            digits = [(d, number * 10 + d) for d in range(0 if number else 1, 10)]
            if stage == "first":
                if number < low:
                    return {ids[str(d)]: ("first", grown, "") for d, grown in digits}
                return {ids["+"]: ("second", 0, str(number))}
            following: dict[int, _State] = {}
            for d, grown in digits:
                last = grown >= low
                told = f"={int(rest) + grown}" if self.config.with_answer else "="
                state = ("rest", 0, told) if last else ("second", grown, rest)
                following[ids[str(d)]] = state
            return following

        return build_grammar(("first", 0, self.config.begin), successors, ("end", 0, ""), end)

    def _counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Equations that differ in one digit of an operand, drawn among the others that may stand there."""
        operands = list(self._operands(index))
        which, column = "FS".index(feature[0]), int(feature[1:])
        place = 10 ** (self.n - column)
        old = operands[which] // place % 10
        least = 1 if column == 1 else 0
        new = least + (old - least + rng.integers(1, 10 - least, size=len(old))) % (10 - least)
        operands[which] = operands[which] + (new - old) * place
        return (operands[0] - self.low) * self.count + operands[1] - self.low

    # Markov chain

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,); where it would leave the prior, it leads nowhere.

        Kinds: write a digit anywhere; exchange the operands; exchange the digits of a column; take a number from a digit and give
        it to the one below, which keeps the sum. Each is symmetric by itself.
        """
        index, kind, value = (np.asarray(a, np.int64) for a in (index, kind, value))
        operands = np.stack(self._operands(index))  # (2, N)
        places = 10 ** np.arange(self.n - 1, -1, -1)
        digits = operands[:, :, None] // places % 10  # (2, N, n)
        rows = np.arange(len(index))
        at = np.flatnonzero(kind == _WRITE)
        where, digit = np.divmod(value[at], 10)
        digits[where // self.n, at, where % self.n] = digit
        at = np.flatnonzero(kind == _SWAP)
        digits[:, at] = digits[::-1, at]
        at = np.flatnonzero(kind == _SWAP_COLUMN)
        digits[:, at, value[at]] = digits[::-1, at, value[at]]
        at = np.flatnonzero(kind == _GIVE)
        column, given = np.divmod(value[at], 19)
        digits[0, at, column] += given - 9
        digits[1, at, column] -= given - 9
        inside = ((digits >= 0) & (digits <= 9)).all((0, 2)) & (digits[:, :, 0] > 0).all(0)
        first, second = (np.clip(digits, 0, 9) * places).sum(2) - self.low
        return np.where(inside, first * self.count + second, index)[rows]


def _mixed(number: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each number and the seed, by SplitMix64, so that a split depends on no random stream."""
    with np.errstate(over="ignore"):
        x = number.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / 2**53
