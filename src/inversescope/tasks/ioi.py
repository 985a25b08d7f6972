"""Indirect object identification: prior, parsing, features, splits, grammar (paper, sections 2, 4.1, D.1).

A prompt names two persons, repeats one of them (the subject) and stops right before the other (the indirect
object): "After John and Mary went to the store, Mary gave a drink to".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inversescope.config.tasks import IOIConfig
from inversescope.tasks.automata import (
    Grammar,
    TextEncoder,
    check_pieces,
    end_token,
    single_tokens,
    token_ids,
    write_grammar,
)
from inversescope.tasks.base import Task, first, held_out, of_each

_FOLDER = Path(__file__).parent / "data/ioi"


class Lists(NamedTuple):
    """What prompts are made of: texts each, and for templates of somebody else's what they stand for and whose words they are."""

    templates: list[str]
    names: list[str]
    places: list[str]
    items: list[str]


def _lists(file: str) -> Lists:
    """A file of lists. A template is a text, or a table of `text`, `stands_for` and `wording`."""
    data = json.loads((_FOLDER / file).read_text(encoding="utf-8"))
    templates = [one if isinstance(one, str) else one["text"] for one in data["templates"]]
    return Lists(templates, data["names"], data["places"], data["items"])


# [A] and [B] are the first and second name in the text, [S] the one that is repeated. No template starts with a slot, because a
# word at the start of a text is another token than the same word after a space.
#
# `own`: the first ten templates are the paper's own wordings (section 4.1, Table 1, section E.1), the others ours, in the same
# manner. Names are common English first names, each a single token of GPT-2's vocabulary after a space; the embedded study uses the
# first 32. All places and the first five items stand in the samples that the paper shows (Table 1, section 4.1).
#
# `conmy`: the lists of Conmy et al. (2023), which D.1.1 names; the file says which templates are in their words.
LISTS = {"own": _lists("words.json"), "conmy": _lists("conmy.json")}
ORDERS = ("ABA", "ABB")

_SLOT = re.compile(r"(\[[A-Z]+\])")
_WORD = re.compile(r"\w+|[^\w\s]")
_SPACED_WORD = re.compile(r" ?\w+|[^\w\s]")
_N_SLOTS = 6
_TEMPLATE, _ORDER, _NAME_A, _NAME_B, _PLACE, _ITEM = range(_N_SLOTS)
# Kinds of moves: re-draw slot 0 to 5; swap the two names; swap them and the order, which keeps subject and
# object.
_SWAP, _SWAP_ROLES_KEPT = 6, 7
# What is left of a template, as pieces of text and slots ("[OBJECT]=" is a repetition), and the codes of known slots.
_Rest = tuple[tuple[str, ...], tuple[tuple[str, int], ...]]


class IOITask(Task):
    """The IOI prior of D.1.1: template, order, two distinct names, place and item, each uniform.

    Args:
        config: how many of the templates, names, places and items are used, and the split.
        root: not used.

    Raises:
        InputError: more names, templates, places or items are asked for than there are.
    """

    name = "ioi"
    slot_names = ("template", "order", "name_a", "name_b", "place", "item")
    position_names = ("S1", "S2", "IO")
    counterfactual_features = ("object", "subject")
    enlarging = ("raise ioi.n_names", "ioi.held_out_pairs")

    def __init__(self, config: IOIConfig, root: Path = Path(".")) -> None:
        known = LISTS[config.lists]
        templates = first("ioi.n_templates", config.n_templates, known.templates)
        self.names = first("ioi.n_names", config.n_names, known.names)
        places = first("ioi.n_places", config.n_places, known.places)
        items = first("ioi.n_items", config.n_items, known.items)
        self.config, self.features = config, config.feature_names
        shared = {"template": templates, "order": list(ORDERS), "place": places, "item": items}
        values = shared | dict.fromkeys(
            ("name_a", "name_b", "subject", "object", "first", "second"), self.names
        )
        self.slot_values = {name: values[name] for name in self.slot_names}
        self.feature_values = {name: values[name] for name in self.features}
        n = len(self.names)
        # The digits of an index; the second name is counted among the names other than the first.
        self._radix = (len(templates), len(ORDERS), n * (n - 1), len(places), len(items))
        self.size = int(np.prod(self._radix))
        others = {slot: max(1, len(self.slot_values[slot]) - 1) for slot in self.slot_names}
        others |= {"name_a": n - 2, "name_b": n - 2}
        self.move_counts = (*others.values(), 1, 1)
        self._held_out = self._hold_out_pairs()
        pairs = np.arange(n * (n - 1))
        of_test = self._held_out[self._names_of_pair(pairs)]
        self._pairs_of_split = {"train": pairs[~of_test], "test": pairs[of_test]}
        self._formats = [
            _printf(template, place, item) for template in templates for place in places for item in items
        ]
        self._codes = {
            slot: {word: code for code, word in enumerate(values[slot])}
            for slot in ("name_a", "place", "item")
        }
        self._patterns: dict[str, list[tuple[int, re.Pattern[str]]]] = {}
        for code, template in enumerate(templates):
            self._patterns.setdefault(template.split(" ")[0], []).append((code, _pattern(template)))

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
        return np.stack(self._digits(index), axis=1).astype(np.int16)

    def index(self, slots: np.ndarray) -> np.ndarray:
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
        return self.index(np.array(of_each(texts, self._parse), np.int64))

    def _parse(self, text: str) -> list[int]:
        """Slot codes of a text, -1 where it is not one of the prior."""
        for code, pattern in self._patterns.get(text.split(" ", 1)[0], ()):
            match = pattern.fullmatch(text)
            if match is None or match["S"] not in (match["A"], match["B"]):
                continue
            first, second = (self._codes["name_a"].get(match[slot], -1) for slot in "AB")
            place, item = (
                self._codes["place"].get(match["PLACE"], -1),
                self._codes["item"].get(match["OBJECT"], -1),
            )
            if min(first, second, place, item) >= 0:
                return [code, int(match["S"] != match["A"]), first, second, place, item]
        return [-1] * _N_SLOTS

    def answers(self, index: np.ndarray) -> list[str]:
        """Return the indirect object of each prompt, the name that should follow."""
        return [self.names[code] for code in self.labels(self.check_index(index))["object"]]

    def _counterfactuals(self, feature: str, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Prompts with another object, or another subject, in all its places; the other name and all words stay."""
        slots = self.slots(index).astype(np.int64)
        first = (slots[:, _ORDER] == 0) == (feature == "subject")
        column = np.where(first, _NAME_A, _NAME_B)
        low, high = slots[:, [_NAME_A, _NAME_B]].min(1), slots[:, [_NAME_A, _NAME_B]].max(1)
        fresh = rng.integers(len(self.names) - 2, size=len(slots))
        fresh += fresh >= low
        fresh += fresh >= high
        slots[np.arange(len(slots)), column] = fresh
        return self.index(slots)

    def _offsets(self, name: str, index: np.ndarray) -> np.ndarray:
        """Where the first and second mention of the subject and the only one of the object stand, in characters."""
        codes = self.labels(index)["object" if name == "IO" else "subject"]
        result = np.empty(len(index), np.int64)
        for row, (text, code) in enumerate(zip(self.texts(index), codes.tolist(), strict=True)):
            mentions = [m.start() for m in re.finditer(rf"\b{self.names[code]}\b", text)]
            result[row] = mentions[1 if name == "S2" else 0]
        return result

    # Features

    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        template, order, first, second, place, item = self._digits(index)
        return {
            "subject": np.where(order == 0, first, second),
            "object": np.where(order == 0, second, first),
            "template": template,
            "order": order,
            "first": first,
            "second": second,
            "place": place,
            "item": item,
        }

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
        for position, labels in enumerate(of_each(texts, self._count)):
            for feature, code in labels.items():
                result[feature][position] = code
        return result

    def _count(self, text: str) -> dict[str, int]:
        words = _WORD.findall(text)
        names = self._codes["name_a"]
        mentions = [names[word] for word in words if word in names]
        labels: dict[str, int] = {}
        if len(mentions) >= 2 and mentions[0] != mentions[1]:
            labels["first"], labels["second"] = mentions[0], mentions[1]
        once = [name for name in set(mentions) if mentions.count(name) == 1]
        twice = [name for name in set(mentions) if mentions.count(name) == 2]
        if len(mentions) == 3 and len(once) == 1 and len(twice) == 1:
            labels["subject"], labels["object"] = twice[0], once[0]
            if "first" in labels:
                labels["order"] = 0 if twice[0] == mentions[0] else 1
        for feature in ("place", "item"):
            codes = self._codes[feature]
            found = {codes[word] for word in words if word in codes}
            if len(found) == 1:
                labels[feature] = found.pop()
        return labels

    def chance(self, feature: str) -> float:
        # Every feature is uniform over its labels, because each label has as many prompts as any other.
        return 1.0 / len(self.feature_values[feature])

    # Splits

    def _hold_out_pairs(self) -> np.ndarray:
        """Which pairs of names are held out, a symmetric bool matrix (n_names, n_names)."""
        first, second = np.array(list(combinations(range(len(self.names)), 2))).T
        pairs = [" ".join(sorted(pair)) for pair in combinations(self.names, 2)]
        chosen = held_out(pairs, self.config.held_out_pairs, self.config.split_seed)
        matrix = np.zeros((len(self.names), len(self.names)), dtype=bool)
        matrix[first, second] = matrix[second, first] = chosen
        return matrix

    def _split_radix(self, split: str | None) -> tuple[int, ...]:
        if split is None:
            return self._radix
        return (*self._radix[:2], len(self._pairs_of_split[self.check_split(split)]), *self._radix[3:])

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): 0 = train, 1 = test, by its unordered pair of names."""
        _, _, first, second, _, _ = self._digits(index)
        return self._held_out[first, second].astype(np.int8)

    def split_size(self, split: str | None = None) -> int:
        return int(np.prod(self._split_radix(split)))

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        rank = np.atleast_1d(np.asarray(rank, dtype=np.int64))
        if split is None or rank.size == 0:
            return self.check_index(rank)
        template, order, pair, place, item = np.unravel_index(rank, self._split_radix(split))
        pair = self._pairs_of_split[split][pair]
        return np.ravel_multi_index((template, order, pair, place, item), self._radix).astype(np.int64)

    # Words and grammar

    def words(self) -> list[str]:
        templates = [_SLOT.sub("", template) for template in self.slot_values["template"]]
        literals = [word for template in templates for word in _SPACED_WORD.findall(template)]
        return list(dict.fromkeys([*literals, *(f" {word}" for word in self.single_token_words())]))

    def single_token_words(self) -> list[str]:
        return [*self.names, *self.slot_values["place"], *self.slot_values["item"]]

    def grammar(self, tokenizer: TextEncoder) -> Grammar:
        """Return the automaton of the prior's texts over a tokenizer's ids, word-level and BPE alike.

        It is built from the tokens of the pieces of the templates; that a whole prompt has the same tokens is
        checked on prompts that show every template, name, place and item.

        Raises:
            InputError: a name, place or item is not one token, a prompt's tokens are not those of its pieces,
                or the tokenizer has no end token. The message names the word.
        """
        ids = single_tokens(
            tokenizer,
            [f" {word}" for word in self.single_token_words()],
            "use a tokenizer that knows the word, or lower ioi.n_names, ioi.n_places or ioi.n_items",
        )
        for text, pieces in self._shown():
            check_pieces(tokenizer, text, pieces)
        slots = {"[A]": "name_a", "[B]": "name_b", "[PLACE]": "place", "[OBJECT]": "item"}
        tokens = {
            piece: [ids[f" {word}"] for word in self.slot_values[slot]] for piece, slot in slots.items()
        }

        def ways(rest: _Rest) -> Iterator[tuple[tuple[int, ...], _Rest]]:
            pieces, known = rest
            if not pieces:
                return
            piece, behind, codes = pieces[0], pieces[1:], dict(known)
            if piece == "[S]":
                for code in (codes["[A]"], codes["[B]"]):
                    yield (tokens["[A]"][code],), _known(behind, codes)
            elif piece.endswith("]="):
                yield (tokens[piece[:-1]][codes[piece[:-1]]],), _known(behind, codes)
            elif piece not in tokens:
                yield token_ids(tokenizer, piece), _known(behind, codes)
            else:
                for code, token in enumerate(tokens[piece]):
                    if piece != "[B]" or code != codes["[A]"]:
                        yield (token,), _known(behind, {**codes, piece: code})

        start = [_known(_marked(_pieces(template)), {}) for template in self.slot_values["template"]]
        return write_grammar(start, ways, end_token(tokenizer))

    def _shown(self) -> Iterator[tuple[str, list[str]]]:
        """Prompts that show every template, name, place and item, each with its pieces."""
        turn = np.arange(8 * max(len(values) for values in self.slot_values.values()))
        templates, orders, n, _, places, items = (len(self.slot_values[slot]) for slot in self.slot_names)
        first, second = turn % n, (turn % n + 1 + turn // n % (n - 1)) % n
        place, item = (turn + turn // places) % places, (turn + turn // items) % items
        codes = [turn % templates, turn // templates % orders, first, second, place, item]
        index = self.index(np.stack(codes, axis=1))
        for text, slots in zip(self.texts(index), self.slots(index).tolist(), strict=True):
            values = [self.slot_values[slot][code] for slot, code in zip(self.slot_names, slots, strict=True)]
            words = {
                "[A]": values[_NAME_A],
                "[B]": values[_NAME_B],
                "[PLACE]": values[_PLACE],
                "[OBJECT]": values[_ITEM],
            }
            words["[S]"] = words["[A]" if slots[_ORDER] == 0 else "[B]"]
            yield (
                text,
                [f" {words[piece]}" if piece in words else piece for piece in _pieces(values[_TEMPLATE])],
            )

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


def _printf(template: str, place: str, item: str) -> str:
    """Return a template with place and item filled in, and `%s` for each of the three names."""
    text = template.replace("%", "%%").replace("[PLACE]", place).replace("[OBJECT]", item)
    return text.replace("[A]", "%s").replace("[B]", "%s").replace("[S]", "%s")


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression of a template, with a group a slot; a slot that is repeated stands for the same word."""
    parts: list[str] = []
    for piece in _SLOT.split(template):
        name = piece.strip("[]")
        if not _SLOT.fullmatch(piece):
            parts.append(re.escape(piece))
        else:
            parts.append(f"(?P={name})" if f"(?P<{name}>\\w+)" in parts else f"(?P<{name}>\\w+)")
    return re.compile("".join(parts))


def _pieces(template: str) -> list[str]:
    """Split a template into slots and the text between them; a slot takes the space before it."""
    return [piece.rstrip(" ") for piece in _SLOT.split(template) if piece.rstrip(" ")]


def _marked(pieces: list[str]) -> tuple[str, ...]:
    """Pieces, with a mark at slots that are repetitions."""
    return tuple(
        f"{piece}=" if _SLOT.fullmatch(piece) and piece in pieces[:place] else piece
        for place, piece in enumerate(pieces)
    )


def _known(pieces: tuple[str, ...], codes: Mapping[str, int]) -> _Rest:
    """What is left of a template, and the codes of the slots that it asks for again; all others are forgotten, and a pair of names
    is kept without its order, so that templates that end alike share their states."""
    asked = {"[A]", "[B]"} if "[S]" in pieces else set()
    asked |= {piece[:-1] for piece in pieces if piece.endswith("]=")}
    known = {piece: code for piece, code in codes.items() if piece in asked}
    if "[A]" in known and known.get("[B]", known["[A]"]) < known["[A]"]:
        known["[A]"], known["[B]"] = known["[B]"], known["[A]"]
    return pieces, tuple(sorted(known.items()))
