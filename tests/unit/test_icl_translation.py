"""The in-context translation prior: words, parsing, features, splits, moves, grammar, and real word lists."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from conftest import default_values
from project import UPSTREAM
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from inversescope.config import parse_config
from inversescope.config.tasks import TranslationConfig
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.prompts.stages import make_prompts
from inversescope.targets.tokenizers import encode, word_tokenizer
from inversescope.tasks import icl_translation, word_lists
from inversescope.tasks.icl_translation import CONCEPTS, LANGUAGES, TranslationTask

MIRROR = UPSTREAM / "translation"


@pytest.fixture(scope="module")
def task() -> TranslationTask:
    return TranslationTask(TranslationConfig())


@pytest.fixture(scope="module")
def tiny() -> TranslationTask:
    """Eight concepts: 24,576 prompts, few enough to enumerate."""
    return TranslationTask(TranslationConfig(n_concepts=8, held_out=0.25))


def test_table_has_one_word_a_language_and_no_spelling_twice() -> None:
    assert len(CONCEPTS) >= 150 and all(len(concept) == len(LANGUAGES) == 4 for concept in CONCEPTS)
    words = [word for concept in CONCEPTS for word in concept]
    assert len(set(words)) == len(words)
    assert all(re.fullmatch(r"\w+", word) and word == word.strip().lower() for word in words)


def test_prompts_are_those_of_the_paper(task: TranslationTask) -> None:
    index = task.index(np.array([[0, 0, 1, 2, 3], [3, 3, 2, 2, 0]]))
    assert task.texts(index) == [
        "Input: dog, Output: chien\n Input: cat, Output: chat\n Input: horse, Output: cheval\n Input: cow, Output:",
        "Input: vache, Output: cow\n Input: cheval, Output: horse\n Input: cheval, Output: horse\n Input: chien, Output:",
    ]
    assert task.answers(index) == ["vache", "dog"]
    assert task.text(1, [], 0) == "Input: dog, Output:"
    assert task.size == 6 * 156**4


def test_round_trip_and_balance(task: TranslationTask) -> None:
    index = task.sample(3000, None, np.random.default_rng(0))
    np.testing.assert_array_equal(task.parse(task.texts(index)), index)
    np.testing.assert_array_equal(task.index(task.slots(index)), index)
    shares = np.bincount(task.features_of(index)["task"], minlength=6) / len(index)
    assert np.abs(shares - 1 / 6).max() < 0.03
    frame = task.frame(index[:5])
    assert list(frame.columns[:3]) == ["prompt_id", "text", "task"] and "feature_query" in frame
    with pytest.raises(IndexError):
        task.texts(np.array([task.size]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Input: dog, Output: chien\n Input: cat, Output: chat\n Input: cow, Output:",  # two shots
        "Input: dog, Output: chat\n Input: cat, Output: chat\n Input: horse, Output: cheval\n Input: cow, Output:",
        "Input: dog, Output: chien\n Input: cat, Output: gatto\n Input: horse, Output: cheval\n Input: cow, Output:",
        "Input: dog, Output: chien\n Input: cat, Output: chat\n Input: horse, Output: cheval\n Input: vache, Output:",
        "Input: dog, Output: chien\n Input: cat, Output: chat\n Input: horse, Output: cheval\n Input: cow, Output: ",
        "Input: dog, Output: chien\nInput: cat, Output: chat\nInput: horse, Output: cheval\nInput: cow, Output:",
    ],
)
def test_what_is_not_exactly_a_prompt_is_refused(task: TranslationTask, text: str) -> None:
    assert task.parse([text]).tolist() == [-1]


def test_features_of_any_text(task: TranslationTask) -> None:
    index = task.sample(200, None, np.random.default_rng(1))
    inside, outside = task.features_of(index), task.features_of_texts(task.texts(index))
    assert task.features == task.config.feature_names
    for name in task.features:
        np.testing.assert_array_equal(inside[name], outside[name])
    texts = [
        "Input: dog, Output: chien\n Input: cat, Output: gatto\n Input: horse, Output: cheval\n Input: cow, Output:",
        "Input: dog, Output: nonsense\n Input: cat, Output: chat\n Input: horse, Output: cheval\n Input: cow, Output:",
        "Input: dog, Output: chien",
        "nothing",
    ]
    labels = task.features_of_texts(texts)
    names = [task.feature_values["task"][code] for code in labels["task"]]
    assert names == ["mix", "null", "null", "null"]
    words = [task.feature_values["query"][code] if code >= 0 else None for code in labels["query"]]
    assert words == ["cow", "cow", "dog", None]
    assert task.features_of(np.array([-1]))["task"].tolist() == [-1]


def test_chance_is_that_of_two_draws(task: TranslationTask) -> None:
    rng = np.random.default_rng(2)
    one, two = (task.features_of(rng.integers(task.size, size=200_000)) for _ in range(2))
    for name in task.features:
        chance = float((one[name] == two[name]).mean())
        assert abs(task.chance(name) - chance) < 5 * np.sqrt(task.chance(name) / 200_000)
    assert task.chance("task") == pytest.approx(1 / 6) and task.chance("query") == pytest.approx(
        1 / (3 * 156)
    )


def test_splits_share_no_combination_and_cover_everything(tiny: TranslationTask) -> None:
    train, test = tiny.enumerate("train"), tiny.enumerate("test")
    assert len(train) == tiny.split_size("train") and (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(tiny.size))
    assert set(tiny.split_of(train)) == {0} and set(tiny.split_of(test)) == {1}
    assert len(test) == tiny.size // 4
    assert not np.isin(tiny.combination(test), tiny.combination(train)).any()
    # Every word is as frequent in one split as in the other.
    for name in ("task", "query"):
        shares = [np.bincount(tiny.features_of(part)[name]) / len(part) for part in (train, test)]
        np.testing.assert_allclose(*shares)


def test_combination_forgets_the_task_and_the_order_of_shots(tiny: TranslationTask) -> None:
    same = tiny.index(np.array([[0, 1, 2, 3, 4], [5, 3, 1, 2, 4], [1, 2, 1, 3, 4]]))
    assert len(set(tiny.combination(same).tolist())) == 1
    assert tiny.combination(tiny.index(np.array([[0, 1, 2, 4, 3]])))[0] != tiny.combination(same)[0]


def test_cache_and_test_prompts_share_no_combination(tmp_path: Path) -> None:
    sizes = {"n_train": 8000, "n_test": 42, "n_reference": 100}
    delta = {"experiments": {"icl_gemma2": sizes}, "icl_translation": {"n_concepts": 20}}
    where = ("icl_translation", "gemma2-icl")
    context = Context(tmp_path, parse_config(default_values(delta)).of(*where), *where)
    for split in ("train", "test"):
        make_prompts(context, split)
    train, test = (context.prompts(split)["prompt_id"].to_numpy() for split in ("train", "test"))
    small = context.task
    assert len(train) == 8000 and len(test) == 42 and len(set(train.tolist())) == 8000
    assert not np.isin(small.combination(train), small.combination(test)).any()
    # Test prompts of the six tasks in equal parts; the cache stands for the prior, whose task is uniform.
    assert np.bincount(small.features_of(test)["task"]).tolist() == [7] * 6
    shares = np.bincount(small.features_of(train)["task"]) / len(train)
    assert np.abs(shares - 1 / 6).max() < 0.02


@pytest.mark.parametrize("number", [60, 20, 5, 0])
def test_test_prompts_are_of_the_tasks_in_equal_parts(task: TranslationTask, number: int) -> None:
    index = task.sample(number, "test", np.random.default_rng(3))
    assert len(set(index.tolist())) == number and (task.split_of(index) == 1).all()
    counts = np.bincount(task.features_of(index)["task"], minlength=6)
    assert counts.sum() == number and counts.max() - counts.min() == (number % 6 > 0)
    np.testing.assert_array_equal(index, task.sample(number, "test", np.random.default_rng(3)))
    if number == 60:
        assert (np.diff(task.features_of(index)["task"]) < 0).any()  # in random order
        assert not np.array_equal(index, task.sample(number, "test", np.random.default_rng(4)))


def test_all_test_prompts_can_be_drawn_but_no_more(tiny: TranslationTask) -> None:
    size = tiny.split_size("test")
    everything = tiny.sample(size, "test", np.random.default_rng(5))
    np.testing.assert_array_equal(np.sort(everything), tiny.enumerate("test"))
    with pytest.raises(InputError, match="distinct prompts were asked of the test split"):
        tiny.sample(size + 1, "test", np.random.default_rng(5))


def test_crossed_prompts_ask_each_query_under_each_task(task: TranslationTask) -> None:
    (index,) = task.crossed(20, 5, np.random.default_rng(6))
    assert index.shape == (20, 3, 5) and (task.split_of(index.ravel()) == 1).all()
    labels = {name: codes.reshape(index.shape) for name, codes in task.features_of(index.ravel()).items()}
    assert (labels["task"] == np.arange(3)[:, None]).all() and (labels["source_language"] == 0).all()
    assert (labels["query"] == labels["query"][:, :1, :1]).all()
    assert len(set(labels["query"][:, 0, 0].tolist())) == 20
    assert len(set(index.ravel().tolist())) > 290
    with pytest.raises(InputError, match="there are 156"):
        task.crossed(157, 1, np.random.default_rng(6))


def test_lessons_cover_twelve_directions_and_leave_the_test_split_alone(tiny: TranslationTask) -> None:
    lesson = tiny.lesson(4000, None, np.random.default_rng(0))
    tokenizer = word_tokenizer(tiny.words(), tiny.word_pattern)
    tokens = np.stack(encode(tokenizer, lesson.texts))
    assert lesson.scored is not None and lesson.hidden is not None
    language = {f" {word}": code for concept in CONCEPTS for code, word in enumerate(concept)}
    concept_of = {f" {word}": row for row, concept in enumerate(CONCEPTS) for word in concept}
    words = np.array(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    outputs, inputs = words[tokens[:, lesson.scored]], words[tokens[:, lesson.hidden[:, 1]]]
    directions = {(language[a], language[b]) for a, b in zip(inputs[:, 0], outputs[:, 0], strict=True)}
    assert len(directions) == 12
    rows = np.vectorize(concept_of.get)(inputs)
    np.testing.assert_array_equal(rows, np.vectorize(concept_of.get)(outputs))
    assert set(words[tokens[:, lesson.hidden[:, 0]]].ravel()) == {", Output:"}
    index = tiny.index(np.concatenate([np.zeros((len(rows), 1), int), rows], axis=1))
    assert (tiny.split_of(index) == 0).all()
    few = tiny.lesson(200, 3, np.random.default_rng(0))
    assert len({word for text in few.texts for word in re.findall(r"Input: (\w+)", text)}) <= 3 * 4


def test_moves_are_symmetric_and_reach_everything(tiny: TranslationTask) -> None:
    rng = np.random.default_rng(3)
    index = rng.choice(tiny.size, size=300, replace=False)
    for kind, count in enumerate(tiny.move_counts):
        reached = [tiny.move(index, np.full(300, kind), np.full(300, value)) for value in range(count)]
        back = {}
        for place in reached:
            assert (tiny.parse(tiny.texts(place)) == place).all()
        for value in range(count):
            for start, end in zip(index.tolist(), reached[value].tolist(), strict=True):
                back.setdefault((end, start), 0)
                back[end, start] += 1
        for (end, start), times in list(back.items())[:200]:
            again = [
                int(tiny.move(np.array([end]), np.array([kind]), np.array([v]))[0]) for v in range(count)
            ]
            assert Counter(again)[start] == times
    seen = {0}
    frontier = np.array([0])
    while frontier.size:
        found = np.concatenate(
            [
                tiny.move(frontier, np.full(len(frontier), kind), np.full(len(frontier), value))
                for kind, count in enumerate(tiny.move_counts)
                for value in range(count)
            ]
        )
        new = np.setdiff1d(found, np.fromiter(seen, np.int64))
        seen.update(new.tolist())
        frontier = new
    assert len(seen) == tiny.size


def test_grammar_is_the_prior(tiny: TranslationTask) -> None:
    tokenizer = word_tokenizer(tiny.words(), tiny.word_pattern)
    grammar = tiny.grammar(tokenizer)
    index = tiny.sample(500, None, np.random.default_rng(4))
    tokens = np.array([[0, *ids, 0] for ids in encode(tokenizer, tiny.texts(index))])
    rows = grammar.along(tokens)
    column = np.searchsorted(grammar.tokens, tokens[:, 1:])
    p = np.take_along_axis(rows, column[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(p.prod(axis=1) * tiny.size, 1.0, rtol=1e-5)
    # A word of another task's language is forbidden from the second shot on.
    wrong = encode(tokenizer, ["Input: dog, Output: chien\n Input: gatto"])[0]
    state = grammar.start
    for token in wrong[:-1]:
        state = int(grammar.step(state, int(token)))
    assert state >= 0 and grammar.step(state, int(wrong[-1])) == -1


def byte_level(texts: list[str], size: int = 300) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer: words take several tokens, some begin with others."""
    backend = tokenizers.Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def test_grammar_over_words_of_several_tokens(tiny: TranslationTask) -> None:
    index = tiny.sample(300, None, np.random.default_rng(5))
    tokenizer = byte_level(tiny.texts(index))
    tiny.check_tokenizer(lambda texts: encode(tokenizer, texts))
    grammar = tiny.grammar(tokenizer)
    for text in tiny.texts(index):
        ids = np.array([[0, *encode(tokenizer, [text])[0], 0]])
        column = np.searchsorted(grammar.tokens, ids[0, 1:])
        p = grammar.along(ids)[0, np.arange(ids.shape[1] - 1), column]
        assert p.prod() * tiny.size == pytest.approx(1.0, rel=1e-4)
    lengths = [
        len(ids) for ids in encode(tokenizer, tiny.texts(tiny.sample(3000, None, np.random.default_rng(6))))
    ]
    longest = tiny.extremes(lambda texts: [len(ids) for ids in encode(tokenizer, texts)])
    assert max(len(ids) for ids in encode(tokenizer, tiny.texts(longest))) >= max(lengths)


def test_tokenizer_that_joins_the_end_of_a_prompt_with_the_answer_is_refused(tiny: TranslationTask) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r", Output:( \w+)?|."), "isolated"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", eos_token="?")
    with pytest.raises(InputError, match="splits the end of '.*Output:'"):
        tiny.check_tokenizer(lambda texts: encode(tokenizer, texts))


def test_bad_tables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(message: str, table: list[tuple[str, ...]]) -> None:
        monkeypatch.setattr(icl_translation, "CONCEPTS", table)
        with pytest.raises(InputError, match=message):
            TranslationTask(TranslationConfig(n_concepts=8))

    good = list(CONCEPTS[:8])
    fails("spelling 'chien' occurs twice", [*good[:-1], ("x", "chien", "y", "z")])
    fails("has 3 words, not one for each of English, French", [*good[:-1], ("x", "y", "z")])
    fails("but there are 7", good[:-1])


# Downloaded lists


def test_pairs_that_do_not_say_their_task_are_left_out_and_counted() -> None:
    tables = [
        {"a": "b", "same": "same", "rose": "rosa", "to be": "x", "c": "d"},
        {"e": "f", "rose": "rosa", "g": "h", "i": "j"},
    ]
    kept = word_lists.keep(tables)
    assert kept.words == [[("a", "b"), ("c", "d")], [("e", "f"), ("g", "h")]]
    assert kept.dropped == {
        "several words": 1,
        "same spelling": 1,
        "in two tasks": 2,
        "longer than the shortest": 1,
    }


def test_missing_and_changed_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no word list .*en_fr.json"):
        TranslationTask(TranslationConfig(words="lists", n_concepts=None), tmp_path)
    with pytest.raises(InputError, match="mirror has no"):
        word_lists.fetch(tmp_path / "out", tmp_path)
    (tmp_path / "en_fr.json").write_text("{}")
    with pytest.raises(InputError, match="not the pinned"):
        word_lists.fetch(tmp_path / "out", tmp_path)


@pytest.fixture
def real(tmp_path: Path) -> TranslationTask:
    if not MIRROR.is_dir():
        pytest.skip(f"the word lists are not at {MIRROR} (set INVERSESCOPE_MIRROR)")
    folder = tmp_path / "data" / "icl_translation" / "lists"
    word_lists.fetch(folder, MIRROR)
    return TranslationTask(TranslationConfig(words="lists", n_concepts=None), tmp_path)


def test_rules_on_real_word_lists(real: TranslationTask) -> None:
    assert real.n > 500 and real.dropped["in two tasks"] > 0 and real.dropped["same spelling"] > 0
    index = real.sample(2000, None, np.random.default_rng(7))
    np.testing.assert_array_equal(real.parse(real.texts(index)), index)
    labels = real.features_of_texts(real.texts(index))
    for name, expected in real.features_of(index).items():
        np.testing.assert_array_equal(labels[name], expected)
    # Dictionaries whose rows are not the same concepts: a query is found in each of them.
    (crossed,) = real.crossed(10, 2, np.random.default_rng(8))
    assert (real.split_of(crossed.ravel()) == 1).all()
    queries = real.features_of(crossed.ravel())["query"].reshape(10, -1)
    assert (queries == queries[:, :1]).all()
    with pytest.raises(InputError, match="targets are trained on the own table"):
        real.lesson(1, None, np.random.default_rng(0))
