"""Labels of many texts under label functions of the grammar (`inversescope.config.functions`), all texts at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from inversescope.config.functions import Function
from inversescope.errors import InputError

_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_NONE = -1  # where a text has no such word, and behind its last one


class Labels(NamedTuple):
    """Labels of N texts: codes (N,), int64, and the values that they stand for; "" where there is no such word."""

    codes: np.ndarray
    values: list[str]

    @property
    def texts(self) -> np.ndarray:
        """The labels themselves, (N,) of str."""
        return np.array(self.values, object)[self.codes]


def words_of(text: str) -> list[str]:
    """The words and marks of a text; of one without any space its characters."""
    return _WORDS.findall(text) if " " in text else list(text)


class Corpus:
    """Texts cut into words, and their labels under functions.

    Attributes:
        words: distinct words, in the order in which they occur.
        ids: (N, L) int32, the words of each text by position in `words`, -1 behind the last one.
        length: (N,) number of words.
        slots: name -> value (N,) of each text, where the texts have slots.
    """

    def __init__(self, texts: Sequence[str], slots: Mapping[str, np.ndarray] | None = None) -> None:
        cut = [words_of(text) for text in texts]
        self.length = np.array([len(words) for words in cut], np.int64)
        number: dict[str, int] = {}
        flat = [number.setdefault(word, len(number)) for words in cut for word in words]
        self.words = list(number)
        self.number = number
        self.ids = np.full((len(cut), max(1, int(self.length.max(initial=0)))), _NONE, np.int32)
        self.ids[np.arange(self.ids.shape[1]) < self.length[:, None]] = flat
        self.slots = dict(slots or {})
        self._classes: dict[object, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def times(self) -> np.ndarray:
        """(N, L) int32: how often each word occurs in its text."""
        result = np.zeros(self.ids.shape, np.int32)
        for position in range(self.ids.shape[1]):
            result += self.ids == self.ids[:, position, None]
        return result

    @cached_property
    def first(self) -> np.ndarray:
        """(N, L) bool: whether a word stands there for the first time in its text."""
        result = self.ids != _NONE
        for position in range(1, self.ids.shape[1]):
            result[:, position] &= (self.ids[:, :position] != self.ids[:, position, None]).all(1)
        return result

    def of_class(self, kind: Function | tuple[str, ...]) -> np.ndarray:
        """(N, L) bool: which words are of a class."""
        if kind not in self._classes:
            present = self.ids != _NONE
            if kind == Function("any"):
                self._classes[kind] = present
            else:
                known = np.array([_belongs(word, kind) for word in self.words] + [False])
                found = known[self.ids] & present
                if kind == Function("capital"):
                    found[:, 0] = False
                self._classes[kind] = found
        return self._classes[kind]

    def labels(self, function: Function) -> Labels:
        """Labels of all texts under a function. Raises `InputError` if it names a slot that they do not have."""
        found, values = _FUNCTIONS[function.name](self, *function.arguments)
        kept, codes = np.unique(found, return_inverse=True)
        return Labels(codes.astype(np.int64), [values(int(one)) for one in kept])

    def word(self, function: Function) -> np.ndarray:
        """(N,) the word that a function gives, by position in `words`; -1 where there is none."""
        found, values = _FUNCTIONS[function.name](self, *function.arguments)
        if function.name != "slot":
            return found
        kept, codes = np.unique(found, return_inverse=True)
        return np.array([self.number.get(values(int(one)), _NONE) for one in kept])[codes]

    def spelled(self, number: int) -> str:
        """A word by its position in `words`."""
        return self.words[number] if number != _NONE else ""


Found = tuple[np.ndarray, Callable[[int], str]]
Class = Function | tuple[str, ...]


def _belongs(word: str, kind: Class) -> bool:
    if isinstance(kind, tuple):
        return word in kind
    return word[:1].isupper() if kind.name == "capital" else word.isdecimal()


def _place(mask: np.ndarray, place: int) -> np.ndarray:
    """(N,) position of the place-th true entry of each row (N, L), from the end if negative; -1 where there is none."""
    if place < 0:
        back = _place(mask[:, ::-1], -place - 1)
        return np.where(back == _NONE, _NONE, mask.shape[1] - 1 - back)
    hit = mask & (np.cumsum(mask, 1) == place + 1)
    return np.where(hit.any(1), hit.argmax(1), _NONE)


def _at(corpus: Corpus, position: np.ndarray) -> np.ndarray:
    """(N,) words at positions, -1 outside of the text."""
    inside = (position >= 0) & (position < corpus.length)
    return np.where(inside, corpus.ids[np.arange(len(corpus)), np.where(inside, position, 0)], _NONE)


def _number(found: int) -> str:
    return str(found) if found != _NONE else ""


def _word(corpus: Corpus, place: int, kind: Class) -> Found:
    return _at(corpus, _place(corpus.of_class(kind), place)), corpus.spelled


def _beside(corpus: Corpus, text: str, place: int, step: int) -> Found:
    found = _place(corpus.ids == corpus.number.get(text, -2), place)
    return _at(corpus, np.where(found == _NONE, _NONE, found + step)), corpus.spelled


def _twice(corpus: Corpus, kind: Class) -> Found:
    repeated = corpus.of_class(kind) & (corpus.times >= 2)
    return _at(corpus, _place(repeated, 0)), corpus.spelled


def _once(corpus: Corpus, place: int, kind: Class) -> Found:
    return _at(corpus, _place(corpus.of_class(kind) & (corpus.times == 1), place)), corpus.spelled


def _slot(corpus: Corpus, name: str) -> Found:
    if name not in corpus.slots:
        known = ", ".join(corpus.slots) or "none"
        raise InputError(f"the texts have no slot '{name}'", f"they have: {known}")
    kept, codes = np.unique(np.asarray(corpus.slots[name]).astype(str), return_inverse=True)
    return codes, lambda code: str(kept[code])


def _which_twice(corpus: Corpus, kind: Class) -> Found:
    distinct = corpus.of_class(kind) & corpus.first
    position = _place(distinct & (corpus.times >= 2), 0)
    rank = np.cumsum(distinct, 1)[np.arange(len(corpus)), position]
    return np.where(position == _NONE, _NONE, rank), _number


def _which(corpus: Corpus, *kinds: Class) -> Found:
    occurs = np.stack([corpus.of_class(kind).any(1) for kind in kinds], 1)
    names = [kind[0] if isinstance(kind, tuple) else kind.name for kind in kinds]
    return np.where(occurs.any(1), occurs.argmax(1), _NONE), lambda i: names[i] if i != _NONE else ""


def _count(corpus: Corpus, of: Function) -> Found:
    word = corpus.word(of)
    return np.where(word == _NONE, 0, (corpus.ids == word[:, None]).sum(1)), str


def _how_many(corpus: Corpus, kind: Class) -> Found:
    return corpus.of_class(kind).sum(1), str


def _distinct(corpus: Corpus, kind: Class) -> Found:
    return (corpus.of_class(kind) & corpus.first).sum(1), str


def _has(corpus: Corpus, text: str) -> Found:
    return (corpus.ids == corpus.number.get(text, -2)).any(1).astype(int), lambda yes: "yes" if yes else "no"


def _skeleton(corpus: Corpus, *kinds: Class) -> Found:
    hidden = np.any([corpus.of_class(kind) for kind in kinds], 0)
    rows = np.where(hidden, len(corpus.words), corpus.ids)
    kept, codes = np.unique(rows, axis=0, return_inverse=True)
    words = [*corpus.words, "*"]
    return codes.ravel(), lambda code: " ".join(words[i] for i in kept[code] if i != _NONE)


def _same(corpus: Corpus, one: Function, other: Function) -> Found:
    a, b = corpus.word(one), corpus.word(other)
    return np.where((a == _NONE) | (b == _NONE), _NONE, a == b), lambda i: ("no", "yes", "")[i]


def _compare(corpus: Corpus, one: Function, other: Function) -> Found:
    def key(word: str) -> tuple[int, int, str]:
        return (0, int(word), "") if word.isdecimal() else (1, 0, word)

    rank = np.empty(len(corpus.words) + 1, np.int64)
    rank[np.array(sorted(range(len(corpus.words)), key=lambda i: key(corpus.words[i])), int)] = np.arange(
        len(corpus.words)
    )
    a, b = corpus.word(one), corpus.word(other)
    code = np.sign(rank[a] - rank[b]) + 1
    return np.where((a == _NONE) | (b == _NONE), _NONE, code), lambda i: ("second", "equal", "first", "")[i]


#: Name in the grammar -> what gives codes (N,) of a corpus, and what spells a code.
_FUNCTIONS: dict[str, Callable[..., Found]] = {
    "word": _word,
    "after": lambda corpus, text, place: _beside(corpus, text, place, 1),
    "before": lambda corpus, text, place: _beside(corpus, text, place, -1),
    "twice": _twice,
    "once": _once,
    "slot": _slot,
    "which_twice": _which_twice,
    "which": _which,
    "count": _count,
    "how_many": _how_many,
    "distinct": _distinct,
    "has": _has,
    "skeleton": _skeleton,
    "same": _same,
    "compare": _compare,
}
