"""Prompts of a split: the target prompt that an experiment names."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import BASE, run, write_config

from inversescope.config import load_config, parse_config
from inversescope.context import Context
from inversescope.prompts.stages import make_prompts
from inversescope.store import read_table

CONFIG = Path(__file__).parents[2] / "config"
TEST, TRAIN = Path("data/ioi/prompts/test.parquet"), Path("data/ioi/prompts/train.parquet")


def test_a_named_prompt_is_the_first_target_and_not_cached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Context(tmp_path, parse_config(BASE).of("ioi", "tiny"), "ioi", "tiny").task
    drawn = {}
    for prompt in (None, task.texts([5])[0], "No such prompt"):
        write_config(tmp_path, {"experiments": {"ioi": {"prompt": prompt}}})
        told = [run(tmp_path, "make_prompts", "--split", split) for split in ("test", "train")]
        if told == [0, 0]:
            drawn[prompt] = [read_table(tmp_path / file)["prompt_id"].tolist() for file in (TEST, TRAIN)]
    (before, _), (after, cached) = drawn.values()
    assert after == [5, *(one for one in before if one != 5)][: len(before)] and 5 not in cached
    assert told == [2, 2]
    assert "experiments.ioi.prompt is not in the prior of ioi: 'No such prompt'" in capsys.readouterr().err


def test_the_papers_prompt_is_in_the_papers_prior(tmp_path: Path) -> None:
    config = load_config([CONFIG / "config.yaml", CONFIG / "paper.yaml"]).of("ioi", "gpt2")
    context = Context(tmp_path, config, "ioi", "gpt2")
    make_prompts(context, "test")
    first = read_table(context.prompts_path("test")).iloc[0]
    assert first["text"] == context.plan.settings.prompt
    assert (first["feature_subject"], first["feature_object"]) == ("Mary", "John")
