"""Indirect object identification: prior, parsing, features, splits, grammar (paper, sections 2, 4.1, D.1).

A prompt names two persons, repeats one of them (the subject) and stops right before the other (the indirect
object): "After John and Mary went to the store, Mary gave a drink to".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from inversescope.config import IOIConfig
from inversescope.errors import InputError
from inversescope.tasks.base import SPLITS, Grammar, Task, TextEncoder, build_grammar

# [A] and [B] are the first and second name in the text, [S] the one that is repeated. No template starts with
# a slot, because a word at the start of a text is another token than the same word after a space.
TEMPLATES = (
    # The paper's own wordings: section 4.1, Table 1 and section E.1.
    "When [A] and [B] went to the [PLACE], [S] gave a [OBJECT] to",
    "After [A] and [B] went to the [PLACE], [S] gave a [OBJECT] to",
    "Then, [A] and [B] had a lot of fun at the [PLACE]. [S] gave a [OBJECT] to",
    "When [A] and [B] got a [OBJECT] at the [PLACE], [S] decided to give it to",
    "After the lunch, [A] and [B] went to the [PLACE]. [S] gave a [OBJECT] to",
    "Afterwards, [A] and [B] went to the [PLACE]. [S] gave a [OBJECT] to",
    "The [PLACE] [A] and [B] went to had a [OBJECT]. [S] gave it to",
    "The local big [PLACE] [A] and [B] went to had a [OBJECT]. [S] gave it to",
    "Then, [A] and [B] went to the [PLACE]. [S] gave a [OBJECT] to",
    "When [A] and [B] got a [OBJECT] at the [PLACE], [S] decided to give the [OBJECT] to",
    # Ours, in the same manner.
    "While [A] and [B] were waiting at the [PLACE], [S] handed a [OBJECT] to",
    "On the way to the [PLACE], [A] and [B] found a [OBJECT]. [S] showed it to",
    "Yesterday, [A] and [B] met near the [PLACE]. [S] brought a [OBJECT] to",
    "Before [A] and [B] left the [PLACE], [S] wanted to offer a [OBJECT] to",
    "As soon as [A] and [B] came back from the [PLACE], [S] sent a [OBJECT] to",
    "Last week, [A] and [B] saw a [OBJECT] in the [PLACE]. [S] bought it for",
)

# Common English first names, each a single token of GPT-2's vocabulary after a space. The embedded study uses
# the first 32.
NAMES = tuple(
    """
    John Mary Michael Sarah James Emily David Anna Robert Laura Daniel Rachel Thomas Alice Kevin Lisa
    Paul Kate Mark Jane Peter Susan Andrew Julia Simon Amy Adam Nicole Jacob Erin Steven Emma
    Matthew Joseph Elizabeth Samuel Charles Anthony Jeffrey Kenneth Timothy Benjamin Aaron Jesse Jose Crystal
    Danielle Shannon Lindsey Linda Barbara Jennifer Jessica Karen Helen Sandra Ashley Donna Carol Ruth Sharon
    Michelle Kimberly Melissa Rebecca Stephanie Amanda Catherine Christine Maria Martha Diana Victoria Sophie
    Olivia Hannah Natalie Claire Richard William George Edward Brian Ronald Jason Gary Nicholas Eric Stephen
    Jonathan Larry Justin Scott Brandon Frank Gregory Raymond Patrick Jack Dennis Henry Tyler Nathan
    """.split()
)
# All places and the first five items stand in the samples that the paper shows (Table 1, section 4.1).
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
ITEMS = ("drink", "ring", "computer", "kiss", "bone", "book", "ticket", "letter")
ORDERS = ("ABA", "ABB")

_SLOT = re.compile(r"(\[[A-Z]+\])")
_WORD = re.compile(r"\w+|[^\w\s]")
_SPACED_WORD = re.compile(r" ?\w+|[^\w\s]")
_N_SLOTS = 6
_TEMPLATE, _ORDER, _NAME_A, _NAME_B, _PLACE, _ITEM = range(_N_SLOTS)
# Kinds of moves: re-draw slot 0 to 5; swap the two names; swap them and the order, which keeps subject and
# object.
_SWAP, _SWAP_ROLES_KEPT = 6, 7


class IOITask(Task):
    """The IOI prior of D.1.1: template, order, two distinct names, place and item, each uniform.

    Args:
        config: how many of the templates, names, places and items are used, and the split.

    Raises:
        InputError: more names, templates, places or items are asked for than there are.
    """

    name = "ioi"
    slot_names = ("template", "order", "name_a", "name_b", "place", "item")
    features = ("subject", "object", "template", "order", "first", "second", "place", "item")

    def __init__(self, config: IOIConfig) -> None:
        templates = _first("n_templates", config.n_templates, TEMPLATES)
        self.names = _first("n_names", config.n_names, NAMES)
        places = _first("n_places", config.n_places, PLACES)
        items = _first("n_items", config.n_items, ITEMS)
        self.config = config
        self.slot_values = {
            "template": templates,
            "order": list(ORDERS),
            "name_a": self.names,
            "name_b": self.names,
            "place": places,
            "item": items,
        }
        self.feature_values = {
            "subject": self.names,
            "object": self.names,
            "template": templates,
            "order": list(ORDERS),
            "first": self.names,
            "second": self.names,
            "place": places,
            "item": items,
        }
        n = len(self.names)
        # The digits of an index; the second name is counted among the names other than the first.
        self._radix = (len(templates), len(ORDERS), n * (n - 1), len(places), len(items))
        self.size = int(np.prod(self._radix))
        self.move_counts = (
            *(max(1, len(self.slot_values[slot]) - 1) for slot in ("template", "order")),
            n - 2,
            n - 2,
            *(max(1, len(self.slot_values[slot]) - 1) for slot in ("place", "item")),
            1,
            1,
        )
        self._held_out = self._hold_out_pairs()
        pairs = np.arange(n * (n - 1))
        first, second = self._names_of_pair(pairs)
        held_out = self._held_out[first, second]
        self._pairs_of_split = {"train": pairs[~held_out], "test": pairs[held_out]}
        self._formats = [
            _printf(template, place, item) for template in templates for place in places for item in items
        ]
        self._name_codes = {name: code for code, name in enumerate(self.names)}
        self._layouts: dict[tuple[int, str], list[_Layout]] = {}
        for code, template in enumerate(templates):
            layout = _Layout(code, template, self.names, places, items)
            self._layouts.setdefault(layout.key, []).append(layout)

    # The prior and its prompts

    def _names_of_pair(self, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, other = np.divmod(pair, len(self.names) - 1)
        return first, other + (other >= first)

    def _digits(self, index: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return template, order, first name, second name, place and item of prompts, int64 (N,) each."""
        template, order, pair, place, item = np.unravel_index(self.check_index(index), self._radix)
        first, second = self._names_of_pair(pair)
        return template, order, first, second, place, item

    def _index(self, digits: Sequence[np.ndarray]) -> np.ndarray:
        template, order, first, second, place, item = digits
        pair = first * (len(self.names) - 1) + second - (second > first)
        return np.ravel_multi_index((template, order, pair, place, item), self._radix).astype(np.int64)

    def slots(self, index: np.ndarray) -> np.ndarray:
        """Return the slot codes of prompts, int16 (N, 6); raises IndexError outside the prior."""
        return np.stack(self._digits(index), axis=1).astype(np.int16)

    def index(self, slots: np.ndarray) -> np.ndarray:
        """Return the indices of slot codes (N, 6), int64; -1 where no prompt has these codes."""
        slots = np.asarray(slots, dtype=np.int64).reshape(-1, _N_SLOTS)
        sizes = np.array([len(self.slot_values[slot]) for slot in self.slot_names])
        valid = ((slots >= 0) & (slots < sizes)).all(axis=1) & (slots[:, _NAME_A] != slots[:, _NAME_B])
        result = np.full(len(slots), -1, dtype=np.int64)
        result[valid] = self._index(slots[valid].T)
        return result

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts' texts, which end right before the indirect object, without a trailing space."""
        template, order, first, second, place, item = self._digits(index)
        form = (template * self._radix[3] + place) * self._radix[4] + item
        subject = np.where(order == 0, first, second)
        formats, names = self._formats, self.names
        return [
            formats[f] % (names[a], names[b], names[s])
            for f, a, b, s in zip(*(codes.tolist() for codes in (form, first, second, subject)), strict=True)
        ]

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        """Return the index of each text, int64 (N,), or -1 if it is not exactly a text of the prior."""
        known: dict[str, int] = {}
        result = np.empty(len(texts), dtype=np.int64)
        for position, text in enumerate(texts):
            index = known.get(text)
            if index is None:
                index = known[text] = self._parse(text)
            result[position] = index
        return result

    def _parse(self, text: str) -> int:
        words = text.split(" ")
        n = len(self.names)
        _, _, n_pairs, n_places, n_items = self._radix
        for layout in self._layouts.get((len(words), words[0]), ()):
            first = layout.first.get(words[layout.first_at])
            second = layout.second.get(words[layout.second_at])
            subject = layout.subject.get(words[layout.subject_at])
            place = layout.place.get(words[layout.place_at])
            item = layout.item.get(words[layout.item_at])
            if first is None or second is None or place is None or item is None or first == second:
                continue
            if subject != first and subject != second:
                continue
            # Writing the prompt anew decides about all other words, so that parsing is exact whatever the
            # template.
            form = self._formats[(layout.template * n_places + place) * n_items + item]
            if form % (self.names[first], self.names[second], self.names[subject]) != text:
                continue
            pair = first * (n - 1) + second - (second > first)
            order = 0 if subject == first else 1
            return (((layout.template * 2 + order) * n_pairs + pair) * n_places + place) * n_items + item
        return -1

    def answers(self, index: np.ndarray) -> list[str]:
        """Return the indirect object of each prompt, the name that should follow, without leading space."""
        return [self.names[code] for code in self.features_of(self.check_index(index))["object"]]

    position_names = ("S1", "S2", "IO")
    counterfactual_features = ("object", "subject")

    def counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return prompts with another object, or another subject, in all its places; the other name and all words stay."""
        if feature not in self.counterfactual_features:
            return super().counterfactuals(feature, index, rng)
        slots = self.slots(index).astype(np.int64)
        first = (slots[:, _ORDER] == 0) == (feature == "subject")
        column = np.where(first, _NAME_A, _NAME_B)
        rows = np.arange(len(slots))
        low, high = slots[:, [_NAME_A, _NAME_B]].min(1), slots[:, [_NAME_A, _NAME_B]].max(1)
        fresh = rng.integers(len(self.names) - 2, size=len(slots))
        fresh += fresh >= low
        fresh += fresh >= high
        slots[rows, column] = fresh
        return self.index(slots)

    def offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """Return where the first and second mention of the subject and the only one of the object stand, in characters."""
        if name not in self.position_names:
            return super().offsets(name, index)
        index = self.check_index(index)
        codes = self.features_of(index)["object" if name == "IO" else "subject"]
        result = np.empty(len(index), np.int64)
        for row, (text, code) in enumerate(zip(self.texts(index), codes.tolist(), strict=True)):
            mentions = [m.start() for m in re.finditer(rf"\b{self.names[code]}\b", text)]
            result[row] = mentions[1 if name == "S2" else 0]
        return result

    # Features

    def features_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return the label codes of each feature, int32 (N,); -1 where the index is -1."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        known = index != -1
        template, order, first, second, place, item = self._digits(np.where(known, index, 0))
        codes = {
            "subject": np.where(order == 0, first, second),
            "object": np.where(order == 0, second, first),
            "template": template,
            "order": order,
            "first": first,
            "second": second,
            "place": place,
            "item": item,
        }
        return {feature: np.where(known, codes[feature], -1).astype(np.int32) for feature in self.features}

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes by counting names (D.1.2), also for texts out of the prior, int32 (N,).

        The name that occurs twice is the subject, the one that occurs once the object; both are undefined
        unless there is exactly one of each and no other name. `first` and `second` are the first two
        mentions of names (undefined if they are equal), `order` says which of them the subject is, `place`
        and `item` are the only ones mentioned. `template` is defined for prompts of the prior alone.
        Undefined labels are -1.
        """
        result = {feature: np.full(len(texts), -1, dtype=np.int32) for feature in self.features}
        result["template"] = self.features_of(self.parse(texts))["template"]
        places = {word: code for code, word in enumerate(self.slot_values["place"])}
        items = {word: code for code, word in enumerate(self.slot_values["item"])}
        known: dict[str, dict[str, int]] = {}
        for position, text in enumerate(texts):
            labels = known.get(text)
            if labels is None:
                labels = known[text] = self._count(text, places, items)
            for feature, code in labels.items():
                result[feature][position] = code
        return result

    def _count(self, text: str, places: Mapping[str, int], items: Mapping[str, int]) -> dict[str, int]:
        words = _WORD.findall(text)
        mentions = [self._name_codes[word] for word in words if word in self._name_codes]
        labels: dict[str, int] = {}
        if len(mentions) >= 2 and mentions[0] != mentions[1]:
            labels["first"], labels["second"] = mentions[0], mentions[1]
        once = [name for name in set(mentions) if mentions.count(name) == 1]
        twice = [name for name in set(mentions) if mentions.count(name) == 2]
        if len(mentions) == 3 and len(once) == 1 and len(twice) == 1:
            labels["subject"], labels["object"] = twice[0], once[0]
            if "first" in labels:
                labels["order"] = 0 if twice[0] == mentions[0] else 1
        for feature, codes in (("place", places), ("item", items)):
            found = {codes[word] for word in words if word in codes}
            if len(found) == 1:
                labels[feature] = found.pop()
        return labels

    def chance(self, feature: str) -> float:
        """Return the probability that two independent draws from the prior share a feature's label.

        Every feature is uniform over its labels, because each label has as many prompts as any other.
        """
        return 1.0 / len(self.feature_values[feature])

    # Splits

    def _hold_out_pairs(self) -> np.ndarray:
        """Return which pairs of names are held out, a symmetric bool matrix (n_names, n_names).

        Pairs are ranked by a hash of their names and the seed, so that the split depends on no random stream.
        """
        pairs = list(combinations(range(len(self.names)), 2))
        number = round(self.config.held_out_pairs * len(pairs))

        def rank(pair: tuple[int, int]) -> bytes:
            key = " ".join((str(self.config.split_seed), *sorted(self.names[code] for code in pair)))
            return hashlib.sha256(key.encode()).digest()

        held_out = np.zeros((len(self.names), len(self.names)), dtype=bool)
        for a, b in sorted(pairs, key=rank)[:number]:
            held_out[a, b] = held_out[b, a] = True
        return held_out

    def _split_radix(self, split: str | None) -> tuple[int, ...]:
        if split is None:
            return self._radix
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}' of task ioi", f"choose one of: {', '.join(SPLITS)}")
        return (*self._radix[:2], len(self._pairs_of_split[split]), *self._radix[3:])

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): 0 = train, 1 = test, by its unordered pair of names."""
        _, _, first, second, _, _ = self._digits(index)
        return self._held_out[first, second].astype(np.int8)

    def split_size(self, split: str | None = None) -> int:
        """Return the number of prompts of a split, or of the prior if `split` is None."""
        return int(np.prod(self._split_radix(split)))

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return the prompts at the given ranks of a split in ascending order, int64 (N,)."""
        rank = np.atleast_1d(np.asarray(rank, dtype=np.int64))
        if split is None:
            return self.check_index(rank)
        if rank.size == 0:
            return rank
        template, order, pair, place, item = np.unravel_index(rank, self._split_radix(split))
        pair = self._pairs_of_split[split][pair]
        return np.ravel_multi_index((template, order, pair, place, item), self._radix).astype(np.int64)

    def split_remedy(self, split: str | None) -> str:
        """Return what makes a split larger, in words, for error messages."""
        share = {"test": "raise ioi.held_out_pairs", "train": "lower ioi.held_out_pairs"}
        return f"{share[split]} or raise ioi.n_names" if split else "raise ioi.n_names"

    # Words and grammar

    def words(self) -> list[str]:
        """Return all words, with the space before them if there is one, and punctuation marks, each once."""
        templates = [_SLOT.sub("", template) for template in self.slot_values["template"]]
        literals = [word for template in templates for word in _SPACED_WORD.findall(template)]
        return list(dict.fromkeys([*literals, *(f" {word}" for word in self.single_token_words())]))

    def single_token_words(self) -> list[str]:
        """Return names, places and items, without spaces, which must be one token each after a space."""
        return [*self.names, *self.slot_values["place"], *self.slot_values["item"]]

    def grammar(self, tokenizer: TextEncoder) -> Grammar:
        """Return the automaton of the prior's texts over a tokenizer's ids, word-level and BPE alike.

        It is built from the tokens of the pieces of the templates; that a whole prompt has the same tokens is
        checked on prompts that show every template, name, place and item.

        Raises:
            InputError: a name, place or item is not one token, a prompt's tokens are not those of its pieces,
                or the tokenizer has no end token. The message names the word.
        """
        return _GrammarBuilder(self, tokenizer).build()

    # Markov chain

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,).

        Kinds 0 to 5 put another value into a slot: the `value`-th of those that differ from the present one
        (for a name: also from the other name), or nothing if there is none. Kind 6 swaps the two names,
        which swaps subject and object; kind 7 swaps names and order, which keeps both. Each kind is
        symmetric by itself.
        """
        digits = [column.copy() for column in self._digits(index)]
        kind, value = np.asarray(kind, dtype=np.int64), np.asarray(value, dtype=np.int64)
        for slot in (_TEMPLATE, _ORDER, _PLACE, _ITEM):
            at = kind == slot
            if len(self.slot_values[self.slot_names[slot]]) > 1:
                digits[slot][at] = value[at] + (value[at] >= digits[slot][at])
        low, high = np.minimum(digits[_NAME_A], digits[_NAME_B]), np.maximum(digits[_NAME_A], digits[_NAME_B])
        fresh = value + (value >= low)
        fresh += fresh >= high
        swapped = (kind == _SWAP) | (kind == _SWAP_ROLES_KEPT)
        first = np.where(kind == _NAME_A, fresh, np.where(swapped, digits[_NAME_B], digits[_NAME_A]))
        second = np.where(kind == _NAME_B, fresh, np.where(swapped, digits[_NAME_A], digits[_NAME_B]))
        digits[_NAME_A], digits[_NAME_B] = first, second
        digits[_ORDER] = np.where(kind == _SWAP_ROLES_KEPT, 1 - digits[_ORDER], digits[_ORDER])
        return self._index(digits)


def _first(key: str, number: int, values: tuple[str, ...]) -> list[str]:
    if number > len(values):
        raise InputError(
            f"ioi.{key} is {number}, but there are {len(values)}", f"set it to {len(values)} or less"
        )
    return list(values[:number])


def _printf(template: str, place: str, item: str) -> str:
    """Return a template with place and item filled in, and `%s` for each of the three names."""
    text = template.replace("%", "%%").replace("[PLACE]", place).replace("[OBJECT]", item)
    return text.replace("[A]", "%s").replace("[B]", "%s").replace("[S]", "%s")


class _Layout:
    """Where the slots of a template stand among its words, and which words may stand there."""

    def __init__(
        self, code: int, template: str, names: list[str], places: list[str], items: list[str]
    ) -> None:
        words = template.split(" ")
        self.template = code
        self.key = (len(words), words[0])
        self.first_at, self.first = self._find(words, "[A]", names)
        self.second_at, self.second = self._find(words, "[B]", names)
        self.subject_at, self.subject = self._find(words, "[S]", names)
        self.place_at, self.place = self._find(words, "[PLACE]", places)
        self.item_at, self.item = self._find(words, "[OBJECT]", items)

    @staticmethod
    def _find(words: list[str], slot: str, values: list[str]) -> tuple[int, dict[str, int]]:
        at = next(position for position, word in enumerate(words) if slot in word)
        return at, {words[at].replace(slot, value): code for code, value in enumerate(values)}


# A piece of a template that is still to be read: a token id, or a slot. "[PLACE]=" and "[OBJECT]=" are
# repetitions.
_Symbol = int | str
# What is left of one template (a number of `_GrammarBuilder.suffixes`), with what is known of its names,
# place and item.
_Item = tuple[int, int, int, int, int]
_State = frozenset[_Item]


class _GrammarBuilder:
    """Determinises the templates: a state is the set of the rests of templates, with known slots, that fit.

    What the rest of a template does not ask for is forgotten, and a pair of names is kept without its order,
    so that templates with the same ending share their states.
    """

    def __init__(self, task: IOITask, tokenizer: TextEncoder) -> None:
        self.task = task
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end token", "set its eos_token")
        self.end = int(tokenizer.eos_token_id)
        self.names = [self._one(word) for word in task.names]
        self.places = [self._one(word) for word in task.slot_values["place"]]
        self.items = [self._one(word) for word in task.slot_values["item"]]
        self.pieces = [self._pieces(template) for template in task.slot_values["template"]]
        self.suffixes: list[tuple[_Symbol, ...]] = []
        self.numbers: dict[tuple[_Symbol, ...], int] = {}
        self._check()

    def _encode(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def _one(self, word: str) -> int:
        tokens = self._encode(f" {word}")
        if len(tokens) != 1 or tokens[0] in (self.end, getattr(self.tokenizer, "unk_token_id", None)):
            raise InputError(
                f"the tokenizer does not encode the word ' {word}' as one token but as {tokens}",
                "use a tokenizer that knows the word, or lower ioi.n_names, ioi.n_places or ioi.n_items",
            )
        return tokens[0]

    @staticmethod
    def _pieces(template: str) -> list[str]:
        """Split a template into slots and the text between them; a slot takes the space before it."""
        return [piece.rstrip(" ") for piece in _SLOT.split(template) if piece.rstrip(" ")]

    def _symbols(self, template: int) -> tuple[_Symbol, ...]:
        symbols: list[_Symbol] = []
        for piece in self.pieces[template]:
            if _SLOT.fullmatch(piece):
                symbols.append(f"{piece}=" if piece in symbols else piece)
            else:
                symbols.extend(self._encode(piece))
        return tuple(symbols)

    def _check(self) -> None:
        """Compare whole prompts, which show every template, name, place and item, with their pieces."""
        task = self.task
        count = 8 * max(len(values) for values in task.slot_values.values())
        turn = np.arange(count)
        n = len(task.names)
        first = turn % n
        second = (first + 1 + turn // n % (n - 1)) % n
        codes = [
            turn % len(task.slot_values["template"]),
            turn // len(task.slot_values["template"]) % 2,
            first,
            second,
            (turn + turn // len(task.slot_values["place"])) % len(task.slot_values["place"]),
            (turn + turn // len(task.slot_values["item"])) % len(task.slot_values["item"]),
        ]
        index = task.index(np.stack(codes, axis=1))
        for text, slots in zip(task.texts(index), task.slots(index).tolist(), strict=True):
            words = {
                "[A]": task.names[slots[_NAME_A]],
                "[B]": task.names[slots[_NAME_B]],
                "[S]": task.names[slots[_NAME_A if slots[_ORDER] == 0 else _NAME_B]],
                "[PLACE]": task.slot_values["place"][slots[_PLACE]],
                "[OBJECT]": task.slot_values["item"][slots[_ITEM]],
            }
            found = self._encode(text)
            at = 0
            for piece in self.pieces[slots[_TEMPLATE]]:
                part = f" {words[piece]}" if piece in words else piece
                tokens = self._encode(part)
                if found[at : at + len(tokens)] != tokens:
                    raise InputError(
                        f"the tokenizer encodes '{part}' by itself otherwise than within '{text}'",
                        "use a tokenizer that splits text at spaces, as word-level tokenizers and GPT-2's do",
                    )
                at += len(tokens)
            if at != len(found):
                raise InputError(
                    f"the tokenizer puts {len(found) - at} more tokens behind the prompt '{text}'",
                    "use a tokenizer that adds no special tokens when it is told not to",
                )

    def _item(self, suffix: tuple[_Symbol, ...], first: int, second: int, place: int, item: int) -> _Item:
        number = self.numbers.get(suffix)
        if number is None:
            number = self.numbers[suffix] = len(self.suffixes)
            self.suffixes.append(suffix)
        if "[S]" not in suffix:
            first = second = -1
        elif second >= 0 and second < first:
            first, second = second, first
        return (
            number,
            first,
            second,
            place if "[PLACE]=" in suffix else -1,
            item if "[OBJECT]=" in suffix else -1,
        )

    def _successors(self, state: _State) -> dict[int, _State]:
        following: dict[int, set[_Item]] = {}
        for number, first, second, place, item in state:
            suffix = self.suffixes[number]
            if not suffix:
                following.setdefault(self.end, set())
                continue
            symbol, rest = suffix[0], suffix[1:]
            known = (first, second, place, item)
            reached: list[tuple[int, _Item]] = []
            if isinstance(symbol, int):
                reached = [(symbol, self._item(rest, *known))]
            elif symbol == "[A]":
                reached = [(t, self._item(rest, code, -1, place, item)) for code, t in enumerate(self.names)]
            elif symbol == "[B]":
                others = [(t, code) for code, t in enumerate(self.names) if code != first]
                reached = [(t, self._item(rest, first, code, place, item)) for t, code in others]
            elif symbol == "[S]":
                reached = [(self.names[code], self._item(rest, *known)) for code in (first, second)]
            elif symbol == "[PLACE]":
                reached = [(t, self._item(rest, first, second, c, item)) for c, t in enumerate(self.places)]
            elif symbol == "[OBJECT]":
                reached = [(t, self._item(rest, first, second, place, c)) for c, t in enumerate(self.items)]
            else:
                code, tokens = (place, self.places) if symbol == "[PLACE]=" else (item, self.items)
                reached = [(tokens[code], self._item(rest, *known))]
            for token, reached_item in reached:
                following.setdefault(token, set()).add(reached_item)
        return {token: frozenset(items) for token, items in following.items()}

    def build(self) -> Grammar:
        """Return the automaton."""
        start = frozenset(self._item(self._symbols(t), -1, -1, -1, -1) for t in range(len(self.pieces)))
        return build_grammar(start, self._successors, frozenset(), self.end)
