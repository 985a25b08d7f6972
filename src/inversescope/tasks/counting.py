"""Character counting: prior, parsing, features, splits, grammar (InversionView's first case study; Huang et al., 2024).

A prompt is a shuffled sequence of a few distinct letters, each a number of times, then one of them, whose number is asked for:
`Bvzzvcvv|v:` (answer 4). The letters, how often each occurs, the order and the letter that is asked for are drawn in this order,
each uniformly. So a prompt's probability depends on how many orders its letters have: this prior is not uniform over prompts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np

from inversescope.config.tasks import CountingConfig
from inversescope.errors import InputError
from inversescope.tasks.automata import Automaton, TextEncoder, character_ids, end_token
from inversescope.tasks.base import SPLITS, Task, held_out

# Kinds of moves: ask for another letter; exchange two positions; exchange two letters of the alphabet; put one more of a letter
# somewhere or take it away; write another letter in a place.
_ASK, _SWAP, _RENAME, _GROW, _REPLACE = range(5)


class CountingTask(Task):
    """The prior of character counting.

    Args:
        config: the alphabet, how many letters a prompt has and how often at most, the marks around them, and the split.
        root: not used.

    Raises:
        InputError: the alphabet repeats a character or shares one with the marks, or the prior has more than 2^63 prompts.
    """

    name = "counting"
    token_unit = "character"
    uniform = False
    position_names = ("colon", "target", "bar", "first")
    counterfactual_features = ("count", "target", "last")
    enlarging = ("raise counting.max_count", "counting.held_out_letters")

    def __init__(self, config: CountingConfig, root: Path = Path(".")) -> None:
        self.config, self.features = config, config.feature_names
        alphabet, k, most = config.letters, config.n_distinct, config.max_count
        marks = config.begin + config.bar + config.colon + "".join(map(str, range(1, most + 1)))
        if len(set(alphabet + marks)) < len(alphabet + marks):
            raise InputError("counting: a letter or mark occurs twice", "let them and the digits differ")
        if k > len(alphabet):
            raise InputError(f"counting.n_distinct is {k}, but there are {len(alphabet)} letters", "lower it")
        self._sets = np.array(list(combinations(range(len(alphabet)), k)), np.int64)
        self._set_code = {tuple(letters): code for code, letters in enumerate(self._sets.tolist())}
        self._counts = np.array(list(product(range(1, most + 1), repeat=k)), np.int64)
        orders = [math.factorial(sum(c)) // math.prod(map(math.factorial, c)) for c in self._counts.tolist()]
        if sum(orders) * len(self._sets) * k >= 2**63:
            raise InputError("counting has too many prompts to be numbered", "lower n_distinct or max_count")
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
        words = ["".join(alphabet[i] for i in letters) for letters in self._sets.tolist()]
        self._held_out = held_out(words, config.held_out_letters, config.split_seed)
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
        return [str(code + 1) for code in self.labels(self.check_index(index))["count"].tolist()]

    # Features

    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        """`count` is the answer, `order` says as the how manieth letter the target appears first, `others` are the counts of the
        other letters, sorted, `counts` those of all letters by first appearance."""
        counts, target, letters, written = self._letters(index)
        rows, k = np.arange(len(index)), self.config.n_distinct
        numbers = self._counts[counts]
        length = numbers.sum(1)
        # Where each letter appears first, hence which of them comes first, second, third.
        first_at = (written[:, :, None] == letters[:, None, :]).argmax(1)
        turn = first_at.argsort(1)
        rank = turn.argsort(1)
        base = self.config.max_count ** np.arange(k - 1, -1, -1)
        return {
            "count": numbers[rows, target] - 1,
            "target": letters[rows, target],
            "last": written[rows, length - 1],
            "first": written[:, 0],
            "order": rank[rows, target],
            "length": length - k,
            "others": self._others[counts, target],
            "counts": ((np.take_along_axis(numbers, turn, 1) - 1) * base).sum(1),
        }

    def chance(self, feature: str) -> float:
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
        return len(self._sets) if split is None else len(self._sets_of_split[self.check_split(split)])

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): 0 = train, 1 = test, by its set of letters."""
        which = self._parts(self.check_index(index), len(self._sets))[1]
        return self._held_out[which].astype(np.int8)

    def split_size(self, split: str | None = None) -> int:
        return int(self._first[-1]) * self._n_sets(split) * self.config.n_distinct

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        rank = np.atleast_1d(np.asarray(rank, np.int64))
        if split is None:
            return self.check_index(rank)
        counts, which, target, order = self._parts(rank, self._n_sets(split))
        return self._number(counts, self._sets_of_split[split][which], target, order, len(self._sets))

    def log_prior(self, index: np.ndarray, split: str | None = None) -> np.ndarray:
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
        c = self.config
        return [*c.begin, *c.letters, *c.bar, *c.colon, *(str(n) for n in range(1, c.max_count + 1))]

    def _offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        counts, _, _, _ = self._parts(index, len(self._sets))
        first = len(self.config.begin)
        bar = first + self._counts[counts].sum(1)
        return {"first": np.full_like(bar, first), "bar": bar, "target": bar + 1, "colon": bar + 2}[name]

    def grammar(self, tokenizer: TextEncoder) -> CountingGrammar:
        return CountingGrammar(self, tokenizer)

    def _counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Prompts of the same letters and length with another count, another letter asked for, or another last letter.

        `count`: places between the first and the last are rewritten; target, first and last letter, length and order of first
        appearance stay. `target`: another letter is asked for, the sequence stays. `last`: the last letter changes places with
        another one, so that the counts stay.
        """
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
        self.accept_token = end_token(tokenizer)
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
        state = np.atleast_1d(np.asarray(state, np.int64))
        stage, letter, count = self._unpack(np.maximum(state, 0))
        p = np.zeros((len(state), len(self.tokens)))
        for i, token in enumerate(self.begin):
            p[stage == i, self._column[token]] = 1.0
        rows = np.flatnonzero(stage == self._writing)
        if rows.size:
            p[rows] = self._next_letter(letter[rows], count[rows])
        rows = np.flatnonzero(stage == self._writing + 1)
        for j in range(self.k):
            p[rows, self._letter_columns[letter[rows, j]]] = 1.0 / self.k
        p[stage == self._writing + 2, self._column[self.colon]] = 1.0
        p[stage == self._writing + 3, self._column[self.accept_token]] = 1.0
        p[state < 0] = 0.0
        return p

    def _next_letter(self, letter: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Probabilities (n, n_tokens) while letters are written, after letters (n, k), -1 for none, with counts (n, k)."""
        p = np.zeros((len(letter), len(self.tokens)))
        here, seen = self._weight[tuple(count.T)], (letter >= 0).sum(1)
        for j in range(self.k):
            more = count.copy()
            more[:, j] += 1
            ratio = self._weight[tuple(more.T)] / here
            own = np.flatnonzero(letter[:, j] >= 0)
            p[own, self._letter_columns[letter[own, j]]] = ratio[own]
            # The first unseen letter: any that has not occurred, each in the same share of the sets.
            fresh = np.flatnonzero((letter[:, j] < 0) & (seen == j))
            share = ratio[fresh] * (self.k - j) / (self.n_letters - j)
            unseen = (np.arange(self.n_letters)[None, :, None] != letter[fresh][:, None, :]).all(2)
            p[np.ix_(fresh, self._letter_columns)] += share[:, None] * unseen
        full = np.flatnonzero(seen == self.k)
        total = np.array([math.factorial(i) for i in range(self.k * self.most + 1)], float)
        orders = total[count[full].sum(1)] / total[count[full]].prod(1)
        p[full, self._column[self.bar]] = 1.0 / (self.most**self.k * orders * here[full])
        return p

    def step(self, state: int | np.ndarray, token: int | np.ndarray) -> np.ndarray:
        state, token = np.broadcast_arrays(
            np.atleast_1d(np.asarray(state, np.int64)), np.asarray(token, np.int64)
        )
        stage, letter, count = self._unpack(np.maximum(state, 0))
        letter, count = letter.copy(), count.copy()
        column, known = self.columns(token)
        allowed = known & self.permitted(state)[np.arange(len(state)), column]
        code = np.full(int(self.tokens.max()) + 1, -1)
        code[self.letters] = np.arange(self.n_letters)
        which = np.where(known, code[np.minimum(token, len(code) - 1)], -1)
        writes = allowed & (stage == self._writing) & (which >= 0)
        old = letter == which[:, None]
        slot = np.where(old.any(1), old.argmax(1), (letter >= 0).sum(1))
        rows = np.flatnonzero(writes)
        letter[rows, slot[rows]] = which[rows]
        count[rows, slot[rows]] += 1
        following = np.where(writes, stage, stage + 1)
        # Behind the target its letter is forgotten, and with it all the others.
        letter[following > self._writing + 1] = -1
        return np.where(allowed, self._pack(following, letter, count), -1)


def _prefix_weights(k: int, most: int) -> np.ndarray:
    """W(n) for counts n so far, (most + 2,) * k: the probability of one given beginning with these counts, the letters known.

    W(n) = sum over j of W(n + e_j), plus 1 / (number of counts * number of orders) if the sequence may end at n; 0 beyond `most`.
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
    return weight
