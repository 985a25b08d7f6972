"""README and docs: short plain sentences, links that lead somewhere, numbers that stand in a table, names that exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inversescope.config import load_config, tasks
from inversescope.figures.save import markdown_table
from inversescope.report.results import PAGE, results_page
from inversescope.workflow.figures import of_the_paper
from inversescope.workflow.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NUMBER = re.compile(r"\d*\.?\d+(?:e-?\d+)?")
#: What a text quotes: a value with its interval, or a decimal number.
QUOTED = re.compile(r"\d*\.?\d+ \[[-+]?\d*\.?\d+, [-+]?\d*\.?\d+\]|\d*\.\d+")
SITE = re.compile(r"\bL\d+(?:H\d+|\.\w+)")


def name(page: Path) -> str:
    """What a failing page is called."""
    return str(page.relative_to(ROOT))


def sentences(markdown: str) -> list[str]:
    """The sentences of a page, without code, tables, headings, pictures and comments."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", markdown, flags=re.S)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "Code", text)
    text = re.sub(r"^ *(\||#).*$", "", text, flags=re.M)
    text = re.sub(r"^ *(?:[-*]|\d+\.) ", "\n\n", text, flags=re.M)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.replace("**", "").split())
        found += [s for s in re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"”)])\s+", flat) if re.search(r"\w", s)]
    return found


def words(sentence: str) -> int:
    """How many words a sentence has."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_sentences_are_short(page: Path) -> None:
    """At most 20 words on average, and none over 30."""
    lengths = {sentence: words(sentence) for sentence in sentences(page.read_text())}
    longest = max(lengths, key=lengths.__getitem__)
    assert lengths[longest] <= 30, longest
    assert sum(lengths.values()) <= 20 * len(lengths)


def test_the_readme_is_short() -> None:
    """At most 135 lines and 1,500 words."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 135
    assert len(text.split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files of the repository are there; a heading that is named is on its page."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M)
            assert heading in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, link


def cited(text: str, folder: Path) -> list[Path]:
    """The CSV tables of docs/results that a text links."""
    return [folder / link for link in re.findall(r"\]\(([^)\s]*results/[^)\s]*csv)\)", text)]


@functools.cache
def numbers(tables: tuple[Path, ...]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Lines of tables, and all numbers in them: the line of each, and its value."""
    lines = [line for table in tables for line in table.read_text().splitlines()]
    found = [(at, float(n)) for at, line in enumerate(lines) for n in NUMBER.findall(line)]
    return lines, *np.array(found).reshape(-1, 2).T


def unwritten(text: str, tables: list[Path]) -> list[str]:
    """Decimal numbers of a text that the tables do not hold, rounded to as many places and without their sign.

    A value and its interval must stand in one line. Where lines name a site or a `name` of the sentence, they alone count.
    """
    lines, where, values = numbers(tuple(tables))
    missing = []
    for sentence in re.split(r"(?<=[.;:])\s", re.sub(r"\]\([^)]*\)", "", text)):
        counted = set(range(len(lines)))
        for names in (SITE.findall(sentence), re.findall(r"`([a-z]\w*)`", sentence)):
            word = re.compile(rf"\b(?:{'|'.join(names)})\b")
            counted = {at for at in counted if names and word.search(lines[at])} or counted
        for quoted in QUOTED.findall(sentence):
            slack = {n: 0.5 * 10.0 ** -(len(n.partition(".")[2]) or 3) + 1e-9 for n in NUMBER.findall(quoted)}
            at = [set(where[np.abs(values - float(n)) <= within]) for n, within in slack.items()]
            if not counted.intersection(*at):
                missing.append(quoted)
    return missing


def test_a_number_is_looked_for_where_its_sentence_says(tmp_path: Path) -> None:
    """Another site's number, another variant's, and an interval of another line are not it."""
    table = tmp_path / "table.csv"
    table.write_text("L1H0,paper,0.5,0.41,0.6\nL1H1,paper,0.7,0.61,0.8\nL1H1,default,0.9,0.81,1\n")
    text = "L1H0 has 0.5 [0.41, 0.60]; `default` has 0.90. At L1H1 it is -0.7 for `paper`."
    assert unwritten(text, [table]) == []
    wrong = "L1H0 has 0.7; `default` has 0.61. Some have 0.5 [0.41, 0.8], or 0.55."
    assert unwritten(wrong, [table]) == ["0.7", "0.61", "0.5 [0.41, 0.8]", "0.55"]


def test_findings_quote_numbers_that_a_rule_wrote() -> None:
    """Each number of a finding stands in the table that its row links."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"\| \d ", line)]
    assert len(rows) == 5
    for row in rows:
        tables = cited(row, ROOT)
        assert tables and QUOTED.search(row) and not unwritten(row, tables), row


def test_claims_quote_numbers_that_a_rule_wrote() -> None:
    """Each number that was measured stands in a table that its row links; what was not run has none; each row has a command."""
    page = (ROOT / "docs/claims.md").read_text()
    rows = re.findall(r"^\| (.*) \| (.*) \| (.*) \| (.*) \| `(.*)` \|$", page, flags=re.M)
    assert len(rows) > 30
    verdicts = {"holds", "in part", "fails", "not shown", "not run"}
    for _, claim, measured, verdict, command in rows:
        tables = cited(measured, ROOT / "docs")
        assert verdict.partition(":")[0].partition(";")[0] in verdicts, claim
        assert (verdict == "not run") == (not tables) == (not QUOTED.search(measured)), claim
        assert not unwritten(measured, tables), (claim, unwritten(measured, tables))
        assert command.startswith(("make ", "snakemake ")), claim


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent.name == "docs" and p.stem != "claims"], ids=name
)
def test_sections_quote_numbers_that_a_rule_wrote(page: Path) -> None:
    """Each number of a paragraph, list or table stands in the tables that it links; without links, in those of its section."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(), flags=re.S)
    for section in re.split(r"^(?=#+ )", text, flags=re.M):
        for block in re.split(r"\n\s*\n|\n(?=- )", section):
            rows = block.splitlines() if block.startswith("|") else [block]
            for row in rows:
                tables = cited(row, page.parent) or cited(section, page.parent)
                assert not tables or not unwritten(row, tables), (unwritten(row, tables), row)


def test_the_results_are_those_of_the_adopted_run() -> None:
    """`make adopt` writes docs/results.md; so does `inversescope.report.results.write_results`."""
    assert (ROOT / PAGE).read_text() == results_page(ROOT)


def test_the_goals_are_judged_by_the_adopted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m bench.goals --results docs/results` prints the table of bench/README.md."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.goals import judged

    assert markdown_table(judged(ROOT / "docs/results")) in (ROOT / "bench/README.md").read_text()


def names_of(source: Path) -> set[str]:
    """Functions, classes, their methods and constants that a module defines."""
    found: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{m.name}" for m in ast.walk(node) if isinstance(m, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def test_the_map_of_the_paper_names_what_exists() -> None:
    """The file of each row exists and defines what the next column names."""
    page = (ROOT / "docs/paper-map.md").read_text()
    rows = re.findall(r"^\|.*?`([\w./-]+\.(?:py|yaml))` \|(.*)$", page, flags=re.M)
    assert len(rows) > 60
    for path, named in rows:
        file = next((f for f in (ROOT / "src/inversescope" / path, ROOT / path) if f.exists()), None)
        assert file is not None, path
        if file.suffix == ".py":
            missing = set(re.findall(r"`([\w.]+)`", named)) - names_of(file)
            assert not missing, (path, missing)


def test_the_map_has_a_row_for_each_figure_and_table_of_the_paper() -> None:
    """Configuration, target and files are those of the plan; what the paper has no data for is named too."""
    page = (ROOT / "docs/paper-map.md").read_text()
    rows = re.findall(
        r"^\| (Figure|Table) (\d+) \| `(config/\w+.yaml)` \| `(\w+)` \| (.*) \|$", page, flags=re.M
    )
    found = {(file, target): set(re.findall(r"`([^`]+)`", names)) for _, _, file, target, names in rows}
    assert all(target == f"{kind.lower()}_{number}" for kind, number, _, target, _ in rows)
    planned = {
        (file, target): {Path(name).stem for name in files}
        for file in ("config/paper.yaml", "config/paper_ravel.yaml")
        for target, files in of_the_paper(
            Plan(load_config([ROOT / "config/config.yaml", ROOT / file]))
        ).items()
    }
    assert found == planned
    without = {int(n) for n in re.findall(r"^\| Figure (\d+) \| .*: no data \|", page, flags=re.M)}
    assert without == {1, 3}
    assert without | {int(n) for kind, n, *_ in rows if kind == "Figure"} == set(range(1, 12))
    assert {int(n) for kind, n, *_ in rows if kind == "Table"} == {1, 2}


def test_the_example_of_a_task_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task in docs/extending.md: parsing reverses writing, splits are apart, moves can be taken back."""
    page = (ROOT / "docs/extending.md").read_text()
    code = re.search(r"```python\n(.*?class \w+\(Task\).*?)```", page, flags=re.S)
    assert code is not None
    added = re.search(r"^\+\+\+ \S*/config/tasks.py\n(.*?)^\+\+\+", page, flags=re.M | re.S)
    assert added is not None
    settings = "".join(re.findall(r"^\+(.*\n)", added[1], flags=re.M))
    names: dict[str, Any] = {**vars(tasks)}
    exec(settings[settings.index("class ") :], names)
    monkeypatch.setattr(tasks, "ColoursConfig", names["ColoursConfig"], raising=False)
    exec(code[1], names)
    task = names["ColoursTask"](names["ColoursConfig"](n_colours=4))
    assert set(task.features) == set(task.features_of(np.arange(1)))
    index = np.arange(task.size)
    assert (task.parse(task.texts(index)) == index).all() and task.parse(["The red cat"]) == -1
    assert sorted(np.concatenate(list(task.split_rows.values()))) == index.tolist()
    assert {" " + answer for answer in task.answers(index)} < set(task.words())
    for kind, count in enumerate(task.move_counts):
        reached = [task.move(index, np.full(task.size, kind), np.full(task.size, v)) for v in range(count)]
        assert all(sorted(to) == index.tolist() and (to != index).all() for to in reached)
