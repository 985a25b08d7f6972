"""Hypotheses without a human: the grammar, what its functions say of texts, how they are ranked, and how they are tested."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from inversescope.config import Config
from inversescope.config.functions import KINDS, Function, is_function, parse_function
from inversescope.config.load import parse_config
from inversescope.config.methods import ProposerConfig
from inversescope.errors import InputError
from inversescope.reader.candidates import candidates, interchangeable
from inversescope.reader.hypotheses import (
    COLUMNS,
    LabelTable,
    Posterior,
    agreement,
    permutation_test,
    propose,
)
from inversescope.reader.proposer import Said, chat_with, message
from inversescope.reader.wordings import groupings, telling_words
from inversescope.tasks import get_task
from inversescope.tasks.functions import _FUNCTIONS, Corpus, words_of

COLOURS = ["red", "blue", "green", "white", "black"]
NAMES = ["Ann", "Bob", "Cleo", "Dan"]
#: Two names, which of them comes again, and a colour.
TEXTS = [
    f"When {a} and {b} saw the {colour} house, {again} left"
    for a, b, colour in product(NAMES, NAMES, COLOURS)
    if a != b
    for again in (a, b)
]
IOI = "Then, Mary and John went to the store. John gave a drink to"
LETTERS = "Babbcab|b:"


# ------------------------------------------------------------------------------------------------------------- grammar
@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("twice( capital )", "twice(capital)"),
        ("after('a', -1)", "after('a', -1)"),
        ('after("the", 0)', "after('the')"),
        ("word(2, any)", "word(2)"),
        ("word(-1, ['cat', 'dog'])", "word(-1, ['cat', 'dog'])"),
        ("once", "once"),
        ("how_many(any)", "how_many"),
        ("same(word(0), twice)", "same(word(0), twice)"),
        ("skeleton(capital, ['x', \"it's\"])", "skeleton(capital, ['x', \"it's\"])"),
        ("count(after('|'))", "count(after('|'))"),
    ],
)
def test_functions_are_read_and_written(text: str, written: str) -> None:
    function = parse_function(text)
    assert str(function) == written and parse_function(written) == function and is_function(text)
    assert function.means and "{" not in function.means


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("subject", "no label function is called 'subject'"),
        ("word", "has 0 arguments"),
        ("word(1, 2)", "takes no 2"),
        ("word('a')", "takes no a"),
        ("twice(twice)", "takes no twice"),
        ("count(has('a'))", "takes no has"),
        ("capital", "no label function"),
        ("word(1.5)", "no label function"),
        ("word(True)", "no label function"),
        ("word(0, [])", "no label function"),
        ("word(place=0)", "no label function"),
        ("__import__('os').system('true')", "no label function"),
        ("word(0", "no label function"),
        ("has('a'); has('b')", "no label function"),
        ("", "no label function"),
    ],
)
def test_what_is_no_function_is_refused(text: str, told: str) -> None:
    assert not is_function(text)
    with pytest.raises(InputError, match="label function") as caught:
        parse_function(text)
    assert told in str(caught.value)


def test_every_function_of_the_grammar_is_defined() -> None:
    assert set(_FUNCTIONS) == {name for name, kind in KINDS.items() if kind.gives != "class"}


@pytest.mark.parametrize(
    ("function", "text", "label"),
    [
        ("word(0)", IOI, "Then"),
        ("word(-1)", IOI, "to"),
        ("word(99)", IOI, ""),
        ("word(0, capital)", IOI, "Mary"),
        ("word(-1, capital)", IOI, "John"),
        ("word(1, number)", "He has 3 or 12 of them", "12"),
        ("word(0, ['store', 'gave'])", IOI, "store"),
        ("after('the')", IOI, "store"),
        ("after('to', -1)", IOI, ""),
        ("before('gave')", IOI, "John"),
        ("before('Then')", IOI, ""),
        ("after('nowhere')", IOI, ""),
        ("twice(capital)", IOI, "John"),
        ("twice(['store'])", IOI, ""),
        ("once(0, capital)", IOI, "Mary"),
        ("once(-1)", IOI, "drink"),
        ("which_twice(capital)", IOI, "2"),
        ("which_twice(['store'])", IOI, ""),
        ("which(['pays', 'gave'], ['went'])", IOI, "pays"),
        ("which(['pays'], number)", IOI, ""),
        ("count(word(-3))", IOI, "1"),
        ("count(twice(capital))", IOI, "2"),
        ("count(word(-2))", LETTERS, "4"),
        ("how_many", LETTERS, "10"),
        ("how_many(capital)", IOI, "3"),
        ("distinct(capital)", IOI, "2"),
        ("has('drink')", IOI, "yes"),
        ("has('kiss')", IOI, "no"),
        ("skeleton(capital, ['store'])", "Then Mary saw the store", "Then * saw the *"),
        ("same(word(1, capital), word(2, capital))", IOI, "yes"),
        ("same(word(0, capital), word(2, capital))", IOI, "no"),
        ("same(word(0, number), word(0))", IOI, ""),
        ("compare(word(0, number), word(1, number))", "9 and 10", "second"),
        ("compare(word(0), word(-1))", "cat and cat", "equal"),
        ("compare(word(0), word(-1))", "dog and cat", "first"),
        ("slot('kind')", IOI, "seen"),
    ],
)
def test_labels_of_a_text(function: str, text: str, label: str) -> None:
    # Among others, which must make no difference.
    corpus = Corpus(["a b c", text, "12 or 3", "x"], {"kind": np.array(["", "seen", "other", ""])})
    assert corpus.labels(parse_function(function)).texts[1] == label


def test_texts_are_cut_into_words_or_letters() -> None:
    assert words_of("It's 3.5, isn’t it?") == ["It's", "3", ".", "5", ",", "isn’t", "it", "?"]
    assert words_of(LETTERS) == list(LETTERS)
    with pytest.raises(InputError, match="no slot 'kind'"):
        Corpus(["a b"]).labels(parse_function("slot('kind')"))


# --------------------------------------------------------------------------------------------------------- candidates
def test_fillers_of_slots_are_found() -> None:
    assert interchangeable(Corpus(TEXTS)) == [tuple(sorted(COLOURS)), tuple(NAMES)]
    tried = candidates(Corpus(TEXTS))
    assert len(tried) == len(set(tried)) == len(set(map(str, tried))) > 200
    assert all(parse_function(str(one)) == one for one in tried)
    wanted = ["twice(capital)", "once(0, capital)", "which_twice(capital)", "after('the')", "has('red')"]
    assert {parse_function(one) for one in wanted} <= set(tried)


def test_agreement_is_up_to_names() -> None:
    codes = np.array([0, 0, 1, 1, 2, 2])
    assert agreement(codes, np.array([7, 7, 3, 3, 5, 5])) == pytest.approx(1.0)
    assert agreement(codes, np.array([7, 7, 3, 3, 5, 3])) == pytest.approx(5 / 6)
    # A finer partition is another one, although it says all that the coarser one does.
    assert agreement(codes, np.arange(6)) == pytest.approx(1 / 2)
    assert agreement(codes, np.zeros(6, int), np.array([0.1, 0.1, 0.1, 0.1, 0.3, 0.3])) == pytest.approx(0.6)


# ------------------------------------------------------------------------------------------------------------- scoring
def test_bits_are_those_of_their_definition() -> None:
    known = LabelTable(["a x", "a y", "b x", "b y"], ["a x", "b y"], functions=[parse_function("word(0)")])
    weights = np.array([[2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    posterior = Posterior(weights, known.mass)
    n = 4.0**2 / 6.0
    assert posterior.count == pytest.approx([n, 0.0])
    assert posterior.told == pytest.approx([-np.log2(3 / 4), 0.0])
    match = posterior.match(known.table[:, known.own[0]], np.arange(2))
    assert match == pytest.approx(np.array([[0.75, 0.25], [0.0, 0.0]]))
    bits = posterior.bits(match, known.p[known.own[0]], np.arange(2))
    smoothed = [[np.log2((n * 1.5 + 1) / (n + 1)), np.log2((n * 0.5 + 1) / (n + 1))], [0.0, 0.0]]
    assert bits == pytest.approx(np.array(smoothed))


def test_the_permutation_test_is_that_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    bits = rng.normal(size=(3, 5, 5)) + np.array([1.0, 0.3, 0.0])[:, None, None] * np.eye(5)
    every = [bits[:, np.arange(5), list(order)].mean(1) for order in permutations(range(5))]
    scores = np.stack(every, 1)
    scaled = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
    exact = (scaled.max(0) >= scaled[:, :1] - 1e-9).mean(1)
    assert permutation_test(bits) == pytest.approx(exact, abs=0.04)
    # The same function ten times costs nothing; a score that cannot vary is never accepted.
    one = bits[:1]
    assert permutation_test(np.repeat(one, 10, 0)) == pytest.approx(np.repeat(permutation_test(one), 10))
    assert permutation_test(np.ones((1, 5, 5))) == pytest.approx([1.0])


def ball(labels: np.ndarray, targets: np.ndarray, purity: float, rng: np.random.Generator) -> np.ndarray:
    """Weights (T, N): texts with the target's label and, with another probability, texts with others; never the target."""
    same = labels[targets][:, None] == labels[None]
    weights = (rng.random(same.shape) < np.where(same, purity, 1 - purity)).astype(float)
    weights[np.arange(len(targets)), targets] = 0.0
    return weights


def told(hidden: str, purity: float = 1.0, seed: int = 0) -> tuple[LabelTable, np.ndarray, np.ndarray]:
    """Texts, targets, weights that tell a function, and its labels."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(len(TEXTS), 40, replace=False)
    labels = Corpus(TEXTS).labels(parse_function(hidden)).codes
    known = LabelTable(TEXTS, [TEXTS[t] for t in targets])
    return known, ball(labels, targets, purity, rng), labels


@pytest.mark.parametrize(
    "hidden", ["twice(capital)", "once(0, capital)", "which_twice(capital)", "after('the')", "before('and')"]
)
def test_what_is_told_is_proposed_first(hidden: str) -> None:
    known, weights, labels = told(hidden)
    found = propose(known, {"": weights})
    first = found.iloc[0]
    codes = Corpus(TEXTS).labels(parse_function(first["hypothesis"])).codes
    assert agreement(codes, labels) == pytest.approx(1.0)
    assert first["accepted"] and first["p"] < 0.01
    assert first[["rate", "ci_low", "ci_high"]].tolist() == pytest.approx([1.0] * 3)
    assert first["explains"] > 0.95 and first["together"] > 0.95 and abs(first["left"]) < 0.2
    assert first["chance"] == pytest.approx(1 / len(np.unique(labels)), abs=0.05)
    assert list(found.columns) == COLUMNS and (found["n_tried"] > 200).all() and len(found) <= 10


def test_a_mixture_is_told_at_its_rate_and_the_rest_is_left() -> None:
    known, weights, _ = told("twice(capital)", purity=0.9)
    first = propose(known, {"": weights}, n=3).iloc[0]
    assert first["hypothesis"] == "twice" and "twice(capital)" in first["aliases"] and first["accepted"]
    # A quarter of the texts have the label.
    assert first["ci_low"] < 0.75 == pytest.approx(first["rate"], abs=0.03) and first["n_tested"] == 3


def test_the_bandwidth_that_suits_a_function_is_found() -> None:
    known, wide, _ = told("which_twice(capital)")
    _, narrow, _ = told("after('the')")
    found = propose(known, {"narrow": wide * narrow, "wide": wide}).iloc[0]
    assert (found["hypothesis"], found["bandwidth"]) == ("which_twice", "wide")
    assert found["rate"] == pytest.approx(1.0) and found["explains"] > 0.95
    # At the narrow one, which comes first, the colour is left.
    assert found["left"] == pytest.approx(np.log2(len(COLOURS)), abs=0.3)


def test_the_same_function_by_other_names_is_shown_once() -> None:
    known, weights, _ = told("after('the')")
    found = propose(known, {"": weights})
    first = found.iloc[0]
    names = [first["hypothesis"], *first["aliases"].split("; ")]
    assert {"after('the')", "before('house')", "word(6)"} <= set(names)
    assert first["hypothesis"] == min(names[:3], key=len)
    assert not set(names[1:]) & set(found["hypothesis"])


def test_nothing_is_accepted_where_nothing_is_told() -> None:
    known, weights, _ = told("twice(capital)")
    rng = np.random.default_rng(1)
    found = [
        propose(known, {"": weights[rng.permutation(len(weights))]})["accepted"].any() for _ in range(100)
    ]
    # 5% of the sites, by the binomial distribution at most 11 in all but one case of a hundred.
    assert sum(found) <= 11
    assert propose(known, {"": np.zeros_like(weights)}).empty


def test_candidates_have_weight_but_no_prior() -> None:
    """Labels' prior probabilities are those of the prior's draws, whatever candidates there are beside them."""
    extra = ["When Ann and Bob saw the red house, Ann left"] * 50
    known = LabelTable([*TEXTS, *extra], TEXTS[:4], np.repeat([1.0, 0.0], [len(TEXTS), len(extra)]))
    alone = LabelTable(TEXTS, TEXTS[:4], functions=[one[0] for one in known.names])
    assert known.p == pytest.approx(alone.p) and known.entropy == pytest.approx(alone.entropy)


# ---------------------------------------------------------------------------------------------- features by the grammar
def test_a_task_labels_its_prompts_by_functions() -> None:
    task = get_task("ioi", Config(experiments={}, models={}))
    index = np.array([5, -1, 70_000, 5])
    own = task.features_of(index)
    names = ["twice(capital)", "once(0, capital)", "slot('item')"]
    codes = task.functions_of(names, index)
    for name, feature in zip(names, ("subject", "object", "item"), strict=True):
        assert codes[name].dtype == np.int32 and codes[name][1] == -1
        for function, code in zip(codes[name][[0, 2, 3]], own[feature][[0, 2, 3]], strict=True):
            assert task.feature_values[name][function] == task.feature_values[feature][code]
    more = task.functions_of(names, np.arange(3000))["twice(capital)"]
    assert len(np.unique(more)) == len(np.unique(task.features_of(np.arange(3000))["subject"]))
    assert task.functions_of(names, index)["twice(capital)"].tolist() == codes["twice(capital)"].tolist()
    assert task.chance_of("twice(capital)") == pytest.approx(task.chance("subject"), rel=0.05)
    texts = [*task.texts(np.array([5])), "he saw Bob"]
    outside = task.functions_of_texts(["twice(capital)", "slot('item')"], texts)
    assert outside["twice(capital)"][0] == codes["twice(capital)"][0]
    assert (
        task.feature_values["twice(capital)"][outside["twice(capital)"][1]] == ""
        and (outside["slot('item')"] == -1).all()
    )


@pytest.mark.parametrize(
    ("feature", "accepted"),
    [("twice(capital)", True), ("subject", True), ("subjekt", False), ("twice(", False)],
)
def test_a_configuration_names_functions_as_features(feature: str, accepted: bool) -> None:
    values = {
        "experiments": {
            "ioi": {"model": "m", "sites": ["L0H0"], "settings": {"fcr": {"features": [feature]}}}
        },
        "models": {"m": {"source": "local", "path": "x", "n_layers": 1, "n_heads": 1}},
        "variants": {"paper": {}, "default": {}},
    }
    if accepted:
        config = parse_config(values).of("ioi", "m")
        assert config.fcr.features == [feature]
    else:
        with pytest.raises(InputError, match="has no feature.*label function such as"):
            parse_config(values)


def test_functions_are_values() -> None:
    assert Function("word", (0,)) == Function("word", (0, Function("any")))
    assert len({Function("once"), Function("once", (0, Function("any")))}) == 1


# ----------------------------------------------------------------------------------------------------------- wordings
ASKED = {
    "language": ["The language of {} is", "The people of {} speak", "They ask for the language of {} here"],
    "money": ["The currency of {} is", "The shops of {} take", "The people of {} pay in"],
    "place": ["The capital of {} is", "On the map, {} lies in", "The people of {} live in"],
}
#: What is asked about a name, in three ways each.
QUESTIONS = [(kind, way.format(name)) for kind, ways in ASKED.items() for way in ways for name in NAMES * 4]


def asked_for(rng: np.random.Generator, told: float) -> np.ndarray:
    """Activations that tell what is asked for, so strongly; the name, the wording and noise are told beside it."""
    kinds = np.array([list(ASKED).index(kind) for kind, _ in QUESTIONS])
    ways = np.arange(len(QUESTIONS)) // (4 * len(NAMES))
    names = np.arange(len(QUESTIONS)) % len(NAMES)
    z = told * np.eye(16)[kinds] + 0.3 * np.eye(16)[3 + ways] + 0.5 * np.eye(16)[12 + names]
    return z + 0.1 * rng.normal(size=z.shape)


def test_wordings_that_an_activation_treats_alike_are_grouped() -> None:
    rng = np.random.default_rng(0)
    corpus = Corpus([text for _, text in QUESTIONS])
    kinds = np.array([list(ASKED).index(kind) for kind, _ in QUESTIONS])
    found = groupings(corpus, asked_for(rng, 2.0))
    assert found and all(is_function(str(one)) and one.name == "which" for one in found)
    agreed = [agreement(corpus.labels(one).codes, kinds) for one in found]
    assert max(agreed) == pytest.approx(1.0)
    best = found[int(np.argmax(agreed))]
    # No property of the text says that these are alike, so that no function of the grammar does.
    plain = [agreement(corpus.labels(one).codes, kinds) for one in candidates(corpus)]
    assert max(plain) < 0.8 and best not in candidates(corpus)
    blind = groupings(corpus, asked_for(rng, 0.0))
    assert max((agreement(corpus.labels(one).codes, kinds) for one in blind), default=0.0) < 0.9


def test_words_tell_groups_in_the_order_of_the_lists() -> None:
    """A word of two groups tells the one that is left once the other's own words have spoken."""
    corpus = Corpus(["they speak so", "we speak of money", "we speak of money", "it takes money", "it is"])
    held = np.array([np.isin(np.arange(len(corpus.words)), row) for row in corpus.ids])
    lists = telling_words(held, np.array([1, 2, 2, 2, 3]))
    told = [[corpus.words[i] for i in one] for one in lists]
    assert told == [["money"], ["they"], ["is"]]
    lists = telling_words(held[:, [corpus.number[w] for w in ("speak", "money")]], np.array([1, 2, 2, 2, 3]))
    assert lists == [[1], [0]]


def test_further_functions_are_labelled_as_the_first_ones_are() -> None:
    texts, targets = TEXTS[:80], TEXTS[80:]
    functions = [
        parse_function(name) for name in ("twice(capital)", "word(1)", "which(['red'], ['blue'])", "word(-1)")
    ]
    at_once = LabelTable(texts, targets, functions=functions)
    later = LabelTable(texts, targets, functions=functions[:1]).with_functions(functions[1:], "of somebody's")
    assert later.names == at_once.names and later.n_tried == at_once.n_tried == 4
    assert later.meaning(0) == functions[0].means and later.meaning(1).endswith(" (of somebody's)")
    for name in ("own", "table", "p", "entropy"):
        np.testing.assert_array_equal(getattr(later, name), getattr(at_once, name))
    again = later.with_functions(functions, "again")
    assert again.names == later.names and len(LabelTable(texts, targets, functions=functions[:1]).names) == 1


# ------------------------------------------------------------------------------------------------- what a model proposes
def test_an_answer_is_read_line_by_line() -> None:
    answer = "Sure!\n- twice(capital)\n\n2. `after('a', -1)`\n```\ntwice( capital )\nword(\n* subject\nobject\nwhich(['x'], ['y'])"
    said = Said.of([answer, "same(word(0), slot('item'))\nword(-1)"])
    assert [str(one) for one in said.functions] == [
        "twice(capital)",
        "after('a', -1)",
        "which(['x'], ['y'])",
        "word(-1)",
    ]
    assert (said.n_lines, said.n_read) == (10, 5)
    # The most frequent fault first; each with its first line.
    assert said.unread == [
        "2 such as 'Sure!': it has not the form of one",
        "2 such as 'subject': no label function is called 'subject'",
        "1 such as \"same(word(0), slot('item'))\": slots are not told by raw text",
    ]
    asked = message("Use:\n{grammar}\nNow.", ["one text"], ["another", "third"])
    assert asked.endswith("Now.\n\nGroup A:\none text\n\nGroup B:\nanother\nthird")
    assert all((f"\n{name}" in f"\n{asked}") == (name != "slot") for name in KINDS)


def test_a_chat_model_answers_greedily(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from inversescope.config.targets import ArchitectureConfig
    from inversescope.targets.models import build_model
    from inversescope.targets.tokenizers import word_tokenizer

    tokenizer = word_tokenizer(["which", " is", " red", " blue", " it", "user", "model"])
    build_model(
        ArchitectureConfig(n_layers=1, n_heads=2, d_model=16, n_positions=32),
        len(tokenizer),
        3,
        initializer_range=0.6,
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = ProposerConfig(path=str(tmp_path), max_tokens=6)
    with pytest.raises(InputError, match="no chat template"):
        chat_with(settings)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} it"
    tokenizer.save_pretrained(tmp_path)
    said = chat_with(settings)("which is red")
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer.encode("which is red it")
    start = len(ids)
    while len(ids) < start + 6 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert said == tokenizer.decode(ids[start:], skip_special_tokens=True) and said
