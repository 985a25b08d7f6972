"""docs/results.md: headline numbers of all studies on one page, from the tables in docs/results. `make adopt` writes it."""

from __future__ import annotations

from pathlib import Path

from inversescope.workflow.figures import registered

PAGE, TABLES = Path("docs/results.md"), Path("docs/results/tables")
#: Task -> its study in words, and the pages that say what was found.
STUDIES = {
    "ioi_small": ("Indirect object identification on a language model", ("ioi.md", "variants.md")),
    "ravel": ("RAVEL", ("ravel.md",)),
    "icl_words": ("In-context learning on a language model", ("icl.md",)),
    "ioi": ("Indirect object identification", ("ioi.md", "variants.md", "frontier.md")),
    "icl_translation": ("In-context learning", ("icl.md",)),
    "counting": ("Counting", ("counting.md",)),
    "addition": ("Addition", ("counting.md",)),
}
INTRODUCTION = """# Results

Headline numbers of all studies, as the workflow wrote them. `make adopt` makes this page from
[docs/results/tables](results/tables). Values in brackets are 95% intervals. Terms are defined in
[method.md](method.md).
"""


def results_page(root: Path) -> str:
    """The page, in Markdown: for each task that was adopted, each table of headline numbers under its title."""
    titles = {one.name: one.title for one in registered() if one.name.endswith("headline")}
    parts = [INTRODUCTION]
    for task, (words, pages) in STUDIES.items():
        longer = tuple(f"{other}_" for other in STUDIES if other.startswith(f"{task}_"))
        found = (root / TABLES).glob(f"{task}_*headline.md")
        files = [file for file in found if not file.name.startswith(longer)]
        files.sort(key=lambda file: (len(file.name), file.name))
        if files:
            links = ", ".join(f"[{page}]({page})" for page in pages)
            parts.append(f"## {words}\n\nWhat was found: {links}.\n")
        for file in files:
            name = max((name for name in titles if file.stem.endswith(f"_{name}")), key=len)
            model = file.stem.removeprefix(task).removesuffix(name).strip("_")
            parts.append(
                f"### {titles[name]}{f': {model}' if model else ''}\n\n{file.read_text(encoding='utf-8')}"
            )
    return "\n".join(parts)


def write_results(root: Path) -> None:
    """Write the page to docs/results.md below the repository's root."""
    (root / PAGE).write_text(results_page(root), encoding="utf-8")
