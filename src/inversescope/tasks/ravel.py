"""RAVEL: which attribute of an entity does a prompt ask for? (paper, sections 4.2 and D.2).

A prompt is a template with an entity in its place. The prior is uniform over the training templates filled with the training
entities of their type; target prompts hold entities that are in no prompt of the prior, in templates that it has (`seen`) or
has not (`new`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inversescope.config import RavelConfig
from inversescope.errors import InputError
from inversescope.tasks.base import Grammar, Task, TextEncoder, build_grammar
from inversescope.tasks.facts import EMBEDDED, FactTable, ambiguous_templates, limited, read_tables

#: Where `fetch_ravel` puts upstream's files, below the root.
SOURCE = Path("data/ravel/source")
#: The largest prior whose automaton is built; beyond it the backbone learns from drawn prompts.
MOST_IN_GRAMMAR = 50_000
# A token of a word-level tokenizer: a word with the space before it, a mark, or a space that no word follows.
_TOKEN = re.compile(r" ?\w+|[^\w\s]|\s")
_QUOTES = "\"'“‘"


class RavelTask(Task):
    """Templates filled with entities.

    Indices below `size` are the prior: training entities in training templates. Those from `size` to `universe` are all other
    pairs of a template and an entity of its type, so that target prompts can be addressed; they have no probability.

    Splits: `train` is the prior; `val` has validation entities in training templates; `test` has test entities in training and test
    templates.

    Args:
        config: where the fact tables come from, and how much of them is used.
        root: the repository's root, below which fetched tables lie.

    Raises:
        InputError: the tables are missing or not sound, or a split has no prompt.
    """

    name = "ravel"
    slot_names = ("template", "entity")
    features = ("attribute", "type", "entity", "template")
    splits = ("train", "test", "val")
    scan_sites = ("L*.resid_post",)
    names: list[str] = []

    def __init__(self, config: RavelConfig, root: Path = Path(".")) -> None:
        self.config = config
        folder = EMBEDDED if config.source == "embedded" else root / SOURCE
        tables = read_tables(folder)
        if config.types is not None:
            missing = sorted(set(config.types) - {table.kind for table in tables})
            if missing:
                raise InputError(
                    f"{folder} has no entity type '{missing[0]}'",
                    f"choose ravel.types among {', '.join(table.kind for table in tables)}",
                )
            tables = [table for table in tables if table.kind in config.types]
        self.ambiguous = ambiguous_templates(tables)
        tables = [limited(table, config.n_entities, config.n_templates) for table in tables]
        self._lay_out(tables)
        for split in self.splits:
            if not self.split_size(split):
                raise InputError(f"the {split} split of task ravel is empty", self.split_remedy(split))

    def _lay_out(self, tables: list[FactTable]) -> None:
        """Number types, attributes, entities, templates, then pairs: the prior first."""
        types = [table.kind for table in tables]
        attributes = [f"{table.kind}:{attribute}" for table in tables for attribute in table.attributes]
        self._entities = [name for table in tables for name in table.facts]
        entities = [f"{table.kind}:{name}" for table in tables for name in table.facts]
        self._entity_split = [table.split[name] for table in tables for name in table.facts]
        self._parts: list[tuple[str, str]] = []
        texts: list[str] = []
        attribute_of, type_of, template_split = [], [], []
        template_codes, entity_codes = [], []
        self._local: list[dict[str, int]] = []  # a type each: entity -> its number
        self._values: list[dict[str, str]] = [values for table in tables for values in table.facts.values()]
        self._attribute_names: list[str] = []
        first = 0
        for number, table in enumerate(tables):
            codes = np.arange(first, first + len(table.facts))
            self._local.append(dict(zip(table.facts, codes.tolist(), strict=True)))
            first += len(codes)
            for template in table.templates:
                if template.text in self.ambiguous:
                    continue
                template_codes.append(np.full(len(codes), len(texts)))
                entity_codes.append(codes)
                texts.append(template.text)
                self._parts.append(template.parts)
                attribute_of.append(attributes.index(f"{table.kind}:{template.attribute}"))
                self._attribute_names.append(template.attribute)
                type_of.append(number)
                template_split.append(template.split)
        self._attribute_of, self._type_of = np.array(attribute_of, np.int64), np.array(type_of, np.int64)
        if not template_codes:
            raise InputError("no template is left", "see ravel.types, ravel.n_templates and the fact tables")
        templates, entity = np.concatenate(template_codes), np.concatenate(entity_codes)
        inside_template = np.array([split == "train" for split in template_split])
        inside_entity = np.array([split == "train" for split in self._entity_split])
        prior = inside_template[templates] & inside_entity[entity]
        order = np.argsort(~prior, kind="stable")
        self._template, self._entity = templates[order], entity[order]
        self.size, self.universe = int(prior.sum()), len(order)
        # Index of a pair: pairs of a template follow each other before they are put in order.
        start = np.concatenate([[0], np.cumsum([len(codes) for codes in entity_codes])])
        self._start = start[:-1] - np.array([codes[0] for codes in entity_codes])
        self._index_of = np.empty(len(order), np.int64)
        self._index_of[order] = np.arange(len(order))
        self._seen_template = inside_template
        self.slot_values = {"template": texts, "entity": entities}
        self.feature_values = {"attribute": attributes, "type": types, "entity": entities, "template": texts}
        e_split, t_split = (
            np.array(self._entity_split)[self._entity],
            np.array(template_split)[self._template],
        )
        self._of_split = {
            "train": np.arange(self.size),
            "val": np.flatnonzero((e_split == "val") & (t_split == "train")),
            "test": np.flatnonzero((e_split == "test") & np.isin(t_split, ("train", "test"))),
        }
        self._split_codes = np.full(len(order), -1, np.int8)
        for code, split in enumerate(self.splits):
            self._split_codes[self._of_split[split]] = code
        known = np.array(
            [
                bool(self._values[e][self._attribute_names[t]])
                for t, e in zip(self._template, self._entity, strict=True)
            ]
        )
        self._facts = {
            "train": np.flatnonzero(known & (t_split == "train")),
            "held_out": np.flatnonzero(known & (t_split != "train")),
        }
        self._prior_entities = [
            np.array([code for code in local.values() if inside_entity[code]]) for local in self._local
        ]
        self._prior_templates = [
            np.flatnonzero(inside_template & (self._type_of == number)) for number in range(len(types))
        ]
        self.move_counts = (
            max(len(codes) for codes in self._prior_entities),
            max(len(codes) for codes in self._prior_templates),
            max(self.size, 1),
        )

    # The prior and its prompts

    def check_index(self, index: np.ndarray) -> np.ndarray:
        """Return the indices as int64 (N,), or raise IndexError if one is no pair of template and entity."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if index.size and (index.min() < 0 or index.max() >= self.universe):
            raise IndexError(f"prompt index outside [0, {self.universe}): {index.min()} to {index.max()}")
        return index

    def slots(self, index: np.ndarray) -> np.ndarray:
        """Return template and entity of prompts, int16 (N, 2); raises IndexError outside the universe."""
        index = self.check_index(index)
        return np.stack([self._template[index], self._entity[index]], axis=1).astype(np.int16)

    def index(self, slots: np.ndarray) -> np.ndarray:
        """Return the indices of slot codes (N, 2), int64; -1 where the entity is of another type than the template."""
        template, entity = np.asarray(slots, dtype=np.int64).reshape(-1, 2).T
        known = (
            (template >= 0) & (template < len(self._parts)) & (entity >= 0) & (entity < len(self._entities))
        )
        result = np.full(len(template), -1, np.int64)
        bounds = np.array([(min(local.values()), max(local.values())) for local in self._local])
        low, high = bounds[self._type_of[np.where(known, template, 0)]].T
        known &= (entity >= low) & (entity <= high)
        result[known] = self._index_of[self._start[template[known]] + entity[known]]
        return result

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts' texts as they stand in the templates, spaces at their ends included."""
        index = self.check_index(index)
        parts, names = self._parts, self._entities
        pairs = zip(self._template[index].tolist(), self._entity[index].tolist(), strict=True)
        return [parts[t][0] + names[e] + parts[t][1] for t, e in pairs]

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        """Return the index of each text, int64 (N,), or -1 if it is not exactly a text of the prior."""
        found = self._match(texts)
        return np.where(found < self.size, found, -1)

    def _match(self, texts: Sequence[str]) -> np.ndarray:
        """Return the index of each text in the universe, one of the prior first, or -1."""
        known: dict[str, int] = {}
        result = np.empty(len(texts), np.int64)
        for position, text in enumerate(texts):
            index = known.get(text)
            if index is None:
                index = known[text] = self._match_one(text)
            result[position] = index
        return result

    def _match_one(self, text: str) -> int:
        best = -1
        for template, (before, after) in enumerate(self._parts):
            if not (text.startswith(before) and text.endswith(after)):
                continue
            entity = self._local[self._type_of[template]].get(text[len(before) : len(text) - len(after)])
            if entity is not None:
                index = int(self._index_of[self._start[template] + entity])
                best = index if best < 0 else min(best, index)
        return best

    def answers(self, index: np.ndarray) -> list[str]:
        """Return the value that each prompt asks for, "" where the table has none."""
        index = self.check_index(index)
        pairs = zip(self._template[index].tolist(), self._entity[index].tolist(), strict=True)
        return [self._values[e][self._attribute_names[t]] for t, e in pairs]

    def continuations(self, index: np.ndarray) -> list[str]:
        """Return what follows each prompt: its answer, after a space unless the prompt ends in one or in a quotation mark."""
        index = self.check_index(index)
        ends = [self._parts[t][1][-1:] for t in self._template[index].tolist()]
        glued = [end.isspace() or end in _QUOTES for end in ends]
        return [
            answer if without else f" {answer}"
            for answer, without in zip(self.answers(index), glued, strict=True)
        ]

    # Features

    def features_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return the label codes of each feature, int32 (N,); -1 where the index is -1."""
        index = np.atleast_1d(np.asarray(index, dtype=np.int64))
        known = index != -1
        at = self.check_index(np.where(known, index, 0))
        template, entity = self._template[at], self._entity[at]
        codes = {
            "attribute": self._attribute_of[template],
            "type": self._type_of[template],
            "entity": entity,
            "template": template,
        }
        return {feature: np.where(known, codes[feature], -1).astype(np.int32) for feature in self.features}

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes by strict match with a template and an entity of its type (D.2.4), int32 (N,); -1 is "null"."""
        return self.features_of(self._match(texts))

    def chance(self, feature: str) -> float:
        """Return the probability that two independent draws from the prior share a feature's label."""
        counts = np.bincount(self.features_of(np.arange(self.size))[feature])
        return float(((counts / self.size) ** 2).sum())

    # Splits

    def split_of(self, index: np.ndarray) -> np.ndarray:
        """Return the split of each prompt, int8 (N,): its position in `splits`, -1 for pairs that are in none."""
        return self._split_codes[self.check_index(index)]

    def split_size(self, split: str | None = None) -> int:
        """Return the number of prompts of a split, or of the prior if `split` is None."""
        return self.size if split is None else len(self._rows(split))

    def split_index(self, rank: np.ndarray, split: str | None = None) -> np.ndarray:
        """Return the prompts at the given ranks of a split in ascending order, int64 (N,)."""
        rank = np.atleast_1d(np.asarray(rank, dtype=np.int64))
        return self._rows(split or "train")[rank]

    def _rows(self, split: str) -> np.ndarray:
        if split not in self.splits:
            raise InputError(
                f"unknown split '{split}' of task ravel", f"choose one of: {', '.join(self.splits)}"
            )
        return self._of_split[split]

    def split_remedy(self, split: str | None) -> str:
        """Return what makes a split larger, in words, for error messages."""
        return "raise ravel.n_entities or ravel.n_templates, or use tables with more of them"

    def counted(self, index: np.ndarray) -> np.ndarray:
        """Return which target prompts enter fcr.csv: those in seen templates; rates in new templates stand apart."""
        return self._seen_template[self._template[self.check_index(index)]]

    def target_sample(self, n: int, part: str, rng: np.random.Generator) -> np.ndarray:
        """Draw prompts for the target model's own training, with replacement.

        It learns the facts of all entities (`train`, and `gate`: facts can be learned by heart only), asked for by training
        templates; `held_out` has the others.
        """
        rows = self._facts["held_out" if part == "held_out" else "train"]
        return rows[rng.integers(len(rows), size=n)] if len(rows) else rows

    # Words and grammar

    def words(self) -> list[str]:
        """Return all tokens of a word-level tokenizer: of templates, entities and values, each with the space before it."""
        found: dict[str, None] = {}
        contexts: list[set[tuple[str, str]]] = [set() for _ in self._local]
        for template, (before, after) in enumerate(self._parts):
            kind = int(self._type_of[template])
            contexts[kind].add((before[-1:], after[:1]))
            entity = next(iter(self._local[kind]))
            found |= dict.fromkeys(_TOKEN.findall(before + entity + after))
        for kind, local in enumerate(self._local):
            for entity in local:
                for before, after in sorted(contexts[kind]):
                    found |= dict.fromkeys(_TOKEN.findall(before + entity + after))
        for answer in {answer for values in self._values for answer in values.values()}:
            found |= dict.fromkeys(_TOKEN.findall(answer) + _TOKEN.findall(f" {answer}"))
        return sorted(found)

    def single_token_words(self) -> list[str]:
        """Return nothing: entities and values may be several tokens."""
        return []

    def grammar(self, tokenizer: TextEncoder) -> Grammar:
        """Return the smallest automaton of the prior's texts over a tokenizer's ids.

        Raises:
            InputError: the prior has too many prompts, or the tokenizer has no end token.
        """
        if self.size > MOST_IN_GRAMMAR:
            raise InputError(
                f"the automaton of {self.size} prompts would not fit into memory",
                "set backbone.targets: samples, and leave 'masked' out of the decoding rules",
            )
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end token", "set its eos_token")
        end = int(tokenizer.eos_token_id)
        texts = self.texts(np.arange(self.size))
        rows = sorted((*tokenizer.encode(text, add_special_tokens=False), end) for text in texts)
        # What may follow a beginning is what may follow any other with the same rests: such states are one.
        numbers: dict[tuple[tuple[int, int], ...], int] = {}

        def state(low: int, high: int, depth: int) -> int:
            following: list[tuple[int, int]] = []
            while low < high:
                token = rows[low][depth]
                stop = low
                while stop < high and rows[stop][depth] == token:
                    stop += 1
                following.append((token, state(low, stop, depth + 1) if token != end else -1))
                low = stop
            return numbers.setdefault(tuple(following), len(numbers))

        start = state(0, len(rows), 0)
        table = {number: dict(following) for following, number in numbers.items()}
        return build_grammar(start, lambda number: table.get(number, {}), -1, end)

    # Markov chain

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return where a move leads, int64 (N,).

        Kind 0 puts the `value`-th training entity of the type into the template, kind 1 its entity into the `value`-th training
        template, kind 2 leads to prompt `value` of the prior. A move that would leave the prior, or a value that the type has not,
        leads nowhere. Each kind is symmetric by itself.
        """
        index = self.check_index(index)
        kind, value = np.asarray(kind, dtype=np.int64), np.asarray(value, dtype=np.int64)
        template, entity = self._template[index].copy(), self._entity[index].copy()
        for number in range(len(self._local)):
            here = self._type_of[template] == number
            for which, codes, slot in (
                (0, self._prior_entities[number], entity),
                (1, self._prior_templates[number], template),
            ):
                rows = np.flatnonzero(here & (kind == which) & (value < len(codes)))
                slot[rows] = codes[value[rows]]
        found = self.index(np.stack([template, entity], axis=1))
        found = np.where(kind == 2, value, found)
        return np.where((found >= 0) & (found < self.size), found, index)
