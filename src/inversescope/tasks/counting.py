"""Character counting: prior, parsing, features, splits, grammar (InversionView's first case study; Huang et al., 2024).

A prompt is a shuffled sequence of a few distinct letters, each a number of times, then one of them, whose number is asked for:
`Bvzzvcvv|v:` (answer 4). The letters, how often each occurs, the order and the letter that is asked for are drawn in this order,
each uniformly. So a prompt's probability depends on how many orders its letters have: this prior is not uniform over prompts.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from itertools import combinations, product

import numpy as np

from inversescope.config import CountingConfig
from inversescope.errors import InputError
from inversescope.tasks.base import SPLITS, Automaton, Task, TextEncoder, character_ids

# Kinds of moves: ask for another letter; exchange two positions; exchange two letters of the alphabet; put one more of a letter
# somewhere or take it away; write another letter in a place.
_ASK, _SWAP, _RENAME, _GROW, _REPLACE = range(5)


class CountingTask(Task):
    """The prior of character counting.

    Args:
        config: the alphabet, how many letters a prompt has and how often at most, the marks around them, and the split.

    Raises:
        InputError: the alphabet repeats a character or shares one with the marks, or the prior has more than 2^63 prompts.
    """

    name = "counting"
    token_unit = "character"
    uniform = False
    names: list[str] = []
    features = ("count", "target", "last", "first", "order", "length", "others", "counts")
    position_names = ("colon", "target", "bar", "first")
    counterfactual_features = ("count", "target", "last")

    def __init__(self, config: CountingConfig) -> None:
        self.config = config
        alphabet, k, most = config.letters, config.n_distinct, config.max_count
        marks = config.begin + config.bar + config.colon + "".join(map(str, range(1, most + 1)))
        if len(set(alphabet + marks)) < len(alphabet + marks):
            raise InputError(
                "counting: a letter or mark occurs twice",
                "let counting.letters, begin, bar, colon and the digits differ",
            )
        if k > len(alphabet):
            raise InputError(
                f"counting.n_distinct is {k}, but there are {len(alphabet)} letters",
                "lower it or add letters",
            )
        self._sets = np.array(list(combinations(range(len(alphabet)), k)), np.int64)
        self._set_code = {tuple(letters): code for code, letters in enumerate(self._sets.tolist())}
        self._counts = np.array(list(product(range(1, most + 1), repeat=k)), np.int64)
        orders = [math.factorial(sum(c)) // math.prod(map(math.factorial, c)) for c in self._counts.tolist()]
        if sum(orders) * len(self._sets) * k >= 2**63:
            raise InputError(
                "counting: the prior has more prompts than can be numbered", "lower n_distinct or max_count"
            )
        self._orders = np.array(orders, np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._orders)])
        self.size = int(self._first[-1]) * len(self._sets) * k
        self.longest = k * most
        self.slot_names = (*(f"letter_{i + 1}" for i in range(self.longest)), "target")
        self.slot_values = {name: [*alphabet, ""] for name in self.slot_names}
        ordered = ["".join(f"{n},"[: 2 if i + 1 < k else 1] for i, n in enumerate(c)) for c in self._counts]
        pairs = sorted({",".join(map(str, sorted(c[1:]))) for c in self._counts.tolist()})
        self.feature_values = {
            "count": [str(n) for n in range(1, most + 1)],
            "target": list(alphabet),
            "last": list(alphabet),
            "first": list(alphabet),
            "order": [str(i + 1) for i in range(k)],
            "length": [str(n) for n in range(k, self.longest + 1)],
            "others": pairs,
            "counts": ordered,
        }
        self._pair_code = {pair: code for code, pair in enumerate(pairs)}
        others = [
            [",".join(map(str, sorted(c[:j] + c[j + 1 :]))) for j in range(k)] for c in self._counts.tolist()
        ]
        self._others = np.array([[self._pair_code[pair] for pair in row] for row in others])
        self._held_out = self._hold_out_sets()
        codes = np.arange(len(self._sets))
        self._sets_of_split = {"train": codes[~self._held_out], "test": codes[self._held_out]}
        self._text = re.compile(
            f"{re.escape(config.begin)}([{re.escape(alphabet)}]+){re.escape(config.bar)}([{re.escape(alphabet)}]){re.escape(config.colon)}"
        )
        self._letter_code = {letter: code for code, letter in enumerate(alphabet)}
        self.move_counts = (
            k,
            self.longest**2,
            len(alphabet) ** 2,
            2 * self.longest * len(alphabet),
            self.longest * len(alphabet),
        )

    # The prior and its prompts: an index is a number of counts, then of letters and target, then of the order

    def _hold_out_sets(self) -> np.ndarray:
        """Which sets of letters are held out, bool (n_sets,), ranked by a hash so that no random stream matters."""
        number = round(self.config.held_out_letters * len(self._sets))

        def rank(code: int) -> bytes:
            letters = "".join(self.config.letters[i] for i in self._sets[code])
            return hashlib.sha256(f"{self.config.split_seed} {letters}".encode()).digest()

        held_out = np.zeros(len(self._sets), bool)
        held_out[sorted(range(len(self._sets)), key=rank)[:number]] = True
        return held_out

    def _number(
        self, counts: np.ndarray, which: np.ndarray, target: np.ndarray, order: np.ndarray, n_sets: int
    ) -> np.ndarray:
        k = self.config.n_distinct
        return self._first[counts] * (n_sets * k) + (which * k + target) * self._orders[counts] + order

    def _parts(self, index: np.ndarray, n_sets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Counts, letters, target (0 ... k - 1) and order of numbers, int64 (N,) each."""
        per_order = n_sets * self.config.n_distinct
        counts = np.searchsorted(self._first * per_order, index, side="right") - 1
        rest = index - self._first[counts] * per_order
        named, order = np.divmod(rest, self._orders[counts])
        which, target = np.divmod(named, self.config.n_distinct)
        return counts, which, target, order

    def _sequences(self, counts: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Which of a prompt's letters stands where, int64 (N, longest), -1 behind the end: the `order`-th arrangement."""
        left, rest = self._counts[counts].copy(), order.copy()
        ways, rows = self._orders[counts].copy(), np.arange(len(counts))
        result = np.full((len(counts), self.longest), -1, np.int64)
        for position in range(self.longest):
            n = left.sum(1)
            going = n > 0
            if not going.any():
                break
            # Arrangements that begin with each letter follow each other.
            begin = ways[:, None] * left // np.maximum(n, 1)[:, None]
            ends = begin.cumsum(1)
            chosen = np.minimum((rest[:, None] >= ends).sum(1), left.shape[1] - 1)
            rest = np.where(going, rest - (ends - begin)[rows, chosen], rest)
            ways = np.where(going, begin[rows, chosen], ways)
            left[rows, chosen] -= going
            result[going, position] = chosen[going]
        return result

    def _order_of(self, sequences: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The inverse of `_sequences`: number (N,) of each arrangement."""
        left, ways = self._counts[counts].copy(), self._orders[counts].copy()
        result, rows = np.zeros(len(counts), np.int64), np.arange(len(counts))
        for position in range(self.longest):
            chosen = sequences[:, position]
            going = chosen >= 0
            n = np.maximum(left.sum(1), 1)
            begin = ways[:, None] * left // n[:, None]
            before = (begin.cumsum(1) - begin)[rows, chosen]
            result += np.where(going, before, 0)
            ways = np.where(going, begin[rows, chosen], ways)
            left[rows[going], chosen[going]] -= 1
        return result

    def _letters(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Counts code, target's place among the letters, letters in order of the alphabet (N, k), alphabet codes (N, longest)."""
        counts, which, target, order = self._parts(self.check_index(index), len(self._sets))
        letters = self._sets[which]
        places = self._sequences(counts, order)
        written = np.where(places >= 0, np.take_along_axis(letters, np.maximum(places, 0), 1), -1)
        return counts, target, letters, written

    def slots(self, index: np.ndarray) -> np.ndarray:
        """Return the letter at each place and the target, int16 (N, longest + 1); the last code is an empty place."""
        _, target, letters, written = self._letters(index)
        asked = letters[np.arange(len(letters)), target]
        table = np.concatenate([written, asked[:, None]], 1)
        return np.where(table < 0, len(self.config.letters), table).astype(np.int16)

    def index(self, slots: np.ndarray) -> np.ndarray:
        """Return the indices of slot codes (N, longest + 1), int64; -1 where no prompt has these codes."""
        alphabet, texts = [*self.config.letters, ""], []
        for row in np.asarray(slots, np.int64).reshape(-1, self.longest + 1).tolist():
            inside = all(0 <= code < len(alphabet) for code in row)
            written = [alphabet[code] for code in row[:-1]] if inside else [""]
            letters = "".join(written)
            whole = inside and "" not in written[: len(letters)]
            texts.append(self._write(letters, alphabet[row[-1]]) if whole else "")
        return self.parse(texts)

    def _write(self, letters: str, target: str) -> str:
        return f"{self.config.begin}{letters}{self.config.bar}{target}{self.config.colon}"

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts' texts, which end with the colon."""
        _, target, letters, written = self._letters(index)
        asked = letters[np.arange(len(letters)), target].tolist()
        alphabet = self.config.letters
        return [
            self._write("".join([alphabet[code] for code in row if code >= 0]), alphabet[one])
            for row, one in zip(written.tolist(), asked, strict=True)
        ]

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        """Return the index of each text, int64 (N,), or -1 if it is not exactly a text of the prior."""
        k, most = self.config.n_distinct, self.config.max_count
        result = np.full(len(texts), -1, np.int64)
        rows, sets, targets, counts, places = [], [], [], [], []
        for row, text in enumerate(texts):
            match = self._text.fullmatch(text)
            if match is None:
                continue
            written, asked = match.groups()
            letters = sorted(set(written), key=self._letter_code.__getitem__)
            numbers = [written.count(letter) for letter in letters]
            if len(letters) != k or max(numbers) > most or asked not in letters:
                continue
            place = {letter: i for i, letter in enumerate(letters)}
            rows.append(row)
            sets.append(self._set_code[tuple(self._letter_code[letter] for letter in letters)])
            targets.append(place[asked])
            counts.append(sum((n - 1) * most ** (k - 1 - i) for i, n in enumerate(numbers)))
            places.append([place[letter] for letter in written] + [-1] * (self.longest - len(written)))
        if rows:
            code = np.array(counts, np.int64)
            order = self._order_of(np.array(places, np.int64), code)
            result[rows] = self._number(code, np.array(sets), np.array(targets), order, len(self._sets))
        return result

    def answers(self, index: np.ndarray) -> list[str]:
        """Return how often the target letter occurs, as a digit."""
        return [str(code + 1) for code in self.features_of(self.check_index(index))["count"].tolist()]

    # Features

    def features_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return the label codes of each feature, int32 (N,); -1 where the index is -1.

        `count` is the answer, `order` says as the how manieth letter the target appears first, `others` are the counts of the
        other letters, sorted, `counts` those of all letters by first appearance.
        """
        index = np.atleast_1d(np.asarray(index, np.int64))
        known = index != -1
        counts, target, letters, written = self._letters(np.where(known, index, 0))
        rows, k = np.arange(len(index)), self.config.n_distinct
        numbers = self._counts[counts]
        length = numbers.sum(1)
        # Where each letter appears first, hence which of them comes first, second, third.
        first_at = (written[:, :, None] == letters[:, None, :]).argmax(1)
        turn = first_at.argsort(1)
        rank = turn.argsort(1)
        base = self.config.max_count ** np.arange(k - 1, -1, -1)
        codes = {
            "count": numbers[rows, target] - 1,
            "target": letters[rows, target],
            "last": written[rows, length - 1],
            "first": written[:, 0],
            "order": rank[rows, target],
            "length": length - k,
            "others": self._others[counts, target],
            "counts": ((np.take_along_axis(numbers, turn, 1) - 1) * base).sum(1),
        }
        return {name: np.where(known, codes[name], -1).astype(np.int32) for name in self.features}

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes of texts, int32 (N,); -1 for texts out of the prior."""
        return self.features_of(self.parse(texts))

    def chance(self, feature: str) -> float:
        """Return the probability that two independent draws from the prior share a feature's label."""
        if feature in ("target", "last", "first", "order"):
            return 1.0 / len(self.feature_values[feature])  # all labels alike, by symmetry
        k = self.config.n_distinct
        if feature == "counts":
            # A letter that occurs more often is likelier to come first: n_1 / (n_1 + ... + n_k), and so on for the rest.
            rest = self._counts[:, ::-1].cumsum(1)[:, ::-1]
            orders = math.factorial(k) * (self._counts / rest).prod(1) / len(self._counts)
            return float((orders**2).sum())
        label = {
            "count": self._counts.ravel(),
            "length": np.repeat(self._counts.sum(1), k),
            "others": self._others.ravel(),
        }[feature]
        share = np.unique(label, return_counts=True)[1] / label.size
        return float((share**2).sum())

    # Splits

    def _n_sets(self, split: str | None) -> int:
        if split is not None and split not in SPLITS:
            raise InputError(
                f"unknown split '{split}' of task counting", f"choose one of: {', '.join(SPLITS)}"
            )
        return len(self._sets) if split is None else len(self._sets_of_split[split])

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): 0 = train, 1 = test, by its set of letters."""
        which = self._parts(self.check_index(index), len(self._sets))[1]
        return self._held_out[which].astype(np.int8)

    def split_size(self, split: str | None = None) -> int:
        """Return the number of prompts of a split, or of the prior if `split` is None."""
        return int(self._first[-1]) * self._n_sets(split) * self.config.n_distinct

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return the prompts at the given ranks of a split in ascending order, int64 (N,)."""
        rank = np.atleast_1d(np.asarray(rank, np.int64))
        if split is None:
            return self.check_index(rank)
        counts, which, target, order = self._parts(rank, self._n_sets(split))
        return self._number(counts, self._sets_of_split[split][which], target, order, len(self._sets))

    def split_remedy(self, split: str | None) -> str:
        """Return what makes a split larger, in words, for error messages."""
        change = {"test": "raise counting.held_out_letters", "train": "lower counting.held_out_letters"}
        return change[split] if split else "raise counting.max_count"

    def log_prior(self, index: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return log P(x) in nats, float64 (N,), -inf where the index is -1 or outside the split given."""
        index = np.atleast_1d(np.asarray(index, np.int64))
        known = index >= 0
        counts, which, _, _ = self._parts(np.where(known, index, 0), len(self._sets))
        if split is not None:
            known &= self._held_out[which] == SPLITS.index(split)
        n = self._n_sets(split) * self.config.n_distinct * len(self._counts)
        return np.where(known, -np.log(n) - np.log(self._orders[counts]), -np.inf)

    def draw(self, n: int, split: str | None, rng: np.random.Generator) -> np.ndarray:
        """Draw prompts independently: letters, target and counts uniformly, then the order; int64 (n,)."""
        which = rng.integers(self._n_sets(split), size=n)
        target = rng.integers(self.config.n_distinct, size=n)
        counts = rng.integers(len(self._counts), size=n)
        order = rng.integers(self._orders[counts])
        if split is not None:
            which = self._sets_of_split[split][which]
        return self._number(counts, which, target, order, len(self._sets))

    def extremes(self, count: Callable[[list[str]], list[int]]) -> np.ndarray:
        """Return a prompt whose letters occur as often as they may, int64 (1,)."""
        return np.array([self.split_size() - 1])

    # Words and grammar

    def words(self) -> list[str]:
        """Return all characters of prompts and answers."""
        c = self.config
        return [*c.begin, *c.letters, *c.bar, *c.colon, *(str(n) for n in range(1, c.max_count + 1))]

    def single_token_words(self) -> list[str]:
        """Return nothing: characters are checked where they are encoded."""
        return []

    def offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """Return where a named position stands in each text, in characters, int64 (N,)."""
        counts, _, _, _ = self._parts(self.check_index(index), len(self._sets))
        bar = len(self.config.begin) + self._counts[counts].sum(1)
        at = {
            "bar": bar,
            "target": bar + 1,
            "colon": bar + 2,
            "first": np.full_like(bar, len(self.config.begin)),
        }
        if name not in at:
            return super().offsets(name, index)
        return at[name]

    def grammar(self, tokenizer: TextEncoder) -> CountingGrammar:
        """Return the automaton of the prior's texts over a tokenizer's ids.

        Raises:
            InputError: a character is not one token, or the tokenizer has no end token.
        """
        return CountingGrammar(self, tokenizer)

    def next_tokens(self, tokenizer: TextEncoder) -> CountingGrammar:
        """Return the exact next-token distributions of the prior over a tokenizer's ids; raises InputError."""
        return self.grammar(tokenizer)

    def counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return prompts of the same letters and length with another count, another letter asked for, or another last letter.

        `count`: places between the first and the last are rewritten; target, first and last letter, length and order of first
        appearance stay. `target`: another letter is asked for, the sequence stays. `last`: the last letter changes places with
        another one, so that the counts stay.
        """
        if feature not in self.counterfactual_features:
            return super().counterfactuals(feature, index, rng)
        kept = {
            "count": ("target", "last", "first", "length", "order"),
            "target": ("counts", "last", "first", "length"),
        }
        kept["last"] = ("count", "target", "length", "others")
        result = np.full(len(index), -1, np.int64)
        labels = self.features_of(index)
        for _ in range(200):  # rounds of trials; few prompts (three letters once each) have no partner
            waiting = np.flatnonzero(result < 0)
            if not waiting.size:
                break
            tried = self.parse([self._changed(feature, text, rng) for text in self.texts(index[waiting])])
            found = self.features_of(tried)
            good = (tried >= 0) & (found[feature] != labels[feature][waiting])
            for name in kept[feature]:
                good &= found[name] == labels[name][waiting]
            result[waiting[good]] = tried[good]
        return result

    def _changed(self, feature: str, text: str, rng: np.random.Generator) -> str:
        """A trial of another text that may differ in a feature alone."""
        match = self._text.fullmatch(text)
        assert match is not None
        written, asked = list(match[1]), match[2]
        letters = sorted(set(written))
        if len(written) < 3:
            return text
        if feature == "target":
            return self._write(match[1], letters[rng.integers(len(letters))])
        if feature == "last":
            place = int(rng.integers(len(written) - 1))
            written[place], written[-1] = written[-1], written[place]
            return self._write("".join(written), asked)
        for place in rng.integers(1, len(written) - 1, size=int(rng.integers(1, 7))):
            to_target = rng.random() < 0.5
            written[place] = asked if to_target else letters[rng.integers(len(letters))]
        return self._write("".join(written), asked)

    # Markov chain

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,); where it would leave the prior, it leads nowhere.

        Kinds: ask for another letter; exchange two places; exchange two letters of the alphabet throughout; put a letter that
        occurs anywhere, or take it away there; write another letter that occurs into a place. Each is symmetric by itself.
        """
        alphabet = self.config.letters
        moved = []
        for text, one, number in zip(
            self.texts(index), np.asarray(kind).tolist(), np.asarray(value).tolist(), strict=True
        ):
            match = self._text.fullmatch(text)
            assert match is not None
            written, asked = match.groups()
            place, letter = divmod(number, len(alphabet))
            if one == _ASK:
                letters = sorted(set(written))
                asked = letters[(letters.index(asked) + number) % len(letters)]
            elif one == _SWAP:
                i, j = divmod(number, self.longest)
                if max(i, j) < len(written):
                    swapped = list(written)
                    swapped[i], swapped[j] = swapped[j], swapped[i]
                    written = "".join(swapped)
            elif one == _RENAME:
                names = str.maketrans(alphabet[place] + alphabet[letter], alphabet[letter] + alphabet[place])
                written, asked = written.translate(names), asked.translate(names)
            elif one == _GROW:
                take, place = divmod(place, self.longest)
                if take and written[place : place + 1] == alphabet[letter]:
                    written = written[:place] + written[place + 1 :]
                elif not take and place <= len(written) and alphabet[letter] in written:
                    written = written[:place] + alphabet[letter] + written[place:]
            elif place < len(written) and alphabet[letter] in written:
                written = written[:place] + alphabet[letter] + written[place + 1 :]
            moved.append(self._write(written, asked))
        result = self.parse(moved)
        return np.where(result >= 0, result, np.asarray(index, np.int64))


class CountingGrammar(Automaton):
    """The automaton of counting's texts, by arithmetic: its two million states would make a large table.

    A state while letters are written is the set of pairs (letter, count) so far; afterwards what is left to be written. The
    exact next-token distribution of the prior depends on the counts so far alone.
    """

    def __init__(self, task: CountingTask, tokenizer: TextEncoder) -> None:
        config = task.config
        ids = character_ids(tokenizer, [*config.begin, *config.letters, config.bar, config.colon])
        self.task, self.accept_token = task, int(tokenizer.eos_token_id)  # type: ignore[arg-type]
        self.k, self.most, self.n_letters = config.n_distinct, config.max_count, len(config.letters)
        self.begin = [ids[c] for c in config.begin]
        self.letters = np.array([ids[c] for c in config.letters], np.int64)
        self.bar, self.colon = ids[config.bar], ids[config.colon]
        self.tokens = np.array(sorted({*ids.values(), self.accept_token}), np.int64)
        self._column = {int(t): i for i, t in enumerate(self.tokens)}
        self._letter_columns = np.array([self._column[int(t)] for t in self.letters])
        # A state is a number: letters and counts so far in base (letters * counts + 1), then a stage in front.
        self._base = self.n_letters * self.most + 1
        self._stage = self._base**self.k
        self._weight = _prefix_weights(self.k, self.most)
        self.start = 0

    # Stages: 0 ... len(begin) - 1 the begin mark, then letters, target, colon, end, and 4 more = nothing.
    @property
    def _writing(self) -> int:
        return len(self.begin)

    def _unpack(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stage (n,), letters (n, k) with -1 for none, counts (n, k)."""
        stage, rest = np.divmod(state, self._stage)
        digits = np.stack([rest // self._base**i % self._base for i in range(self.k)], 1)
        letter, count = np.divmod(digits - 1, self.most)
        some = digits > 0
        return stage, np.where(some, letter, -1), np.where(some, count + 1, 0)

    def _pack(self, stage: np.ndarray, letter: np.ndarray, count: np.ndarray) -> np.ndarray:
        digits = np.where(letter >= 0, letter * self.most + count - 1 + 1, 0)
        digits = -np.sort(-digits, 1)
        return stage * self._stage + (digits * self._base ** np.arange(self.k)).sum(1)

    def probabilities(self, state: np.ndarray) -> np.ndarray:
        """P(next token | state) under the prior, float64 (n, n_tokens); zero rows for dead states (-1) and behind the end."""
        state = np.atleast_1d(np.asarray(state, np.int64))
        n = len(state)
        stage, letter, count = self._unpack(np.maximum(state, 0))
        p = np.zeros((n, len(self.tokens)))
        for i, token in enumerate(self.begin):
            p[stage == i, self._column[token]] = 1.0
        rows = np.flatnonzero(stage == self._writing)
        if rows.size:
            letter_w, count_w = letter[rows], count[rows]
            here = self._weight[tuple(count_w.T)]
            seen = (letter_w >= 0).sum(1)
            new = np.zeros((len(rows), self.n_letters), bool)
            for j in range(self.k):
                more = count_w.copy()
                more[:, j] += 1
                ratio = (
                    np.where(
                        count_w[:, j] < self.most, self._weight[tuple(np.minimum(more, self.most).T)], 0.0
                    )
                    / here
                )
                own = np.flatnonzero(letter_w[:, j] >= 0)
                p[rows[own], self._letter_columns[letter_w[own, j]]] = ratio[own]
                # The first unseen letter: any that has not occurred, each in the same share of the sets.
                fresh = np.flatnonzero((letter_w[:, j] < 0) & (seen == j))
                if fresh.size:
                    share = ratio[fresh] * (self.k - j) / (self.n_letters - j)
                    new[fresh] = True
                    p[np.ix_(rows[fresh], self._letter_columns)] += share[:, None] * ~(
                        (np.arange(self.n_letters)[None, :, None] == letter_w[fresh][:, None, :]).any(2)
                    )
            full = np.flatnonzero(seen == self.k)
            total = np.array([math.factorial(i) for i in range(self.k * self.most + 1)], float)
            orders = total[count_w[full].sum(1)] / total[count_w[full]].prod(1)
            p[rows[full], self._column[self.bar]] = 1.0 / (self.most**self.k * orders * here[full])
        rows = np.flatnonzero(stage == self._writing + 1)
        for j in range(self.k):
            p[rows, self._letter_columns[letter[rows, j]]] = 1.0 / self.k
        p[stage == self._writing + 2, self._column[self.colon]] = 1.0
        p[stage == self._writing + 3, self._column[self.accept_token]] = 1.0
        p[state < 0] = 0.0
        return p

    def permitted(self, state: np.ndarray) -> np.ndarray:
        """Which tokens may follow in each state (n,), bool (n, n_tokens)."""
        return self.probabilities(state) > 0

    def step(self, state: int | np.ndarray, token: int | np.ndarray) -> np.ndarray:
        """Return the next states, int64 (n,), -1 where a token is forbidden or the state is -1."""
        state, token = np.broadcast_arrays(
            np.atleast_1d(np.asarray(state, np.int64)), np.asarray(token, np.int64)
        )
        stage, letter, count = self._unpack(np.maximum(state, 0))
        letter, count = letter.copy(), count.copy()
        column = np.minimum(np.searchsorted(self.tokens, token), len(self.tokens) - 1)
        allowed = (self.tokens[column] == token) & self.permitted(state)[np.arange(len(state)), column]
        code = np.full(int(self.tokens.max()) + 1, -1)
        code[self.letters] = np.arange(self.n_letters)
        which = np.where(self.tokens[column] == token, code[np.minimum(token, len(code) - 1)], -1)
        writes = allowed & (stage == self._writing) & (which >= 0)
        old = letter == which[:, None]
        known = old.any(1)
        slot = np.where(known, old.argmax(1), (letter >= 0).sum(1))
        rows = np.flatnonzero(writes)
        letter[rows, slot[rows]] = which[rows]
        count[rows, slot[rows]] += 1
        following = np.where(writes, stage, stage + 1)
        # Behind the target its letter is forgotten, and with it all the others.
        letter[following > self._writing + 1] = -1
        return np.where(allowed, self._pack(following, letter, count), -1)

    def along(self, tokens: np.ndarray) -> np.ndarray:
        """Distributions (B, T - 1, n_tokens) of the next token along paths (B, T) that begin with the start token."""
        state = np.full(len(tokens), self.start, np.int64)
        result = np.empty((*tokens[:, 1:].shape, len(self.tokens)), np.float32)
        for position in range(tokens.shape[1] - 1):
            result[:, position] = self.probabilities(state)
            state = self.step(state, tokens[:, position + 1])
        return result


def _prefix_weights(k: int, most: int) -> np.ndarray:
    """W(n) for counts n so far, (most + 1,) * k: the probability of one given beginning with these counts, the letters known.

    W(n) = sum over j of W(n + e_j), plus 1 / (number of counts * number of orders) if the sequence may end at n.
    """
    weight = np.zeros((most + 2,) * k)
    for counts in sorted(product(range(most + 1), repeat=k), key=sum, reverse=True):
        total = 0.0
        for j in range(k):
            more = list(counts)
            more[j] += 1
            total += weight[tuple(more)]
        if min(counts) >= 1:
            orders = math.factorial(sum(counts)) / math.prod(map(math.factorial, counts))
            total += 1.0 / (most**k * orders)
        weight[counts] = total
    return weight[(slice(0, most + 1),) * k]
