"""InversionView's case studies: priors of counting and addition, and sites at any position."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from inversescope.activations.capture import capture
from inversescope.activations.positions import capture_prompts, named_positions
from inversescope.config.targets import ArchitectureConfig
from inversescope.config.tasks import AdditionConfig, CountingConfig, IOIConfig
from inversescope.errors import InputError
from inversescope.kernel.distances import distance_of
from inversescope.sites import Site
from inversescope.studies.cases.agreement import same_effects
from inversescope.studies.cases.distances import nearest
from inversescope.targets.models import Target, build_model
from inversescope.targets.tokenizers import character_tokenizer, encode, task_tokenizer
from inversescope.tasks import Task
from inversescope.tasks.addition import AdditionTask
from inversescope.tasks.automata import Automaton
from inversescope.tasks.counting import CountingTask
from inversescope.tasks.ioi import IOITask

COSINE = distance_of("cosine")
TINY = CountingConfig(letters="abcd", n_distinct=2, max_count=2, held_out_letters=0.3)


def counting(config: CountingConfig = TINY) -> CountingTask:
    return CountingTask(config)


def everything(task: Task) -> np.ndarray:
    return np.arange(task.size)


# ------------------------------------------------------------------------------------------------------------- priors


def test_counting_is_addressed_both_ways() -> None:
    task = counting()
    index = everything(task)
    texts = task.texts(index)
    assert len(set(texts)) == task.size
    assert (task.parse(texts) == index).all()
    assert (task.index(task.slots(index)) == index).all()
    # By hand: two letters of four, each once or twice, every arrangement, either letter asked for.
    wanted = set()
    for written in (w for n in (2, 3, 4) for w in product("abcd", repeat=n)):
        numbers = {letter: written.count(letter) for letter in written}
        if len(numbers) == 2 and max(numbers.values()) <= 2:
            wanted |= {f"B{''.join(written)}|{letter}:" for letter in numbers}
    assert set(texts) == wanted


def test_counting_of_the_published_prior_is_addressed_both_ways() -> None:
    task = counting(CountingConfig())
    index = task.draw(500, None, np.random.default_rng(0))
    texts = task.texts(index)
    assert (task.parse(texts) == index).all()
    longest = task.texts(task.extremes(lambda texts: [len(text) for text in texts]))[0]
    assert len(longest) == 1 + 27 + 3
    assert "Bvzzvcvv|v:" in task.texts(task.parse(["Bvzzvcvv|v:"]))
    codes = task.features_of(task.parse(["Bvzzvcvv|v:"]))
    labels = {name: task.feature_values[name][code[0]] for name, code in codes.items()}
    assert labels == {
        "count": "4", "target": "v", "last": "v", "first": "v", "order": "1", "length": "7", "others": "1,2", "counts": "4,2,1"
    }  # fmt: skip
    assert task.completed(task.parse(["Bvzzvcvv|v:"])) == ["Bvzzvcvv|v:4"]


@pytest.mark.parametrize("text", ["Bab|c:", "Bab|a", "ab|a:", "Baaab|a:", "Ba|a:", "Babc|a:", "Bab|a:1", ""])
def test_texts_out_of_counting(text: str) -> None:
    assert counting().parse([text]).tolist() == [-1]


def test_counting_prior_is_drawn_as_it_says() -> None:
    task = counting()
    probability = np.exp(task.log_prior(everything(task)))
    assert probability.sum() == pytest.approx(1.0)
    assert probability.max() > 3 * probability.min()  # not uniform
    n = 60_000
    seen = np.bincount(task.draw(n, None, np.random.default_rng(1)), minlength=task.size) / n
    error = np.sqrt(probability * (1 - probability) / n)
    assert (abs(seen - probability) < 5 * error).all()
    distinct = task.sample(100, None, np.random.default_rng(2))
    assert len(set(distinct.tolist())) == 100


@pytest.mark.parametrize("name", ["counting", "addition"])
def test_splits_partition_the_prior(name: str) -> None:
    task: Task = (
        counting() if name == "counting" else AdditionTask(AdditionConfig(n_digits=2, held_out_pairs=0.1))
    )
    parts = [task.enumerate(split) for split in ("train", "test")]
    assert sorted(np.concatenate(parts).tolist()) == list(range(task.size))
    for code, (split, part) in enumerate(zip(("train", "test"), parts, strict=True)):
        assert (task.split_of(part) == code).all()
        assert np.exp(task.log_prior(part, split)).sum() == pytest.approx(1.0)
        drawn = task.draw(300, split, np.random.default_rng(3))
        assert np.isin(drawn, part).all()
    if isinstance(task, AdditionTask):  # an unordered pair is on one side
        codes = task.slots(parts[1])
        assert (task.split_of(task.index(codes[:, ::-1])) == 1).all()


@pytest.mark.parametrize("name", ["counting", "addition"])
def test_chance_is_the_share_of_equal_labels(name: str) -> None:
    task: Task = (
        counting() if name == "counting" else AdditionTask(AdditionConfig(n_digits=1, with_answer=True))
    )
    index = everything(task)
    probability = np.exp(task.log_prior(index))
    for feature, codes in task.features_of(index).items():
        share = np.bincount(codes, weights=probability)
        assert task.chance(feature) == pytest.approx(float((share**2).sum())), feature


def words_of(grammar: Automaton, tokens: list[int]) -> bool:
    """Whether the automaton takes a sequence that ends with its end token."""
    state = np.array([grammar.start])
    for token in tokens:
        state = np.asarray(grammar.step(state, np.array([token])))
        if state[0] < 0:
            return False
    return True


@pytest.mark.parametrize("name", ["counting", "addition"])
def test_grammar_is_the_prior_and_its_probabilities(name: str) -> None:
    task: Task = (
        counting() if name == "counting" else AdditionTask(AdditionConfig(n_digits=1, with_answer=True))
    )
    tokenizer = task_tokenizer(task)
    grammar = task.grammar(tokenizer)
    end = int(tokenizer.eos_token_id)
    index = everything(task)
    ids = encode(tokenizer, task.texts(index))
    column = {int(token): i for i, token in enumerate(grammar.tokens)}
    for length in sorted({len(one) for one in ids}):
        rows = [row for row, one in enumerate(ids) if len(one) == length]
        paths = np.array([[end, *ids[row], end] for row in rows])
        p = grammar.along(paths)
        assert p.sum(-1) == pytest.approx(1.0, abs=1e-5)
        chosen = [
            [p[r, t, column[int(paths[r, t + 1])]] for t in range(length + 1)] for r in range(len(rows))
        ]
        assert np.log(chosen).sum(1) == pytest.approx(task.log_prior(index[rows]), abs=1e-4)
    words = {tuple(one.tolist()) for one in ids}
    rng = np.random.default_rng(0)
    for row in rng.integers(len(ids), size=40):
        tokens = ids[row].tolist()
        assert words_of(grammar, [*tokens, end])
        changed = list(tokens)
        changed[rng.integers(len(tokens))] = int(rng.choice(grammar.tokens))
        assert words_of(grammar, [*changed, end]) == (tuple(changed) in words)


@pytest.mark.parametrize("name", ["counting", "addition"])
def test_moves_are_symmetric_and_reach_all(name: str) -> None:
    task: Task = (
        counting() if name == "counting" else AdditionTask(AdditionConfig(n_digits=1, with_answer=True))
    )
    index = everything(task)
    way = np.zeros((task.size, task.size))
    for kind, count in enumerate(task.move_counts):
        for value in range(count):
            to = task.move(index, np.full(task.size, kind), np.full(task.size, value))
            np.add.at(way, (index, to), 1.0 / count)
    assert way == pytest.approx(way.T)
    reached = np.linalg.matrix_power((way > 0).astype(float), 12) > 0
    assert reached.all()


def test_addition_without_answers_is_the_questions() -> None:
    task = AdditionTask(AdditionConfig(n_digits=2))
    index = everything(task)
    assert (task.parse(task.texts(index)) == index).all()
    assert task.texts(index[:1]) == task.questions(index[:1]) == ["B10+10="]
    assert task.completed(index[:1]) == ["B10+10=20"]
    assert task.parse(["B10+10=20"]).tolist() == [-1]
    grammar = task.grammar(task_tokenizer(task))
    assert grammar.rows[grammar.start].max() == 1.0  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no position '@A1'"):
        task.offsets("A1", index)


@pytest.mark.parametrize("name", ["counting", "addition", "ioi"])
def test_counterfactuals_change_one_feature(name: str) -> None:
    tasks: dict[str, Task] = {
        "counting": counting(CountingConfig()),
        "addition": AdditionTask(AdditionConfig()),
        "ioi": IOITask(IOIConfig()),
    }
    kept = {
        "count": ("target", "last", "first", "length", "order"),
        "target": ("counts", "last", "first", "length"),
        "last": ("count", "target", "length", "others"),
        "F2": ("F1", "F3", "second"),
        "S1": ("S2", "S3", "first"),
        "object": ("subject", "template", "order", "place", "item"),
        "subject": ("object", "template", "order", "place", "item"),
    }
    task, rng = tasks[name], np.random.default_rng(0)
    index = task.sample(60, None, rng)
    labels = task.features_of(index)
    for feature in task.counterfactual_features:
        other = task.counterfactuals(feature, index, rng)
        found = other >= 0
        assert found.mean() > 0.8, feature
        changed = task.features_of(other)
        assert (changed[feature] != labels[feature])[found].all()
        for same in kept.get(feature, ()):
            assert (changed[same] == labels[same])[found].all(), (feature, same)
    with pytest.raises(InputError, match="no counterfactuals"):
        task.counterfactuals("nothing", index, rng)


def test_addition_features_by_hand() -> None:
    task = AdditionTask(AdditionConfig(with_answer=True))
    assert task.size == 810_000
    index = task.parse(["B362+745=1107", "B362+405=767", "B362+405=768"])
    assert index[2] == -1
    codes = task.features_of(index[:2])
    label = {name: [task.feature_values[name][c] for c in code] for name, code in codes.items()}
    assert [label[name] for name in ("F1", "S3", "T2", "C1", "C2", "C3")] == [
        ["3", "3"], ["5", "5"], ["10", "6"], ["1", "0"], ["1", "0"], ["0", "0"]
    ]  # fmt: skip
    assert [label[name] for name in ("A1", "A3", "first", "sum")] == [
        ["1", "7"],
        ["0", "7"],
        ["362", "362"],
        ["1107", "767"],
    ]
    assert task.questions(index[:1]) == ["B362+745="]
    assert task.offsets("A4", index[:2]).tolist() == [12, -1]
    assert [
        task.texts(index[:1])[0][task.offsets(p, index[:1])[0]] for p in ("F2", "plus", "S1", "equals", "A1")
    ] == list("6+7=1")


@pytest.mark.parametrize(
    "change", [{"letters": "aab"}, {"letters": "abB"}, {"letters": "ab", "n_distinct": 3}, {"n_distinct": 5}]
)  # fmt: skip
def test_counting_refuses_what_is_no_prior(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CountingTask(CountingConfig(**change))


# ---------------------------------------------------------------------------------------------------------- positions


def toy_target(task: Task, seed: int = 0) -> Target:
    tokenizer = task_tokenizer(task)
    shape = ArchitectureConfig(n_layers=2, n_heads=2, d_model=16, n_positions=16)
    return Target(build_model(shape, len(tokenizer), seed, initializer_range=0.3), tokenizer, "toy")


def test_named_positions_are_the_tokens_that_they_name() -> None:
    task = counting()
    target = toy_target(task)
    index = everything(task)[::3]
    sites = [
        Site.parse(label)
        for label in ("L0H0@target", "L1.resid_post@colon", "L1.attn_out@last", "L0.mlp_out@2")
    ]
    found = capture_prompts(task, target, index, sites)
    for row in range(0, len(index), 7):
        ids = encode(target.tokenizer, task.texts(index[row : row + 1]))
        n = len(ids[0])
        for site, place in zip(sites, (n - 2, n - 1, n - 1, 2), strict=True):
            fixed = Site(site.layer, site.kind, site.head, str(place))
            assert found[site.label][row] == pytest.approx(
                capture(target, ids, [fixed])[fixed.label][0], abs=1e-6
            )


def test_any_position_is_the_nearest_one() -> None:
    task = counting()
    target = toy_target(task)
    index = everything(task)[::5]
    site = Site.parse("L0.resid_post@any")
    z = capture_prompts(task, target, index, [site])[site.label]
    ids = encode(target.tokenizer, task.texts(index))
    assert z.shape == (len(index), 8, 16)  # the longest prompt has eight tokens
    query = z[3, 2][None]
    d = COSINE.between(COSINE.prepare(query), COSINE.prepare(z))[0]
    for row, one in enumerate(ids):
        places = [Site(0, "resid_post", None, str(p)) for p in range(len(one))]
        own = np.stack([capture(target, [one], [place])[place.label][0] for place in places])
        least = COSINE.between(COSINE.prepare(query), COSINE.prepare(own)).min()
        assert d[row] == pytest.approx(least, abs=1e-5)
    assert d[3] == pytest.approx(0.0, abs=1e-6)
    assert COSINE.paired(np.repeat(query, len(z), 0), z) == pytest.approx(d, abs=1e-5)


def test_word_tasks_have_named_positions_too() -> None:
    task = IOITask(IOIConfig())
    tokenizer = task_tokenizer(task)
    target = Target(build_model(ArchitectureConfig(n_layers=1), len(tokenizer), 0), tokenizer, "toy")
    index = task.sample(50, None, np.random.default_rng(0))
    ids = encode(tokenizer, task.texts(index))
    places = named_positions(
        task, target, index, ids, [Site.parse(f"L0H0@{name}") for name in ("S1", "S2", "IO")]
    )
    subject, other = (task.features_of(index)[name] for name in ("subject", "object"))
    for row, one in enumerate(ids):
        words = [tokenizer.decode([int(t)]).strip() for t in one]
        assert words[places["S1"][row]] == words[places["S2"][row]] == task.names[subject[row]]
        assert places["S1"][row] < places["S2"][row]
        assert words[places["IO"][row]] == task.names[other[row]]


def test_positions_that_are_not_there() -> None:
    task = AdditionTask(AdditionConfig(with_answer=True))
    target = toy_target(task)
    index = task.parse(["B362+745=1107", "B362+405=767"])
    with pytest.raises(InputError, match="1 of 2 prompts.*position 'A4'"):
        capture_prompts(task, target, index, [Site.parse("L0H0@A4")])
    with pytest.raises(InputError, match="no position '@nowhere'"):
        capture_prompts(task, target, index, [Site.parse("L0H0@nowhere")])
    with pytest.raises(InputError, match="prompts have no position .12."):
        capture_prompts(task, target, index, [Site.parse("L0H0@12")])


def test_sites_of_one_effect_are_drawn_together() -> None:
    effects = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [1.0, 2.5]])
    same = same_effects(effects, list("abcde"))
    assert same == {"a": "a", "b": "b", "c": "a", "d": "d", "e": "e"}


def test_the_nearest_prompts_are_as_many_as_asked_for() -> None:
    d = np.random.default_rng(0).random((4, 50))
    chosen = nearest(d, np.array([0, 1, 7, 50]))
    np.testing.assert_array_equal(chosen.sum(1), [0, 1, 7, 50])
    assert d[2][chosen[2]].max() < d[2][~chosen[2]].min()


def test_character_tokenizers_are_checked() -> None:
    with pytest.raises(InputError, match="twice"):
        character_tokenizer("abaE", "E", None)
    with pytest.raises(InputError, match="'E' is not in the vocabulary"):
        character_tokenizer("ab", "E", None)
    with pytest.raises(InputError, match="not one character"):
        character_tokenizer(["a", "bc", "E"], "E", None)
