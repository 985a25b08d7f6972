"""Corpora by `datasets`: hub and local, whatever they are stored as; RAVEL and general text of them; what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import default_values
from datasets import Dataset, DatasetDict, load_from_disk
from test_ravel import MIRROR, TABLES, upstream
from test_ravel import write as write_tables

from inversescope.cli import main
from inversescope.config import parse_config
from inversescope.config.tasks import CorpusConfig, GeneralTextConfig, TextConfig
from inversescope.errors import InputError
from inversescope.store import read_json
from inversescope.studies.ravel.general_text import corpus_passages
from inversescope.tasks.corpus import COPY, MANIFEST, copy_corpus, read_corpus
from inversescope.tasks.facts import copy_tables, fetch_tables, read_tables
from inversescope.tasks.ravel import SOURCE
from inversescope.tasks.text import TextTask

REVISION = "0123456789abcdef0123456789abcdef01234567"
#: Values that readers like to change: a number with zeros before it, a word for nothing, a date.
ROWS = [
    {"form": form, "about": {"country": country}, "code": code, "born": "2020-01-01"}
    for form in ("The capital of", "People in")
    for country, code in (("Peru", "007"), ("Mali", "NA"), ("Chad", "1.0"), ("Oman", "null"))
]
FLAT = [{**row, "about": row["about"]["country"]} for row in ROWS]  # type: ignore[index]
TEXTS = [f"{row['form']} {row['about']}" for row in FLAT]


def hub(**changes: Any) -> CorpusConfig:
    return CorpusConfig.model_validate(
        {"source": "hub", "path": "owner/name", "revision": REVISION, "configuration": "en", **changes}
    )


def text(**changes: Any) -> TextConfig:
    values = {"prompt": "{form} {country}", "features": {"code": {"column": "code"}}, "held_out": 0.25}
    return TextConfig.model_validate({**values, "columns": {"country": "about"}, **changes})


def repository(
    folder: Path, configurations: dict[str, dict[str, list[dict[str, Any]]]], kind: str = "parquet"
) -> Path:
    """A copy of a repository of the hub: configuration -> split -> rows, and what says so."""
    told = []
    for name, splits in configurations.items():
        for split, rows in splits.items():
            place = folder / name / f"{split}.{kind}"
            place.parent.mkdir(parents=True, exist_ok=True)
            if kind == "parquet":
                strings = pa.schema([(column, pa.string()) for column in rows[0]])
                pq.write_table(pa.Table.from_pylist(rows, schema=strings), place)
            else:
                place.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [{"split": split, "path": f"{name}/{split}.{kind}"} for split in splits]
        told.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': told})}---\n")
    return folder


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Lets a data set that is saved to disk stand for one of the hub, and tells what it was asked for."""
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    calls: list[tuple[Any, ...]] = []

    def load(path: str, configuration: str | None, **how: Any) -> Any:
        calls.append((path, configuration, how))
        data = load_from_disk(tmp_path / "saved")
        return data.to_iterable_dataset() if how["streaming"] else data

    monkeypatch.setattr("datasets.load_dataset", load)
    return calls


# ------------------------------------------------------------------------------------------------------------------- local


def jsonl(path: Path) -> str:
    (path / "corpus.jsonl").write_text("\n\n".join(map(json.dumps, FLAT)))
    return "corpus.jsonl"


def table(path: Path) -> str:
    pq.write_table(pa.Table.from_pylist(FLAT), path / "corpus.parquet")
    return "corpus.parquet"


def cells(path: Path) -> str:
    lines = [",".join(f'"{value}"' for value in row.values()) for row in FLAT]
    (path / "corpus.csv").write_text("\ufeff" + "\r\n".join([",".join(FLAT[0]), *lines, ""]))
    return "corpus.csv"


def saved(path: Path) -> str:
    Dataset.from_list(FLAT).save_to_disk(path / "corpus")
    return "corpus"


def saved_splits(path: Path) -> str:
    splits = {"train": Dataset.from_list(FLAT), "test": Dataset.from_list(FLAT[:1])}
    DatasetDict(splits).save_to_disk(path / "corpus")
    return "corpus"


def copied(path: Path) -> str:
    repository(path / "corpus", {"default": {"train": FLAT, "test": FLAT[:1]}})
    return "corpus"


@pytest.mark.parametrize("stored", [jsonl, table, cells, saved, saved_splits, copied])
def test_all_local_corpora_are_one_prior(tmp_path: Path, stored: Callable[[Path], str]) -> None:
    task = TextTask(text(path=stored(tmp_path)), tmp_path)
    assert task.texts(range(task.size)) == TEXTS  # type: ignore[arg-type]
    assert task.feature_values["code"] == sorted({row["code"] for row in FLAT})  # type: ignore[type-var]
    few = TextTask(
        text(path=stored(tmp_path / "few") if (tmp_path / "few").mkdir() is None else "", rows=6),
        tmp_path / "few",
    )
    assert few.size == 6


def test_lines_are_told_whatever_is_between_them(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text('text,label\n"two\nlines",a\n\nlast,"a ""b"""\n')
    frame = read_corpus(CorpusConfig(path="corpus.csv"), tmp_path / "corpus.csv")
    assert frame.to_dict("index") == {
        3: {"text": "two\nlines", "label": "a"},
        5: {"text": "last", "label": 'a "b"'},
    }


#: What is wrong with a file -> its content, and what is said of it.
BAD_CELLS = {
    "row too long": (
        "form,about,code\na,b,c\na,b,c,d\n",
        "corpus.csv, line 3: 4 cells, but the header has 3",
    ),
    "row too short": ("form,about,code\na,b\n", "corpus.csv, line 2: 2 cells, but the header has 3"),
    "one column twice": ("form,about,about\n", "corpus.csv, line 1: column 'about' stands there twice"),
    "empty cell": ("form,about,code\na,b,c\na,,c\n", "corpus.csv, line 3: column 'country' is empty"),
    "open quote": ('form,about,code\n"a,b,c\n', "corpus.csv, line 2: no CSV (unexpected end of data)"),
    "no UTF-8": ("form,about,code\na,b,\udcff\n", "corpus.csv is not UTF-8 (line 2: invalid start byte)"),
    "missing column": ("form,code\na,b\n", "corpus.csv has no column 'about'. its columns are: form, code"),
    "header alone": ("form,about,code\n", "corpus.csv has no prompt"),
}


@pytest.mark.parametrize("what", BAD_CELLS)
def test_bad_cells_are_named(tmp_path: Path, what: str) -> None:
    content, culprit = BAD_CELLS[what]
    (tmp_path / "corpus.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        TextTask(text(path="corpus.csv"), tmp_path)
    assert culprit in str(caught.value), str(caught.value)


@pytest.mark.parametrize("stored", [jsonl, table, cells, saved, copied])
def test_a_path_that_would_be_a_pattern_is_refused(tmp_path: Path, stored: Callable[[Path], str]) -> None:
    """`datasets` would read what the pattern finds: here the neighbour's corpus."""
    for name in ("study[2]", "study2"):
        (tmp_path / name).mkdir()
        path = stored(tmp_path / name)
    task = text(path=path)
    with pytest.raises(InputError, match=r"study\[2\].*takes \*, \? and \[ in a path for a pattern"):
        TextTask(task, tmp_path / "study[2]")
    assert TextTask(task, tmp_path / "study2").universe == len(ROWS)


def test_tables_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    mixed = [{**FLAT[0], "code": 1}, {**FLAT[1], "code": "x"}]
    repository(tmp_path / "mixed", {"default": {"train": mixed}}, "jsonl")
    with pytest.raises(InputError, match="corpus mixed: column 'code' holds values of several types"):
        TextTask(text(path="mixed"), tmp_path)
    Dataset.from_list([{**FLAT[0], "code": None}, FLAT[1]]).save_to_disk(tmp_path / "gap")
    with pytest.raises(InputError, match="corpus gap, line 1: column 'code' is empty"):
        TextTask(text(path="gap"), tmp_path)
    Dataset.from_list([{**FLAT[0], "code": 0.5}]).save_to_disk(tmp_path / "fraction")
    with pytest.raises(InputError, match=r"corpus fraction, line 1: column 'code' holds 0\.5, a float"):
        TextTask(text(path="fraction"), tmp_path)
    saved_splits(tmp_path)
    with pytest.raises(InputError, match=r"corpus corpus cannot be read \(KeyError: 'val'"):
        TextTask(text(path="corpus", split="val"), tmp_path)


# --------------------------------------------------------------------------------------------------------------------- hub


@pytest.mark.parametrize("rows", [None, 5])
def test_the_hub_is_copied_once(tmp_path: Path, asked: list[tuple[Any, ...]], rows: int | None) -> None:
    config = hub(rows=rows, split="test", columns={"country": "about.country"})
    folder = tmp_path / "copy"
    manifest = copy_corpus(config, ["form", "country"], folder, print)
    how = {"revision": REVISION, "split": "test", "streaming": rows is not None}
    assert asked == [("owner/name", "en", how)]
    n = rows or len(ROWS)
    assert manifest["n_rows"] == n and read_json(folder / MANIFEST) == manifest
    assert pq.read_schema(folder / COPY).names == ["form", "about"]
    frame = read_corpus(config, folder / COPY, ["country", "form"])
    assert frame["country"].tolist() == [row["about"] for row in FLAT[:n]] and frame.index.tolist() == [
        *range(1, n + 1)
    ]
    assert len(asked) == 1, "read from the copy"


def test_a_copy_of_something_else_is_refused(tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    path = tmp_path / COPY
    with pytest.raises(InputError, match=r"data set owner/name of the hub \(en, train, .*was not fetched"):
        read_corpus(hub(), path)
    copy_corpus(hub(), ["form"], tmp_path, print)
    for other in ({"revision": REVISION[::-1]}, {"rows": 3}, {"path": "owner/other"}, {"split": "val"}):
        with pytest.raises(InputError, match="was made of another data set than"):
            read_corpus(hub(**other), path)
    for other, wanted in (({}, ["form", "code"]), ({"columns": {"form": "code"}}, ["form"])):
        with pytest.raises(InputError, match=r"was made without the column .* \(code of .*run the rule that"):
            read_corpus(hub(**other), path, wanted)
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    with pytest.raises(InputError, match="is not the file that .* vouches for. run the rule that fetches it"):
        read_corpus(hub(), path)
    path.write_bytes(content.replace(b"capital", b"capitol"))
    with pytest.raises(InputError, match=r"parquet cannot be read \(.*run the rule that fetches it"):
        read_corpus(hub(), path)


def test_a_copy_is_hashed_when_it_is_written_and_not_when_it_is_read(
    tmp_path: Path, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = copy_corpus(hub(), ["form"], tmp_path, print)
    assert manifest["sha256"] == hashlib.sha256((tmp_path / COPY).read_bytes()).hexdigest()
    monkeypatch.delattr("inversescope.tasks.corpus.file_hash")
    assert len(read_corpus(hub(), tmp_path / COPY, ["form"])) == len(ROWS)


def test_a_data_set_that_cannot_be_had_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*what: Any, **how: Any) -> Any:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nand a long story")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(InputError) as caught:
        copy_corpus(hub(), ["form"], tmp_path, print)
    told = str(caught.value)
    assert told.startswith(
        "data set owner/name of the hub (en, train, revision 01234567) cannot be had (ConnectionError"
    )
    assert "source: local" in told and "long story" not in told and not list(tmp_path.iterdir())


def test_what_the_hub_lacks_is_named(
    tmp_path: Path, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="has no column 'city'. its columns are: form, about, code, born"):
        copy_corpus(hub(), ["city"], tmp_path / "copy", print)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    with pytest.raises(InputError, match="has the name of a folder that is here"):
        copy_corpus(hub(), ["form"], tmp_path / "copy", print)


@pytest.mark.parametrize(
    "changes,culprit",
    [
        ({"revision": None}, "source: hub needs a pinned 'revision'"),
        ({"revision": "main"}, "text.revision"),
        ({"path": "parquet"}, "text.path: is no owner/name of a data set on the hub: 'parquet'"),
        ({"path": "../name"}, "text.path: is no owner/name"),
        ({"rows": 0}, "text.rows"),
    ],
)
def test_a_data_set_is_pinned_in_the_configuration(changes: dict[str, Any], culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        parse_config({"text": {"source": "hub", "path": "owner/name", "revision": REVISION, **changes}})


def project(root: Path, **values: Any) -> list[str]:
    (root / "config").mkdir()
    (root / "config/config.yaml").write_text(yaml.safe_dump(default_values(values)))
    return ["--root", str(root), "--config", str(root / "config/config.yaml")]


def test_the_command_fetches_what_the_task_reads(
    tmp_path: Path, asked: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    source = text(columns={"country": "about.country"}, source="hub", path="owner/name", revision=REVISION)
    experiment = {"task": "text", "model": "m", "sites": ["L0.resid_post"], "n_train": 4, "n_test": 1}
    options = project(
        tmp_path,
        only=["e"],
        experiments={"e": experiment},
        models={"m": {"source": "local", "path": "m", "n_layers": 1, "n_heads": 1}},
        text=source.model_dump(mode="json"),
        fcr={"features": ["country"]},
    )
    told = ["--task", "text", "--model", "m", *options]
    assert main(["make_prompts", "--split", "reference", *told]) == 2
    assert "was not fetched" in capsys.readouterr().err
    assert main(["fetch_corpus", *told]) == 0 and "8 rows of data set owner/name" in capsys.readouterr().err
    assert main(["make_prompts", "--split", "reference", *told]) == 0
    drawn = pq.read_table(tmp_path / "data/text/prompts/reference.parquet")["text"].to_pylist()
    assert drawn == TEXTS and len(asked) == 1


# --------------------------------------------------------------------------------------------------- general text, and RAVEL


def test_general_text_is_cut_into_passages(tmp_path: Path) -> None:
    texts = [
        "a b -- c\nd e",
        "\ufeffx y z w",
        "one two three four five six",
        None,
        "no <|endoftext|> token here",
    ]
    Dataset.from_dict({"content": texts}).save_to_disk(tmp_path / "web")
    config = GeneralTextConfig(path="web", words=2, columns={"text": "content"}, n_passages=6)
    found = corpus_passages(config, tmp_path / "web")
    assert found == ["a b", "c d", "z w", "one two", "three four", "five six", "token here"]
    with pytest.raises(
        InputError, match="corpus web has 7 passages of 2 words. raise rows or lower n_passages"
    ):
        corpus_passages(config.model_copy(update={"n_passages": 8}), tmp_path / "web")


def as_on_the_hub(folder: Path, tables: dict[str, dict[str, Any]]) -> Path:
    """Fact tables as RAVEL's copy on the hub has them, with an entity's name in a column of another name, and prompts about one."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind, parts in tables.items():
        entities, prompts = found.setdefault(f"{kind}_entity", {}), found.setdefault(f"{kind}_prompt", {})
        for number, (name, values) in enumerate(parts["entity_attributes"].items()):
            about = {
                "ID": f"{number}",
                kind.title(): name,
                "URL": None,
                **{a: v or None for a, v in values.items()},
            }
            entities.setdefault(parts["entity_to_split"][name], []).append(about)
        for attribute, templates in parts["attribute_to_prompts"].items():
            for template in templates:
                about = {"Template": template, "Attribute": attribute, "Source": "RAVEL", "Entity": None}
                prompts.setdefault(parts["prompt_to_split"][template], []).append(about)
        other = {"Template": "About %s", "Attribute": None, "Source": "Wikipedia", "Entity": name}
        prompts["train"].append(other)
    return repository(folder, found)


def sorted_tables(folder: Path) -> list[Any]:
    return [
        (
            table.kind,
            {name: dict(sorted(values.items())) for name, values in sorted(table.facts.items())},
            sorted(table.split.items()),
            sorted((t.attribute, t.text, t.split) for t in table.templates),
        )
        for table in read_tables(folder)
    ]


def test_ravel_of_the_hub_is_that_of_the_archive(tmp_path: Path) -> None:
    tables = {"river": TABLES["river"], "verb": TABLES["verb"]}
    as_on_the_hub(tmp_path / "copy", tables)
    copy = CorpusConfig(path="copy")
    manifest = copy_tables(tmp_path / SOURCE, copy, tmp_path)
    fetch_tables(tmp_path / "archive", write_tables(tmp_path / "mirror", tables))
    assert sorted_tables(tmp_path / SOURCE) == sorted_tables(tmp_path / "archive")
    assert manifest["origin"] == "copy" and not manifest["ambiguous_entities"]
    assert manifest["ambiguous_templates"] == {"of %s, one": ["river:Continent", "river:Length"]}
    assert list(copy_tables(tmp_path / SOURCE, copy, tmp_path, ["verb"])["types"]) == ["verb"]
    with pytest.raises(InputError, match="copy has no entity type 'city'. it has river, verb"):
        copy_tables(tmp_path / SOURCE, copy, tmp_path, ["city"])


@upstream
def test_upstreams_tables_come_back_from_the_hubs_form(tmp_path: Path) -> None:
    kind = "physical_object"
    parts = ("entity_attributes", "attribute_to_prompts", "entity_to_split", "prompt_to_split")
    tables = {kind: {part: read_json(MIRROR / f"ravel_{kind}_{part}.json") for part in parts}}
    as_on_the_hub(tmp_path / "copy", tables)
    copy_tables(tmp_path / SOURCE, CorpusConfig(path="copy"), tmp_path)
    fetch_tables(tmp_path / "archive", MIRROR, types=[kind])
    assert sorted_tables(tmp_path / SOURCE) == sorted_tables(tmp_path / "archive")


def test_names_of_several_entities_are_left_out(tmp_path: Path) -> None:
    as_on_the_hub(tmp_path / "copy", {"verb": TABLES["verb"]})
    more = [
        {"ID": "9", "Verb": "go", "URL": None, "Past": "goed"},
        {"ID": "8", "Verb": "eat", "URL": None, "Past": "ate"},
    ]
    place = tmp_path / "copy/verb_entity/val.parquet"
    pq.write_table(
        pa.concat_tables([pq.read_table(place), pa.Table.from_pylist(more)], promote_options="default"), place
    )
    manifest = copy_tables(tmp_path / SOURCE, CorpusConfig(path="copy"), tmp_path)
    assert manifest["ambiguous_entities"] == ["verb:go"]
    assert set(read_tables(tmp_path / SOURCE)[0].facts) == {"see", "eat"}


def test_a_column_of_names_that_is_not_clear_is_asked_for(tmp_path: Path) -> None:
    as_on_the_hub(tmp_path / "copy", {"verb": TABLES["verb"]})
    for place in (tmp_path / "copy/verb_entity").iterdir():
        table = pq.read_table(place)
        pq.write_table(table.append_column("Lemma", table["Verb"]), place)
    with pytest.raises(
        InputError, match=r"Verb, Lemma may be the name of the verb. .*ravel\.hub\.columns: {verb: COLUMN}"
    ):
        copy_tables(tmp_path / SOURCE, CorpusConfig(path="copy"), tmp_path)
    copy_tables(tmp_path / SOURCE, CorpusConfig(path="copy", columns={"verb": "Lemma"}), tmp_path)
    assert set(read_tables(tmp_path / SOURCE)[0].facts) == {"go", "see", "eat"}
