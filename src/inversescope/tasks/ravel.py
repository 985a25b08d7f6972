"""RAVEL: which attribute of an entity does a prompt ask for? (paper, sections 4.2 and D.2).

A prompt is a template with an entity in its place. The prior is uniform over the training templates filled with the training
entities of their type; target prompts hold entities that are in no prompt of the prior, in templates that it has (`seen`) or
has not (`new`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from inversescope.config.tasks import RavelConfig
from inversescope.errors import InputError
from inversescope.tasks.automata import PromptTree, TextEncoder
from inversescope.tasks.base import Task, of_each, split_words
from inversescope.tasks.facts import EMBEDDED, FactTable, ambiguous_templates, limited, read_tables

#: Where `fetch_ravel` puts upstream's files, below the root.
SOURCE = Path("data/ravel/source")
#: The largest prior whose automaton is built; beyond it the backbone learns from drawn prompts.
MOST_IN_GRAMMAR = 50_000
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
    splits = ("train", "test", "val")
    scan_sites = ("L*.resid_post",)
    enlarging = ("raise ravel.n_entities or ravel.n_templates, or use tables with more of them", "")

    def __init__(self, config: RavelConfig, root: Path = Path(".")) -> None:
        self.config, self.features = config, config.feature_names
        folder = EMBEDDED if config.source == "embedded" else root / SOURCE
        tables = read_tables(folder, config.types)
        self.ambiguous = ambiguous_templates(tables)
        tables = [limited(table, config.n_entities, config.n_templates) for table in tables]
        self._lay_out(tables)
        for split in self.splits:
            if not self.split_size(split):
                raise InputError(f"the {split} split of task ravel is empty", self.split_remedy(split))

    def _lay_out(self, tables: list[FactTable]) -> None:
        """Number types, attributes, entities, templates, then pairs: the prior first."""
        kept = [
            (number, table, template)
            for number, table in enumerate(tables)
            for template in table.templates
            if template.text not in self.ambiguous
        ]
        if not kept:
            raise InputError("no template is left", "see ravel.types, ravel.n_templates and the fact tables")
        attributes = [f"{table.kind}:{attribute}" for table in tables for attribute in table.attributes]
        entities = [f"{table.kind}:{name}" for table in tables for name in table.facts]
        texts = [template.text for _, _, template in kept]
        self._entities = [name for table in tables for name in table.facts]
        self._values = [values for table in tables for values in table.facts.values()]
        self._parts = [template.parts for _, _, template in kept]
        self._attribute_names = [template.attribute for _, _, template in kept]
        self._attribute_of = np.array(
            [attributes.index(f"{table.kind}:{template.attribute}") for _, table, template in kept], np.int64
        )
        self._type_of = np.array([number for number, _, _ in kept], np.int64)
        ends = np.cumsum([len(table.facts) for table in tables]).tolist()
        codes = [np.arange(end - len(table.facts), end) for end, table in zip(ends, tables, strict=True)]
        #: Of each type: entity -> its number.
        self._local = [
            dict(zip(table.facts, own.tolist(), strict=True))
            for own, table in zip(codes, tables, strict=True)
        ]
        entity_split = np.array([table.split[name] for table in tables for name in table.facts])
        template_split = np.array([template.split for _, _, template in kept])
        self._seen_template, seen_entity = template_split == "train", entity_split == "train"
        sizes = [len(codes[number]) for number in self._type_of]
        templates = np.repeat(np.arange(len(kept)), sizes)
        entity = np.concatenate([codes[number] for number in self._type_of])
        prior = self._seen_template[templates] & seen_entity[entity]
        order = np.argsort(~prior, kind="stable")
        self._template, self._entity, self.size = templates[order], entity[order], int(prior.sum())
        # Index of a pair: pairs of a template follow each other before they are put in order.
        self._start = np.cumsum([0, *sizes[:-1]]) - np.array([codes[number][0] for number in self._type_of])
        self._index_of = np.empty(len(order), np.int64)
        self._index_of[order] = np.arange(len(order))
        self.slot_values = {"template": texts, "entity": entities}
        types = [table.kind for table in tables]
        self.feature_values = {"attribute": attributes, "type": types, "entity": entities, "template": texts}
        self._lay_out_splits(entity_split[self._entity], template_split[self._template])
        own_entities = [own[seen_entity[own]] for own in codes]
        own_templates = [
            np.flatnonzero(self._seen_template & (self._type_of == number)) for number in range(len(tables))
        ]
        self._prior_values = list(zip(own_entities, own_templates, strict=True))
        self.move_counts = (max(map(len, own_entities)), max(map(len, own_templates)), max(self.size, 1))

    def _lay_out_splits(self, entity: np.ndarray, template: np.ndarray) -> None:
        """Which pairs a split has, and which the target learns: splits of each pair's entity and template, str (universe,)."""
        self.split_rows = {
            "train": np.arange(self.size),
            "val": np.flatnonzero((entity == "val") & (template == "train")),
            "test": np.flatnonzero((entity == "test") & np.isin(template, ("train", "test"))),
        }
        known = np.array([bool(answer) for answer in self.answers(np.arange(self.universe))])
        self._facts = {
            "train": np.flatnonzero(known & (template == "train")),
            "held_out": np.flatnonzero(known & (template != "train")),
        }

    # The prior and its prompts

    @property
    def universe(self) -> int:
        return len(self._template)

    def slots(self, index: np.ndarray) -> np.ndarray:
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
        found = self._match(texts)
        return np.where(found < self.size, found, -1)

    def _match(self, texts: Sequence[str]) -> np.ndarray:
        """Return the index of each text in the universe, one of the prior first, or -1."""
        return np.array(of_each(texts, self._match_one), np.int64)

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
        """Return what follows each prompt: its answer, after a space unless there is one, or a quotation mark before it."""
        index = self.check_index(index)
        ends = [self._parts[t][1][-1:] for t in self._template[index].tolist()]
        glued = [end.isspace() or end in _QUOTES for end in ends]
        return [
            answer if without or answer[:1].isspace() else f" {answer}"
            for answer, without in zip(self.answers(index), glued, strict=True)
        ]

    # Features

    def labels(self, index: np.ndarray) -> Mapping[str, np.ndarray]:
        template, entity = self._template[index], self._entity[index]
        return {
            "attribute": self._attribute_of[template],
            "type": self._type_of[template],
            "entity": entity,
            "template": template,
        }

    def features_of_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return label codes by strict match with a template and an entity of its type (D.2.4), int32 (N,); -1 is "null"."""
        return self.features_of(self._match(texts))

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
            found |= dict.fromkeys(split_words(before + entity + after))
        for kind, local in enumerate(self._local):
            for entity in local:
                for before, after in sorted(contexts[kind]):
                    found |= dict.fromkeys(split_words(before + entity + after))
        for answer in {answer for values in self._values for answer in values.values()}:
            found |= dict.fromkeys(split_words(answer) + split_words(f" {answer}"))
        return sorted(found)

    def grammar(self, tokenizer: TextEncoder) -> PromptTree:
        if self.size > MOST_IN_GRAMMAR:
            raise InputError(
                f"the automaton of {self.size} prompts would not fit into memory",
                "set backbone.targets: samples, and leave 'masked' out of the decoding rules",
            )
        return PromptTree(tokenizer, self.texts(np.arange(self.size)))

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
        for number, values in enumerate(self._prior_values):
            here = self._type_of[template] == number
            for which, (codes, slot) in enumerate(zip(values, (entity, template), strict=True)):
                rows = np.flatnonzero(here & (kind == which) & (value < len(codes)))
                slot[rows] = codes[value[rows]]
        found = self.index(np.stack([template, entity], axis=1))
        found = np.where(kind == 2, value, found)
        return np.where((found >= 0) & (found < self.size), found, index)
