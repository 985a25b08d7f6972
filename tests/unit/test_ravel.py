"""RAVEL: fact tables and their faults, the task over them, fetching with checksums, upstream's own files where they are at hand."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import default_values
from project import UPSTREAM

from inversescope.cli import main
from inversescope.config.tasks import RavelConfig
from inversescope.errors import InputError
from inversescope.studies.ravel.attributes import attributes_by_template
from inversescope.targets.tokenizers import encode, word_tokenizer
from inversescope.tasks import facts
from inversescope.tasks.facts import EMBEDDED, KINDS, ambiguous_templates, fetch_tables, limited, read_tables
from inversescope.tasks.ravel import SOURCE, RavelTask

MIRROR = UPSTREAM / "ravel"
upstream = pytest.mark.skipif(
    not MIRROR.is_dir(), reason=f"no copy of upstream's files at {MIRROR} (set INVERSESCOPE_MIRROR)"
)

#: A table of two types as a mirror might hold it; names of several words, values of several words, spaces at the ends of templates.
TABLES: dict[str, dict[str, Any]] = {
    "river": {
        "entity_attributes": {
            "White Nile": {"Continent": "Africa", "Length": "long"},
            "Rhine": {"Continent": "Europe", "Length": "medium"},
            "Po": {"Continent": "Europe", "Length": "short"},
            "Rio Negro": {"Continent": "South America", "Length": ""},
        },
        "attribute_to_prompts": {
            "Continent": [
                "The %s flows through",
                "water of %s in ",
                '"river": "%s", "continent": "',
                "of %s, one",
            ],
            "Length": ["The %s is said to be", "how long is %s:", "of %s, one", "the %s runs"],
        },
        "entity_to_split": {"White Nile": "train", "Rhine": "train", "Po": "test", "Rio Negro": "val"},
        "prompt_to_split": {
            "The %s flows through": "train",
            "water of %s in ": "train",
            '"river": "%s", "continent": "': "test",
            "of %s, one": "train",
            "The %s is said to be": "train",
            "how long is %s:": "val",
            "the %s runs": "test",
        },
    },
    "verb": {
        "entity_attributes": {"go": {"Past": "went"}, "see": {"Past": "saw"}, "eat": {"Past": "ate"}},
        "attribute_to_prompts": {"Past": ["They %s now; yesterday they", "to %s, past tense:"]},
        "entity_to_split": {"go": "train", "see": "test", "eat": "val"},
        "prompt_to_split": {"They %s now; yesterday they": "train", "to %s, past tense:": "test"},
    },
}


def write(folder: Path, tables: dict[str, dict[str, Any]] = TABLES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, parts in tables.items():
        for name, values in parts.items():
            (folder / f"ravel_{kind}_{name}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return write(tmp_path / "mirror")


@pytest.fixture
def two_types(tmp_path: Path, mirror: Path) -> RavelTask:
    fetch_tables(tmp_path / SOURCE, mirror)
    return RavelTask(RavelConfig(source="upstream"), tmp_path)


@pytest.fixture(scope="module")
def embedded() -> RavelTask:
    return RavelTask(RavelConfig())


# The embedded table


def test_embedded_table_is_as_large_as_promised() -> None:
    tables = read_tables(EMBEDDED)
    assert len(tables) >= 3
    assert sum(len(t.attributes) for t in tables) >= 12
    for table in tables:
        assert len(table.facts) >= 40
        assert set(table.split.values()) == {"train", "val", "test"}
        for attribute in table.attributes:
            own = [t for t in table.templates if t.attribute == attribute]
            assert len(own) >= 6 and {t.split for t in own} == {"train", "val", "test"}
    assert ambiguous_templates(tables) == {}


def test_held_out_templates_consist_of_trained_words(embedded: RavelTask) -> None:
    words: dict[bool, set[str]] = {True: set(), False: set()}
    for table in read_tables(EMBEDDED):
        for template in table.templates:
            words[template.split == "train"] |= set(re.findall(r"\w+", template.text))
    assert words[False] <= words[True]


# The task


def every(task: RavelTask) -> np.ndarray:
    return np.arange(task.universe)


def test_texts_slots_and_indices_are_inverse(embedded: RavelTask, two_types: RavelTask) -> None:
    for task in (embedded, two_types):
        index = every(task)
        np.testing.assert_array_equal(task.index(task.slots(index)), index)
        assert len(set(task.texts(index))) == task.universe
        parsed = task.parse(task.texts(index))
        np.testing.assert_array_equal(parsed, np.where(index < task.size, index, -1))
        np.testing.assert_array_equal(task.in_prior(index), index < task.size)


def test_a_template_alone_tells_the_attribute_by_the_papers_match(two_types: RavelTask) -> None:
    told = {
        "The Xyz flows through": "river:Continent",
        "The Xyz of old is said to be": "river:Length",
        "They blorp now; yesterday they": "verb:Past",
        "The White Nile flows through": "river:Continent",
        "The flows through": None,  # nothing in the entity's place
        "of Xyz, one": None,  # stands for two attributes, so it is no template of the task
        "the Xyz runs on": None,
    }
    names = two_types.feature_values["attribute"]
    found = [None if code < 0 else names[code] for code in attributes_by_template(two_types, list(told))]
    assert found == list(told.values())
    # Ours asks for a known entity too.
    strict = two_types.features_of_texts(list(told))["attribute"]
    assert [names[code] for code in strict if code >= 0] == ["river:Continent"] and strict[3] >= 0


def test_of_several_templates_that_match_the_longest_one_tells(tmp_path: Path) -> None:
    river = TABLES["river"] | {
        "attribute_to_prompts": {
            "Continent": ["The %s is", "of %s in"],
            "Length": ["The %s now is", "is %s:"],
        },
        "prompt_to_split": {
            "The %s is": "train",
            "of %s in": "train",
            "The %s now is": "train",
            "is %s:": "test",
        },
    }
    fetch_tables(tmp_path / SOURCE, write(tmp_path / "mirror", {"river": river}))
    task = RavelTask(RavelConfig(source="upstream"), tmp_path)
    names = task.feature_values["attribute"]
    found = attributes_by_template(task, ["The Xyz now is", "The Xyz is"])
    assert [names[code] for code in found] == ["river:Length", "river:Continent"]


def test_prior_is_training_entities_in_training_templates(two_types: RavelTask) -> None:
    task = two_types
    assert set(task.texts(np.arange(task.size))) == {
        *(
            template.replace("%s", entity)
            for template in ("The %s flows through", "water of %s in ", "The %s is said to be")
            for entity in ("White Nile", "Rhine")
        ),
        "They go now; yesterday they",
    }
    assert set(task.texts(task.enumerate("test"))) == {
        "The Po flows through",
        "water of Po in ",
        '"river": "Po", "continent": "',
        "The Po is said to be",
        "the Po runs",
        "They see now; yesterday they",
        "to see, past tense:",
    }
    seen = {
        t
        for t, c in zip(task.texts(task.enumerate("test")), task.counted(task.enumerate("test")), strict=True)
        if c
    }
    assert seen == {
        "The Po flows through",
        "water of Po in ",
        "The Po is said to be",
        "They see now; yesterday they",
    }
    np.testing.assert_array_equal(task.split_of(task.enumerate("val")), 2)
    assert task.log_prior(np.array([0, -1]), "train").tolist() == [-np.log(task.size), -np.inf]


def test_ambiguous_templates_are_left_out_and_listed(two_types: RavelTask) -> None:
    assert two_types.ambiguous == {"of %s, one": ["river:Continent", "river:Length"]}
    assert not any("one" in text for text in two_types.texts(every(two_types)))


def two_readings(tables: dict[str, dict[str, Any]]) -> None:
    """Prompts that are another template's, of the same type and of another; and a template that stands twice in its list."""
    river, verb = tables["river"], tables["verb"]
    river["entity_attributes"] |= {"Po Grande": {"Continent": "Europe", "Length": "short"}}
    river["entity_to_split"] |= {"Po Grande": "train"}
    river["attribute_to_prompts"]["Continent"] += ["see %s in", "see %s in", "to %s now"]
    river["attribute_to_prompts"]["Length"] += ["see %s Grande in"]
    river["prompt_to_split"] |= {"see %s in": "train", "to %s now": "train", "see %s Grande in": "test"}
    river["attribute_to_prompts"]["Continent"] += ["the %s has"] * 2
    river["prompt_to_split"] |= {"the %s has": "train"}
    verb["entity_attributes"] |= {"swim": {"Past": "swam"}}
    verb["entity_to_split"] |= {"swim": "train"}
    verb["attribute_to_prompts"]["Past"] += ["to %s Po now"]
    verb["prompt_to_split"] |= {"to %s Po now": "train"}


@pytest.mark.parametrize("verb,left", [("swim in the", True), ("swim", False)])
def test_templates_whose_prompts_may_be_another_s_are_left_out(tmp_path: Path, verb: str, left: bool) -> None:
    tables = broken(two_readings)
    tables["river"]["entity_attributes"] |= {f"{verb} Po": {"Continent": "Asia"}} if left else {}
    tables["river"]["entity_to_split"] |= {f"{verb} Po": "val"} if left else {}
    tables["verb"]["entity_attributes"] |= {verb: {"Past": "swam"}}
    tables["verb"]["entity_to_split"] |= {verb: "train"}
    manifest = fetch_tables(tmp_path / SOURCE, write(tmp_path / "mirror", tables))
    same = {"see %s in": ["river:Continent"], "see %s Grande in": ["river:Length"]}
    others = {"to %s now": ["river:Continent"], "to %s Po now": ["verb:Past"]} if left else {}
    told = {"of %s, one": ["river:Continent", "river:Length"], **same, **others}
    assert manifest["ambiguous_templates"] == told
    task = RavelTask(RavelConfig(source="upstream"), tmp_path)
    texts = task.texts(every(task))
    assert len(set(texts)) == task.universe and "the Po has" in texts
    np.testing.assert_array_equal(task.index(task.slots(every(task))), every(task))
    found = task.features_of_texts(texts)
    for feature, codes in task.features_of(every(task)).items():
        np.testing.assert_array_equal(found[feature], codes)


def test_a_value_that_brings_its_space_gets_no_other(tmp_path: Path) -> None:
    tables = broken(lambda t: t["verb"]["entity_attributes"].update(go={"Past": " went"}))
    fetch_tables(tmp_path / SOURCE, write(tmp_path / "mirror", tables))
    task = RavelTask(RavelConfig(source="upstream"), tmp_path)
    assert task.completed(task.parse(["They go now; yesterday they"])) == ["They go now; yesterday they went"]


def test_attribute_is_a_strict_match(two_types: RavelTask) -> None:
    task = two_types
    texts = [
        "The Rhine flows through",
        "The Po flows through",  # no prompt of the prior, but a template's
        "The Po flows through ",
        "The go flows through",
        "the Rhine runs",
        "nonsense",
    ]
    codes = task.features_of_texts(texts)["attribute"]
    names = [task.feature_values["attribute"][c] if c >= 0 else None for c in codes]
    assert names == ["river:Continent", "river:Continent", None, None, "river:Length", None]
    np.testing.assert_array_equal(task.parse(texts)[1:], -1)


def test_answers_follow_their_prompts(two_types: RavelTask) -> None:
    task = two_types
    index = task.index(task.slots(every(task)))
    whole = [a + b for a, b in zip(task.texts(index), task.continuations(index), strict=True)]
    assert "The White Nile flows through Africa" in whole
    assert "water of Rio Negro in South America" in whole  # no second space
    assert '"river": "Po", "continent": "Europe' in whole
    rng = np.random.default_rng(0)
    for part in ("train", "gate"):
        drawn = task.target_sample(500, part, rng)
        assert "" not in task.answers(drawn)
        # The target knows all entities, but is asked by training templates alone.
        assert {"Po", "Rio Negro"} <= {
            e.split(":")[1] for e in np.array(task.slot_values["entity"])[task.slots(drawn)[:, 1]]
        }
        assert not any(text.startswith("the ") for text in task.texts(drawn))
    assert any(text.startswith("the ") for text in task.texts(task.target_sample(50, "held_out", rng)))


@pytest.mark.parametrize("which", ["embedded", "two_types"])
def test_word_level_tokenizer_covers_all_and_its_automaton_is_the_prior(
    which: str, request: pytest.FixtureRequest
) -> None:
    task: RavelTask = request.getfixturevalue(which)
    tokenizer = word_tokenizer(task.words())
    texts = task.texts(every(task))
    ids = encode(tokenizer, texts)
    assert tokenizer.batch_decode([i.tolist() for i in ids[:50]]) == texts[:50]
    encode(tokenizer, task.continuations(every(task)))
    grammar = task.grammar(tokenizer)
    end = int(tokenizer.eos_token_id)
    for row, tokens in enumerate(ids):
        path = np.array([[end, *tokens, end]])
        column, known = grammar.columns(path[0, 1:])
        p = grammar.along(path)[0, np.arange(len(column)), column] * known
        # The prior's prompts, all alike; so that it gives nothing to any other text.
        assert p.prod() == pytest.approx(1 / task.size if row < task.size else 0.0, rel=1e-5)


def test_chance_is_the_share_of_agreeing_pairs(embedded: RavelTask) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(embedded.size, size=(2, 200_000))
    for feature in embedded.features:
        same = embedded.features_of(a)[feature] == embedded.features_of(b)[feature]
        assert abs(same.mean() - embedded.chance(feature)) < 0.005


def test_moves_are_symmetric_and_reach_the_prior(two_types: RavelTask) -> None:
    task = two_types
    step = np.zeros((task.universe, task.universe))
    for kind, count in enumerate(task.move_counts):
        for value in range(count):
            target = task.move(every(task), np.full(task.universe, kind), np.full(task.universe, value))
            np.add.at(step, (every(task), target), 1.0 / count / len(task.move_counts))
    inside = step[: task.size, : task.size]
    np.testing.assert_allclose(inside, inside.T)
    np.testing.assert_allclose(inside.sum(1), 1.0)
    assert (inside > 0).all()


def test_limits_keep_every_split() -> None:
    for table in read_tables(EMBEDDED):
        small = limited(table, 6, 4)
        assert set(small.split.values()) == {"train", "val", "test"} and len(small.facts) <= 8
        assert small.facts.keys() < table.facts.keys() and len(small.templates) < len(table.templates)
    task = RavelTask(RavelConfig(types=["person"], n_entities=6, n_templates=4))
    assert task.feature_values["type"] == ["person"] and all(task.split_size(s) for s in task.splits)


# Bad tables


def broken(change: Callable[[dict[str, dict[str, Any]]], None]) -> dict[str, dict[str, Any]]:
    tables = json.loads(json.dumps(TABLES))
    change(tables)
    return tables


BAD: dict[str, tuple[Callable[[dict[str, dict[str, Any]]], None], str, str]] = {
    "no slot": (
        lambda t: t["verb"]["attribute_to_prompts"]["Past"].append("no slot"),
        "ravel_verb_attribute_to_prompts.json",
        "'no slot' of 'Past' has 0 %s",
    ),
    "two slots": (
        lambda t: t["verb"]["attribute_to_prompts"]["Past"].append("%s and %s"),
        "ravel_verb_attribute_to_prompts.json",
        "'%s and %s' of 'Past' has 2 %s",
    ),
    "unknown split": (
        lambda t: t["river"]["entity_to_split"].update(Po="dev"),
        "ravel_river_entity_to_split.json",
        "'Po' has the split 'dev'",
    ),
    "no split": (
        lambda t: t["river"]["prompt_to_split"].pop("the %s runs"),
        "ravel_river_prompt_to_split.json",
        "'the %s runs' has no split",
    ),
    "value that is no string": (
        lambda t: t["river"]["entity_attributes"]["Po"].update(Length=652),
        "ravel_river_entity_attributes.json",
        "a value of 'Po' is no string",
    ),
    "half of a surrogate pair": (
        lambda t: t["river"]["entity_attributes"]["Po"].update(Length="\ud83d"),
        "ravel_river_entity_attributes.json",
        "'\\ud83d' holds the character U+D83D",
    ),
    "control character": (
        lambda t: t["river"]["attribute_to_prompts"]["Length"].append("a\0%s"),
        "ravel_river_attribute_to_prompts.json",
        "'a\\x00%s' holds the character U+0000",
    ),
    "no value at all": (
        lambda t: [values.clear() for values in t["verb"]["entity_attributes"].values()],
        "ravel_verb_attribute_to_prompts.json",
        "of no attribute with a template an entity has a value",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_unsound_tables_are_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    change, file, entry = BAD[case]
    mirror = write(tmp_path / "mirror", broken(change))
    with pytest.raises(InputError) as error:
        fetch_tables(tmp_path / "out", mirror)
    assert file in str(error.value) and entry in str(error.value)
    assert not (tmp_path / "out").exists()
    # An earlier result is left as it is.
    fetch_tables(tmp_path / "out", write(tmp_path / "good"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError):
        fetch_tables(tmp_path / "out", mirror)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def as_released(tables: dict[str, dict[str, Any]]) -> None:
    """As upstream's `occupation`: templates of an attribute of which no entity has a value; and a value that one entity lacks."""
    parts = tables["verb"]
    parts["attribute_to_prompts"]["Location"] = ["They %s in", "no slot at all"]
    for number, values in enumerate(parts["entity_attributes"].values()):
        values |= {"Location": None} if number else {}
    tables["river"]["entity_attributes"]["Po"].pop("Length")


def test_an_attribute_without_values_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = write(tmp_path / "mirror", broken(as_released))
    (tmp_path / "config").mkdir()
    values = default_values({"ravel": {"source": "upstream", "mirror": str(mirror)}})
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(values))
    model = next(e["model"] for e in values["experiments"].values() if e.get("task") == "ravel")
    options = ["--task", "ravel", "--model", model, "--root", str(tmp_path)]
    assert main(["fetch_ravel", *options, "--config", str(tmp_path / "config/config.yaml")]) == 0
    told = capsys.readouterr().err
    assert "verb, no entity has a value of 'Location': left out" in told
    assert "river, 2 values are unknown: such prompts have no answer" in told
    task = RavelTask(RavelConfig(source="upstream"), tmp_path)
    assert task.feature_values["attribute"] == ["river:Continent", "river:Length", "verb:Past"]
    lacking = task.parse(["The White Nile is said to be"])
    assert task.answers(lacking) == ["long"] and "They go in" not in task.texts(every(task))
    learned = task.target_sample(500, "train", np.random.default_rng(0))
    assert all(task.answers(learned))


def test_types_that_are_not_asked_for_are_not_read(tmp_path: Path, mirror: Path) -> None:
    (mirror / "ravel_river_entity_attributes.json").write_text("broken")
    (mirror / "ravel_occupation_entity_attributes.json").write_text("broken too")
    manifest = fetch_tables(tmp_path / SOURCE, mirror, types=["verb"])
    assert list(manifest["types"]) == ["verb"] and len(manifest["files"]) == len(KINDS)
    assert len(list((tmp_path / SOURCE).iterdir())) == len(KINDS) + 1
    task = RavelTask(RavelConfig(source="upstream", types=["verb"], n_templates=None), tmp_path)
    assert task.feature_values["type"] == ["verb"]
    with pytest.raises(InputError, match=r"has no entity type 'city'\. of ravel.types it has verb: check"):
        fetch_tables(tmp_path / "out", mirror, types=["verb", "city"])
    with pytest.raises(InputError, match=r"entity_attributes.json of Verb\. .* or check ravel.types"):
        fetch_tables(tmp_path / "out", mirror, types=["Verb"])
    with pytest.raises(InputError, match="river_entity_attributes.json is not JSON"):
        fetch_tables(tmp_path / "out", mirror, types=["river"])


def test_an_entity_in_two_splits_is_named(tmp_path: Path, mirror: Path) -> None:
    file = mirror / "ravel_verb_entity_to_split.json"
    file.write_text('{"go": "train", "see": "test", "eat": "val", "go": "test"}')
    with pytest.raises(
        InputError, match=r"ravel_verb_entity_to_split.json: 'go' is in two splits, 'train' and 'test'"
    ):
        read_tables(mirror)
    file.unlink()
    with pytest.raises(InputError, match="ravel_verb_entity_to_split.json does not exist"):
        read_tables(mirror)


# Fetching


def test_pinned_checksums_are_enforced(tmp_path: Path, mirror: Path) -> None:
    sums = "".join(
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  ./x/{p.name}\n" for p in sorted(mirror.glob("*.json"))
    )
    (mirror / "SHA256SUMS").write_text(sums)
    manifest = fetch_tables(tmp_path / "out", mirror)
    assert all(file["pinned"] for file in manifest["files"].values()) and len(manifest["files"]) == 2 * len(
        KINDS
    )
    file = mirror / "ravel_verb_entity_to_split.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(InputError, match=f"{file} has SHA-256 .* not the pinned"):
        fetch_tables(tmp_path / "out", mirror)


def test_a_mirror_without_sums_is_recorded_as_such(tmp_path: Path, mirror: Path) -> None:
    manifest = fetch_tables(tmp_path / "out", mirror)
    assert not any(file["pinned"] for file in manifest["files"].values())
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["ambiguous_templates"] == {"of %s, one": ["river:Continent", "river:Length"]}
    assert sorted(manifest["types"]) == ["river", "verb"]


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_archive_is_read_without_unpacking(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"data/base/{p.name}": p.read_bytes() for p in mirror.glob("*.json")}
    content = archive({**members, "../../escape.json": b"{}", "data/notes.txt": b"x"})
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))
    # Without a pinned archive only files with a pinned sum are taken, and entity types are not left out in silence.
    with pytest.raises(InputError, match="holds 8 files without a pinned SHA-256"):
        fetch_tables(tmp_path / "out", None)
    with monkeypatch.context() as known:
        known.setattr(facts, "PINNED", tmp_path / "sums")
        verbs = {p.name: p.read_bytes() for p in mirror.glob("ravel_verb_*.json")}
        sums = "".join(f"{hashlib.sha256(c).hexdigest()}  {name}\n" for name, c in verbs.items())
        (tmp_path / "sums").write_text(sums)
        with pytest.raises(InputError, match="holds 4 files without a pinned SHA-256, such as ravel_river_"):
            fetch_tables(tmp_path / "out", None)
        assert list(fetch_tables(tmp_path / "out", None, types=["verb"])["types"]) == ["verb"]
    with pytest.raises(InputError, match="not the pinned"):
        fetch_tables(tmp_path / "out", None, "0" * 64)
    fetch_tables(tmp_path / "out", None, hashlib.sha256(content).hexdigest())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*(Path(m).name for m in members), "manifest.json"]
    )
    assert read_tables(tmp_path / "out") == read_tables(mirror)


def test_no_network_ends_in_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ARCHIVE", "https://127.0.0.1:9/data.tgz")
    with pytest.raises(InputError, match="cannot be fetched.*[Ss]et ravel.mirror"):
        fetch_tables(tmp_path / "out", None)


# Upstream's own files


@upstream
def test_upstream_files_are_those_that_are_pinned(tmp_path: Path) -> None:
    manifest = fetch_tables(tmp_path / SOURCE, MIRROR)
    assert all(file["pinned"] for file in manifest["files"].values())
    sizes = {kind: about["entities"] for kind, about in manifest["types"].items()}
    assert sizes == {"city": 3552, "nobel_prize_winner": 928, "physical_object": 563}
    task = RavelTask(RavelConfig(source="upstream"), tmp_path)
    assert task.size > 300_000 and len(task.feature_values["attribute"]) == 15
    rng = np.random.default_rng(0)
    index = rng.integers(task.universe, size=500)
    parsed = task.parse(task.texts(index))
    np.testing.assert_array_equal(parsed, np.where(index < task.size, index, -1))
    with pytest.raises(InputError, match="automaton"):
        task.grammar(word_tokenizer([]))


@upstream
def test_upstream_tables_fit_a_word_level_tokenizer(tmp_path: Path) -> None:
    fetch_tables(tmp_path / SOURCE, MIRROR)
    task = RavelTask(RavelConfig(source="upstream", n_entities=12, n_templates=6), tmp_path)
    tokenizer = word_tokenizer(task.words())
    texts = task.texts(every(task))
    ids = encode(tokenizer, texts)
    assert tokenizer.batch_decode([i.tolist() for i in ids]) == texts
    encode(tokenizer, task.continuations(every(task)))
    assert any(" " in entity.split(":")[1] for entity in task.slot_values["entity"])
