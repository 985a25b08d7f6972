"""The IOI prior: parsing, features, splits, moves and grammar, by enumeration where the prior is small."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from inversescope.config.tasks import IOIConfig
from inversescope.errors import InputError
from inversescope.tasks import SPLITS, TASKS, Task, get_task, ioi
from inversescope.tasks.automata import Grammar, TextEncoder, end_token, token_ids, write_grammar
from inversescope.tasks.base import mixed_radix
from inversescope.tasks.ioi import LISTS, IOITask
from inversescope.workflow.sources import module_of, modules_of

TEMPLATES, NAMES = LISTS["own"].templates, LISTS["own"].names
EMBEDDED_TEMPLATES = 8
#: As in config/paper.yaml.
PAPER = IOIConfig(lists="conmy", n_names=31, n_templates=26)


class WordEncoder:
    """A tokenizer that numbers words, with the space before them, as they come."""

    eos_token_id: int | None = 0

    def __init__(self) -> None:
        self.ids = {"<end>": 0}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids)) for word in re.findall(r" ?\w+|[^\w\s]", text)]


@pytest.fixture(scope="module")
def embedded() -> IOITask:
    return IOITask(IOIConfig())


@pytest.fixture(scope="module")
def tiny() -> IOITask:
    """All templates, 4 names, 2 places, 2 items: 1,536 prompts."""
    return IOITask(
        IOIConfig(n_names=4, n_templates=len(TEMPLATES), n_places=2, n_items=2, held_out_pairs=0.34)
    )


# Sizes and lists


def test_sizes(embedded: IOITask) -> None:
    assert embedded.size == 1_015_808 == 32 * 31 * 8 * 2 * 8 * 8
    assert abs(IOITask(PAPER).size - 3_000_000) < 100_000


@pytest.mark.parametrize("lists", list(LISTS))
def test_lists_are_clean(lists: str) -> None:
    known = LISTS[lists]
    assert all(len(set(some)) == len(some) for some in known)
    for template in known.templates:
        assert not template.startswith("[") and template.endswith((" to", " for"))
        assert all(template.count(slot) == 1 for slot in ("[A]", "[B]", "[S]", "[PLACE]"))
        assert "[OBJECT]" in template
        assert template.index("[A]") < template.index("[B]") < template.index("[S]")
        words = set(re.findall(r"\w+", re.sub(r"\[\w+\]", "", template)))
        assert not words & {*known.names, *known.places, *known.items}


def test_the_papers_lists_are_those_of_conmy_et_al() -> None:
    """Two lists of 15 templates, of which two each name no place; 99 names, 8 places, 8 objects; what the paper shows is in it."""
    known = LISTS["conmy"]
    assert [len(some) for some in known] == [26, 99, 8, 8]
    file = Path(ioi.__file__).parent / "data/ioi/conmy.json"
    rows = json.loads(file.read_text())["templates"]
    numbers = [number for number in range(1, 16) if number not in (5, 13)]
    stands_for = [f"BABA_{kind}TEMPLATES {number}" for kind in ("", "LONG_") for number in numbers]
    assert [row["stands_for"] for row in rows] == stands_for
    assert [row["stands_for"] for row in rows if row["wording"] == "theirs"] == [
        *(f"BABA_TEMPLATES {number}" for number in (1, 2, 6, 7, 8, 11, 12, 14)),
        "BABA_LONG_TEMPLATES 14",
    ]
    shown = [
        "After John and Mary went to the store, Mary gave a drink to",
        "Then, Anthony and Shannon went to the restaurant. Shannon gave a drink to",
        "When Elizabeth and John got a drink at the hospital, Elizabeth decided to give it to",
        "When Erin and John got a computer at the garden, Erin decided to give the computer to",
        "After the lunch, Lindsey and John went to the garden. Lindsey gave a drink to",
        "Then, Danielle and John had a lot of fun at the hospital. Danielle gave a drink to",
        "Afterwards, Robert and Jeffrey went to the office. Robert gave a drink to",
        "The school James and Jesse went to had a drink. James gave it to",
        "The local big house Aaron and Jose went to had a drink. Aaron gave it to",
    ]
    task = IOITask(PAPER)
    assert (task.parse(shown) >= 0).all()
    index = np.random.default_rng(0).integers(0, task.size, size=2_000)
    np.testing.assert_array_equal(task.parse(task.texts(index)), index)


def test_embedded_templates_differ_in_length_and_structure() -> None:
    templates = TEMPLATES[:EMBEDDED_TEMPLATES]
    assert len({len(re.findall(r"\w+|[.,]", re.sub(r"[\[\]]", "", template))) for template in templates}) >= 4
    starts = [template.startswith(("The [PLACE]", "The local big [PLACE]")) for template in templates]
    assert sum(starts) == 2


def test_paper_prompts_are_in_the_prior(embedded: IOITask) -> None:
    texts = [
        "When John and Mary went to the store, Mary gave a drink to",
        "After John and Mary went to the store, Mary gave a drink to",
        "The school Mary and John went to had a drink. Mary gave it to",
    ]
    index = embedded.parse(texts)
    assert (index >= 0).all()
    features = embedded.features_of(index)
    assert [embedded.names[code] for code in features["subject"]] == ["Mary"] * 3
    assert embedded.answers(index) == ["John"] * 3


def test_too_many_names_is_an_input_error() -> None:
    with pytest.raises(InputError, match=f"n_names is 1000, but there are {len(NAMES)}"):
        IOITask(IOIConfig(n_names=1000))


# Parsing


def test_parse_inverts_texts(tiny: IOITask, embedded: IOITask) -> None:
    texts = tiny.texts(tiny.enumerate())
    assert len(set(texts)) == tiny.size == len(texts)
    np.testing.assert_array_equal(tiny.parse(texts), tiny.enumerate())
    index = np.random.default_rng(0).integers(0, embedded.size, size=20_000)
    np.testing.assert_array_equal(embedded.parse(embedded.texts(index)), index)


def test_parse_refuses_near_misses(tiny: IOITask) -> None:
    everything = set(tiny.texts(tiny.enumerate()))
    misses: set[str] = {""}
    for text in tiny.texts(tiny.enumerate()[::7]):
        words = text.split(" ")
        for position in range(len(words)):
            misses.add(" ".join([*words[:position], *words[position + 1 :]]))
            misses.add(" ".join([*words[: position + 1], *words[position:]]))
            misses.add(" ".join([*words[:position], words[position].swapcase(), *words[position + 1 :]]))
        misses |= {f"{text} ", f" {text}", f"{text}.", text[:-1], f"{text} {tiny.names[0]}", f"{text}\n"}
        misses |= {text.replace(" a ", " an "), text.replace(" and ", "  and "), text.replace(".", ",")}
        for name in tiny.names:  # doubled names, third names, names out of the prior
            misses |= {text.replace(other, name) for other in tiny.names}
            misses |= {text.replace(name, other, 1) for other in (*tiny.names, NAMES[-1])}
    misses -= everything
    assert len(misses) > 5_000
    assert (tiny.parse(sorted(misses)) == -1).all()


def test_doubled_name_and_wrong_item_are_refused(tiny: IOITask) -> None:
    texts = [
        "When John and John went to the store, John gave a drink to",
        "When John and Mary got a drink at the store, John decided to give the ring to",
        "When John and Mary went to the store, Michael gave a drink to",
    ]
    assert (tiny.parse(texts) == -1).all()


def test_slots_and_index_are_inverse(tiny: IOITask) -> None:
    index = tiny.enumerate()
    slots = tiny.slots(index)
    assert slots.dtype == np.int16
    np.testing.assert_array_equal(tiny.index(slots), index)
    equal_names = slots[0].copy()
    equal_names[3] = equal_names[2]
    too_large = slots[0].copy()
    too_large[0] = len(TEMPLATES)
    np.testing.assert_array_equal(tiny.index(np.stack([equal_names, too_large, slots[5]])), [-1, -1, 5])
    for outside in (-1, tiny.size):
        with pytest.raises(IndexError):
            tiny.texts(np.array([outside]))


# Features


def test_counting_names_gives_the_features_of_the_slots(tiny: IOITask) -> None:
    index = tiny.enumerate()
    expected = tiny.features_of(index)
    counted = tiny.features_of_texts(tiny.texts(index))
    assert set(expected) == set(counted) == set(tiny.features)
    for feature in tiny.features:
        np.testing.assert_array_equal(counted[feature], expected[feature], err_msg=feature)


def test_features_out_of_the_prior(tiny: IOITask) -> None:
    texts = [
        "Yesterday Mary and John sang at the store. Mary thanked",
        "Mary and Mary met John and John",
        "John, Mary and Michael went. Mary sat",
        "Nobody went",
    ]
    found = tiny.features_of_texts(texts)
    john, mary = tiny.names.index("John"), tiny.names.index("Mary")
    assert found["subject"].tolist() == [mary, -1, -1, -1]
    assert found["object"].tolist() == [john, -1, -1, -1]
    assert found["first"].tolist() == [mary, -1, john, -1]
    assert found["place"].tolist() == [0, -1, -1, -1]
    assert (found["template"] == -1).all() and (found["item"] == -1).all()
    for codes in tiny.features_of(np.array([-1, 3])).values():
        assert codes[0] == -1 and codes[1] >= 0


def test_chance_is_the_share_of_agreeing_pairs(tiny: IOITask) -> None:
    for feature, codes in tiny.features_of(tiny.enumerate()).items():
        shares = np.bincount(codes, minlength=len(tiny.feature_values[feature])) / tiny.size
        assert tiny.chance(feature) == pytest.approx((shares**2).sum(), rel=1e-12), feature


def test_frame(tiny: IOITask) -> None:
    frame = tiny.frame(np.array([7, 3]))
    assert list(frame.columns) == [
        "prompt_id",
        "text",
        *tiny.slot_names,
        *(f"feature_{feature}" for feature in tiny.features),
    ]
    assert frame["prompt_id"].tolist() == [7, 3]
    row = frame.iloc[0]
    subject = row["name_a"] if row["order"] == "ABA" else row["name_b"]
    assert row["feature_subject"] == subject
    assert Counter(re.findall(r"\w+", row["text"]))[subject] == 2


# Splits


def test_split_is_disjoint_by_unordered_pairs(embedded: IOITask) -> None:
    pairs: dict[str, set[frozenset[int]]] = {}
    for split in SPLITS:
        index = embedded.enumerate(split)
        assert (embedded.split_of(index) == SPLITS.index(split)).all()
        slots = embedded.slots(index)[:, 2:4]
        pairs[split] = {frozenset(pair) for pair in np.unique(slots, axis=0).tolist()}
    assert not pairs["train"] & pairs["test"]
    assert len(pairs["train"] | pairs["test"]) == 32 * 31 // 2
    assert len(pairs["test"]) == round(0.05 * 32 * 31 / 2)
    assert embedded.split_size("train") + embedded.split_size("test") == embedded.size


def test_split_is_stable(tiny: IOITask) -> None:
    again = IOITask(tiny.config)
    other = IOITask(tiny.config.model_copy(update={"split_seed": 1}))
    index = tiny.enumerate()
    np.testing.assert_array_equal(again.split_of(index), tiny.split_of(index))
    assert (other.split_of(index) != tiny.split_of(index)).any()
    held_out = {
        tuple(sorted(pair)) for pair in tiny.frame(tiny.enumerate("test"))[["name_a", "name_b"]].values
    }
    assert held_out == {("Mary", "Michael"), ("Mary", "Sarah")}  # the hash must not change between versions


def test_log_prior(tiny: IOITask) -> None:
    index = np.append(tiny.enumerate(), -1)
    assert np.exp(tiny.log_prior(index)).sum() == pytest.approx(1.0)
    assert tiny.log_prior(index)[-1] == -np.inf
    for number, split in enumerate(SPLITS):
        values = tiny.log_prior(index, split)
        assert set(values) == {-np.inf, -np.log(tiny.split_size(split))}
        assert np.exp(values).sum() == pytest.approx(1.0)
        np.testing.assert_array_equal(np.isfinite(values[:-1]), tiny.split_of(index[:-1]) == number)


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_sample(tiny: IOITask, split: str | None) -> None:
    number = tiny.split_size(split)
    sample = tiny.sample(number, split, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(sample), tiny.enumerate(split))
    again = tiny.sample(10, split, np.random.default_rng(3), replace=True)
    np.testing.assert_array_equal(again, tiny.sample(10, split, np.random.default_rng(3), replace=True))
    with pytest.raises(InputError, match="distinct prompts"):
        tiny.sample(number + 1, split, np.random.default_rng(0))


def test_empty_and_unknown_split_are_input_errors(tiny: IOITask) -> None:
    empty = IOITask(IOIConfig(n_names=4, held_out_pairs=0.05))
    with pytest.raises(InputError, match="test split of task ioi is empty.*held_out_pairs"):
        empty.sample(1, "test", np.random.default_rng(0))
    assert empty.enumerate("test").size == 0
    with pytest.raises(InputError, match="unknown split 'valid'"):
        tiny.sample(1, "valid", np.random.default_rng(0))


# Markov chain


def proposal_matrix(task: IOITask) -> np.ndarray:
    """Return the exact proposal kernel (size, size), summed over all kinds and values of moves."""
    start = task.enumerate()
    matrix = np.zeros((task.size, task.size))
    for kind, count in enumerate(task.move_counts):
        for value in range(count):
            end = task.move(start, np.full(task.size, kind), np.full(task.size, value))
            np.add.at(matrix, (start, end), 1.0 / (len(task.move_counts) * count))
    return matrix


@pytest.mark.parametrize("single", [False, True], ids=["", "single values"])
def test_moves_are_symmetric_and_reach_the_whole_prior(single: bool) -> None:
    count = 1 if single else 2
    task = IOITask(IOIConfig(n_names=4, n_templates=2 * count - 1, n_places=count, n_items=count))
    matrix = proposal_matrix(task)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
    reached = np.zeros(task.size, dtype=bool)
    reached[0] = True
    while not reached.all():
        further = reached | (matrix[reached].sum(axis=0) > 0)
        assert (further != reached).any(), "the chain is stuck in a part of the prior"
        reached = further
    # Aperiodic too: the chain that accepts everything converges to the prior.
    distribution = np.linalg.matrix_power(matrix, 400)[0]
    np.testing.assert_allclose(distribution, 1.0 / task.size, rtol=1e-6)


def test_moves_draw_from_the_kernel() -> None:
    task = IOITask(IOIConfig(n_names=4, n_templates=3, n_places=2, n_items=2))
    draws = 200_000
    end = task.moves(np.full(draws, 77), np.random.default_rng(0))
    expected = proposal_matrix(task)[77]
    observed = np.bincount(end, minlength=task.size) / draws
    assert (observed[expected == 0] == 0).all()
    assert np.abs(observed - expected).max() < 5 * np.sqrt(0.125 / draws)


def test_swaps_change_what_they_say(tiny: IOITask) -> None:
    start = tiny.enumerate()
    before = tiny.features_of(start)
    for kind, (subject, object_) in {6: ("object", "subject"), 7: ("subject", "object")}.items():
        after = tiny.features_of(tiny.move(start, np.full(tiny.size, kind), np.zeros(tiny.size, dtype=int)))
        np.testing.assert_array_equal(after["subject"], before[subject])
        np.testing.assert_array_equal(after["object"], before[object_])
        np.testing.assert_array_equal(after["first"], before["second"])
        np.testing.assert_array_equal(after["template"], before["template"])


# Grammar


def language(grammar: Grammar) -> list[tuple[int, ...]]:
    """Return every token sequence that leads from the start to the final state."""
    found: list[tuple[int, ...]] = []
    stack: list[tuple[int, tuple[int, ...]]] = [(grammar.start, ())]
    while stack:
        state, path = stack.pop()
        if state == grammar.final:
            found.append(path)
            continue
        allowed = grammar.tokens[grammar.permitted(np.array([state]))[0]]
        assert allowed.size, "a dead end"
        stack.extend((int(grammar.step(state, token)), (*path, int(token))) for token in allowed)
    return found


def accepts(grammar: Grammar, tokens: list[int]) -> bool:
    state = np.asarray(grammar.start)
    for token in [*tokens, grammar.accept_token]:
        state = grammar.step(state, token)
    return int(state) == grammar.final


def byte_pair_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE in which only the given words, after a space, are sure to be one token."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for length in range(len(word)):
            merges[(f"Ġ{word[:length]}", word[length])] = None
    pieces = dict.fromkeys(sorted(ByteLevel.alphabet())) | {a + b: None for a, b in merges} | {"<end>": None}
    backend = tokenizers.Tokenizer(BPE({piece: n for n, piece in enumerate(pieces)}, list(merges)))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def test_grammar_is_the_prior_word_level(tiny: IOITask) -> None:
    encoder = WordEncoder()
    grammar = tiny.grammar(encoder)
    expected = [(*encoder.encode(text), 0) for text in tiny.texts(tiny.enumerate())]
    found = language(grammar)
    assert len(found) == len(set(found)) == tiny.size
    assert set(found) == set(expected)
    assert grammar.table.dtype == np.int32 and not grammar.permitted(np.array([grammar.final])).any()


def test_grammar_is_the_prior_byte_pairs(tiny: IOITask) -> None:
    tokenizer = byte_pair_tokenizer(tiny.single_token_words())
    texts = tiny.texts(tiny.enumerate())
    expected = [(*tokenizer.encode(text), tokenizer.eos_token_id) for text in texts]
    assert max(map(len, expected)) > 2 * max(
        len(text.split(" ")) for text in texts
    )  # words of several tokens
    assert sorted(language(tiny.grammar(tokenizer))) == sorted(expected)


def test_grammar_of_the_embedded_prior(embedded: IOITask) -> None:
    from inversescope.targets.tokenizers import encode, word_tokenizer

    tokenizer = word_tokenizer(embedded.words())
    grammar = embedded.grammar(tokenizer)
    texts = embedded.texts(np.random.default_rng(0).integers(0, embedded.size, size=500))
    assert all(accepts(grammar, tokens.tolist()) for tokens in encode(tokenizer, texts))
    assert [tokenizer.decode(tokens) for tokens in encode(tokenizer, texts[:50])] == texts[:50]
    assert len(grammar.table) < 20_000
    # The number of accepted sequences, by counting paths from the end.
    paths = np.zeros(len(grammar.table))
    paths[grammar.final] = 1
    for _ in range(40):
        following = np.where(grammar.table >= 0, paths[grammar.table], 0).sum(axis=1)
        following[grammar.final] = 1
        paths = following
    assert paths[grammar.start] == embedded.size


def test_grammar_refuses_what_the_prior_refuses(tiny: IOITask) -> None:
    encoder = WordEncoder()
    grammar = tiny.grammar(encoder)
    for text in (
        "When John and John went to the store, John gave a drink to",
        "When John and Mary got a drink at the store, John decided to give the ring to",
        "When John and Mary went to the store, Michael gave a drink to",
        "When John and Mary went to the store, Mary gave a drink",
        "When John and Mary went to the moon, Mary gave a drink to",
        "",
    ):
        assert not accepts(grammar, encoder.encode(text)), text
    np.testing.assert_array_equal(grammar.step(np.array([grammar.start, -1]), np.array([10**9, 0])), [-1, -1])


def test_grammar_names_the_offending_word(tiny: IOITask) -> None:
    words = [word for word in tiny.single_token_words() if word != "Michael"]
    with pytest.raises(InputError, match="' Michael' as one token"):
        tiny.grammar(byte_pair_tokenizer(words))

    class Merging(WordEncoder):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return super().encode(text.replace(" lunch, John", " lunch,_John"))

    with pytest.raises(
        InputError, match="encodes ',' by itself otherwise|encodes ' John' by itself otherwise"
    ):
        tiny.grammar(Merging())

    class Adding(WordEncoder):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return super().encode(text) + ([1] if " and " in text else [])

    with pytest.raises(InputError, match="1 more tokens behind the prompt"):
        tiny.grammar(Adding())

    class Endless(WordEncoder):
        eos_token_id = None

    with pytest.raises(InputError, match="no end token"):
        tiny.grammar(Endless())


def test_words_are_the_vocabulary(tiny: IOITask) -> None:
    pieces = {piece for text in tiny.texts(tiny.enumerate()) for piece in re.findall(r" ?\w+|[^\w\s]", text)}
    assert pieces == set(tiny.words()) and len(tiny.words()) == len(pieces)
    assert {f" {word}" for word in tiny.single_token_words()} <= pieces


# A new task is a class and its name in the table


class PaintTask(Task):
    """Things of a colour, "a red ball": the least that a task must say."""

    name = "paint"
    slot_names = features = ("colour", "thing")
    enlarging = ("add things to paint.things", "")

    def __init__(self, config: SimpleNamespace, root: Path) -> None:
        self.slot_values = self.feature_values = {"colour": ["red", "blue"], "thing": config.things}
        self._radix = (2, len(config.things))
        self.size = 2 * len(config.things)
        self.move_counts = (self.size,)
        self.split_rows = {"train": np.arange(1, self.size), "test": np.arange(1)}

    def slots(self, index: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(self.check_index(index), self._radix), 1)

    def index(self, slots: np.ndarray) -> np.ndarray:
        return mixed_radix(slots, self._radix)

    def texts(self, index: np.ndarray) -> list[str]:
        colours, things = self.slot_values.values()
        return [f"a {colours[c]} {things[t]}" for c, t in self.slots(index)]

    def parse(self, texts: Sequence[str]) -> np.ndarray:
        known = {text: index for index, text in enumerate(self.texts(np.arange(self.size)))}
        return np.array([known.get(text, -1) for text in texts], np.int64)

    def answers(self, index: np.ndarray) -> list[str]:
        return [self.slot_values["colour"][colour] for colour in self.slots(index)[:, 0]]

    def labels(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.features, self.slots(index).T, strict=True))

    def words(self) -> list[str]:
        return ["a", *(f" {word}" for values in self.slot_values.values() for word in values)]

    def grammar(self, tokenizer: TextEncoder) -> Grammar:
        texts = self.texts(np.arange(self.size))
        return write_grammar(
            [""], lambda done: [(token_ids(tokenizer, t), t) for t in texts if not done], end_token(tokenizer)
        )

    def move(self, index: np.ndarray, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        return value


def test_a_task_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(paint=SimpleNamespace(things=["ball", "car", "cup"]))
    with pytest.raises(InputError, match="unknown task 'paint'. choose one of: ioi, ioi_small, ravel"):
        get_task("paint", config)
    monkeypatch.setitem(TASKS, "paint", f"{__name__}:PaintTask")
    task = get_task("paint", config)
    assert task.texts(task.enumerate("test")) == ["a red ball"] and task.split_size("train") == 5
    assert task.completed(np.array([5])) == ["a blue cup blue"]
    np.testing.assert_array_equal(task.parse(["a blue ball", "a ball"]), [3, -1])
    labels = task.features_of_texts(["a blue ball", "blue"])
    assert labels["colour"].tolist() == [1, -1] and labels["thing"].tolist() == [0, -1]
    assert task.chance("thing") == pytest.approx(1 / 3) and task.split_of(np.array([0, 1])).tolist() == [1, 0]
    with pytest.raises(InputError, match="7 distinct prompts were asked.*add things to paint.things"):
        task.sample(7, None, np.random.default_rng(0))
    encoder = WordEncoder()
    exact = task.grammar(encoder)
    paths = np.array([[0, *encoder.encode(text), 0] for text in task.texts(task.enumerate())])
    column, known = exact.columns(paths[:, 1:])
    p = np.take_along_axis(exact.along(paths), column[..., None], 2)[..., 0].prod(1)
    assert known.all() and p == pytest.approx(np.full(6, 1 / 6))


def test_a_job_depends_on_its_own_task_alone() -> None:
    for name in TASKS:
        found = [module for module in modules_of("make_prompts", name) if module.split("/")[-1] in TASKS]
        assert found == [module_of(name)]
