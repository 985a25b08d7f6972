"""The page of the other studies, from the headline numbers and pictures of the last full run (docs/results)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from inversescope.config import Config, merge, parse_config
from inversescope.config.load import read_layers
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.figures.headline import by_section, headline_files, read_headlines
from inversescope.report.page import ABOUT, make_studies, sections
from inversescope.tasks import TASKS
from inversescope.workflow.figures import all_of, planned
from inversescope.workflow.plan import Plan

ROOT = Path(__file__).parents[2]


def make(root: Path, config: Config) -> None:
    make_studies(Context(root, config, "addition", "addition-embedded"))


@pytest.fixture
def page(tmp_path: Path) -> tuple[Path, Config]:
    shutil.copytree(ROOT / "docs/results", tmp_path / "results")
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    adopted = [name.partition("@")[2] for name in stages if name.startswith("experiment@")]
    config = parse_config(merge(read_layers([ROOT / "config/config.yaml"]), {"only": adopted}))
    make(tmp_path, config)
    return tmp_path, config


def test_every_study_has_its_numbers_and_its_figures(page: tuple[Path, Config]) -> None:
    root, config = page
    text = (root / "results/studies.html").read_text()
    shown = sections(config)
    assert set(ABOUT) == set(TASKS)
    reported = Plan(config).reported
    assert reported is not None
    assert {s.experiment.task for s in shown} == {e.task for e in config.experiments.values()} - {
        reported.task
    }
    for section in shown:
        assert f'<h2 id="{section.name}">' in text
        numbers = read_headlines(headline_files(root, section.prefix, all_of(section.experiment)))
        assert numbers is not None and len(numbers) > 20
        for title in by_section(numbers):
            assert title.replace("&", "&amp;").replace("'", "&#39;") in text
    # A figure that is newer than the adopted run is named with the rule that draws it.
    pictures = [figure for section in shown for figure in section.filled(root)["figures"]]
    assert text.count('src="data:image/png;base64,') == sum(one["image"] is not None for one in pictures) > 10
    assert "<script" not in text and 'src="http' not in text and "goal" not in text


def test_a_figure_that_is_not_there_names_what_makes_it(page: tuple[Path, Config]) -> None:
    root, config = page
    own = Plan(config)["addition", "addition-embedded"]
    names = [one.name for one in planned("plot_cases", own) if one.kind == "figure"]
    before = (root / "results/studies.html").read_text().count("rule plot_cases")
    for name in names:
        (root / f"results/figures/addition_addition-embedded_{name}.png").unlink()
    make(root, config)
    assert (root / "results/studies.html").read_text().count("rule plot_cases") - before == len(names) == 3


def test_a_study_that_was_not_run_is_named(page: tuple[Path, Config]) -> None:
    root, config = page
    (root / "results/tables/ravel_headline.csv").unlink()
    with pytest.raises(InputError, match=r"ravel_headline\.csv does not exist\. Run plot_ravel"):
        make(root, config)
