"""The task `text`: a corpus as a prior; what is no corpus is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import default_values

from inversescope.cli import main
from inversescope.config import Config, load_config, parse_config
from inversescope.config.tasks import TextConfig
from inversescope.errors import InputError
from inversescope.targets.tokenizers import encode, task_tokenizer, word_tokenizer
from inversescope.tasks.automata import Automaton
from inversescope.tasks.base import split_words
from inversescope.tasks.text import NONE, TextTask

ROOT = Path(__file__).parents[2]
COUNTRIES = ("France", "Italy", "Spain", "Peru", "Chile", "Mali", "Chad", "Oman")
FORMS = ("The capital of", "People in", "The flag of")
FUNCTIONS = """
from json import dumps

def initial(text: str) -> str:
    return text.split()[-1][0]

def number(text):
    return len(text)
"""
FEATURES: dict[str, Any] = {
    "continent": {"column": "continent"},
    "asks": {"pattern": r"^The (?P<label>\w+) of"},
    "initial": {"function": "own.labels:initial"},
}
SITES = ["L1H0@country", "L1.resid_post"]


def rows() -> list[dict[str, Any]]:
    """Every form with every country; France counts three times."""
    found = []
    for number, country in enumerate(COUNTRIES):
        for form in FORMS:
            about = {
                "form": form,
                "country": country,
                "continent": "AB"[number % 2],
                "copies": 3 if not number else 1,
            }
            found.append({**about, "code": f"{form[0]}{number}"})
    return found


def write(root: Path, records: list[dict[str, Any]], name: str = "corpus.jsonl") -> None:
    (root / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (root / "own").mkdir(exist_ok=True)
    (root / "own/labels.py").write_text(FUNCTIONS)


def settings(**changes: Any) -> TextConfig:
    values: dict[str, Any] = {
        "path": "corpus.jsonl",
        "prompt": "{form} {country}",
        "answer": "code",
        "weight": "copies",
        "held_out": 0.25,
        "functions": ".",
        "features": FEATURES,
    }
    return TextConfig.model_validate({**values, **changes})


def corpus(root: Path, **changes: Any) -> TextTask:
    write(root, rows())
    return TextTask(settings(**changes), root)


def everything(task: TextTask) -> np.ndarray:
    return np.arange(task.size)


# --------------------------------------------------------------------------------------------------------------- the prior


def test_prompts_are_addressed_both_ways(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    index = everything(task)
    assert task.size == 24 and task.texts(index[:2]) == ["The capital of France", "People in France"]
    np.testing.assert_array_equal(task.parse(task.texts(index)), index)
    np.testing.assert_array_equal(task.index(task.slots(index)), index)
    assert task.parse(["The capital of france", ""]).tolist() == [-1, -1]
    assert task.index(np.array([[0, 99]])).tolist() == [-1]
    frame = task.frame(index)
    assert frame["text"].tolist() == task.texts(index)
    assert frame["feature_continent"].tolist() == [row["continent"] for row in rows()]
    assert task.completed(index[:1]) == ["The capital of France T0"]


def test_probabilities_are_the_files(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    p = np.exp(task.log_prior(everything(task)))
    assert p.sum() == pytest.approx(1) and p[0] == pytest.approx(3 / 30) and p[3] == pytest.approx(1 / 30)
    assert not task.uniform
    rng = np.random.default_rng(0)
    drawn = np.bincount(task.draw(40_000, None, rng), minlength=task.size) / 40_000
    assert np.abs(drawn - p).max() < 5 * math.sqrt(p.max() / 40_000)
    # Looking through the corpus is the prior too: means over all copies are exact.
    copies = np.bincount(task.enumerate(), minlength=task.size)
    np.testing.assert_allclose(copies / copies.sum(), p)
    label = task.features_of(everything(task))
    for feature in task.features:
        same = label[feature][:, None] == label[feature][None]
        assert task.chance(feature) == pytest.approx(float((p[:, None] * p[None] * same).sum()))


def test_splits_are_of_the_file_alone(tmp_path: Path) -> None:
    task = corpus(tmp_path, split_by="country")
    test = task.split_index(np.arange(task.split_size("test")), "test")
    assert len(test) == 6 and (task.split_of(test) == 1).all()
    countries = {text.split()[-1] for text in task.texts(test)}
    assert len(countries) == 2
    assert not any(
        text.split()[-1] in countries for text in task.texts(task.split_index(np.arange(18), "train"))
    )
    again = TextTask(settings(split_by="country"), tmp_path)
    np.testing.assert_array_equal(again.split_of(everything(task)), task.split_of(everything(task)))
    other = TextTask(settings(split_by="country", split_seed=1), tmp_path)
    assert (other.split_of(everything(task)) != task.split_of(everything(task))).any()
    assert np.exp(task.log_prior(everything(task), "test")).sum() == pytest.approx(1)
    assert set(task.draw(200, "test", np.random.default_rng(1))) == set(test)
    assert sorted(task.sample(6, "test", np.random.default_rng(1))) == test.tolist()


def test_cache_of_a_weighted_corpus_repeats_prompts(tmp_path: Path) -> None:
    """What `make_prompts` draws for the cache keeps the prior's proportions once test prompts are gone."""
    task = corpus(tmp_path)
    n, held = 20, task.split_of(everything(task)) == 1
    counts = np.zeros(task.size)
    for seed in range(400):
        drawn = task.sample(n, None, np.random.default_rng(seed))
        kept = drawn[~held[drawn]]
        assert len(kept) == n
        counts += np.bincount(kept, minlength=task.size)
    p = np.where(held, 0, np.exp(task.log_prior(everything(task))))
    np.testing.assert_allclose(counts / counts.sum(), p / p.sum(), atol=0.01)


def test_features_of_texts_in_the_corpus_and_out(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    found = task.features_of_texts(
        ["People in Chad", "The flag of Peru", "The flag of Cuba", "The sea of Xanten", "?"]
    )
    names = {
        name: [task.feature_values[name][code] if code >= 0 else None for code in codes]
        for name, codes in found.items()
    }
    assert names["asks"] == [NONE, "flag", "flag", None, None]
    assert names["initial"] == ["C", "P", "C", None, None]
    assert names["continent"] == ["A", "B", None, None, None]
    assert names["country"] == ["Chad", "Peru", None, None, None]


def test_equal_prompts_are_one(tmp_path: Path) -> None:
    write(tmp_path, rows() + rows()[3:5] + [{**rows()[4], "copies": 0}])
    task = TextTask(settings(), tmp_path)
    assert task.size == 24 and task.weight[3:6].tolist() == [2, 2, 1]
    write(tmp_path, [*rows(), {**rows()[7], "continent": "Z"}])
    with pytest.raises(
        InputError, match="lines 8 and 25: the same prompt, but column 'continent' is 'A' and 'Z'"
    ):
        TextTask(settings(), tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "text"])
def test_other_files(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pd.DataFrame(rows()).to_parquet(tmp_path / "corpus.parquet")
        write(tmp_path, [])
        task = TextTask(settings(path="corpus.parquet"), tmp_path)
        assert task.size == 24 and task.weight[0] == 3
        return
    texts = [f"{row['form']} {row['country']}" for row in rows()]
    (tmp_path / "corpus.txt").write_text("\n\n".join([*texts, texts[0]]) + "\n")
    features = {"asks": FEATURES["asks"]}
    task = TextTask(TextConfig.model_validate({"path": "corpus.txt", "features": features}), tmp_path)
    assert task.size == 24 and task.weight[0] == 2 and task.texts(everything(task)) == texts
    assert task.continuations(np.array([0])) == [""]


#: Words that regular expressions cut differently, or normal forms change: combining marks, other scripts, emoji, digits, spaces.
SCRIPTS = {
    "Devanagari": ["भारत", "नेपाल", "हिन्दी", "दिल्ली"],
    "Arabic with vowel signs": ["مِصْرُ", "عُمَانُ", "ٱلْيَمَنُ", "قَطَرُ"],
    "Hebrew with points": ["יִשְׂרָאֵל", "מִצְרַיִם", "סִין", "הֹדּוּ"],
    "Thai": ["ประเทศไทย", "ญี่ปุ่น", "จีน", "ลาว"],
    "Hangul in single letters": ["\u1112\u1161\u11ab", "\u1100\u1173\u11af", "한국", "일본"],
    "two normal forms": ["Pe\u0301rou", "Gr\u00e8ce", "Sue\u0300de", "C\u00f4te"],
    "superscripts": ["m²", "CO₂", "x³", "½"],
    "emoji of several characters": ["👩‍👩‍👧", "🇫🇷", "👍🏽", "❤️"],
    "spaces of other kinds": ["a\u00a0b", "c\u3000d", "e\u2009f", "g\u2028h"],
    "zero width": ["می\u200cخواهم", "a\u200db", "c\u200bd", "\u200ee"],
    "letters beyond 16 bits": ["𝒜𝒷", "𠮷野", "𐍈", "🂡"],
    "Turkish and German": ["İstanbul", "ılık", "ẞß", "ﬁn"],
}


@pytest.mark.parametrize("unit", ["word", "character"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_any_text_comes_back_from_its_tokens(tmp_path: Path, script: str, unit: str) -> None:
    write(
        tmp_path, [{"form": f, "country": word} for f in ("The caf of", "é in") for word in SCRIPTS[script]]
    )
    task = TextTask(settings(answer=None, weight=None, features={}, token_unit=unit), tmp_path)
    texts, tokenizer = task.texts(everything(task)), task_tokenizer(task)
    ids = encode(tokenizer, texts)
    assert [tokenizer.decode(one.tolist()) for one in ids] == texts
    alone = [tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [one.tolist() for one in ids] == alone, "whatever stands beside a text"
    assert {word for text in texts for word in split_words(text)} <= set(task.words()) or unit == "character"


def test_words_end_where_a_tokenizer_ends_them() -> None:
    tokenizer = word_tokenizer(["a", " caf", "é", " café"])
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, ["a café"])[0]) == ["a", " café"]


def test_patterns_read_words_with_their_marks(tmp_path: Path) -> None:
    write(
        tmp_path, [{"form": form, "country": word} for form in ("x", "y") for word in SCRIPTS["Devanagari"]]
    )
    last = {"last": {"pattern": r"(\w+)$"}}
    task = TextTask(settings(answer=None, weight=None, features=last), tmp_path)
    assert task.feature_values["last"] == sorted(SCRIPTS["Devanagari"])


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_line_ends_and_byte_order_marks_are_none_of_the_text(
    tmp_path: Path, kind: str, mark: str, ends: str
) -> None:
    texts = [f"{row['form']} {row['country']}" for row in rows()]
    lines = [json.dumps({"text": text}, ensure_ascii=False) if kind == "jsonl" else text for text in texts]
    (tmp_path / f"corpus.{kind}").write_bytes((mark + ends.join([*lines, ""])).encode())
    values = {"path": f"corpus.{kind}", "features": {"asks": FEATURES["asks"]}}
    assert TextTask(TextConfig.model_validate(values), tmp_path)._texts == texts


def test_positions_are_the_ends_of_slots(tmp_path: Path) -> None:
    task = corpus(tmp_path, prompt="{form}: {country}?")
    for name, column in (("form", "form"), ("country", "country")):
        for at, text, row in zip(
            task.offsets(name, everything(task)), task.texts(everything(task)), rows(), strict=True
        ):
            assert text[: at + 1].endswith(row[column])
    with pytest.raises(InputError, match="has no position '@continent'"):
        task.offsets("continent", everything(task))


def test_counterfactuals_change_one_slot(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    assert set(task.counterfactual_features) == {"form", "country"}
    rng = np.random.default_rng(0)
    for feature, kept in (("form", "country"), ("country", "form")):
        other = task.counterfactuals(feature, everything(task), rng)
        own, changed = task.features_of(everything(task)), task.features_of(other)
        assert (own[feature] != changed[feature]).all() and (own[kept] == changed[kept]).all()


def test_moves_are_symmetric_and_reach_all(tmp_path: Path) -> None:
    write(tmp_path, rows()[:-2])  # not every form with every country
    task = TextTask(settings(), tmp_path)
    n = task.size
    matrix = np.zeros((n, n))
    for kind, count in enumerate(task.move_counts):
        for value in range(count):
            to = task.move(np.arange(n), np.full(n, kind), np.full(n, value))
            np.add.at(matrix, (np.arange(n), to), 1 / count)
    np.testing.assert_allclose(matrix, matrix.T)
    assert (np.linalg.matrix_power(matrix, 3) > 0).all()


@pytest.mark.parametrize("unit", ["word", "character"])
def test_grammar_is_the_prior_and_its_probabilities(tmp_path: Path, unit: str) -> None:
    task = corpus(tmp_path, token_unit=unit)
    tokenizer = task_tokenizer(task)
    end = int(tokenizer.eos_token_id)
    grammar = task.grammar(tokenizer)
    assert isinstance(grammar, Automaton)
    for text, log_p in zip(task.texts(everything(task)), task.log_prior(everything(task)), strict=True):
        ids = [*tokenizer.encode(text, add_special_tokens=False), end]
        path = np.array([[end, *ids]])
        table, columns = grammar.along(path)[0], np.searchsorted(grammar.tokens, ids)
        assert np.log(table[np.arange(len(ids)), columns]).sum() == pytest.approx(log_p, abs=1e-5)
        state = np.int64(grammar.start)
        for token in ids:
            assert grammar.permitted(np.array([state]))[0, np.searchsorted(grammar.tokens, token)]
            state = grammar.step(state, token)
        assert not grammar.permitted(np.array([state])).any() and grammar.step(state, end) == -1
    # Each state's probabilities sum to one, so that there is no other path.
    states = np.arange(len(grammar._total))
    total = grammar.probabilities(states).sum(1)
    assert set(np.round(total, 12)) <= {0.0, 1.0} and (total == 0).sum() == task.size


def test_grammar_needs_a_lossless_tokenizer(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    with pytest.raises(InputError, match="two prompts the same tokens"):
        task.grammar(word_tokenizer(["The"]))


# ---------------------------------------------------------------------------------------------------------------- bad input

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing file": ({"path": "none.jsonl"}, "corpus none.jsonl does not exist"),
    "path that escapes": ({"path": "../corpus.jsonl"}, "'../corpus.jsonl' leads out of the project"),
    "absolute path": ({"path": "/etc/hostname", "format": "text"}, "'/etc/hostname' leads out of the project"),
    "link that escapes": ({"path": "link.jsonl"}, "'link.jsonl' leads out of the project"),
    "unknown suffix": ({"path": "corpus.tsv"}, "corpus corpus.tsv has no known suffix"),
    "no JSON": ({"path": "broken.jsonl"}, "corpus broken.jsonl, line 2: no JSON"),
    "no object": ({"path": "list.jsonl"}, "corpus list.jsonl, line 1: no JSON object"),
    "no Parquet": ({"path": "broken.jsonl", "format": "parquet"}, "corpus broken.jsonl cannot be read (ArrowInvalid: "),
    "no UTF-8": ({"path": "latin.txt"}, "corpus latin.txt is not UTF-8"),
    "empty file": ({"path": "empty.jsonl"}, "corpus empty.jsonl has no prompt"),
    "empty text": ({"path": "empty.txt", "prompt": "{text}"}, "corpus empty.txt has no prompt"),
    "missing column": ({"prompt": "{city}"}, "corpus corpus.jsonl has no column 'city'"),
    "missing answer": ({"answer": "reply"}, "corpus corpus.jsonl has no column 'reply'"),
    "gap": ({"path": "gap.jsonl"}, "corpus gap.jsonl, line 2: column 'country' is empty"),
    "blank prompt": ({"prompt": "{blank}", "path": "gap.jsonl"}, "line 1: the prompt is empty"),
    "weight": ({"weight": "country"}, "line 1: weight 'France' in column 'country' is no count"),
    "folder": ({"path": "own", "format": "jsonl"}, "corpus own is a folder"),
    "UTF-16": ({"path": "wide.txt"}, "corpus wide.txt is not UTF-8 (line 1: invalid start byte)"),
    "half of a pair": ({"path": "half.jsonl"}, "line 1: column 'country' holds the character U+D83D, which is no text"),
    "mark inside": ({"path": "inside.jsonl"}, "line 2: column 'country' holds the character U+FEFF"),
    "carriage return": ({"path": "inside.parquet"}, "line 1: column 'country' holds the character U+000D"),
    "end of text": ({"path": "end.jsonl"}, "line 1: column 'country' holds <|endoftext|>"),
    "end in the template": ({"prompt": "<|endoftext|>{country}"}, "text.prompt holds <|endoftext|>"),
    "two forms": ({"path": "forms.jsonl"}, "lines 1 and 2: column 'country' holds 'Pérou' in two Unicode normal forms"),
    "truth": ({"path": "types.jsonl", "prompt": "{truth}"}, "line 1: column 'truth' holds True, a bool"),
    "fraction": ({"path": "types.jsonl", "prompt": "{large}"}, "line 1: column 'large' holds 1e+16, a float"),
    "mixed types": ({"path": "types.jsonl", "prompt": "{year}"}, "line 2: column 'year' holds '1969', but line 1 1969"),
    "one key twice": ({"path": "twice.jsonl"}, "corpus twice.jsonl, line 1: no JSON ('form' stands there twice)"),
    "one column twice": ({"path": "twice.parquet"}, "corpus twice.parquet cannot be read (ArrowInvalid: Multiple matches"),
    "endless nesting": ({"path": "deep.jsonl"}, "corpus deep.jsonl, line 1: no JSON"),
    "weight that is true": ({"path": "types.jsonl", "weight": "truth", "prompt": "{form}"}, "in column 'truth' is no count"),
    "no feature": ({"prompt": "{code}", "features": {}}, "corpus corpus.jsonl has no feature"),
    "pattern in no prompt": ({"features": {"x": {"pattern": "(Atlantis)"}}}, "pattern '(Atlantis)' of feature 'x' is in no"),
    "one group of prompts": ({"held_out": 0.01}, "has 24 prompts, of which a share of 0.01 is 0"),
    "function of another package": (
        {"features": {"x": {"function": "os:system"}}, "functions": None},
        "feature 'x': os:system is not of this package",
    ),
    "function of the path": ({"features": {"x": {"function": "os:system"}}}, "os.py does not exist"),
    "imported function": ({"features": {"x": {"function": "own.labels:dumps"}}}, "defines no function dumps"),
    "function of ours that there is not": (
        {"features": {"x": {"function": "inversescope.errors:InputError"}}},
        "defines no function InputError",
    ),
    "function that says no string": (
        {"features": {"x": {"function": "own.labels:number"}}},
        "function own.labels:number of feature 'x' says 21",
    ),
    "function that fails": (
        {"features": {"x": {"function": "own.fails:label"}}},
        "function own.fails:label of feature 'x' fails on 'The capital of France': ZeroDivisionError",
    ),
    "module that fails": ({"features": {"x": {"function": "own.broken:label"}}}, "own/broken.py cannot be run (SyntaxError"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a good corpus and many that are none."""
    folder = tmp_path_factory.mktemp("bad")
    root = folder / "project"
    root.mkdir()
    write(root, rows())
    write(folder, rows())
    (root / "link.jsonl").symlink_to(folder / "corpus.jsonl")
    (root / "corpus.tsv").write_text("form\tcountry\n")
    (root / "broken.jsonl").write_text('{"form": "a"}\n{"form": \n')
    (root / "list.jsonl").write_text("[1]\n")
    (root / "latin.txt").write_bytes("Orléans\n".encode("latin-1"))
    (root / "empty.jsonl").write_text("\n")
    (root / "empty.txt").write_text("\n \n")
    (root / "wide.txt").write_text("Peru\n", encoding="utf-16")
    plain = {"form": "People in", "code": "P", "copies": 1, "continent": "A"}
    for name, countries in {
        "half": ["\ud83d"],
        "inside": ["Peru", "\ufeffChad"],
        "end": ["Peru<|endoftext|>"],
        "forms": ["Pérou", "Pe\u0301rou"],
    }.items():
        write(root, [{**plain, "country": country} for country in countries], f"{name}.jsonl")
    pd.DataFrame([{**plain, "country": "Peru\r\n"}]).to_parquet(root / "inside.parquet")
    types = [{"truth": True, "large": 1e16, "year": 1969}, {"truth": False, "large": 2, "year": "1969"}]
    write(root, [{**plain, "country": "Peru", **more} for more in types], "types.jsonl")
    (root / "twice.jsonl").write_text('{"form": "a", "form": "b"}\n')
    names = ["form", "country", "country", "code", "copies", "continent"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 6, names=names), root / "twice.parquet")
    (root / "deep.jsonl").write_text("[" * 100_000)
    write(root, [{**rows()[0], "blank": " "}, {**rows()[1], "country": None, "blank": "b"}], "gap.jsonl")
    (root / "own/fails.py").write_text("def label(text):\n    return 1 / 0\n")
    (root / "own/broken.py").write_text("def\n")
    return root


NO_TEMPLATE = {
    "The capital": "has no column in braces",
    "{form": "is no template",
    "{form:>3}": "has no column in braces, or one with a format",
}


@pytest.mark.parametrize("prompt", NO_TEMPLATE)
def test_a_prompt_that_is_no_template_is_no_setting(prompt: str) -> None:
    with pytest.raises(ValueError, match=NO_TEMPLATE[prompt]):
        settings(prompt=prompt)


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(bad: Path, what: str) -> None:
    changes, culprit = BAD[what]
    with pytest.raises(InputError) as caught:
        TextTask(settings(**changes), bad)
    assert culprit in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "feature,culprit",
    [
        ({"pattern": "no group"}, "has no group"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": "(a)", "column": "b"}, "exactly one of column, pattern and function"),
        ({}, "exactly one of column, pattern and function"),
        ({"function": "os.path"}, "String should match pattern"),
        ({"function": "a:b.c"}, "String should match pattern"),
    ],
)
def test_bad_features_are_refused_with_the_configuration(feature: dict[str, str], culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        parse_config({"text": {"features": {"x": feature}}})


def test_bad_corpus_is_one_sentence_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(tmp_path)
    (tmp_path / "corpus.jsonl").unlink()
    assert run(tmp_path, "make_prompts", "--split", "train") == 2
    assert (
        capsys.readouterr().err
        == "error: corpus corpus.jsonl does not exist. set text.path to the file of prompts.\n"
    )


def config(root: Path) -> Config:
    """A tiny study of the corpus on a model trained here."""
    write(root, rows())
    shape = {"n_layers": 2, "n_heads": 2, "d_model": 16}
    delta = {
        "only": ["tiny"],
        "experiments": {
            "tiny": {
                "task": "text",
                "model": "tiny",
                "sites": SITES,
                "patched": ["L*.resid_pre", "L1.resid_post", "L*H*@country"],
                "n_train": 12,
                "n_test": 4,
            }
        },
        "models": {
            "tiny": {
                "shape": shape,
                "seeds": [0],
                "training": {"max_steps": 60, "schedule": "cosine", "gate_accuracy": 0.0},
            }
        },
        "text": settings().model_dump(mode="json"),
        "kernel": {"epsilon": 0.3, "epsilons": [0.3]},
        "backbone": {
            "shape": shape,
            "targets": "grammar",
            "steps": 150,
            "learning_rate": 0.01,
            "gate_in_prior": 0.2,
        },
        "variants": {
            "paper": {"steps": 10, "n_heads": 2, "d_head": 4},
            "default": {"steps": 10, "n_heads": 2, "d_head": 4},
        },
        "sampling": {"candidates": 20, "candidates_elsewhere": 5, "max_candidates": 20, "decodings": ["mixed", "masked"]},
        "fcr": {"features": ["country", "asks"], "bootstrap": 100, "mcmc_evaluations": 10},
    }  # fmt: skip
    (root / "config").mkdir(exist_ok=True)
    (root / "config/config.yaml").write_text(yaml.safe_dump(default_values(delta)))
    return load_config([root / "config/config.yaml"])


def run(root: Path, stage: str, *options: str) -> int:
    return main([stage, "--task", "text", "--model", "tiny", "--root", str(root), *options])


def test_the_papers_configuration_is_whole() -> None:
    """GPT-2 XL's 25 heads, named one by one, and the decoder of InversionView's size."""
    whole = load_config([ROOT / "config/config.yaml", ROOT / "config/paper_text.yaml"])
    (experiment,) = whole.experiments.values()
    own = whole.of(experiment.task, experiment.model)
    assert (experiment.task, len(set(experiment.sites))) == ("text", 25)
    model = whole.models[experiment.model]
    assert (model.n_layers, model.n_heads) == (48, 25) and model.revision and own.backbone.revision
    assert all(int(site[1:3]) >= 24 for site in experiment.sites)
