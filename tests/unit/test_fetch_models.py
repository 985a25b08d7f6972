"""What jobs read from the hub beside the target is brought there beforehand, by name and pinned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import BASE, MODEL

from inversescope.config import load_config, merge, parse_config
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.store import read_json
from inversescope.targets import sources
from inversescope.targets.stages import fetch_models
from inversescope.workflow.plan import MODEL_FILES, ExperimentPlan

ROOT = Path(__file__).parents[2]
REVISION = "0" * 40
HUB = {"init": "hub", "path": "some/gpt2", "revision": REVISION}


def plan_of(name: str, *files: str) -> ExperimentPlan:
    whole = load_config([ROOT / "config" / file for file in ("config.yaml", *files)])
    one = whole.experiments[name]
    return ExperimentPlan(whole.of(one.task, one.model), one.task, one.model)


def test_what_the_papers_studies_read_from_the_hub() -> None:
    gpt2, chat = "openai-community/gpt2", "google/gemma-2-2b-it"
    ioi, icl = (plan_of(name, "paper.yaml") for name in ("ioi", "icl_gemma2"))
    assert [path for path, _, _ in ioi.from_hub] == [gpt2], "nobody labels tasks of IOI"
    assert [path for path, _, _ in icl.from_hub] == [gpt2, chat]
    assert icl.fetched == ["data/icl_translation/gemma-2-2b/fetched.json"]
    ravel = plan_of("ravel_2b", "paper.yaml", "paper_ravel.yaml")
    assert [path for path, _, _ in ravel.from_hub] == [gpt2], "autoencoders have a stage of their own"
    assert plan_of("ioi_smollm2").fetched == []


def test_a_model_that_proposes_hypotheses_is_fetched_too(tmp_path: Path) -> None:
    chat = {"source": "hub", "path": "some/chat", "revision": REVISION}
    config = parse_config(merge(BASE, {"hypotheses": {"proposer": chat}})).of("ioi", MODEL)
    assert ExperimentPlan(config, "ioi", MODEL).from_hub == [("some/chat", REVISION, MODEL_FILES)]


def context(root: Path, backbone: dict[str, Any]) -> Context:
    config = parse_config(merge(BASE, {"backbone": backbone})).of("ioi", MODEL)
    return Context(root, config, "ioi", MODEL)


def test_files_are_fetched_at_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def snapshot_download(path: str, *, revision: str, allow_patterns: list[str]) -> None:
        asked.append((path, revision, allow_patterns))

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    one = context(tmp_path, HUB)
    fetch_models(one)
    assert asked == [("some/gpt2", REVISION, MODEL_FILES)]
    (told,) = read_json(tmp_path / one.plan.fetched[0])
    assert told == {"path": "some/gpt2", "revision": REVISION, "files": MODEL_FILES}


def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    one = context(tmp_path, HUB)
    with pytest.raises(
        InputError, match=r"some/gpt2 at revision 0+ cannot be loaded .*no route.*source: local"
    ):
        fetch_models(one)
    assert not (tmp_path / one.plan.fetched[0]).exists()
