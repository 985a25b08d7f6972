"""Priors P(x), one model a task."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import regex
from pydantic import Field, field_validator, model_validator

from inversescope.config.entries import Misplaced
from inversescope.config.strict import Pinned, Strict

TaskName = Literal[
    "ioi", "ioi_small", "ravel", "icl_translation", "icl_words", "counting", "addition", "text"
]
#: Folder of what is fetched for a prior, and the files of a data set that is copied from the hub.
FETCHED = "source"
COPIED = ("corpus.parquet", "manifest.json")
SPLIT_SEED = "Another seed holds other ones out."


class Prior(Strict):
    """What every prior says before its prompts are made."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features that its prompts have, in the task's order."""
        raise NotImplementedError


class IOIConfig(Prior):
    """The prior of the indirect object identification task (paper, D.1.1)."""

    lists: Literal["own", "conmy"] = "own"
    """Whose templates, names, places and objects: the package's, or those of Conmy et al. (2023), which the paper takes (D.1.1)."""
    n_names: int = Field(32, ge=4, description="Names, from the first of the list.")
    n_templates: int = Field(8, ge=1, description="Sentence templates, each in both orders of the names.")
    n_places: int = Field(8, ge=1, description="Places.")
    n_items: int = Field(8, ge=1, description="Objects that are given.")
    held_out_pairs: float = Field(0.05, gt=0, lt=1)
    """Share of unordered name pairs kept for the test split."""
    split_seed: int = Field(0, description=SPLIT_SEED)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return ("subject", "object", "template", "order", "first", "second", "place", "item")


class SmallIOIConfig(IOIConfig):
    """The same with fewer words: on a language model, all of its prompts can be run."""

    n_names: int = Field(12, ge=4, description="Names, from the first of the list.")
    n_places: int = Field(4, ge=1, description="Places.")
    n_items: int = Field(4, ge=1, description="Objects that are given.")


class CorpusConfig(Pinned):
    """A data set: of the hub at a pinned revision, or local (docs/text.md)."""

    path: str = Field(..., min_length=1)
    """Local file or folder inside the project, or owner/name on the hub."""
    revision: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    """Commit of the hub's data set; required for source: hub."""
    configuration: str | None = Field(None, description="Of a data set that has several.")
    split: str = Field("train", min_length=1, description="Of a data set that has several.")
    rows: int | None = Field(None, ge=1)
    """Rows that are read, from the first: of the hub they are streamed. All if absent: the whole split is downloaded."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name of a column -> the data set's, where it differs; a.b is the field b of the column a."""
    format: Literal["parquet", "jsonl", "csv", "text"] | None = None
    """Of a local file; if absent, its suffix says: .parquet, .jsonl, .csv, .txt."""

    @model_validator(mode="after")
    def _named_on_the_hub(self) -> CorpusConfig:
        # Other names mean something else to `datasets`: one of its own readers, or a folder.
        if self.source == "hub" and not regex.fullmatch(r"[\w-][\w.-]*/[\w.-]+", self.path):
            raise Misplaced(("path",), f"is no owner/name of a data set on the hub: {self.path!r}")
        return self

    @property
    def named(self) -> str:
        """What it is called in messages."""
        if self.source == "local":
            return f"corpus {self.path}"
        told = [self.configuration, self.split, f"revision {(self.revision or '')[:8]}"]
        return f"data set {self.path} of the hub ({', '.join(one for one in told if one)})"

    @property
    def own(self) -> list[str]:
        """The project's own file or folder that it is read from, if it is local."""
        return [self.path] if self.source == "local" else []

    def places(self, names: Sequence[str]) -> dict[str, str]:
        """Our names of columns -> where they are in the data set."""
        return {name: self.columns.get(name, name) for name in names}


class GeneralTextConfig(CorpusConfig):
    """A corpus of general text, in its column `text`: what sparse autoencoders are trained on, or judged by."""

    words: int = Field(
        16, ge=2, description="Words of a passage: texts are cut into so many, rests are left out."
    )
    n_passages: int | None = Field(None, ge=1, description="Passages; as many as cached prompts if absent.")


class RavelConfig(Prior):
    """The RAVEL task (paper, 4.2 and D.2): where its fact tables come from, and how much of them is used."""

    source: Literal["embedded", "upstream", "hub"] = "embedded"
    """The table of the package, or what `fetch_ravel` brings: upstream's files, or its authors' copy on the hub."""
    hub: CorpusConfig = CorpusConfig(
        source="hub", path="hij/ravel", revision="2c45eb232b9944c235509db5320345eaba563e07"
    )
    """The copy on the hub, or a folder that holds it; columns: entity type -> the column of its names, where none is found."""
    mirror: str | None = None
    """Folder that holds upstream's files; upstream's archive is downloaded if absent."""
    archive_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the archive; if absent, only files of it with a pinned sum are used."""
    types: list[str] | None = Field(None, min_length=1, description="Entity types; all if absent.")
    n_entities: int | None = Field(None, ge=3, description="Entities a type, at most.")
    n_templates: int | None = Field(None, ge=3, description="Templates an attribute, at most.")

    @property
    def files(self) -> list[str]:
        """Fetched files that the prior is made of, below data/ravel; none where the tables come with the package."""
        return [] if self.source == "embedded" else [f"{FETCHED}/manifest.json"]

    @property
    def feature_names(self) -> tuple[str, ...]:
        return ("attribute", "type", "entity", "template")


class TranslationConfig(Prior):
    """The in-context translation prior (paper, D.3.2): words, and the split."""

    words: Literal["own", "lists"] = "own"
    """'own': the package's table of concepts in four languages. 'lists': the downloaded word pairs of Hendel et al."""
    n_concepts: int | None = Field(156, ge=8)
    """Dictionary entries that are used, from the first; null: all."""
    n_shots: int = Field(3, ge=1, description="Solved examples in a prompt (paper: 3).")
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the (query, shots) combinations kept for the test split."""
    mirror: str | None = None
    """Directory to read the lists from instead of downloading them; checksums hold there too."""

    @property
    def files(self) -> list[str]:
        """Downloaded files that the prior is made of, below data/icl_translation."""
        others = ("fr", "it", "es")
        names = [*(f"en_{one}.json" for one in others), *(f"{one}_en.json" for one in others)]
        return [f"lists/{name}" for name in names] if self.words == "lists" else []

    @property
    def feature_names(self) -> tuple[str, ...]:
        shared = ("task", "query", "source_language", "target_language")
        # The rows of downloaded dictionaries have no concept in common.
        return (*shared, "concept") if self.words == "own" else shared


class WordsConfig(Prior):
    """The prior of in-context word tasks: capitals, languages, plurals, capital letters, past tenses, gerunds."""

    n_shots: int = Field(3, ge=1, description="Solved examples in a prompt.")
    n_shown: int = Field(5, ge=2)
    """Words that each shot is drawn from: the first of each list, other ones for each shot."""
    n_pairs: int | None = Field(40, ge=4)
    """Pairs of each task, from the first; what the shots leave is asked. null: all of the shortest list."""
    held_out: float = Field(0.04, gt=0, lt=1)
    """Share of the (query, shots) combinations kept for the test split."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        return ("task", "query", "kind")


class CountingConfig(Prior):
    """The prior of character counting (InversionView's first case study)."""

    letters: str = Field("abcdefghijklmnopqrstuvwxyz", min_length=2, description="The alphabet.")
    n_distinct: int = Field(3, ge=2, description="Distinct letters in a prompt.")
    max_count: int = Field(9, ge=1, le=9, description="How often a letter occurs at most.")
    begin: str = Field("B", description="Characters before the letters; may be empty.")
    bar: str = Field("|", min_length=1, max_length=1)
    """Between the letters and the target letter."""
    colon: str = Field(":", min_length=1, max_length=1)
    """Behind the target letter; the count follows."""
    held_out_letters: float = Field(0.05, gt=0, lt=1)
    """Share of sets of letters kept for the test split."""
    split_seed: int = Field(0, description=SPLIT_SEED)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return ("count", "target", "last", "first", "order", "length", "others", "counts")


class AdditionConfig(Prior):
    """The prior of addition (InversionView's third case study): both operands with as many digits, none beginning with 0."""

    n_digits: int = Field(3, ge=1, le=3, description="Digits of each operand: 3 make 810,000 prompts.")
    begin: str = Field("B", description="Characters before the first operand; may be empty.")
    with_answer: bool = False
    """Prompts go on to the sum, so that activations at its digits can be read (A1, A2, ...)."""
    held_out_pairs: float = Field(0.05, gt=0, lt=1)
    """Share of unordered pairs of operands kept for the test split."""
    split_seed: int = Field(0, description=SPLIT_SEED)

    @property
    def feature_names(self) -> tuple[str, ...]:
        columns = range(1, self.n_digits + 1)
        return (*(f"{kind}{i}" for kind in "FSTCA" for i in columns), "first", "second", "sum")


class TextFeatureConfig(Strict):
    """A feature of a corpus's prompts: a column of the file, what a regular expression finds, or what a function says."""

    column: str | None = Field(None, min_length=1, description="Column that holds the label.")
    pattern: str | None = Field(None, min_length=1)
    """Regular expression, searched in the prompt; its group `label`, or else its first group, is the label."""
    function: str | None = Field(None, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    """package.module:function, from a prompt to its label (str): of this package or of text.functions."""

    @model_validator(mode="after")
    def _one_source(self) -> TextFeatureConfig:
        if sum(value is not None for value in (self.column, self.pattern, self.function)) != 1:
            raise ValueError("a feature has exactly one of column, pattern and function")
        if self.pattern is not None:
            try:
                compiled = regex.compile(self.pattern)
            except regex.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
            if not compiled.groups:
                raise ValueError(f"pattern {self.pattern!r} has no group: put the label in parentheses")
        return self


class TextConfig(Prior, CorpusConfig):
    """The prior of a corpus: its prompts, as often as they stand there (InversionView's factual recall, for one)."""

    path: str = "data/text/corpus.jsonl"
    """Local file or folder inside the project, or owner/name on the hub."""
    prompt: str = "{text}"
    """The prompt: columns in braces (named slots), and what stands between them. Plain text has the column text."""
    answer: str | None = None
    """Column that should follow the prompt, without the space before it; may be absent."""
    weight: str | None = None
    """Column that says how often a row counts, a whole number; 1 if absent."""
    split_by: str | None = None
    """Column whose values are held out as a whole; the prompt itself if absent."""
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of these values kept for the test split.")
    split_seed: int = Field(0, description=SPLIT_SEED)
    token_unit: Literal["word", "character"] = "word"
    """What the tokenizer of a target trained here takes for a token."""
    features: dict[str, TextFeatureConfig] = Field(default_factory=dict)
    """Features beside the slots, which are features too."""
    functions: str | None = None
    """Folder inside the project whose modules may be named in features."""

    @field_validator("prompt")
    @classmethod
    def _template(cls, prompt: str) -> str:
        try:
            found = list(string.Formatter().parse(prompt))
        except ValueError as error:
            raise ValueError(f"{prompt!r} is no template ({error}): write other braces twice") from None
        if any(name == "" or spec or how for _, name, spec, how in found) or not any(f[1] for f in found):
            message = "has no column in braces, or one with a format: write plain names, such as {subject}"
            raise ValueError(f"{prompt!r} {message}")
        return prompt

    @property
    def pieces(self) -> list[tuple[str, str | None]]:
        """What stands before each slot of the prompt, and the slot's column; the last column is None if text ends the prompt."""
        return [(text, name) for text, name, _, _ in string.Formatter().parse(self.prompt)]

    @property
    def described(self) -> dict[str, str]:
        """Feature -> column that holds its label: the slots, unless the prompt is one slot, and features with a column."""
        slots = {name: name for _, name in self.pieces if name is not None and name not in self.features}
        own = {} if self.prompt == f"{{{self.pieces[0][1]}}}" else slots
        return own | {name: feature.column for name, feature in self.features.items() if feature.column}

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (*self.described, *(name for name in self.features if name not in self.described))

    @property
    def used_columns(self) -> list[str]:
        """Columns that the prior is made of."""
        slots = [name for _, name in self.pieces if name is not None]
        others = [self.answer, self.weight, self.split_by]
        return list(dict.fromkeys([*slots, *self.described.values(), *filter(None, others)]))

    @property
    def files(self) -> list[str]:
        """Fetched files that the prior is made of, below data/text; none of a local corpus."""
        return [f"{FETCHED}/{name}" for name in COPIED] if self.source == "hub" else []

    @property
    def sources(self) -> list[str]:
        """The project's own files that the prior is made of: a local corpus, and modules of functions."""
        named = [f.function.split(":")[0] for f in self.features.values() if f.function is not None]
        own = [name for name in named if name.split(".")[0] != "inversescope"] if self.functions else []
        modules = [Path(self.functions or "", *name.split(".")).with_suffix(".py").as_posix() for name in own]
        return [*self.own, *dict.fromkeys(modules)]
