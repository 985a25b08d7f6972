"""The word tasks: their tables, and a prior that can be run as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from inversescope.config.tasks import WordsConfig
from inversescope.errors import InputError
from inversescope.targets.tokenizers import check_single_tokens, encode, word_tokenizer
from inversescope.tasks.icl_words import TABLES, WordsTask


@pytest.fixture(scope="module")
def task() -> WordsTask:
    return WordsTask(WordsConfig())


@pytest.fixture(scope="module")
def tiny() -> WordsTask:
    """Two shots of two words each, three queries: 72 prompts."""
    return WordsTask(WordsConfig(n_shots=2, n_shown=2, n_pairs=7))


def test_tables_tell_their_tasks_apart() -> None:
    sources = [row[0] for _, *rows in TABLES.values() for row in rows]
    assert len(set(sources)) == len(sources)  # no word is asked in two tables
    for head, *rows in TABLES.values():
        assert len(rows) >= 40 and {len(row) for row in rows} == {len(head)}
        assert all(word.isalpha() and word == word.strip() for row in rows for word in row)
        # Each task changes the word, and no two tasks do it alike.
        assert all(len(set(row)) == len(head) for row in rows)
    assert all(target == source.upper() for source, target in TABLES["lower"][1:])
    assert all(row[2].endswith("ing") for row in TABLES["verb"][1:])


def test_prompts_show_other_words_in_each_place(task: WordsTask) -> None:
    assert task.task_names == [
        "country-capital",
        "country-language",
        "lower-upper",
        "noun-plural",
        "verb-past",
        "verb-gerund",
    ]
    assert task.size == 6 * 5**3 * 25
    index = task.index(np.array([[0, 0, 0, 0, 0], [5, 4, 3, 2, 24]]))
    assert task.texts(index)[0].startswith("Input: France, Output: Paris\n Input: ")
    assert task.answers(index)[1].endswith("ing")
    texts = task.texts(task.sample(500, None, np.random.default_rng(0)))
    for text in texts:
        inputs = [part.split(",")[0] for part in text.split("Input: ")[1:]]
        assert len(inputs) == len(set(inputs)) == 4
    assert WordsTask(WordsConfig(n_shots=5, n_shown=3)).size == 6 * 3**5 * 25


def test_every_prompt_is_numbered_and_in_one_split(tiny: WordsTask) -> None:
    every = tiny.enumerate()
    texts = tiny.texts(every)
    assert tiny.size == len(set(texts)) == 72
    np.testing.assert_array_equal(tiny.parse(texts), every)
    train, test = tiny.enumerate("train"), tiny.enumerate("test")
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), every)
    assert set(tiny.split_of(train)) == {0} and set(tiny.split_of(test)) == {1}
    assert not np.isin(tiny.combination(test), tiny.combination(train)).any()
    # Where the shots have as many choices as a multiple of the queries, each query is as frequent in the test split.
    whole = WordsTask(WordsConfig())
    counts = np.bincount(whole.slots(whole.enumerate("test"))[:, -1])
    assert counts.tolist() == [6 * 5**3 // 25] * 25
    inside, outside = tiny.features_of(every), tiny.features_of_texts(texts)
    for name in tiny.features:
        np.testing.assert_array_equal(inside[name], outside[name])


def test_parts_are_of_the_tasks_in_equal_parts(task: WordsTask) -> None:
    for split, number in ((None, 3000), ("train", 600), ("test", 60)):
        index = task.sample(number, split, np.random.default_rng(1))
        assert np.bincount(task.features_of(index)["task"], minlength=6).tolist() == [number // 6] * 6


def test_a_shot_out_of_its_place_is_no_prompt(tiny: WordsTask) -> None:
    (text,) = tiny.texts(np.array([0]))
    first, second, query = text.split("\n ")
    assert tiny.parse(["\n ".join([second, first, query]), "\n ".join([first, first, query])]).tolist() == [
        -1,
        -1,
    ]
    labels = tiny.features_of_texts(["\n ".join([second, first, query])])
    assert tiny.feature_values["task"][labels["task"][0]] == "country-capital"
    assert tiny.feature_values["kind"][labels["kind"][0]] == "country"
    other = tiny.texts(tiny.index(np.array([[1, 0, 0, 0]])))[0].split("\n ")[1]
    mixed = tiny.features_of_texts(["\n ".join([first, other, query])])
    assert tiny.feature_values["task"][mixed["task"][0]] == "mix"


def test_tasks_of_one_table_ask_the_same_words(task: WordsTask) -> None:
    crossings = task.crossed(10, 4, np.random.default_rng(2))
    assert [index.shape for index in crossings] == [(10, 2, 4)] * 2
    tasks = []
    for index in crossings:
        labels = {name: codes.reshape(index.shape) for name, codes in task.features_of(index.ravel()).items()}
        assert (labels["query"] == labels["query"][:, :1, :1]).all() and len(set(labels["kind"].ravel())) == 1
        assert (task.split_of(index.ravel()) == 1).all()
        # The same rows are shown in both tasks.
        slots = task.slots(index.ravel()).reshape(*index.shape, -1)
        assert (slots[:, 0, :, 1:] == slots[:, 1, :, 1:]).all()
        tasks += sorted(set(labels["task"].ravel().tolist()))
    assert tasks == [0, 1, 4, 5]
    with pytest.raises(InputError, match="there are 25"):
        task.crossed(26, 1, np.random.default_rng(2))
    assert task.chance("task") == pytest.approx(1 / 6)
    # Countries and verbs are asked twice as often as the words of the other tables.
    assert task.chance("kind") == pytest.approx(2 / 9 + 2 / 36)
    assert task.chance("query") == pytest.approx((2 / 9 + 2 / 36) / 25)


def test_zero_shot_targets_ask_another_query_of_the_task(task: WordsTask) -> None:
    index = task.sample(200, "test", np.random.default_rng(3))
    asked, wanted = task.ask_another(index, np.random.default_rng(4))
    for text, answer, prompt, own in zip(asked, wanted, task.texts(index), task.rows(index).T, strict=True):
        word = text.removeprefix("Input: ").removesuffix(", Output:")
        assert (word, answer) in task.pairs[own[0]] and f"Input: {word}," not in prompt


def test_grammar_is_the_prior(tiny: WordsTask) -> None:
    tokenizer = word_tokenizer(tiny.words(), tiny.word_pattern)
    check_single_tokens(tokenizer, tiny.single_token_words())
    grammar = tiny.grammar(tokenizer)
    tokens = np.array([[0, *ids, 0] for ids in encode(tokenizer, tiny.texts(tiny.enumerate()))])
    column = np.searchsorted(grammar.tokens, tokens[:, 1:])
    p = np.take_along_axis(grammar.along(tokens), column[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(p.prod(axis=1) * tiny.size, 1.0, rtol=1e-5)


def test_moves_are_symmetric_and_reach_everything(tiny: WordsTask) -> None:
    every = tiny.enumerate()
    reached = np.zeros((tiny.size, tiny.size), int)
    for kind, count in enumerate(tiny.move_counts):
        for value in range(count):
            there = tiny.move(every, np.full(tiny.size, kind), np.full(tiny.size, value))
            np.add.at(reached, (every, there), 1)
    np.testing.assert_array_equal(reached, reached.T)
    assert (np.linalg.matrix_power((reached > 0) + np.eye(tiny.size, dtype=int), 4) > 0).all()


def test_priors_without_queries_are_refused() -> None:
    with pytest.raises(InputError, match="leaves 0 queries"):
        WordsTask(WordsConfig(n_pairs=15))
    with pytest.raises(InputError, match="30 queries for 4 choices"):
        WordsTask(WordsConfig(n_shots=2, n_shown=2, n_pairs=34))
    with pytest.raises(InputError, match=r"icl_words.n_pairs is 400, but there are"):
        WordsTask(WordsConfig(n_pairs=400))
