"""The page of all studies but that of indirect object identification: headline numbers and figures, one section a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from inversescope.config import Config
from inversescope.report.lines import Line
from inversescope.report.page import by_section, caption, picture, write_headline, write_page
from inversescope.studies.cases.figures import ANSWER_FIGURES, CASE_FIGURES, CAUSE_FIGURES
from inversescope.studies.cases.headline import case_lines, with_published
from inversescope.studies.ioi.headline import HEADLINES
from inversescope.studies.ravel.figures import FIGURES as RAVEL_FIGURES
from inversescope.studies.ravel.headline import headline as headline_ravel

ABOUT = {
    "ravel": "Sections 4.2, D.2 and E.3 of the paper: which attribute of an entity does the residual stream encode? docs/ravel.md",
    "icl_translation": "Sections 4.3, D.3 and E.4 of the paper: where the task and the query enter. docs/icl.md",
    "counting": "InversionView's case study: how often does a letter occur? docs/counting.md",
    "addition": "InversionView's case study: three-digit addition. docs/counting.md",
}
TASK_VECTORS = {"task_vectors": "Figures 7 and 11: task and query by layer, and patching"}


@dataclass
class Study:
    """A section of the page: its numbers, and figures by the stem of their file, with title and caption's name."""

    name: str
    title: str
    task: str
    lines: list[Line]
    figures: dict[str, tuple[str, str]] = field(default_factory=dict)


def studies(root: Path, config: Config) -> Iterator[Study]:
    """All studies of the configuration that have a section, and the published counting model where it was run.

    Args:
        root: repository root.
        config: the whole configuration, not as one experiment sees it.

    Raises:
        InputError: a table is missing; the message names what makes it.
    """
    experiments: list[tuple[str, str]] = [(e.task, e.model) for e in config.experiments.values()]
    if any(task == "ravel" for task, _ in experiments):
        figures = {f"ravel_{name}": (title, f"ravel_{name}") for name, title in RAVEL_FIGURES.items()}
        yield Study("ravel", "RAVEL, all targets", "ravel", headline_ravel(root, config), figures)
    for task, model in experiments:
        if task != "icl_translation":
            continue
        lines = HEADLINES[task](root, config.of(task, model), task, model)
        if lines:  # a control is shown beside another model
            stem = f"{task}_{model}"
            figures = {f"{stem}_{name}": (title, name) for name, title in TASK_VECTORS.items()}
            yield Study(stem, f"In-context learning: {model}", task, lines, figures)
    for (task, model), whole in with_published(root, config).items():
        known = (task, model) in experiments
        if task in ("counting", "addition") and (known or (root / "results" / task / model).exists()):
            stem = f"{task}_{model}"
            lines = case_lines(root, whole.of(task, model), task, model)
            drawn = CASE_FIGURES | CAUSE_FIGURES | (ANSWER_FIGURES if task == "addition" else {})
            figures = {f"{stem}_{name}": (title, name) for name, title in drawn.items()}
            yield Study(stem, f"{task.capitalize()}: {model}", task, lines, figures)


def write_studies(root: Path, config: Config) -> list[Path]:
    """Write results/studies.html, which needs no other file, and results/tables/studies_headline.{csv,md}.

    Raises:
        InputError: a table is missing.
    """
    results = root / "results"
    sections, lines = [], []
    for study in studies(root, config):
        pictures = [
            picture(
                results / "figures" / f"{stem}.png",
                title,
                caption(about, config),
                f"snakemake --cores 2 -- {study.task}",
            )
            for stem, (title, about) in study.figures.items()
        ]
        sections.append(
            {
                "name": study.name,
                "title": study.title,
                "about": ABOUT[study.task],
                "headline": by_section(study.lines),
                "figures": pictures,
            }
        )
        lines += [
            Line(f"{study.title}: {x.section}", x.what, x.value, x.goal, x.verdict, x.paper)
            for x in study.lines
        ]
    page = write_page(results / "studies.html", title="all other studies", studies=sections, seed=config.seed)
    return [page, *write_headline(lines, results / "tables" / "studies_headline")]
