"""The page of the other studies, from the tables in tests/data and the pictures in docs/results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inversescope.config import Config, load_config
from inversescope.errors import InputError
from inversescope.report.pages import ABOUT, studies, write_studies
from inversescope.store import read_table
from inversescope.studies.cases.figures import CASE_FIGURES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(ROOT / "tests/data/results", root / "results")
    shutil.copytree(ROOT / "docs/results/figures", root / "results/figures")
    config = load_config([ROOT / "config/config.yaml"])
    write_studies(root, config)
    return root, config


def test_every_study_has_its_numbers_and_its_figures(page: tuple[Path, Config]) -> None:
    root, config = page
    text = (root / "results/studies.html").read_text()
    sections = list(studies(root, config))
    assert (
        {study.task for study in sections}
        == set(ABOUT)
        == {e.task for e in config.experiments.values()} - {"ioi"}
    )
    for study in sections:
        assert f'<h2 id="{study.name}">' in text and study.lines
    assert text.count('src="data:image/png;base64,') == sum(len(study.figures) for study in sections)
    assert "<script" not in text and 'src="http' not in text
    headline = read_table(root / "results/tables/studies_headline.csv")
    assert len(headline) == sum(len(study.lines) for study in sections)


def test_a_figure_that_is_not_there_names_what_makes_it(page: tuple[Path, Config]) -> None:
    root, config = page
    for name in CASE_FIGURES:
        (root / f"results/figures/addition_addition-embedded_{name}.png").unlink()
    write_studies(root, config)
    assert (root / "results/studies.html").read_text().count("snakemake --cores 2 -- addition") == len(
        CASE_FIGURES
    )


def test_a_study_that_was_not_run_is_named(page: tuple[Path, Config]) -> None:
    root, config = page
    (root / "results/ravel/scores.csv").unlink()
    with pytest.raises(InputError, match=r"scores\.csv does not exist"):
        write_studies(root, config)
